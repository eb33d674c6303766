//! `trestle plan`.

use std::fmt::Write;
use std::process::ExitCode;

use serde_json::json;
use trestle_engine::pipeline::{Later, Pipeline};
use trestle_engine::plan::{Fate, plan as plan_pipeline};

use crate::args::{Format, Plan};
use crate::fail::Fail;
use crate::lists;
use crate::project::Project;
use crate::render::words::{reasons, waits};

/// Prints what would run and why.
pub fn plan(args: &Plan) -> Result<ExitCode, Fail> {
    let (project, targets) = Project::open(&args.words, &args.source, &trestle_stages::registry())?;
    let (wanted, waiting) = lists::wanted(&project, &targets)?;
    let fates = plan_pipeline(&project.pipeline, &wanted, &project.cache, &project.last)?;
    project.cache.flush()?;
    let mut text = String::new();
    let mut counts = [0usize; 3];
    for (id, fate) in &fates {
        counts[match fate {
            Fate::Run(_) => 0,
            Fate::Later(_) => 1,
            Fate::Hit(_) => 2,
        }] += 1;
        let line = match args.format {
            Format::Human => human(&project.pipeline, *id, fate),
            Format::Json => Some(as_json(&project.pipeline, *id, fate).to_string()),
        };
        if let Some(line) = line {
            text.push_str(&line);
            text.push('\n');
        }
    }
    for later in &waiting {
        counts[1] += 1;
        text.push_str(&unfolds(&project.pipeline, later, args.format));
    }
    let [run, later, cached] = counts;
    // Writing into a String cannot fail.
    let _ = match args.format {
        Format::Human => writeln!(text, "{run} to run, {later} later, {cached} cached"),
        Format::Json => writeln!(text, "{}", json!({"event": "summary", "run": run, "later": later, "cached": cached})),
    };
    crate::print(&text)
}

/// A stage that cannot be expanded yet.
fn unfolds(pipeline: &Pipeline, later: &Later, format: Format) -> String {
    let maker = &pipeline.stages[later.stage].name;
    match format {
        Format::Human => format!("later  {}: for the items of `{maker}.{}`, which is not made yet\n", later.name, later.output),
        Format::Json => format!("{}\n", json!({"event": "plan", "stage": later.name, "fate": "later", "waits": [maker]})),
    }
}

/// Stages that are cached are only counted.
fn human(pipeline: &Pipeline, id: usize, fate: &Fate) -> Option<String> {
    let name = &pipeline.stages[id].name;
    match fate {
        Fate::Hit(_) => None,
        Fate::Run(work) => Some(format!("run    {name}: {}", reasons(&work.reasons))),
        Fate::Later(ids) => Some(format!("later  {name}: {}", waits(pipeline, ids))),
    }
}

fn as_json(pipeline: &Pipeline, id: usize, fate: &Fate) -> serde_json::Value {
    let name = &pipeline.stages[id].name;
    match fate {
        Fate::Hit(record) => json!({"event": "plan", "stage": name, "fate": "cached", "key": record.key.to_string()}),
        Fate::Run(work) => json!({"event": "plan", "stage": name, "fate": "run", "key": work.key.to_string(), "reasons": work.reasons}),
        Fate::Later(ids) => {
            let waits: Vec<&str> = ids.iter().map(|&up| pipeline.stages[up].name.as_str()).collect();
            json!({"event": "plan", "stage": name, "fate": "later", "waits": waits})
        }
    }
}
