//! `templates:`: stages with holes. A stage that uses one is the template's body with its args put in and its own keys laid over.
//!
//! This happens on the trees of the file, before a stage is read: nothing after it knows of templates.

use super::reader::Reader;
use super::{STAGE_KEYS, is_name};
use crate::problem::{Problem, Span, Spanned};
use crate::source::{Data, Key, Node, Scalar};
use crate::template::{Piece, plain, split};

/// One entry of `templates:`.
pub struct Template {
    name: String,
    span: Span,
    /// `args:`, by name: the default, or nothing for an arg that must be given.
    args: Vec<(Key, Node)>,
    /// All other keys.
    body: Vec<(Key, Node)>,
}

type Entries = Vec<(Key, Node)>;

impl Reader {
    /// Takes the templates of the file in.
    pub fn templates(&mut self, node: Node) {
        for (key, node) in self.named_map(node, "templates") {
            let mut template = Template { name: key.name.to_string(), span: key.span, args: Entries::new(), body: Entries::new() };
            for (field, value) in self.map(node, &format!("template `{}`", key.name)) {
                match field.name.as_str() {
                    "args" => template.args = self.named_map(value, "args").into_vec(),
                    "template" => self
                        .problems
                        .push(Problem::new("templates::nested", "a template cannot use another one").at(field.span, "not allowed here")),
                    name if STAGE_KEYS.contains(&name) => template.body.push((field, value)),
                    _ => self.unknown_key(&field, "a template", &STAGE_KEYS),
                }
            }
            self.templates.push(template);
        }
    }

    /// The entries of a stage, with those of its template.
    pub fn templated(&mut self, stage: &Key, mut entries: Entries) -> Option<Entries> {
        let mut take = |name: &str| entries.iter().position(|(key, _)| key.name == name).map(|at| entries.remove(at));
        let (used, args) = (take("template"), take("args"));
        let Some((_, used)) = used else {
            if let Some((key, _)) = args {
                self.misplaced(Some(key.span), "args", "template");
            }
            return Some(entries);
        };
        let name = self.text(&used, "template")?;
        let given = args.map(|(_, node)| self.named_map(node, "args").into_vec()).unwrap_or_default();
        let Some(template) = self.templates.iter().find(|template| template.name == name.value) else {
            self.unknown_template(&name);
            return None;
        };
        let args = match arguments(template, stage, given) {
            Ok(args) => args,
            Err(problems) => {
                problems.into_iter().for_each(|problem| self.problems.push(problem));
                return None;
            }
        };
        let mut body = template.body.clone();
        if let Err(problem) = body.iter_mut().try_for_each(|(_, node)| put_in(node, &args)) {
            self.problems.push(problem);
            return None;
        }
        lay_over(&mut body, entries);
        Some(body)
    }

    fn unknown_template(&mut self, name: &Spanned<String>) {
        let problem =
            Problem::new("templates::unknown", format!("there is no template `{}`", name.value)).at(name.span, "unknown template");
        self.problems.push(if self.templates.is_empty() {
            problem.help(format!("declare it at the top of the file: `templates: {{ {}: {{ … }} }}`", name.value))
        } else {
            problem.nearest(&name.value, self.templates.iter().map(|template| template.name.as_str()))
        });
    }
}

/// The value of every arg of the template.
fn arguments(template: &Template, stage: &Key, given: Entries) -> Result<Entries, Vec<Problem>> {
    let mut problems = Vec::new();
    for (key, _) in given.iter().filter(|(key, _)| !template.args.iter().any(|(arg, _)| arg.name == key.name)) {
        let problem = Problem::new("templates::unknown-arg", format!("the template `{}` has no arg `{}`", template.name, key.name))
            .at(key.span, "unknown arg");
        problems.push(if template.args.is_empty() {
            problem.help(format!("declare it in the template: `args: {{ {}: }}`", key.name))
        } else {
            problem.nearest(&key.name, template.args.iter().map(|(arg, _)| arg.name.as_str()))
        });
    }
    let mut args = Vec::with_capacity(template.args.len());
    for (arg, default) in &template.args {
        let value = given.iter().find(|(key, _)| key.name == arg.name).map_or(default, |(_, node)| node);
        if value.is_null() && !given.iter().any(|(key, _)| key.name == arg.name) {
            problems.push(
                Problem::new("templates::missing-arg", format!("the template `{}` needs the arg `{}`", template.name, arg.name))
                    .at(stage.span, "not given by this stage")
                    .at(template.span, "the template")
                    .help(format!("add `args: {{ {}: … }}`", arg.name)),
            );
        }
        args.push((arg.clone(), value.clone()));
    }
    if problems.is_empty() { Ok(args) } else { Err(problems) }
}

/// Puts the args where their names stand; all other names are left for later.
fn put_in(node: &mut Node, args: &[(Key, Node)]) -> Result<(), Problem> {
    match &mut node.data {
        Data::List(items) => items.iter_mut().try_for_each(|item| put_in(item, args)),
        Data::Map(entries) => entries.iter_mut().try_for_each(|(_, child)| put_in(child, args)),
        Data::Scalar(Scalar::Text(text)) => {
            // What cannot be split is complained about when the value is filled in.
            let Ok(pieces) = split(text) else { return Ok(()) };
            if let [Piece::Name(name)] = pieces.as_slice() {
                if let Some(value) = argument(args, name) {
                    *node = value.clone();
                }
                return Ok(());
            }
            let filled = filled(&pieces, args, node.span)?;
            node.data = Data::Scalar(Scalar::Text(filled.into()));
            Ok(())
        }
        Data::Scalar(_) => Ok(()),
    }
}

fn filled(pieces: &[Piece<'_>], args: &[(Key, Node)], span: Span) -> Result<String, Problem> {
    let mut out = String::new();
    for piece in pieces {
        match piece {
            Piece::Text("${") => out.push_str("$${"),
            Piece::Text(text) => out.push_str(text),
            Piece::Name(name) => match argument(args, name).map(|node| &node.data) {
                Some(Data::Scalar(value)) => out.push_str(&plain(&value.to_value())),
                Some(_) => {
                    return Err(Problem::new("template::not-text", format!("the arg `{name}` is no text and cannot stand inside text"))
                        .at(span, "in this text"));
                }
                None => out.push_str(&format!("${{{name}}}")),
            },
        }
    }
    Ok(out)
}

/// The value of `name` or `name.path`, if that is an arg.
fn argument<'n>(args: &'n [(Key, Node)], name: &str) -> Option<&'n Node> {
    let mut parts = name.split('.');
    let head = parts.next()?;
    let mut node = args.iter().find(|(key, _)| key.name == head).map(|(_, node)| node)?;
    for part in parts.filter(|part| is_name(part)) {
        let Data::Map(entries) = &node.data else { return None };
        node = entries.iter().find(|(key, _)| key.name == part).map(|(_, node)| node)?;
    }
    Some(node)
}

/// Lays entries over others: a map goes over a map entry by entry, anything else takes the place of what was there.
fn lay_over(below: &mut Entries, above: Entries) {
    for (key, node) in above {
        match below.iter_mut().find(|(other, _)| other.name == key.name) {
            Some((other, Node { data: Data::Map(inner), .. })) if matches!(node.data, Data::Map(_)) => {
                *other = key;
                if let Data::Map(own) = node.data {
                    let mut below = std::mem::take(inner).into_vec();
                    lay_over(&mut below, own.into_vec());
                    *inner = below.into();
                }
            }
            Some(entry) => *entry = (key, node),
            None => below.push((key, node)),
        }
    }
}
