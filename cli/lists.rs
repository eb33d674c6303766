//! `foreach` over outputs. Lists that are in the cache are read and the pipeline is resolved again, until nothing more can be expanded;
//! `run` makes those that are not there in rounds of their own.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use trestle_cache::{Cache, Content, Digest};
use trestle_engine::compiled::Compiled;
use trestle_engine::event::{Event, Summary};
use trestle_engine::memo::History;
use trestle_engine::pipeline::{Later, Pipeline, StageId};
use trestle_engine::plan::{Fate, plan};
use trestle_engine::target;

use crate::fail::Fail;
use crate::project::Session;

/// Longest list, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// Lists by the names under which they are asked for: what stands in them, or why that cannot be read.
pub type Lists = BTreeMap<(String, String), Result<String, String>>;

/// The lists that stages wait for and that are in the cache.
pub fn made(pipeline: &Arc<Pipeline>, cache: &Arc<Cache>, history: &Arc<History>) -> Result<Lists, Fail> {
    let mut wanted = vec![false; pipeline.stages.len()];
    pipeline.later.iter().for_each(|later| wanted[later.stage] = true);
    target::add_upstream(&mut wanted, |id| pipeline.stages[id].upstream());
    let mut records = BTreeMap::new();
    for (id, fate) in plan(pipeline, &wanted, cache, history)? {
        if let Fate::Hit(record) = fate {
            records.insert(id, record);
        }
    }
    let mut lists = Lists::new();
    for Later { stage, output, asked, .. } in &pipeline.later {
        if let Some(content) = records.get(stage).and_then(|record| record.outputs.get(output)) {
            lists.insert((asked.clone(), output.clone()), text(cache, content)?);
        }
    }
    Ok(lists)
}

fn text(cache: &Cache, content: &Content) -> Result<Result<String, String>, Fail> {
    Ok(match content {
        Content::Blob { size, .. } if *size > MAX_BYTES => Err(format!("it has {} MiB", size >> 20)),
        Content::Blob { id, .. } => String::from_utf8(cache.read_blob(id)?).map_err(|_| "it is not text".to_owned()),
        Content::Tree { .. } => Err("it is a folder".to_owned()),
    })
}

/// What the words of a command line ask for.
pub struct Wanted {
    /// Expanded stages; all if there is no list.
    pub stages: Option<Vec<bool>>,
    /// Stages that cannot be expanded yet. What makes their lists is among the others.
    pub later: Vec<Later>,
}

impl Wanted {
    /// Whether a stage is asked for.
    pub fn has(&self, id: StageId) -> bool {
        self.stages.as_ref().is_none_or(|stages| stages[id])
    }

    /// Only the stages that make lists, with all that they need.
    pub fn makers(&self, compiled: &Compiled) -> Self {
        let mut stages = vec![false; compiled.len()];
        mark(compiled, &self.later, &mut stages);
        Self { stages: Some(stages), later: Vec::new() }
    }
}

fn mark(compiled: &Compiled, later: &[Later], wanted: &mut [bool]) {
    later.iter().for_each(|later| wanted[later.stage] = true);
    target::add_upstream(wanted, |id| compiled.upstream(id));
}

/// Which stages the words ask for.
pub fn wanted(session: &Session, targets: &[String]) -> Result<Wanted, Fail> {
    let compiled = &session.compiled;
    if session.later.is_empty() || targets.is_empty() {
        return Ok(Wanted { stages: target::select(compiled, targets)?, later: session.later.clone() });
    }
    let mut known = Vec::new();
    let mut later: Vec<Later> = Vec::new();
    for target in targets {
        let before = later.len();
        later.extend(session.later.iter().filter(|later| may_name(target, &later.name)).cloned());
        let is_later = later.len() > before;
        if !is_later || (target.contains('*') && target::select(compiled, std::slice::from_ref(target)).is_ok()) {
            known.push(target.clone());
        }
    }
    let mut stages = if known.is_empty() { None } else { target::select(compiled, &known)? }.unwrap_or_else(|| vec![false; compiled.len()]);
    mark(compiled, &later, &mut stages);
    Ok(Wanted { stages: Some(stages), later })
}

/// Whether a target may mean an expansion of the stage `name`.
fn may_name(target: &str, name: &str) -> bool {
    let fixed = target.split('*').next().unwrap_or_default();
    target.split('[').next() == Some(name) || (target.contains('*') && (name.starts_with(fixed) || fixed.starts_with(&format!("{name}["))))
}

/// The rounds of one run, shown as one.
#[derive(Default)]
pub struct Rounds {
    /// Stages that an earlier round told of, by digests of their names: of very many the names would be large.
    told: HashSet<NameDigest>,
    /// Stages that this round tells of.
    telling: Vec<NameDigest>,
    /// Stages that earlier rounds executed, and those that this one did by now.
    executed: usize,
    executing: usize,
    seconds: f64,
    /// The lists that this round makes.
    making: HashSet<(String, String)>,
}

impl Rounds {
    /// What a round that makes lists has to run.
    pub fn begin(&mut self, asked: Wanted, compiled: &Compiled) -> Result<Wanted, Fail> {
        let making: HashSet<_> = asked.later.iter().map(|later| (later.asked.clone(), later.output.clone())).collect();
        if let Some((stage, output)) = making.intersection(&self.making).next() {
            // Only a stage that is never cached gets here.
            return Err(Fail::with_help(
                format!("the list `{stage}.{output}` was just made and cannot be found in the cache"),
                "a stage that makes a list for `foreach` cannot have `cache: false`",
            ));
        }
        self.making = making;
        Ok(asked.makers(compiled))
    }

    /// The event as it is to be shown; nothing if an earlier round showed it, or a later one sums up.
    pub fn event(&mut self, event: Event, is_last: bool) -> Option<Event> {
        match event {
            Event::Cached { stage, .. } if self.told.contains(&name_digest(&stage)) => None,
            Event::Cached { ref stage, .. } | Event::Done { ref stage, .. } => {
                self.executing += usize::from(matches!(event, Event::Done { .. }));
                // The last round too: a kept plan that turns out to be damaged is followed by one more.
                self.telling.push(name_digest(stage));
                Some(event)
            }
            Event::Summary(summary) if is_last || !is_good(&summary) => Some(Event::Summary(self.total(summary))),
            Event::Summary(_) => None,
            other => Some(other),
        }
    }

    /// Ends a round that was not the last.
    pub fn end(&mut self, took: Duration) {
        self.told.extend(self.telling.drain(..));
        self.executed += std::mem::take(&mut self.executing);
        self.seconds += took.as_secs_f64();
    }

    /// The counts of all rounds: what an earlier one executed, this one found in the cache.
    pub fn total(&self, mut summary: Summary) -> Summary {
        summary.executed += self.executed;
        summary.cached = summary.cached.saturating_sub(self.executed);
        summary.seconds += self.seconds;
        summary
    }
}

/// Half of a digest.
type NameDigest = [u8; 16];

fn name_digest(name: &str) -> NameDigest {
    let digest = Digest::of(name.as_bytes());
    std::array::from_fn(|i| digest.as_bytes()[i])
}

/// Whether all went well.
pub fn is_good(summary: &Summary) -> bool {
    summary.failed + summary.skipped + summary.cancelled == 0
}
