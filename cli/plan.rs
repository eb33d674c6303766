//! `trestle plan`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use trestle_engine::compiled::Names;
use trestle_engine::estimate::{Estimate, Todo, estimate};
use trestle_engine::pipeline::{Later, StageId};
use trestle_engine::plan::Decision;

use crate::args::{Plan, Report};
use crate::fail::Fail;
use crate::github::{Annotation, Level};
use crate::lists;
use crate::project::Session;
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
    let (mut session, targets) = Session::open(&args.words, &args.source)?;
    let asked = lists::wanted(&session, &targets)?;
    let wanted = |id: usize| asked.has(id);
    let names = session.compiled.names().map_err(trestle_engine::error::Error::from)?;
    let mut planned = Planned { names: &names, decisions: Vec::new(), unfolds: &asked.later, counts: [0, asked.later.len(), 0] };
    let keeps_hits = args.format == Report::Json;
    session.planner.survey(&wanted, &mut |id, decision| planned.take(id, decision, keeps_hits))?;
    session.cache.flush()?;
    let estimate = estimate(&todo(&session, &planned)?, crate::run::threads(args.jobs));
    crate::print(&match args.format {
        Report::Human => planned.human(&estimate),
        Report::Json => planned.json(&estimate),
        Report::Github => planned.notices(&session.compiled.name, &estimate),
    })
}

/// What each stage that may have to run took when it last ran, and what it needs.
fn todo(session: &Session, planned: &Planned) -> Result<BTreeMap<StageId, Todo>, Fail> {
    let mut stages = BTreeMap::new();
    for (id, decision) in &planned.decisions {
        let threads = match decision {
            Decision::Hit(_) => continue,
            Decision::Run(work) => work.stage.threads.min,
            Decision::Later(_) => session.compiled.stage(*id).map_err(trestle_engine::error::Error::from)?.threads.min,
        };
        let time = match session.planner.expected_ms(*id) {
            0 => recorded(session, *id, &planned.names[*id])?,
            known => Some(Duration::from_millis(known.into())),
        };
        stages.insert(*id, Todo { time, threads, upstream: session.compiled.upstream(*id) });
    }
    Ok(stages)
}

/// What a stage took when it last ran, by its record: the pipeline has changed since.
fn recorded(session: &Session, id: StageId, name: &str) -> Result<Option<Duration>, Fail> {
    let key = session.planner.last_key(id, name);
    let record = key.map(|key| session.cache.record(&key)).transpose()?.flatten();
    Ok(record.map(|record| Duration::from_millis(record.provenance.duration_ms)))
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
        let have = if *unknown == 1 { "has" } else { "have" };
        text.push_str(&format!(", and what {} that {have} not run before will take", count(*unknown, "stage")));
    }
    Some(text)
}

struct Planned<'n> {
    names: &'n Names,
    decisions: Vec<(StageId, Decision)>,
    /// Stages that cannot be expanded yet.
    unfolds: &'n [Later],
    /// Stages to run, later, cached.
    counts: [usize; 3],
}

impl Planned<'_> {
    fn take(&mut self, id: StageId, decision: Decision, keeps_hits: bool) {
        let kind = match &decision {
            Decision::Run(_) => 0,
            Decision::Later(_) => 1,
            Decision::Hit(_) => 2,
        };
        self.counts[kind] += 1;
        if kind < 2 || keeps_hits {
            self.decisions.push((id, decision));
        }
    }

    fn counts_in_words(&self) -> String {
        let [run, later, cached] = self.counts;
        format!("{run} to run, {later} later, {cached} cached")
    }

    /// Stages that are cached are only counted.
    fn human(&self, estimate: &Estimate) -> String {
        let mut text = String::new();
        for (id, decision) in &self.decisions {
            let name = &self.names[*id];
            match decision {
                Decision::Hit(_) => {}
                Decision::Run(work) => text.push_str(&format!("run    {name}: {}\n", reasons(&work.reasons))),
                Decision::Later(ids) => text.push_str(&format!("later  {name}: {}\n", waits(self.names, ids))),
            }
        }
        for later in self.unfolds {
            let maker = &self.names[later.stage];
            text.push_str(&format!("later  {}: for the items of `{maker}.{}`, which is not made yet\n", later.name, later.output));
        }
        let time = time_in_words(estimate).map(|time| format!("{time}\n")).unwrap_or_default();
        format!("{text}{}\n{time}", self.counts_in_words())
    }

    fn json(&self, estimate: &Estimate) -> String {
        let mut text: String = self.decisions.iter().map(|(id, decision)| format!("{}\n", self.value(*id, decision))).collect();
        for later in self.unfolds {
            let waits = [&self.names[later.stage]];
            text.push_str(&format!("{}\n", json!({"event": "plan", "stage": later.name, "fate": "later", "waits": waits})));
        }
        let [run, later, cached] = self.counts;
        let expected = json!({
            "wall_seconds": estimate.wall.as_secs_f64(), "work_seconds": estimate.work.as_secs_f64(),
            "path_seconds": estimate.path.as_secs_f64(), "known": estimate.known, "unknown": estimate.unknown,
        });
        let summary = json!({"event": "summary", "run": run, "later": later, "cached": cached, "expected": expected});
        text.push_str(&format!("{summary}\n"));
        text
    }

    fn value(&self, id: StageId, decision: &Decision) -> Value {
        let name = &self.names[id];
        match decision {
            Decision::Hit(key) => json!({"event": "plan", "stage": name, "fate": "cached", "key": key.to_string()}),
            Decision::Run(work) => {
                json!({"event": "plan", "stage": name, "fate": "run", "key": work.key.to_string(), "reasons": work.reasons})
            }
            Decision::Later(ids) => {
                let waits: Vec<&str> = ids.iter().map(|&up| &self.names[up]).collect();
                json!({"event": "plan", "stage": name, "fate": "later", "waits": waits})
            }
        }
    }

    fn notices(&self, pipeline: &str, estimate: &Estimate) -> String {
        let notice = |title: &str, message: &str| format!("{}\n", Annotation { level: Level::Notice, place: None, title, message });
        let running: Vec<_> = self
            .decisions
            .iter()
            .filter_map(|(id, decision)| if let Decision::Run(work) = decision { Some((&self.names[*id], work)) } else { None })
            .collect();
        // The last one is for the counts, and for what had no room.
        let shown = running.len().min(MOST_NOTICES - 1);
        let mut text: String = running[..shown]
            .iter()
            .map(|(name, work)| {
                notice(&format!("{name} has to run"), &format!("stage {name} runs because\n{}", reason_lines(&work.reasons)))
            })
            .collect();
        let mut message = self.counts_in_words();
        if let Some(time) = time_in_words(estimate) {
            message.push_str(&format!("\n{time}"));
        }
        if running.len() > shown {
            message.push_str(&format!("\n{} to run are not listed here", count(running.len() - shown, "stage")));
        }
        text.push_str(&notice(&format!("plan of {pipeline}"), &message));
        text
    }
}
