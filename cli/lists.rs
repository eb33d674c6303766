//! `foreach` over outputs. Lists that are in the cache are read and the pipeline is resolved again, until nothing more can be expanded;
//! `run` makes those that are not there in rounds of their own.

use std::collections::{BTreeMap, HashSet};

use trestle_cache::Content;
use trestle_engine::event::{Event, Summary};
use trestle_engine::pipeline::{Later, Pipeline, StageId};
use trestle_engine::plan::{Fate, plan, select};

use crate::fail::Fail;
use crate::project::Project;

/// Longest list, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// Lists by the names under which they are asked for: what stands in them, or why that cannot be read.
pub type Lists = BTreeMap<(String, String), Result<String, String>>;

/// The lists that stages wait for and that are in the cache.
pub fn made(project: &Project) -> Result<Lists, Fail> {
    let pipeline = &project.pipeline;
    let mut wanted = vec![false; pipeline.stages.len()];
    pipeline.later.iter().for_each(|later| wanted[later.stage] = true);
    with_upstream(pipeline, &mut wanted);
    let mut records = BTreeMap::new();
    for (id, fate) in plan(pipeline, &wanted, &project.cache, &project.last)? {
        if let Fate::Hit(record) = fate {
            records.insert(id, record);
        }
    }
    let mut lists = Lists::new();
    for Later { stage, output, asked, .. } in &pipeline.later {
        if let Some(content) = records.get(stage).and_then(|record| record.outputs.get(output)) {
            lists.insert((asked.clone(), output.clone()), text(project, content)?);
        }
    }
    Ok(lists)
}

fn text(project: &Project, content: &Content) -> Result<Result<String, String>, Fail> {
    Ok(match content {
        Content::Blob { size, .. } if *size > MAX_BYTES => Err(format!("it has {} MiB", size >> 20)),
        Content::Blob { id, .. } => String::from_utf8(project.cache.read_blob(id)?).map_err(|_| "it is not text".to_owned()),
        Content::Tree { .. } => Err("it is a folder".to_owned()),
    })
}

fn with_upstream(pipeline: &Pipeline, wanted: &mut [bool]) {
    for id in (0..wanted.len()).rev() {
        if wanted[id] {
            pipeline.stages[id].upstream().into_iter().for_each(|up| wanted[up] = true);
        }
    }
}

/// Which stages the words ask for, and which of those that cannot be expanded yet. What makes the lists of the latter is wanted too.
pub fn wanted(project: &Project, targets: &[String]) -> Result<(Vec<bool>, Vec<Later>), Fail> {
    let pipeline = &project.pipeline;
    let mut known = Vec::new();
    let mut later: Vec<Later> = if targets.is_empty() { pipeline.later.clone() } else { Vec::new() };
    for target in targets {
        let before = later.len();
        later.extend(pipeline.later.iter().filter(|later| may_name(target, &later.name)).cloned());
        let is_later = later.len() > before;
        if !is_later || (target.contains('*') && select(pipeline, std::slice::from_ref(target)).is_ok()) {
            known.push(target.clone());
        }
    }
    let mut wanted = if known.is_empty() && !targets.is_empty() { vec![false; pipeline.stages.len()] } else { select(pipeline, &known)? };
    later.iter().for_each(|later| wanted[later.stage] = true);
    with_upstream(pipeline, &mut wanted);
    Ok((wanted, later))
}

/// Whether a target may mean an expansion of the stage `name`.
fn may_name(target: &str, name: &str) -> bool {
    let fixed = target.split('*').next().unwrap_or_default();
    target.split('[').next() == Some(name) || (target.contains('*') && (name.starts_with(fixed) || fixed.starts_with(&format!("{name}["))))
}

/// The stages that make the lists of `later`, with all that they need.
pub fn makers(pipeline: &Pipeline, later: &[Later]) -> Vec<bool> {
    let mut wanted = vec![false; pipeline.stages.len()];
    later.iter().for_each(|later: &Later| wanted[later.stage as StageId] = true);
    with_upstream(pipeline, &mut wanted);
    wanted
}

/// The rounds of one run, shown as one.
#[derive(Default)]
pub struct Rounds {
    /// Stages that an earlier round told of.
    told: HashSet<String>,
    /// Stages that this round tells of.
    telling: Vec<String>,
    executed: usize,
    seconds: f64,
}

impl Rounds {
    /// The event as it is to be shown; nothing if an earlier round showed it, or a later one sums up.
    pub fn event(&mut self, event: Event, is_last: bool) -> Option<Event> {
        match event {
            Event::Cached { stage, .. } if self.told.contains(&stage) => None,
            Event::Cached { ref stage, .. } | Event::Done { ref stage, .. } => {
                self.telling.push(stage.clone());
                Some(event)
            }
            Event::Summary(summary) if is_last || !is_good(&summary) => Some(Event::Summary(self.total(summary))),
            Event::Summary(_) => None,
            other => Some(other),
        }
    }

    /// Ends a round.
    pub fn next(&mut self, summary: &Summary) {
        self.told.extend(self.telling.drain(..));
        self.executed += summary.executed;
        self.seconds += summary.seconds;
    }

    /// The counts of all rounds: what an earlier one executed, this one found in the cache.
    pub fn total(&self, mut summary: Summary) -> Summary {
        summary.executed += self.executed;
        summary.cached = summary.cached.saturating_sub(self.executed);
        summary.seconds += self.seconds;
        summary
    }
}

/// Whether all went well.
pub fn is_good(summary: &Summary) -> bool {
    summary.failed + summary.skipped + summary.cancelled == 0
}
