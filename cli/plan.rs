//! `trestle plan`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use trestle_engine::estimate::{Estimate, estimate};
use trestle_engine::pipeline::{Pipeline, StageId};
use trestle_engine::plan::{Fate, plan as plan_pipeline};

use crate::args::{Plan, Report};
use crate::fail::Fail;
use crate::github::{Annotation, Level};
use crate::project::Project;
use crate::render::words::{count, duration, reason_lines, reasons, waits};

/// More notices of one step than this are not shown by GitHub.
pub const MOST_NOTICES: usize = 10;

/// What `plan --help` ends with.
pub const EXAMPLES: &str = "Examples:
  trestle plan                         what would run, why, and about how long it will take
  trestle plan --set lr=0.2 -j 8       the same with another param, on eight threads
  trestle plan 'score[*]'              for some stages and what they need
  trestle plan --format github         why stages run, as annotations of a CI run
  trestle plan --format json | jq -r 'select(.fate == \"run\") | .stage'

The time is that of the stages' last runs. It is an upper bound: a stage that waits for others does not run if they give what they
gave before.";

/// Prints what would run and why.
pub fn plan(args: &Plan) -> Result<ExitCode, Fail> {
    let (project, targets) = Project::open(&args.words, &args.source, &trestle_stages::registry())?;
    let wanted = project.wanted(&targets)?;
    let fates = plan_pipeline(&project.pipeline, &wanted, &project.cache, &project.last)?;
    project.cache.flush()?;
    let estimate = estimate(&project.pipeline, &times(&project, &fates)?, crate::run::threads(args.jobs));
    let text = match args.format {
        Report::Human => human(&project.pipeline, &fates, &estimate),
        Report::Json => as_json(&project.pipeline, &fates, &estimate),
        Report::Github => notices(&project.pipeline, &fates, &estimate),
    };
    crate::print(&text)
}

/// What each stage that may have to run took when it last ran.
fn times(project: &Project, fates: &[(StageId, Fate)]) -> Result<BTreeMap<StageId, Option<Duration>>, Fail> {
    let mut times = BTreeMap::new();
    for (id, _) in fates.iter().filter(|(_, fate)| !matches!(fate, Fate::Hit(_))) {
        let key = project.last.get(&project.pipeline.stages[*id].name);
        let record = key.map(|key| project.cache.record(&key)).transpose()?.flatten();
        times.insert(*id, record.map(|record| Duration::from_millis(record.provenance.duration_ms)));
    }
    Ok(times)
}

/// How many stages are to run, later, and cached.
fn counts(fates: &[(StageId, Fate)]) -> [usize; 3] {
    let mut counts = [0; 3];
    for (_, fate) in fates {
        counts[match fate {
            Fate::Run(_) => 0,
            Fate::Later(_) => 1,
            Fate::Hit(_) => 2,
        }] += 1;
    }
    counts
}

fn in_words(counts: [usize; 3]) -> String {
    let [run, later, cached] = counts;
    format!("{run} to run, {later} later, {cached} cached")
}

/// About how long it will take; nothing if nothing is known.
fn time_in_words(estimate: &Estimate) -> Option<String> {
    let Estimate { wall, work, path, known, unknown } = estimate;
    if *known == 0 {
        return None;
    }
    let mut text = format!("at most about {}", duration(*wall));
    if known + unknown > 1 {
        text.push_str(&format!(" ({} of work; the longest chain takes {})", duration(*work), duration(*path)));
    }
    if *unknown > 0 {
        text.push_str(&format!(
            ", and what {} that {} not run before will take",
            count(*unknown, "stage"),
            if *unknown == 1 { "has" } else { "have" }
        ));
    }
    Some(text)
}

/// Stages that are cached are only counted.
fn human(pipeline: &Pipeline, fates: &[(StageId, Fate)], estimate: &Estimate) -> String {
    let mut text = String::new();
    for (id, fate) in fates {
        let name = &pipeline.stages[*id].name;
        match fate {
            Fate::Hit(_) => {}
            Fate::Run(work) => text.push_str(&format!("run    {name}: {}\n", reasons(&work.reasons))),
            Fate::Later(ids) => text.push_str(&format!("later  {name}: {}\n", waits(pipeline, ids))),
        }
    }
    let time = time_in_words(estimate).map(|time| format!("{time}\n")).unwrap_or_default();
    format!("{text}{}\n{time}", in_words(counts(fates)))
}

fn as_json(pipeline: &Pipeline, fates: &[(StageId, Fate)], estimate: &Estimate) -> String {
    let mut text: String = fates.iter().map(|(id, fate)| format!("{}\n", value(pipeline, *id, fate))).collect();
    let [run, later, cached] = counts(fates);
    let expected = json!({
        "wall_seconds": estimate.wall.as_secs_f64(), "work_seconds": estimate.work.as_secs_f64(),
        "path_seconds": estimate.path.as_secs_f64(), "known": estimate.known, "unknown": estimate.unknown,
    });
    let summary = json!({"event": "summary", "run": run, "later": later, "cached": cached, "expected": expected});
    text.push_str(&format!("{summary}\n"));
    text
}

fn value(pipeline: &Pipeline, id: StageId, fate: &Fate) -> Value {
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

fn notices(pipeline: &Pipeline, fates: &[(StageId, Fate)], estimate: &Estimate) -> String {
    let notice = |title: &str, message: &str| format!("{}\n", Annotation { level: Level::Notice, place: None, title, message });
    let running: Vec<_> = fates
        .iter()
        .filter_map(|(id, fate)| if let Fate::Run(work) = fate { Some((&pipeline.stages[*id].name, work)) } else { None })
        .collect();
    // The last one is for the counts, and for what had no room.
    let shown = running.len().min(MOST_NOTICES - 1);
    let mut text: String = running[..shown]
        .iter()
        .map(|(name, work)| notice(&format!("{name} has to run"), &format!("stage {name} runs because\n{}", reason_lines(&work.reasons))))
        .collect();
    let mut message = in_words(counts(fates));
    if let Some(time) = time_in_words(estimate) {
        message.push_str(&format!("\n{time}"));
    }
    if running.len() > shown {
        message.push_str(&format!("\n{} to run are not listed here", count(running.len() - shown, "stage")));
    }
    text.push_str(&notice(&format!("plan of {}", pipeline.name), &message));
    text
}
