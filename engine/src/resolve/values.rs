//! Values of params: those of the file, then the profile's, then files of params, then single ones.

use serde_json::{Map, Value};

use super::Choices;
use crate::problem::{Problem, Problems};
use crate::source::{self, Data, Files, Key, Node, Scalar};
use crate::spec::Spec;

/// One `--set path=value`.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// Dotted path of a declared param.
    pub path: String,
    /// Its new value.
    pub value: Value,
}

impl Override {
    /// Parses `path=value`; the value is any YAML value on one line.
    ///
    /// # Errors
    /// If there is no `=`, or the value is not YAML.
    pub fn parse(text: &str, files: &mut Files) -> Result<Self, Problems> {
        let (path, value) = text
            .split_once('=')
            .ok_or_else(|| Problem::new("set::syntax", format!("`--set {text}` has no `=`")).help("write `--set name=value`"))?;
        let source = files.add(format!("--set {path}"), value.to_owned());
        Ok(Self { path: path.trim().to_owned(), value: source::parse(&source.text, source.base)?.to_value() })
    }
}

/// The params of the pipeline file with everything that the caller chose.
pub fn chosen(spec: &Spec, choices: &Choices<'_>, problems: &mut Problems) -> Map<String, Value> {
    let mut params = declared(spec, problems);
    for (_, node) in &spec.profiles {
        refuse_templates(node, problems);
    }
    if let Some(name) = &choices.profile {
        match spec.profiles.iter().find(|(key, _)| key.name == *name) {
            Some((_, node)) => over(&mut params, node, &format!("the profile `{name}`"), problems),
            None => problems.push(unknown_profile(spec, name)),
        }
    }
    for node in &choices.params {
        refuse_templates(node, problems);
        over(&mut params, node, "a file of params", problems);
    }
    for Override { path, value } in &choices.overrides {
        if let Err(problem) = set(&mut params, path, value) {
            problems.push(problem);
        }
    }
    // What is wrong in a profile that is not chosen is wrong all the same.
    for (key, node) in spec.profiles.iter().filter(|(key, _)| choices.profile.as_deref() != Some(key.name.as_str())) {
        over(&mut declared(spec, &mut Problems::new()), node, &format!("the profile `{}`", key.name), problems);
    }
    params
}

fn unknown_profile(spec: &Spec, name: &str) -> Problem {
    let problem = Problem::new("profile::unknown", format!("`--profile {name}`: the pipeline declares no profile `{name}`"));
    if spec.profiles.is_empty() {
        problem.help(format!("it declares none; add `profiles: {{ {name}: {{ param: value }} }}`"))
    } else {
        problem.nearest(name, spec.profiles.iter().map(|(key, _)| key.name.as_str()))
    }
}

/// `params:` of a file.
pub fn declared(spec: &Spec, problems: &mut Problems) -> Map<String, Value> {
    for (_, node) in &spec.params {
        refuse_templates(node, problems);
    }
    spec.params.iter().map(|(key, node)| (key.name.to_string(), node.to_value())).collect()
}

/// Lays a map of values over the declared ones. A map goes over a map entry by entry, anything else takes the place of what was there.
pub fn over(params: &mut Map<String, Value>, node: &Node, what: &str, problems: &mut Problems) {
    match &node.data {
        Data::Map(entries) => entries.iter().for_each(|(key, node)| over_one(params, key, node, what, problems)),
        _ if node.is_null() => {}
        _ => problems.push(
            Problem::new("spec::wrong-type", format!("{what} must be a map of params"))
                .at(node.span, format!("this is {}", node.type_name())),
        ),
    }
}

fn over_one(params: &mut Map<String, Value>, key: &Key, node: &Node, what: &str, problems: &mut Problems) {
    match params.get_mut(key.name.as_str()) {
        Some(Value::Object(inner)) if matches!(node.data, Data::Map(_)) => over(inner, node, what, problems),
        Some(value) => *value = node.to_value(),
        None => {
            let problem =
                Problem::new("param::unknown", format!("{what} sets `{}`, which is not declared", key.name)).at(key.span, "no such param");
            problems.push(problem.nearest(&key.name, params.keys().map(String::as_str)));
        }
    }
}

fn refuse_templates(node: &Node, problems: &mut Problems) {
    match &node.data {
        Data::Scalar(Scalar::Text(text)) if text.contains("${") => {
            problems.push(
                Problem::new("template::in-params", "a param cannot refer to another param")
                    .at(node.span, "a `${…}` in `params`")
                    .help("write the value itself"),
            );
        }
        Data::Scalar(_) => {}
        Data::List(items) => items.iter().for_each(|item| refuse_templates(item, problems)),
        Data::Map(entries) => entries.iter().for_each(|(_, value)| refuse_templates(value, problems)),
    }
}

fn set(params: &mut Map<String, Value>, path: &str, value: &Value) -> Result<(), Problem> {
    let mut parts = path.split('.');
    let head = parts.next().unwrap_or_default();
    let unknown = |part: &str, names: Vec<String>| {
        let problem = Problem::new("set::unknown-param", format!("`--set {path}=…`: the pipeline declares no param `{path}`"));
        if path.contains("::") {
            problem.help(
                "an included file gets its params from `params:` of its entry under `include`; let that refer to a param of this file",
            )
        } else if names.is_empty() {
            problem.help("it declares none; add it under `params:`")
        } else {
            problem.nearest(part, names.iter().map(String::as_str))
        }
    };
    let names: Vec<String> = params.keys().cloned().collect();
    let mut slot = params.get_mut(head).ok_or_else(|| unknown(head, names))?;
    for part in parts {
        let names: Vec<String> = slot.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default();
        slot = slot.get_mut(part).ok_or_else(|| unknown(part, names))?;
    }
    *slot = value.clone();
    Ok(())
}
