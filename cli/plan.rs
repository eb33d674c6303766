//! `trestle plan`.

use std::process::ExitCode;

use serde_json::json;
use trestle_engine::pipeline::Later;
use trestle_engine::plan::Decision;

use crate::args::{Format, Plan};
use crate::fail::Fail;
use crate::lists;
use crate::project::Session;
use crate::render::words::{reasons, waits};

/// Prints what would run and why.
pub fn plan(args: &Plan) -> Result<ExitCode, Fail> {
    let (mut session, targets) = Session::open(&args.words, &args.source)?;
    let asked = lists::wanted(&session, &targets)?;
    let wanted = |id: usize| asked.has(id);
    let names = session.compiled.names().map_err(trestle_engine::error::Error::from)?;
    let mut text = String::new();
    let mut counts = [0usize; 3];
    session.planner.survey(&wanted, &mut |id, decision| {
        counts[match &decision {
            Decision::Run(_) => 0,
            Decision::Later(_) => 1,
            Decision::Hit(_) => 2,
        }] += 1;
        let line = match args.format {
            Format::Human => human(&names, id, &decision),
            Format::Json => Some(as_json(&names, id, &decision).to_string()),
        };
        if let Some(line) = line {
            text.push_str(&line);
            text.push('\n');
        }
    })?;
    session.cache.flush()?;
    for later in &asked.later {
        counts[1] += 1;
        text.push_str(&unfolds(&names, later, args.format));
    }
    let [run, later, cached] = counts;
    text.push_str(&match args.format {
        Format::Human => format!("{run} to run, {later} later, {cached} cached\n"),
        Format::Json => format!("{}\n", json!({"event": "summary", "run": run, "later": later, "cached": cached})),
    });
    crate::print(&text)
}

/// A stage that cannot be expanded yet.
fn unfolds(names: &[String], later: &Later, format: Format) -> String {
    let maker = &names[later.stage];
    match format {
        Format::Human => format!("later  {}: for the items of `{maker}.{}`, which is not made yet\n", later.name, later.output),
        Format::Json => format!("{}\n", json!({"event": "plan", "stage": later.name, "fate": "later", "waits": [maker]})),
    }
}

/// Stages that are cached are only counted.
fn human(names: &[String], id: usize, decision: &Decision) -> Option<String> {
    let name = &names[id];
    match decision {
        Decision::Hit(_) => None,
        Decision::Run(work) => Some(format!("run    {name}: {}", reasons(&work.reasons))),
        Decision::Later(ids) => Some(format!("later  {name}: {}", waits(names, ids))),
    }
}

fn as_json(names: &[String], id: usize, decision: &Decision) -> serde_json::Value {
    let name = &names[id];
    match decision {
        Decision::Hit(key) => json!({"event": "plan", "stage": name, "fate": "cached", "key": key.to_string()}),
        Decision::Run(work) => json!({"event": "plan", "stage": name, "fate": "run", "key": work.key.to_string(), "reasons": work.reasons}),
        Decision::Later(ids) => {
            let waits: Vec<&str> = ids.iter().map(|&up| names[up].as_str()).collect();
            json!({"event": "plan", "stage": name, "fate": "later", "waits": waits})
        }
    }
}
