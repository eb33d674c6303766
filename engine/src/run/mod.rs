//! Running a pipeline: one loop that sees every event, decides what starts next, and keeps the state of every stage.
//!
//! Stages become ready when their inputs are known. A ready stage whose outputs are in the cache is done at once; the others
//! wait for threads, those with the longest way below them first. Each gets a fair share of the free threads within what it
//! can use. Nothing is recorded before all outputs of a stage are stored.

mod work;

pub use work::file_name;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use trestle_cache::{ActionKey, ActionRecord, Cache, Last};

use crate::error::Error;
use crate::event::{Event, Failure};
use crate::executor::Executor;
use crate::pipeline::{Pipeline, StageId};
use crate::plan::{Fate, Planner, Work};
use crate::stage::{Progress, StageError};
use crate::status::{Board, Status};

pub use crate::event::Summary;

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads that may be used at a time.
    pub cpus: usize,
    /// Go on with what does not depend on a failed stage.
    pub keep_going: bool,
    /// Variables that commands get besides their declared ones, such as `PATH`.
    pub env: BTreeMap<String, String>,
    /// Name of this machine, for the records.
    pub host: String,
    /// Versions and facts for the records, such as the program's version and the instruction set.
    pub versions: BTreeMap<String, String>,
    /// Folder for the logs of stages.
    pub logs: PathBuf,
}

/// Runs the wanted stages.
///
/// # Errors
/// If the cache or a source cannot be used; a failing stage is no error but counted in the summary.
pub async fn run(
    pipeline: &Arc<Pipeline>,
    wanted: &[bool],
    cache: &Arc<Cache>,
    last: &mut Last,
    executor: &Arc<dyn Executor>,
    options: &Options,
    cancel: watch::Receiver<bool>,
    events: &mut (dyn FnMut(Event) + Send),
) -> Result<Summary, Error> {
    let started = Instant::now();
    events(Event::Started { pipeline: pipeline.name.clone(), stages: wanted.iter().filter(|w| **w).count(), cpus: options.cpus });
    let (reports, inbox) = mpsc::unbounded_channel();
    let mut dispatcher = Dispatcher {
        pipeline,
        cache,
        last,
        executor,
        options,
        events,
        reports,
        planner: Planner::new(pipeline, cache),
        board: Board::new(wanted.len()),
        readers: pipeline.downstream(),
        height: heights(pipeline),
        waiting_for: vec![0; wanted.len()],
        pending: Vec::new(),
        busy: BTreeSet::new(),
        free: options.cpus,
        running: JoinSet::new(),
        stopping: false,
        cancel: cancel.clone(),
    };
    dispatcher.begin(wanted)?;
    dispatcher.settle_all(inbox, cancel).await?;
    let mut summary = dispatcher.board.summary();
    // Stages that nobody wanted were settled as skipped before the run began.
    summary.skipped -= wanted.iter().filter(|w| !**w).count();
    summary.seconds = started.elapsed().as_secs_f64();
    events(Event::Summary(summary));
    Ok(summary)
}

/// Length of the longest way from each stage to the end.
fn heights(pipeline: &Pipeline) -> Vec<usize> {
    let mut height = vec![0usize; pipeline.stages.len()];
    for id in (0..height.len()).rev() {
        for up in pipeline.stages[id].upstream() {
            height[up] = height[up].max(height[id] + 1);
        }
    }
    height
}

/// A stage that waits for threads.
struct Pending {
    id: StageId,
    work: Work,
}

/// What a finished task brings back.
struct Finished {
    id: StageId,
    key: ActionKey,
    threads: usize,
    started: Instant,
    result: Result<Box<ActionRecord>, work::Stop>,
}

struct Dispatcher<'r> {
    pipeline: &'r Arc<Pipeline>,
    cache: &'r Arc<Cache>,
    last: &'r mut Last,
    executor: &'r Arc<dyn Executor>,
    options: &'r Options,
    events: &'r mut (dyn FnMut(Event) + Send),
    reports: mpsc::UnboundedSender<(StageId, Progress)>,
    planner: Planner<'r>,
    board: Board,
    readers: Vec<Vec<StageId>>,
    height: Vec<usize>,
    waiting_for: Vec<usize>,
    pending: Vec<Pending>,
    /// Keys that are being run: another stage of the same key waits for the record.
    busy: BTreeSet<ActionKey>,
    free: usize,
    running: JoinSet<Finished>,
    /// A stage failed and the run does not go on, or the run was interrupted.
    stopping: bool,
    cancel: watch::Receiver<bool>,
}

