//! From what is written to what can be planned: params filled in, matrices expanded, references resolved, all mistakes reported at once.

mod commands;
mod drafts;
mod expand;
mod params;

use std::path::Path;

use serde_json::{Map, Value};

use crate::pipeline::Pipeline;
use crate::problem::{Problem, Problems};
use crate::source;
use crate::spec::{self, Spec};
use crate::stage::Registry;

/// Most stages that a pipeline may expand to.
pub const MAX_STAGES: usize = 1_000_000;

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
    pub fn parse(text: &str) -> Result<Self, Problems> {
        let (path, value) = text
            .split_once('=')
            .ok_or_else(|| Problem::new("set::syntax", format!("`--set {text}` has no `=`")).help("write `--set name=value`"))?;
        let value = source::parse_value(value).map_err(|problems| unplaced(text, problems))?;
        Ok(Self { path: path.trim().to_owned(), value })
    }
}

/// What is wrong with `--set text`: a place in the value is no place in the pipeline file.
fn unplaced(text: &str, problems: Problems) -> Problems {
    let mut all = Problems::new();
    for problem in problems {
        all.push(Problem { labels: Vec::new(), message: format!("`--set {text}`: {}", problem.message), ..problem });
    }
    all
}

/// Reads and resolves the text of a pipeline file.
///
/// `root` is the folder of the file, `fallback_name` the pipeline's name if the file gives none.
///
/// # Errors
/// Every mistake that could be found.
pub fn pipeline(text: &str, root: &Path, fallback_name: &str, overrides: &[Override], registry: &Registry) -> Result<Pipeline, Problems> {
    let (spec, mut problems) = spec::read(&source::parse(text)?);
    let params = effective_params(&spec, overrides, &mut problems);
    let drafted = drafts::draft(&spec, &params, text, &mut problems);
    let order = drafts::order(&spec, &drafted.drafts, &mut problems);
    let stages = expand::Expander::new(&spec, &params, text, root, registry, drafted.broken).run(&drafted.drafts, &order, &mut problems);
    let name = spec.name.map_or_else(|| fallback_name.to_owned(), |name| name.value);
    problems.or(Pipeline { name, root: root.to_owned(), params, stages })
}

fn effective_params(spec: &Spec, overrides: &[Override], problems: &mut Problems) -> Map<String, Value> {
    let mut params: Map<String, Value> = spec.params.iter().map(|(key, node)| (key.name.clone(), node.to_value())).collect();
    for (_, node) in &spec.params {
        refuse_templates(node, problems);
    }
    for Override { path, value } in overrides {
        if let Err(problem) = set(&mut params, path, value) {
            problems.push(problem);
        }
    }
    params
}

fn refuse_templates(node: &source::Node, problems: &mut Problems) {
    match &node.data {
        source::Data::Scalar(Value::String(text)) if text.contains("${") => {
            problems.push(
                Problem::new("template::in-params", "a param cannot refer to another param")
                    .at(node.span, "a `${…}` in `params`")
                    .help("write the value itself"),
            );
        }
        source::Data::Scalar(_) => {}
        source::Data::List(items) => items.iter().for_each(|item| refuse_templates(item, problems)),
        source::Data::Map(entries) => entries.iter().for_each(|(_, value)| refuse_templates(value, problems)),
    }
}

fn set(params: &mut Map<String, Value>, path: &str, value: &Value) -> Result<(), Problem> {
    let mut parts = path.split('.');
    let head = parts.next().unwrap_or_default();
    let unknown = |part: &str, names: Vec<String>| {
        let problem = Problem::new("set::unknown-param", format!("`--set {path}=…`: the pipeline declares no param `{path}`"));
        if names.is_empty() {
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
