//! From what is written to what can be planned: params filled in, matrices expanded, references resolved, all mistakes reported at once.

pub mod commands;
mod drafts;
mod expand;
mod params;
mod program;
mod settings;

use std::path::Path;

use serde_json::{Map, Value};

use crate::pipeline::{Labels, Pipeline};
use crate::problem::{Problem, Problems};
use crate::source::{self, Files};
use crate::spec::{self, Spec};
use crate::stage::Registry;
use crate::template::Scope;
use program::{Program, Unit};

/// Most stages that a pipeline may expand to.
pub const MAX_STAGES: usize = 1_000_000;

/// What a pipeline is resolved with, besides its files.
pub struct Choices<'a> {
    /// Values of params, in the order in which they are to be set.
    pub overrides: Vec<Override>,
    /// Variables of the caller; only those that a stage declares are asked for.
    pub environment: commands::Environment<'a>,
}

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

/// Resolves the first of `files`, the text of a pipeline file.
///
/// `root` is the folder of the file, `fallback_name` the pipeline's name if the file gives none.
///
/// # Errors
/// Every mistake that could be found.
pub fn pipeline(
    files: &mut Files,
    root: &Path,
    fallback_name: &str,
    choices: &Choices<'_>,
    registry: &Registry,
) -> Result<Pipeline, Problems> {
    let parsed = files.first().map(|source| source::parse(&source.text, source.base)).transpose()?;
    let Some(tree) = parsed else { return Err(Problem::new("spec::empty", "there is no pipeline file").into()) };
    let (mut spec, mut problems) = spec::read(tree);
    let name = spec.name.take().map_or_else(|| fallback_name.to_owned(), |name| name.value);
    let program = program(spec, root, choices, files, &mut problems);
    let drafted = drafts::draft(&program, files, &mut problems);
    let order = drafts::order(&program, &drafted.drafts, &mut problems);
    let stages = expand::Expander::new(&program, files, registry, choices, drafted.broken).run(&drafted.drafts, &order, &mut problems);
    let Program { mut units, pools, .. } = program;
    problems.or(Pipeline { name, root: root.to_owned(), params: units.swap_remove(0).params, pools, stages })
}

fn program(spec: Spec, root: &Path, choices: &Choices<'_>, files: &Files, problems: &mut Problems) -> Program {
    let params = effective_params(&spec, &choices.overrides, problems);
    let no_labels = Labels::new();
    let pools = settings::pools(&spec.pools, &Scope { params: &params, matrix: &no_labels, files }, problems);
    let index = spec.stages.iter().enumerate().map(|(i, stage)| (stage.name.value.clone(), i)).collect();
    let units = vec![Unit { prefix: String::new(), root: root.to_owned(), params }];
    Program { units, stages: spec.stages, index, broken: spec.broken, pools }
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
