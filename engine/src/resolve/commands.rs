//! `run:` stages: the script with its paths filled in, outputs that stay inside the work folder, declared variables.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};
use std::sync::Arc;

use litemap::LiteMap;
use serde_json::Value;

use super::params::Resolved;
use crate::pipeline::{Action, Output, Slot, default_shell};
use crate::problem::{Problem, Problems, Span};
use crate::source::{Data, Key, Node};
use crate::spec::RunSpec;
use crate::stage::{Format, Threads};
use crate::template::{Scope, plain};

/// The caller's environment: the value of a variable, if it is set.
pub type Environment<'e> = &'e dyn Fn(&str) -> Option<String>;

/// Keys of a variable that is taken from the caller.
const PASSED_KEYS: [&str; 2] = ["from", "default"];
/// Calls a program that is given no arguments.
const ENV: &str = "/usr/bin/env";

/// Resolves the action of a command stage.
pub fn command(run: &RunSpec, slots: &[Slot], scope: &Scope<'_>, environment: Environment<'_>) -> Result<Resolved, Problems> {
    let mut problems = Problems::new();
    let declared: Vec<&str> = run.outputs.iter().map(|(key, _)| key.name.as_str()).collect();
    let outputs = output_paths(&run.outputs, slots, scope, &mut problems);
    let env = variables(&run.env, scope, environment, &mut problems);
    let workdir = run.workdir.as_ref().map(|node| workdir(node, scope, &mut problems)).unwrap_or_default();
    let stdout = run.stdout.as_ref().and_then(|node| stdout(node, &declared, scope, &mut problems));
    let paths = Paths { slots, outputs: &outputs, declared: &declared, span: run.script.span, scope, up: up(&workdir) };
    let (shell, script) = match &run.script.data {
        Data::List(words) => paths.words(words, &mut problems),
        _ => (shell(run.shell.as_deref(), scope, &mut problems), paths.script(&run.script, &mut problems)),
    };
    let action = Action::Command { script: script.into(), shell, env, workdir: workdir.into(), stdout: stdout.map(Arc::from) };
    problems.or((action, outputs, Threads::ONE))
}

/// The words before the script.
fn shell(written: Option<&Node>, scope: &Scope<'_>, problems: &mut Problems) -> Arc<[String]> {
    let Some(node) = written else { return default_shell() };
    let Some(value) = take(scope.fill(node), problems) else { return Arc::default() };
    let words: Vec<String> = plain(&value).split_whitespace().map(str::to_owned).collect();
    if words.is_empty() {
        problems.push(
            Problem::new("command::no-shell", "`shell` names no program")
                .at(node.span, "nothing")
                .help("write, for example, `bash -eu -c`"),
        );
    }
    words.into()
}

/// The folder in which the command starts, inside of the stage's own.
fn workdir(node: &Node, scope: &Scope<'_>, problems: &mut Problems) -> String {
    let Some(value) = take(scope.fill(node), problems) else { return String::new() };
    let written = plain(&value);
    if written == "." || written == "./" {
        return String::new();
    }
    inside(&written).unwrap_or_else(|| {
        problems.push(
            Problem::new("command::workdir", "the command would start outside the stage's folder")
                .at(node.span, "this path")
                .help("write a relative path without `..`"),
        );
        String::new()
    })
}

/// The way from `workdir` back to the stage's folder.
fn up(workdir: &str) -> String {
    if workdir.is_empty() { String::new() } else { "../".repeat(workdir.split('/').count()) }
}

fn stdout(node: &Node, declared: &[&str], scope: &Scope<'_>, problems: &mut Problems) -> Option<String> {
    let name = plain(&take(scope.fill(node), problems)?);
    if !declared.contains(&name.as_str()) {
        let problem = Problem::new("command::unknown-stdout", format!("`stdout: {name}`: the stage declares no such output"))
            .at(node.span, "this name");
        // A stage without outputs was complained about already.
        if !declared.is_empty() {
            problems.push(problem.nearest(&name, declared.iter().copied()));
        }
        return None;
    }
    Some(name)
}

fn take<T>(result: Result<T, Problems>, problems: &mut Problems) -> Option<T> {
    result.map_err(|found| problems.extend(found)).ok()
}

