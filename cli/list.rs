//! `trestle list`.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use trestle_engine::pipeline::{Action, Pipeline, Stage, with_all};
use trestle_engine::target::matching;

use crate::args::{Format, Source};
use crate::fail::Fail;
use crate::project;
use crate::render::colour::Colour;
use crate::render::grid::Grid;

/// Most inputs that one line names.
const ON_A_LINE: usize = 3;

/// What `list --help` ends with.
pub const EXAMPLES: &str = "Examples:
  trestle list                         all stages: name, what it does, what it reads, tags
  trestle list 'adapt*' table          those whose names fit
  trestle list --tag slow              those with a tag
  trestle list --outputs               outputs instead of stages: `stage.output`, path, format
  trestle list --format json | jq -r .stage";

/// `list`.
#[derive(Debug, Args)]
pub struct List {
    /// Pipeline file, then names of stages or patterns in which `*` stands for anything
    #[arg(value_name = "FILE | STAGE")]
    pub words: Vec<String>,
    #[command(flatten)]
    pub source: Source,
    /// Only stages with this tag; repeatable, one of them is enough
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<String>,
    /// List outputs instead of stages
    #[arg(long)]
    pub outputs: bool,
    /// How to print
    #[arg(long, value_enum, default_value = "human")]
    pub format: Format,
}

/// Prints the stages of a pipeline, in the order in which they can run. Reads no cache.
pub fn list(args: &List) -> Result<ExitCode, Fail> {
    let (pipeline, _, patterns) = project::read(&args.words, &args.source, &trestle_stages::registry())?;
    let stages = chosen(&pipeline, &patterns, &args.tag)?;
    crate::print(&match (args.format, args.outputs) {
        (Format::Human, false) => stage_grid(&pipeline, &stages),
        (Format::Human, true) => output_grid(&stages),
        (Format::Json, false) => lines(stages.iter().map(|stage| stage_json(&pipeline, stage))),
        (Format::Json, true) => lines(stages.iter().flat_map(|stage| outputs_json(stage))),
    })
}

/// Stages that fit a pattern and have a tag, where any are asked for.
pub fn chosen<'p>(pipeline: &'p Pipeline, patterns: &[String], tags: &[String]) -> Result<Vec<&'p Stage>, Fail> {
    let mut meant = vec![patterns.is_empty(); pipeline.stages.len()];
    for pattern in patterns {
        matching(pipeline, pattern)?.into_iter().for_each(|id| meant[id] = true);
    }
    let is_tagged = |stage: &Stage| tags.is_empty() || tags.iter().any(|tag| stage.settings.tags.contains(tag));
    Ok(pipeline.stages.iter().zip(meant).filter(|(stage, meant)| *meant && is_tagged(stage)).map(|(stage, _)| stage).collect())
}

/// What a stage does, in a few words: its kind, or the first line of its command.
fn does(stage: &Stage) -> String {
    match &stage.action {
        Action::Native { kind, .. } => kind.clone(),
        Action::Command { script, .. } => format!("$ {}", script.trim().lines().next().unwrap_or_default()),
    }
}

fn inputs(pipeline: &Pipeline, stage: &Stage) -> Vec<String> {
    stage.inputs.iter().flat_map(|slot| &slot.values).map(|bound| pipeline.describe(&bound.origin)).collect()
}

fn shortened(inputs: &[String]) -> String {
    if inputs.len() <= ON_A_LINE {
        return inputs.join(", ");
    }
    format!("{}, and {} more", inputs[..ON_A_LINE - 1].join(", "), inputs.len() + 1 - ON_A_LINE)
}

fn stage_grid(pipeline: &Pipeline, stages: &[&Stage]) -> String {
    let mut grid = Grid::new();
    let are_tagged = stages.iter().any(|stage| !stage.settings.tags.is_empty());
    for stage in stages {
        let mut row = vec![stage.name.as_str().into(), shortened(&inputs(pipeline, stage)).into()];
        if are_tagged {
            row.push(stage.settings.tags.iter().map(|tag| format!("#{tag}")).collect::<Vec<_>>().join(" ").into());
        }
        row.push(crate::render::grid::Cell::from(does(stage)).colour(Colour::Faint));
        grid.push(row);
    }
    grid.print()
}

fn output_grid(stages: &[&Stage]) -> String {
    let mut grid = Grid::new();
    for stage in stages {
        for (name, output) in stage.outputs.iter() {
            grid.push(vec![format!("{}.{name}", stage.name).into(), output.path.as_str().into(), output.format.0.into()]);
        }
    }
    grid.print()
}

fn lines(values: impl Iterator<Item = Value>) -> String {
    values.map(|value| format!("{value}\n")).collect()
}

fn stage_json(pipeline: &Pipeline, stage: &Stage) -> Value {
    let inputs: serde_json::Map<String, Value> = stage
        .inputs
        .iter()
        .map(|slot| (slot.name.to_string(), slot.values.iter().map(|bound| pipeline.describe(&bound.origin)).collect()))
        .collect();
    let mut value = json!({"stage": stage.name, "base": stage.base(), "labels": stage.labels});
    match &stage.action {
        Action::Native { kind, version, params, aside } => {
            value["uses"] = json!(kind);
            value["version"] = json!(version);
            value["with"] = with_all(params, aside);
        }
        Action::Command { script, .. } => value["run"] = json!(script),
    }
    value["inputs"] = inputs.into();
    value["outputs"] = stage.outputs.iter().map(|(name, output)| (name.clone(), Value::from(output.path.as_str()))).collect();
    value["tags"] = json!(stage.settings.tags);
    value
}

fn outputs_json(stage: &Stage) -> Vec<Value> {
    let one = |(name, output): (&String, &trestle_engine::pipeline::Output)| json!({"stage": stage.name, "output": name, "path": output.path, "format": output.format.0});
    stage.outputs.iter().map(one).collect()
}
