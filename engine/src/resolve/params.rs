//! `with:` of a native stage: filled in, typed, checked, every default made explicit.

use litemap::LiteMap;
use serde_json::{Map, Value};

use crate::pipeline::{Action, Output};
use crate::problem::{Problem, Problems, Span};
use crate::source::Node;
use crate::spec::StageSpec;
use crate::stage::{Complaints, Kind, ParamError, Threads};
use crate::template::Scope;

/// What a stage becomes once its action is resolved.
pub type Resolved = (Action, LiteMap<String, Output>, Threads);

/// [`Resolved`], and the GPUs that the stage needs by its params.
pub type ResolvedNative = (Resolved, u32);

/// Resolves the action of a native stage.
pub fn native(stage: &StageSpec, kind: &Kind, with: Option<&Node>, scope: &Scope<'_>) -> Result<ResolvedNative, Problems> {
    let value = with.map_or_else(|| Ok(Value::Object(Map::new())), |node| scope.fill(node))?;
    let place = with.map_or(stage.name.span, |node| node.span);
    let (value, mut problems) = refuse_unknown(kind, with, value, place);
    let checked = check(stage, kind, with, value, &mut problems);
    let Some(checked) = checked else { return Err(problems) };
    let outputs = kind
        .outputs
        .iter()
        .map(|port| (port.name.to_owned(), Output { path: format!("out/{}", port.path), format: port.format }))
        .collect();
    let action = Action::Native {
        kind: kind.name.to_owned(),
        version: kind.version,
        params: Box::new(checked.params),
        aside: Box::new(checked.aside),
    };
    problems.or(((action, outputs, checked.threads), checked.gpus))
}

/// Complains about every unknown param at once, and goes on without them.
fn refuse_unknown(kind: &Kind, with: Option<&Node>, value: Value, place: Span) -> (Value, Problems) {
    let mut problems = Problems::new();
    let known: Vec<&str> =
        kind.schema.get("properties").and_then(Value::as_object).map(|map| map.keys().map(String::as_str).collect()).unwrap_or_default();
    let Value::Object(map) = value else { return (value, problems) };
    let (sound, unknown): (Map<_, _>, Map<_, _>) = map.into_iter().partition(|(name, _)| known.contains(&name.as_str()));
    for name in unknown.keys() {
        let span = with.and_then(|node| node.key_span(name)).unwrap_or(place);
        let problem = Problem::new("stage::unknown-param", format!("`{}` has no param `{name}`", kind.name)).at(span, "unknown param");
        problems.push(problem.nearest(name, known.iter().copied()));
    }
    (Value::Object(sound), problems)
}

/// Types the params. A value of a wrong type is left out and the rest is looked at again, so that all such complaints come at once.
fn check(stage: &StageSpec, kind: &Kind, with: Option<&Node>, mut value: Value, problems: &mut Problems) -> Option<crate::stage::Checked> {
    let mut removed: Vec<String> = Vec::new();
    loop {
        match kind.check(&value) {
            Ok(checked) => return Some(checked),
            // What makes no sense once values were left out may have made sense with them.
            Err(Complaints::Sense(_)) if !removed.is_empty() => return None,
            Err(Complaints::Sense(complaints)) => {
                complaints.iter().for_each(|complaint| problems.push(describe(stage, kind, with, complaint)));
                return None;
            }
            Err(Complaints::Type(complaint)) => {
                let follows = removed.iter().any(|name| complaint.message.contains(&format!("missing field `{name}`")));
                if follows {
                    return None;
                }
                problems.push(describe(stage, kind, with, &complaint));
                let head = complaint.path.split(['.', '[']).next().unwrap_or_default().to_owned();
                value.as_object_mut().and_then(|map| map.remove(&head))?;
                removed.push(head);
            }
        }
    }
}

fn describe(stage: &StageSpec, kind: &Kind, with: Option<&Node>, complaint: &ParamError) -> Problem {
    let path = if complaint.path == "." { "" } else { complaint.path.as_str() };
    let span = with.map_or(stage.name.span, |node| node.descend(path).span);
    let subject = if path.is_empty() { format!("the params of `{}`", kind.name) } else { format!("the param `{path}` of `{}`", kind.name) };
    if let Some(missing) = complaint.message.strip_prefix("missing field ") {
        return Problem::new("stage::missing-param", format!("`{}` needs the param {missing}", kind.name))
            .at(span, "not given here")
            .help(format!("add {missing} under `with:`"));
    }
    Problem::new("stage::bad-param", format!("{subject} cannot be used: {}", in_words(&complaint.message))).at(span, "this value")
}

/// serde's words for types, and ours.
const TYPES: [(&str, &str); 10] = [
    ("usize", "a whole number of at least 0"),
    ("u64", "a whole number of at least 0"),
    ("u32", "a whole number of at least 0"),
    ("i64", "a whole number"),
    ("f64", "a number"),
    ("f32", "a number"),
    ("a sequence", "a list"),
    ("a map", "a map"),
    ("a boolean", "true or false"),
    ("a string", "a text"),
];

/// `invalid type: string "five", expected usize` as a person would say it.
fn in_words(message: &str) -> String {
    let Some((found, expected)) = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "))
        .and_then(|rest| rest.split_once(", expected "))
    else {
        return message.to_owned();
    };
    let wanted = TYPES.iter().find(|(word, _)| *word == expected).map_or(expected, |(_, words)| words);
    let (kind, rest) = found.split_once(' ').map_or((found, String::new()), |(kind, rest)| (kind, format!(" {}", rest.trim_matches('`'))));
    let kind = match kind {
        "sequence" => "a list",
        "map" => "a map",
        "string" => "the text",
        "integer" | "floating" => "the number",
        "boolean" => "the truth value",
        "null" | "unit" => "nothing",
        other => other,
    };
    format!("it must be {wanted}, this is {kind}{}", rest.replace(" point", ""))
}