fn output_paths(outputs: &[(Key, Node)], slots: &[Slot], scope: &Scope<'_>, problems: &mut Problems) -> LiteMap<String, Output> {
    let mut taken: HashMap<String, Span> = HashMap::new();
    let inputs: Vec<&str> = slots.iter().flat_map(|slot| &slot.values).map(|bound| &*bound.place).collect();
    let mut resolved = LiteMap::new();
    for (key, node) in outputs {
        let Some(value) = take(scope.fill(node), problems) else { continue };
        let Value::String(written) = &value else {
            problems.push(
                Problem::new("spec::wrong-type", format!("the output `{}` needs a path", key.name))
                    .at(node.span, format!("this is {}", crate::source::value_type_name(&value))),
            );
            continue;
        };
        let Some(path) = inside(written) else {
            problems.push(
                Problem::new("output::outside", format!("the output `{}` would lie outside the stage's folder", key.name))
                    .at(node.span, "this path")
                    .help("write a relative path without `..`"),
            );
            continue;
        };
        if inputs.iter().any(|input| overlap(input, &path)) || overlap("in", &path) {
            problems.push(
                Problem::new("output::overlap", format!("the output `{}` would lie on top of an input", key.name))
                    .at(node.span, "this path")
                    .help("choose another path"),
            );
            continue;
        }
        if let Some((_, first)) = taken.iter().find(|(other, _)| overlap(other, &path)) {
            problems.push(
                Problem::new("output::overlap", "two outputs of a stage overlap").at(node.span, "this path").at(*first, "and this one"),
            );
            continue;
        }
        taken.insert(path.clone(), node.span);
        resolved.insert(key.name.to_string(), Output { path, format: Format::ANY });
    }
    resolved
}

/// A relative path without `..`, tidied.
fn inside(written: &str) -> Option<String> {
    let mut parts = Vec::new();
    for component in Path::new(written).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => parts.push(part.to_str()?),
            _ => return None,
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

fn overlap(a: &str, b: &str) -> bool {
    let (a, b) = (Path::new(a), Path::new(b));
    a.starts_with(b) || b.starts_with(a)
}

/// The declared variables: values, and what the caller's environment has for those that ask for it.
fn variables(env: &[(Key, Node)], scope: &Scope<'_>, environment: Environment<'_>, problems: &mut Problems) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for (key, node) in env {
        let Some(value) = take(scope.fill(node), problems) else { continue };
        let value = if value.is_object() { passed(key, node, &value, environment, problems) } else { Some(value) };
        let Some(value) = value else { continue };
        if value.is_array() || value.is_object() || value.is_null() {
            problems.push(
                Problem::new("spec::wrong-type", format!("the variable `{}` needs a text or a number", key.name))
                    .at(node.span, format!("this is {}", crate::source::value_type_name(&value)))
                    .help(format!("write `{0}: value`, or `{0}: {{ from: {0} }}` for the value that the caller has", key.name)),
            );
            continue;
        }
        variables.insert(key.name.to_string(), plain(&value));
    }
    variables
}

/// `{ from: NAME, default: x }`: what the caller has.
fn passed(key: &Key, node: &Node, value: &Value, environment: Environment<'_>, problems: &mut Problems) -> Option<Value> {
    for (name, _) in value.as_object().into_iter().flatten() {
        if !PASSED_KEYS.contains(&name.as_str()) {
            problems.push(
                Problem::new("spec::unknown-key", format!("a variable has no key `{name}`"))
                    .at(node.key_span(name).unwrap_or(node.span), "unknown key")
                    .nearest(name, PASSED_KEYS),
            );
            return None;
        }
    }
    let Some(from) = value.get("from").and_then(Value::as_str) else {
        problems.push(
            Problem::new("env::no-from", format!("the variable `{}` does not say where its value is from", key.name))
                .at(node.span, "needs `from`")
                .help(format!("write `{0}: {{ from: {0} }}`", key.name)),
        );
        return None;
    };
    let found = environment(from).map(Value::String).or_else(|| value.get("default").cloned());
    if found.is_none() {
        problems.push(
            Problem::new("env::not-set", format!("the variable `{from}` is not set"))
                .at(node.descend("from").span, "taken from the environment")
                .help(format!("set it (`{from}=… trestle run`), or add `default:`")),
        );
    }
    found
}