impl Dispatcher<'_> {
    /// Makes everything ready that reads from no other stage.
    fn begin(&mut self, wanted: &[bool]) -> Result<(), Error> {
        for (id, stage) in self.pipeline.stages.iter().enumerate() {
            self.waiting_for[id] = stage.upstream().len();
            if !wanted[id] {
                self.board.transition(id, Status::Skipped);
            }
        }
        let ready = (0..wanted.len()).filter(|&id| wanted[id] && self.waiting_for[id] == 0).collect();
        self.make_ready(ready)
    }

    /// The loop: start what fits, wait for the next event, until every stage has its final state.
    async fn settle_all(
        &mut self,
        mut inbox: mpsc::UnboundedReceiver<(StageId, Progress)>,
        mut cancel: watch::Receiver<bool>,
    ) -> Result<(), Error> {
        let mut may_cancel = true;
        loop {
            self.start_what_fits();
            if self.running.is_empty() {
                break;
            }
            tokio::select! {
                // Reports come before the end of the stage that sent them.
                biased;
                Some((id, progress)) = inbox.recv() => self.report(id, progress),
                interrupted = cancel.wait_for(|c| *c), if may_cancel => {
                    may_cancel = false;
                    self.stopping |= interrupted.is_ok();
                }
                Some(finished) = self.running.join_next() => self.finish(finished)?,
            }
        }
        self.close();
        Ok(())
    }

    /// Stages whose inputs are known become ready; those that are hits make their readers ready in turn.
    fn make_ready(&mut self, mut ready: Vec<StageId>) -> Result<(), Error> {
        while let Some(id) = ready.pop() {
            self.board.transition(id, Status::Ready);
            ready.extend(self.decide(id)?);
        }
        Ok(())
    }

    /// Decides the fate of a ready stage; gives the readers that a hit makes ready.
    fn decide(&mut self, id: StageId) -> Result<Vec<StageId>, Error> {
        match self.planner.decide(id, self.last)? {
            Fate::Hit(record) => {
                self.remember(id, &record.key)?;
                self.board.transition(id, Status::Done { cached: true });
                (self.events)(Event::Cached { stage: self.pipeline.stages[id].name.clone(), key: record.key.to_string() });
                Ok(self.release(id))
            }
            Fate::Run(work) => {
                self.pending.push(Pending { id, work: *work });
                Ok(Vec::new())
            }
            Fate::Later(waits) => unreachable!("stage {id} was made ready before {waits:?}"),
        }
    }

    /// `explain` compares with what was last run or found under this name.
    fn remember(&mut self, id: StageId, key: &ActionKey) -> Result<(), Error> {
        let name = &self.pipeline.stages[id].name;
        if self.last.get(name).as_ref() != Some(key) {
            self.last.put(name, key)?;
        }
        Ok(())
    }

    /// Readers of a stage that is done, if it was the last that they waited for.
    fn release(&mut self, id: StageId) -> Vec<StageId> {
        let mut ready = Vec::new();
        for reader in self.readers[id].clone() {
            self.waiting_for[reader] -= 1;
            if self.waiting_for[reader] == 0 && self.board.status(reader) == Status::Waiting {
                ready.push(reader);
            }
        }
        ready
    }

    fn start_what_fits(&mut self) {
        if self.stopping {
            return;
        }
        self.pending.sort_by_key(|pending| (self.height[pending.id], std::cmp::Reverse(pending.id)));
        while let Some(at) = self.pending.iter().rposition(|pending| !self.busy.contains(&pending.work.key)) {
            let can_use = self.pipeline.stages[self.pending[at].id].threads;
            let least = can_use.min.clamp(1, self.options.cpus);
            if least > self.free {
                break;
            }
            let fair = self.free / self.pending.len();
            let threads = fair.clamp(least, can_use.max.max(least)).min(self.free);
            let pending = self.pending.remove(at);
            self.start(pending, threads);
        }
    }

    fn start(&mut self, pending: Pending, threads: usize) {
        let Pending { id, work } = pending;
        self.board.transition(id, Status::Running);
        self.busy.insert(work.key);
        self.free -= threads;
        let stage = self.pipeline.stages[id].name.clone();
        (self.events)(Event::Running { stage, key: work.key.to_string(), reasons: work.reasons.clone(), threads });
        let surroundings = work::Surroundings {
            pipeline: Arc::clone(self.pipeline),
            cache: Arc::clone(self.cache),
            executor: Arc::clone(self.executor),
            options: self.options.clone(),
            cancel: self.cancel.clone(),
        };
        let reports = self.reports.clone();
        let (key, started) = (work.key, Instant::now());
        self.running.spawn(async move {
            let (sender, mut receiver) = mpsc::unbounded_channel();
            let forward = async {
                while let Some(progress) = receiver.recv().await {
                    // A dispatcher that is gone no longer wants progress.
                    let _ = reports.send((id, progress));
                }
            };
            let (result, ()) = tokio::join!(work::carry_out(&surroundings, id, work, threads, sender), forward);
            Finished { id, key, threads, started, result }
        });
    }

    fn report(&mut self, id: StageId, progress: Progress) {
        (self.events)(Event::Progress { stage: self.pipeline.stages[id].name.clone(), progress });
    }

    fn finish(&mut self, finished: Result<Finished, tokio::task::JoinError>) -> Result<(), Error> {
        let Finished { id, key, threads, started, result } = match finished {
            Ok(finished) => finished,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        self.free += threads;
        self.busy.remove(&key);
        match result {
            Ok(record) => self.done(id, &record, started.elapsed()),
            Err(work::Stop::Cancelled) => {
                self.board.transition(id, Status::Cancelled);
                (self.events)(Event::Cancelled { stage: self.pipeline.stages[id].name.clone() });
                Ok(())
            }
            Err(work::Stop::Failed(failure)) => {
                self.failed(id, failure);
                Ok(())
            }
        }
    }

    fn done(&mut self, id: StageId, record: &ActionRecord, took: Duration) -> Result<(), Error> {
        self.planner.settle(id, record.outputs.clone());
        self.remember(id, &record.key)?;
        self.board.transition(id, Status::Done { cached: false });
        let metrics: Value = record.metrics.iter().map(|(name, value)| (name.clone(), Value::from(*value))).collect();
        let stage = self.pipeline.stages[id].name.clone();
        (self.events)(Event::Done {
            stage,
            key: record.key.to_string(),
            seconds: took.as_secs_f64(),
            metrics,
            peak_rss_kib: record.provenance.peak_rss_kib,
        });
        let ready = self.release(id);
        self.make_ready(ready)?;
        self.decide_again(&record.key)
    }

    /// Stages that waited for the record of the same key find it now.
    fn decide_again(&mut self, key: &ActionKey) -> Result<(), Error> {
        let (same, others) = std::mem::take(&mut self.pending).into_iter().partition(|pending| pending.work.key == *key);
        self.pending = others;
        for Pending { id, .. } in same {
            let ready = self.decide(id)?;
            self.make_ready(ready)?;
        }
        Ok(())
    }

    fn failed(&mut self, id: StageId, failure: Failure) {
        self.board.transition(id, Status::Failed);
        (self.events)(Event::Failed { stage: self.pipeline.stages[id].name.clone(), failure });
        self.stopping |= !self.options.keep_going;
        let because = self.pipeline.stages[id].name.clone();
        let mut below = self.readers[id].clone();
        while let Some(reader) = below.pop() {
            if self.board.status(reader) == Status::Waiting {
                self.skip(reader, &because);
                below.extend(self.readers[reader].iter().copied());
            }
        }
    }

    fn skip(&mut self, id: StageId, because: &str) {
        self.board.transition(id, Status::Skipped);
        (self.events)(Event::Skipped { stage: self.pipeline.stages[id].name.clone(), because: because.to_owned() });
    }

    /// Gives a final state to what was never begun.
    fn close(&mut self) {
        let interrupted = *self.cancel.borrow();
        let failed: Option<String> = self
            .pipeline
            .stages
            .iter()
            .enumerate()
            .find(|(id, _)| self.board.status(*id) == Status::Failed)
            .map(|(_, stage)| stage.name.clone());
        for id in 0..self.pipeline.stages.len() {
            if self.board.status(id).is_final() {
                continue;
            }
            match &failed {
                Some(because) if !interrupted => self.skip(id, because),
                _ => {
                    self.board.transition(id, Status::Cancelled);
                    (self.events)(Event::Cancelled { stage: self.pipeline.stages[id].name.clone() });
                }
            }
        }
        debug_assert!(self.board.is_settled(), "a stage was left without a final state");
    }
}

impl From<StageError> for Failure {
    fn from(error: StageError) -> Self {
        Self { error, log: None, log_tail: String::new() }
    }
}
