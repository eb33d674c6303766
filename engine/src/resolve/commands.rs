//! `run:` stages: the script with its paths filled in, outputs that stay inside the work folder, declared variables.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};

use serde_json::Value;

use super::params::Resolved;
use crate::pipeline::{Action, Output, Slot};
use crate::problem::{Problem, Problems, Span};
use crate::source::{Key, Node};
use crate::stage::{Format, Threads};
use crate::template::{Scope, plain};

/// The shell of a script that names none: it ends at the first failing command and refuses unset variables.
const DEFAULT_SHELL: [&str; 4] = ["/bin/sh", "-e", "-u", "-c"];

/// Resolves the action of a command stage.
pub fn command(
    script: &Node,
    outputs: &[(Key, Node)],
    env: &[(Key, Node)],
    shell: Option<&Node>,
    slots: &[Slot],
    scope: &Scope<'_>,
) -> Result<Resolved, Problems> {
    let mut problems = Problems::new();
    let declared: Vec<&str> = outputs.iter().map(|(key, _)| key.name.as_str()).collect();
    let outputs = output_paths(outputs, slots, scope, &mut problems);
    let env = variables(env, scope, &mut problems);
    let shell = shell
        .and_then(|node| take(scope.fill(node), &mut problems))
        .map_or_else(default_shell, |value| plain(&value).split_whitespace().map(str::to_owned).collect());
    let script = take(scope.fill(script), &mut problems)
        .map(|text| Paths { slots, outputs: &outputs, declared: &declared, span: script.span, scope }.fill(&plain(&text), &mut problems))
        .unwrap_or_default();
    let action = Action::Command { script, shell, env, workdir: String::new(), stdout: None };
    problems.or((action, outputs, Threads::ONE))
}

fn default_shell() -> Vec<String> {
    DEFAULT_SHELL.map(str::to_owned).to_vec()
}

fn take<T>(result: Result<T, Problems>, problems: &mut Problems) -> Option<T> {
    result.map_err(|found| problems.extend(found)).ok()
}

fn output_paths(outputs: &[(Key, Node)], slots: &[Slot], scope: &Scope<'_>, problems: &mut Problems) -> BTreeMap<String, Output> {
    let mut taken: HashMap<String, Span> = HashMap::new();
    let inputs: Vec<&str> = slots.iter().flat_map(|slot| &slot.values).map(|bound| bound.place.as_str()).collect();
    let mut resolved = BTreeMap::new();
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
        resolved.insert(key.name.clone(), Output { path, format: Format::ANY });
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

fn variables(env: &[(Key, Node)], scope: &Scope<'_>, problems: &mut Problems) -> BTreeMap<String, String> {
    let filled = env.iter().filter_map(|(key, node)| Some((key, node, take(scope.fill(node), problems)?))).collect::<Vec<_>>();
    let mut variables = BTreeMap::new();
    for (key, node, value) in filled {
        if value.is_array() || value.is_object() || value.is_null() {
            problems.push(
                Problem::new("spec::wrong-type", format!("the variable `{}` needs a text or a number", key.name))
                    .at(node.span, format!("this is {}", crate::source::value_type_name(&value))),
            );
            continue;
        }
        variables.insert(key.name.clone(), plain(&value));
    }
    variables
}

/// What `{in.name}` and `{out.name}` in a script stand for; all other braces belong to the script.
struct Paths<'a> {
    slots: &'a [Slot],
    outputs: &'a BTreeMap<String, Output>,
    /// Names under `out:`, also those whose path is wrong.
    declared: &'a [&'a str],
    span: Span,
    scope: &'a Scope<'a>,
}

impl Paths<'_> {
    fn fill(&self, script: &str, problems: &mut Problems) -> String {
        let mut out = String::new();
        let mut rest = script;
        while let Some(at) = rest.find("{in.").into_iter().chain(rest.find("{out.")).min() {
            out.push_str(&rest[..at]);
            let Some(end) = rest[at..].find('}') else { break };
            let (side, name) = rest[at + 1..at + end].split_once('.').unwrap_or_default();
            let path = if side == "in" { self.input(name) } else { self.output(name) };
            match path {
                Ok(path) => out.push_str(&path),
                Err(problem) => problems.extend(problem.map(Problems::from).unwrap_or_default()),
            }
            rest = &rest[at + end + 1..];
        }
        out.push_str(rest);
        out
    }

    fn input(&self, name: &str) -> Result<String, Option<Problem>> {
        let slot = self.slots.iter().find(|slot| slot.name == name);
        let slot = slot.ok_or_else(|| Some(self.unknown("in", name, self.slots.iter().map(|slot| slot.name.as_str()).collect())))?;
        Ok(slot.values.iter().map(|bound| quote(&bound.place)).collect::<Vec<_>>().join(" "))
    }

    /// An output whose path is wrong, and a stage without outputs, were complained about already.
    fn output(&self, name: &str) -> Result<String, Option<Problem>> {
        match self.outputs.get(name) {
            Some(output) => Ok(quote(&output.path)),
            None if self.declared.is_empty() || self.declared.contains(&name) => Err(None),
            None => Err(Some(self.unknown("out", name, self.declared.to_vec()))),
        }
    }

    fn unknown(&self, side: &str, name: &str, known: Vec<&str>) -> Problem {
        let written = format!("{{{side}.{name}}}");
        let problem = Problem::new("command::unknown-path", format!("`{written}`: the stage declares no such {side}put"))
            .at(self.scope.narrow(self.span, &written), "in this script");
        if known.is_empty() { problem.help(format!("declare it under `{side}:`")) } else { problem.nearest(name, known) }
    }
}

/// A path as one word of a shell.
fn quote(path: &str) -> String {
    let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-=,+".contains(c));
    if plain { path.to_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}