/// What `{in.name}` and `{out.name}` in a command stand for; all other braces belong to the command.
struct Paths<'a> {
    slots: &'a [Slot],
    outputs: &'a LiteMap<String, Output>,
    /// Names under `out:`, also those whose path is wrong.
    declared: &'a [&'a str],
    span: Span,
    scope: &'a Scope<'a>,
    /// Way from the folder where the command starts to the stage's.
    up: String,
}

impl Paths<'_> {
    /// A script for a shell.
    fn script(&self, node: &Node, problems: &mut Problems) -> String {
        take(self.scope.fill(node), problems).map(|text| self.fill(&plain(&text), true, problems)).unwrap_or_default()
    }

    /// One command: all words but the last, and the last. A word that is `{in.name}` and nothing else becomes as many words as there are values.
    fn words(&self, nodes: &[Node], problems: &mut Problems) -> (Arc<[String]>, String) {
        let mut words = Vec::new();
        for node in nodes {
            let Some(value) = take(self.scope.fill(node), problems) else { continue };
            let word = plain(&value);
            let alone = word.strip_prefix("{in.").and_then(|rest| rest.strip_suffix('}')).filter(|name| !name.contains('}'));
            match alone.and_then(|name| self.slots.iter().find(|slot| *slot.name == *name)) {
                Some(slot) => words.extend(slot.values.iter().map(|bound| format!("{}{}", self.up, bound.place))),
                None => words.push(self.fill(&word, false, problems)),
            }
        }
        // A program alone is called through `env`, which does nothing else.
        if words.len() < 2 {
            words.insert(0, ENV.to_owned());
        }
        let last = words.pop().unwrap_or_default();
        (words.into(), last)
    }

    fn fill(&self, text: &str, quoted: bool, problems: &mut Problems) -> String {
        let mut out = String::new();
        let mut rest = text;
        while let Some(at) = rest.find("{in.").into_iter().chain(rest.find("{out.")).min() {
            out.push_str(&rest[..at]);
            let Some(end) = rest[at..].find('}') else {
                rest = &rest[at..];
                break;
            };
            let (side, name) = rest[at + 1..at + end].split_once('.').unwrap_or_default();
            let paths = if side == "in" { self.input(name) } else { self.output(name).map(|path| vec![path]) };
            match paths {
                Ok(paths) => {
                    let written: Vec<String> = paths
                        .iter()
                        .map(|path| format!("{}{path}", self.up))
                        .map(|path| if quoted { quote(&path) } else { path })
                        .collect();
                    out.push_str(&written.join(" "));
                }
                Err(problem) => problems.extend(problem.map(Problems::from).unwrap_or_default()),
            }
            rest = &rest[at + end + 1..];
        }
        out.push_str(rest);
        out
    }

    fn input(&self, name: &str) -> Result<Vec<&str>, Option<Problem>> {
        let slot = self.slots.iter().find(|slot| *slot.name == *name);
        let slot = slot.ok_or_else(|| Some(self.unknown("in", name, self.slots.iter().map(|slot| &*slot.name).collect())))?;
        Ok(slot.values.iter().map(|bound| &*bound.place).collect())
    }

    /// An output whose path is wrong, and a stage without outputs, were complained about already.
    fn output(&self, name: &str) -> Result<&str, Option<Problem>> {
        match self.outputs.get(name) {
            Some(output) => Ok(&output.path),
            None if self.declared.is_empty() || self.declared.contains(&name) => Err(None),
            None => Err(Some(self.unknown("out", name, self.declared.to_vec()))),
        }
    }

    fn unknown(&self, side: &str, name: &str, known: Vec<&str>) -> Problem {
        let written = format!("{{{side}.{name}}}");
        let problem = Problem::new("command::unknown-path", format!("`{written}`: the stage declares no such {side}put"))
            .at(self.scope.files.narrow(self.span, &written), "in this script");
        if known.is_empty() { problem.help(format!("declare it under `{side}:`")) } else { problem.nearest(name, known) }
    }
}

/// A path as one word of a shell.
fn quote(path: &str) -> String {
    let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-=,+".contains(c));
    if plain { path.to_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}
