//! One stage.

use super::reader::Reader;
use super::{ActionSpec, MatrixSpec, RunSpec, STAGE_KEYS, StageSpec, UsesSpec};
use crate::problem::{Problem, Span, Spanned};
use crate::source::{Data, Entries, Key, Node};

/// What was written under one stage, each with the place of its key where that matters.
#[derive(Default)]
struct Fields {
    uses: Option<(Span, Spanned<String>)>,
    run: Option<(Span, Node)>,
    with: Option<(Span, Node)>,
    out: Option<(Span, Entries)>,
    env: Option<(Span, Entries)>,
    shell: Option<(Span, Node)>,
    workdir: Option<(Span, Node)>,
    stdout: Option<(Span, Node)>,
    inputs: Entries,
    matrix: Option<Box<MatrixSpec>>,
    foreach: Option<Box<(Key, Node)>>,
    when: Option<Box<Node>>,
    settings: Vec<(Key, Node)>,
    /// Whether `uses` or `run` was written at all.
    names_an_action: bool,
}

impl Reader {
    /// A stage, unless it cannot be said what it does.
    pub fn stage(&mut self, key: &Key, node: Node) -> Option<StageSpec> {
        let Data::Map(entries) = node.data else {
            self.wrong_type(&node, &format!("stage `{}`", key.name), "a map");
            return None;
        };
        let entries = self.templated(key, entries.into_vec())?;
        let mut fields = Fields::default();
        for (field, value) in entries {
            self.field(&mut fields, field, value);
        }
        let has_action = fields.uses.is_some() || fields.run.is_some();
        // What is written but could not be read was complained about already.
        if !has_action && fields.names_an_action {
            return None;
        }
        let action = self.action(key, &mut fields)?;
        let name = Spanned::new(key.name.to_string(), key.span);
        self.check_item(&fields);
        Some(StageSpec {
            name,
            unit: 0,
            action,
            inputs: fields.inputs,
            matrix: fields.matrix,
            foreach: fields.foreach,
            when: fields.when,
            settings: fields.settings.into(),
        })
    }

    /// The item of `foreach` is an axis too.
    fn check_item(&mut self, fields: &Fields) {
        let Some((item, _)) = fields.foreach.as_deref() else { return };
        let axes = fields.matrix.iter().flat_map(|matrix| &matrix.axes);
        if let Some((axis, _)) = axes.into_iter().find(|(axis, _)| axis.name == item.name) {
            self.problems.push(
                Problem::new("spec::bad-name", format!("`{}` is an axis of the matrix and the item of `foreach`", item.name))
                    .at(item.span, "this name")
                    .at(axis.span, "and this one")
                    .help("rename one of them"),
            );
        }
    }

    fn field(&mut self, fields: &mut Fields, key: Key, value: Node) {
        match key.name.as_str() {
            "about" => drop(self.text(&value, "about")),
            "uses" => {
                fields.names_an_action = true;
                fields.uses = self.text(&value, "uses").map(|kind| (key.span, kind));
            }
            "run" => {
                fields.names_an_action = true;
                fields.run = self.script(value).map(|script| (key.span, script));
            }
            "in" => fields.inputs = self.named_map(value, "in"),
            "with" => fields.with = Some((key.span, value)),
            "out" => fields.out = Some((key.span, self.named_map(value, "out"))),
            "matrix" => fields.matrix = Some(Box::new(self.matrix(value))),
            "foreach" => fields.foreach = self.foreach(value).map(Box::new),
            "when" => fields.when = Some(Box::new(value)),
            "env" => fields.env = Some((key.span, self.named_map(value, "env"))),
            "shell" => fields.shell = self.text(&value, "shell").map(|_| (key.span, value)),
            "workdir" => fields.workdir = self.text(&value, "workdir").map(|_| (key.span, value)),
            "stdout" => fields.stdout = self.text(&value, "stdout").map(|_| (key.span, value)),
            "resources" | "timeout" | "retries" | "priority" | "cache" | "pure" | "network" | "tags" => fields.settings.push((key, value)),
            _ => self.unknown_key(&key, "a stage", &STAGE_KEYS),
        }
    }

    /// A script, or the words of one command.
    fn script(&mut self, node: Node) -> Option<Node> {
        let is_script = match &node.data {
            Data::List(words) => !words.is_empty() && words.iter().all(|word| matches!(word.data, Data::Scalar(_)) && !word.is_null()),
            _ => node.as_str().is_some(),
        };
        if !is_script {
            let wanted = "a command or a list of the words of one";
            self.wrong_type(&node, "`run`", wanted);
        }
        is_script.then_some(node)
    }

    fn action(&mut self, key: &Key, fields: &mut Fields) -> Option<ActionSpec> {
        match (fields.uses.take(), fields.run.take()) {
            (Some((_, kind)), None) => {
                for (name, place) in [
                    ("out", span_of(&fields.out)),
                    ("env", span_of(&fields.env)),
                    ("shell", span_of(&fields.shell)),
                    ("workdir", span_of(&fields.workdir)),
                    ("stdout", span_of(&fields.stdout)),
                ] {
                    self.misplaced(place, name, "run");
                }
                let with = fields.with.take().map(|(_, node)| node).filter(|node| !node.is_null());
                if let Some(node) = with.as_ref().filter(|node| !matches!(node.data, Data::Map(_))) {
                    self.wrong_type(node, "`with`", "a map");
                }
                Some(ActionSpec::Uses(Box::new(UsesSpec { kind, with })))
            }
            (None, Some((_, script))) => Some(self.command(key, script, fields)),
            (Some((uses, _)), Some((run, _))) => {
                self.problems.push(
                    Problem::new("spec::uses-and-run", format!("stage `{}` has both `uses` and `run`", key.name))
                        .at(uses, "a native stage")
                        .at(run, "and a command")
                        .help("keep one"),
                );
                None
            }
            (None, None) => {
                self.problems.push(
                    Problem::new("spec::no-action", format!("stage `{}` does nothing", key.name))
                        .at(key.span, "neither `uses` nor `run`")
                        .help("add `uses: <kind>` for a native stage or `run: <command>`"),
                );
                None
            }
        }
    }

    fn command(&mut self, key: &Key, script: Node, fields: &mut Fields) -> ActionSpec {
        self.misplaced(span_of(&fields.with), "with", "uses");
        let outputs = fields.out.take().map(|(_, out)| out).unwrap_or_default();
        if outputs.is_empty() {
            self.problems.push(
                Problem::new("spec::no-outputs", format!("the command of stage `{}` declares no output", key.name))
                    .at(key.span, "this stage")
                    .help("add `out: { name: path }`; only declared outputs are kept"),
            );
        }
        if let (Data::List(_), Some(span)) = (&script.data, span_of(&fields.shell)) {
            self.problems.push(
                Problem::new("spec::misplaced-key", "the words of a command are run without a shell")
                    .at(span, "not allowed here")
                    .at(script.span, "a list of words")
                    .help("write the command as one text, or leave `shell` out"),
            );
        }
        ActionSpec::Run(Box::new(RunSpec {
            script,
            outputs,
            env: fields.env.take().map(|(_, env)| env).unwrap_or_default(),
            shell: fields.shell.take().map(|(_, node)| Box::new(node)),
            workdir: fields.workdir.take().map(|(_, node)| Box::new(node)),
            stdout: fields.stdout.take().map(|(_, node)| Box::new(node)),
        }))
    }

    fn matrix(&mut self, node: Node) -> MatrixSpec {
        let mut matrix = MatrixSpec::default();
        for (key, values) in self.named_map(node, "matrix") {
            match key.name.as_str() {
                "include" => matrix.include = Some(values),
                "exclude" => matrix.exclude = Some(values),
                _ => {
                    self.axis(&key, &values);
                    matrix.axes.push((key, values));
                }
            }
        }
        matrix
    }

    fn axis(&mut self, key: &Key, values: &Node) {
        let what = match &values.data {
            Data::List(items) if items.is_empty() => "an empty list",
            Data::List(_) => return,
            _ if values.as_str().is_some_and(|text| text.starts_with("${")) => return,
            _ => values.type_name(),
        };
        self.problems.push(
            Problem::new("spec::matrix-axis", format!("the axis `{}` needs a list of values", key.name))
                .at(values.span, format!("this is {what}"))
                .help(format!("write `{}: [1, 2]`", key.name)),
        );
    }

    fn foreach(&mut self, node: Node) -> Option<(Key, Node)> {
        let span = node.span;
        let mut entries = self.named_map(node, "foreach").into_vec();
        if entries.len() > 1 {
            self.problems.push(
                Problem::new("spec::foreach", "`foreach` names one item")
                    .at(span, "several")
                    .help("for all combinations of several lists use `matrix`"),
            );
        }
        (!entries.is_empty()).then(|| entries.swap_remove(0))
    }
}

fn span_of<T>(field: &Option<(Span, T)>) -> Option<Span> {
    field.as_ref().map(|(span, _)| *span)
}
