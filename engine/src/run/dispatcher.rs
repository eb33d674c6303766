//! One loop that sees every event, decides what starts next, and keeps the state of every stage.
//!
//! Only stages that are no hits from the outset are looked at. One becomes ready when its inputs are known. If its outputs turn out to be in
//! the cache it is done at once; otherwise it waits for its resources: those of higher priority first, then those with the longest way
//! below them by the time that each stage took before. Each gets a fair share of the free threads within what it can use. What runs in
//! another process already is waited for. Nothing is recorded before all outputs of a stage are stored.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::mpsc;
use trestle_cache::{ActionKey, ActionRecord, Claim, Content};

use super::queue::{Entry, Open, Queue};
use super::resources::{Grant, Needs, Resources};
use super::work;
use crate::compiled::{Compiled, Names};
use crate::error::Error;
use crate::event::{Event, Failure};
use crate::executor::Said;
use crate::pipeline::StageId;
use crate::plan::{Decision, Planner, Work};
use crate::status::{Board, Status};

/// Works kept for stages that wait; those of all others are made again when their turn comes.
pub const KEPT_WORKS: usize = 1024;
/// How often it is looked whether another process has finished what it claimed.
const ELSEWHERE: Duration = Duration::from_millis(50);
/// How often what was stored is synced to disk meanwhile.
const SYNC: Duration = Duration::from_secs(5);
/// What took at most so many milliseconds the last time, and is all there is to do, is done by the loop itself: a thread takes longer to start and to be
/// woken than some stages take.
const SHORT_MS: u32 = 200;
/// Such a stage reads no more bytes than this: while they are laid out nobody hears a call to end.
const SMALL_INPUTS: u64 = 1 << 20;

/// What the threads that carry stages out tell the loop.
enum Note {
    Said(usize, Said),
    /// The process of a stage has ended.
    Ended(usize),
    Finished(Finished),
}

/// What came of a stage.
struct Finished {
    open: usize,
    work: Box<Work>,
    took: Duration,
    result: Result<Box<ActionRecord>, work::Stop>,
    /// Held until the record is written.
    _claim: Claim,
}

/// What a stage says, as an event.
fn told(stage: String, said: Said) -> Event {
    match said {
        Said::Progress(progress) => Event::Progress { stage, progress },
        Said::Line(line) => Event::Output { stage, line },
    }
}

/// A stage that is about to be carried out.
struct Begun {
    open: usize,
    work: Box<Work>,
    grant: Grant,
    tries: u32,
    claim: Claim,
}

impl Begun {
    /// Carries it out, on a thread that may wait.
    fn carry_out(self, around: &work::Surroundings, say: &mut dyn FnMut(Said), ended: &mut dyn FnMut()) -> Finished {
        let Self { open, work, grant, tries, claim } = self;
        let started = Instant::now();
        let result = work::carry_out(around, &work, &grant, tries, say, ended);
        Finished { open, work, took: started.elapsed(), result, _claim: claim }
    }
}

/// Stages are numbered by their place among the open ones.
pub struct Dispatcher<'r> {
    names: Names,
    events: &'r mut dyn FnMut(Event),
    sender: mpsc::UnboundedSender<Note>,
    inbox: mpsc::UnboundedReceiver<Note>,
    surroundings: Arc<work::Surroundings>,
    planner: &'r mut Planner,
    graph: Open,
    pub board: Board,
    waiting_for: Vec<u32>,
    /// Of some that are queued.
    works: HashMap<usize, Box<Work>>,
    queue: Queue,
    /// Stages that what is free is too little for.
    blocked: Vec<(Entry, Needs)>,
    resources: Resources,
    /// What is granted to stages whose processes run.
    grants: HashMap<usize, Grant>,
    /// Keys that are being run.
    busy: BTreeSet<ActionKey>,
    /// Stages of the same key as one that is being run: they wait for its record.
    same: Vec<(ActionKey, usize)>,
    /// Stages that another process is carrying out.
    elsewhere: Vec<usize>,
    /// Failed stages that are to be tried again, and when.
    pauses: Vec<(Instant, usize)>,
    /// How often a stage was tried, where that is more than once.
    tries: HashMap<usize, u32>,
    running: usize,
    next_sync: Instant,
    /// How long the stages that were carried out took in all.
    pub took: Duration,
    /// A stage failed and the run does not go on, or the run was interrupted.
    stopping: bool,
    first_failed: Option<usize>,
}

impl<'r> Dispatcher<'r> {
    /// For the stages `open`, of some of which it is known what has to be done, by their place among them.
    ///
    /// # Errors
    /// If the names of the pipeline's stages cannot be read.
    pub fn new(
        compiled: &Compiled,
        open: Vec<StageId>,
        works: HashMap<usize, Box<Work>>,
        planner: &'r mut Planner,
        surroundings: work::Surroundings,
        events: &'r mut dyn FnMut(Event),
    ) -> Result<Self, Error> {
        let (sender, inbox) = mpsc::unbounded_channel();
        let graph = Open::new(compiled, open, |id| planner.expected_ms(id));
        Ok(Self {
            names: compiled.names()?,
            board: Board::new(graph.len()),
            waiting_for: graph.waits(),
            graph,
            events,
            sender,
            inbox,
            resources: Resources::new(&surroundings.options),
            surroundings: Arc::new(surroundings),
            planner,
            works,
            queue: Queue::default(),
            blocked: Vec::new(),
            grants: HashMap::new(),
            busy: BTreeSet::new(),
            same: Vec::new(),
            elsewhere: Vec::new(),
            pauses: Vec::new(),
            tries: HashMap::new(),
            running: 0,
            next_sync: Instant::now() + SYNC,
            took: Duration::ZERO,
            stopping: false,
            first_failed: None,
        })
    }

    fn name(&self, open: usize) -> String {
        self.names[self.graph.id(open)].to_owned()
    }

    /// Queues everything that reads from no other open stage.
    fn begin(&mut self) {
        for open in 0..self.graph.len() {
            if self.waiting_for[open] == 0 {
                self.board.transition(open, Status::Ready);
                self.queue.push(open, self.works.get(&open).map_or(0, |work| work.stage.settings.priority), self.graph.height(open));
            }
        }
    }

    /// The loop: start what fits, wait for the next event, until every stage has its final state.
    pub async fn settle_all(&mut self) -> Result<(), Error> {
        self.begin();
        let settled = self.go_on().await;
        if settled.is_err() {
            self.hear_the_rest().await;
        }
        settled
    }

    /// Waits for what is under way when the run cannot go on, and tells of what is done by then: it is in the cache for good.
    async fn hear_the_rest(&mut self) {
        while self.running > 0
            && let Some(note) = self.inbox.recv().await
        {
            if let Note::Finished(Finished { open, result, took, .. }) = note {
                self.running -= 1;
                if let Ok(record) = result {
                    self.tell_done(open, &record, took);
                }
            }
        }
    }

    async fn go_on(&mut self) -> Result<(), Error> {
        loop {
            self.start_what_fits()?;
            let has_timers = !self.elsewhere.is_empty() || !self.pauses.is_empty();
            let waits = has_timers && !self.stopping;
            if self.running == 0 && !waits {
                break;
            }
            let wake = self.wake_at();
            tokio::select! {
                Some(note) = self.inbox.recv() => {
                    self.hear(note)?;
                    // Whatever else is there already is heard before anything is started.
                    while let Ok(note) = self.inbox.try_recv() {
                        self.hear(note)?;
                    }
                }
                () = tokio::time::sleep_until(wake.into()) => self.wake()?,
            }
            self.sync_if_due();
        }
        self.close();
        Ok(())
    }

    fn sync_if_due(&mut self) {
        if Instant::now() >= self.next_sync {
            self.next_sync = Instant::now() + SYNC;
            let cache = Arc::clone(&self.surroundings.cache);
            // A failed sync shows when the run ends and everything is synced.
            tokio::task::spawn_blocking(move || drop(cache.sync()));
        }
    }

    /// When to look again although nothing was heard.
    fn wake_at(&self) -> Instant {
        let pause = self.pauses.iter().map(|(at, _)| *at).min();
        let elsewhere = (!self.elsewhere.is_empty()).then(|| Instant::now() + ELSEWHERE);
        [pause, elsewhere].into_iter().flatten().fold(self.next_sync.min(Instant::now() + Duration::from_millis(500)), Instant::min)
    }

    fn wake(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.pauses).into_iter().partition(|(at, _)| *at <= now);
        self.pauses = later;
        let due: Vec<(Instant, usize)> = due;
        for open in due.into_iter().map(|(_, open)| open).chain(std::mem::take(&mut self.elsewhere)) {
            self.decide(open)?;
        }
        Ok(())
    }

    fn hear(&mut self, note: Note) -> Result<(), Error> {
        match note {
            Note::Said(open, said) => {
                let event = told(self.name(open), said);
                (self.events)(event);
                Ok(())
            }
            Note::Ended(open) => {
                self.ended(open);
                Ok(())
            }
            Note::Finished(finished) => self.finish(finished),
        }
    }

    /// Decides the fate of a ready stage: a hit makes others ready in turn, anything else is queued.
    fn decide(&mut self, open: usize) -> Result<(), Error> {
        let mut ready = vec![open];
        while let Some(open) = ready.pop() {
            match self.planner.decide(self.graph.id(open))? {
                Decision::Hit(key) => ready.extend(self.found(open, key)),
                Decision::Run(work) => {
                    self.queue.push(open, work.stage.settings.priority, self.graph.height(open));
                    self.keep(open, work);
                }
                Decision::Later(waits) => unreachable!("{} was made ready before {waits:?}", self.name(open)),
            }
        }
        Ok(())
    }

    /// What a stage gives was in the cache. Gives the readers that this makes ready.
    fn found(&mut self, open: usize, key: ActionKey) -> Vec<usize> {
        self.board.transition(open, Status::Done { cached: true });
        if self.surroundings.options.report_cached {
            let stage = self.name(open);
            (self.events)(Event::Cached { stage, key: key.to_string() });
        }
        self.release(open)
    }

    /// Keeps what is known of a queued stage, if there is room; else it is found out again.
    fn keep(&mut self, open: usize, work: Box<Work>) {
        if self.works.len() < KEPT_WORKS {
            self.works.insert(open, work);
        }
    }

    /// What has to be done for a queued stage; nothing if it was made meanwhile, by a stage of the same key or by another process.
    fn work(&mut self, open: usize) -> Result<Option<Box<Work>>, Error> {
        if let Some(work) = self.works.remove(&open) {
            return Ok(Some(work));
        }
        match self.planner.decide(self.graph.id(open))? {
            Decision::Run(work) => Ok(Some(work)),
            Decision::Hit(key) => {
                let ready = self.found(open, key);
                ready.into_iter().try_for_each(|reader| self.decide(reader))?;
                Ok(None)
            }
            Decision::Later(waits) => unreachable!("{} was made ready before {waits:?}", self.name(open)),
        }
    }

    /// Readers of a stage that is done, if it was the last that they waited for; they are ready now.
    fn release(&mut self, open: usize) -> Vec<usize> {
        let mut ready = Vec::new();
        for i in 0..self.graph.readers(open).len() {
            let reader = self.graph.readers(open)[i] as usize;
            self.waiting_for[reader] -= 1;
            if self.waiting_for[reader] == 0 && self.board.status(reader) == Status::Waiting {
                self.board.transition(reader, Status::Ready);
                ready.push(reader);
            }
        }
        ready
    }

    fn is_stopping(&mut self) -> bool {
        self.stopping |= self.surroundings.cancel.is_asked();
        self.stopping
    }

    fn start_what_fits(&mut self) -> Result<(), Error> {
        // Those that only store what they gave hold no threads; they are not to pile up.
        let most = 2 * self.surroundings.options.cpus + 2;
        while !self.is_stopping() && self.resources.has_threads() && self.running < most {
            let Some(entry) = self.queue.pop() else { break };
            let open = entry.open;
            let Some(work) = self.work(open)? else { continue };
            if self.busy.contains(&work.key) {
                self.same.push((work.key, open));
                continue;
            }
            match self.resources.grant(&work.stage, self.queue.len() + 1) {
                Ok(Ok(grant)) => self.claim_and_start(open, work, grant)?,
                Ok(Err(needs)) => {
                    self.keep(open, work);
                    self.blocked.push((entry, needs));
                }
                Err(error) => {
                    self.failed(open, error.into());
                }
            }
        }
        Ok(())
    }

    /// Takes back what was granted; stages that it was missing for are queued again.
    fn give_back(&mut self, grant: Grant) {
        self.resources.give_back(grant);
        let (fitting, blocked): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.blocked).into_iter().partition(|(_, needs)| self.resources.fits(needs));
        self.blocked = blocked;
        fitting.into_iter().for_each(|(entry, _)| self.queue.put_back(entry));
    }

    /// Starts a stage, unless another process has it: then that one's record is waited for.
    fn claim_and_start(&mut self, open: usize, work: Box<Work>, grant: Grant) -> Result<(), Error> {
        let Some(claim) = self.surroundings.cache.claim(&work.key)? else {
            self.give_back(grant);
            self.elsewhere.push(open);
            return Ok(());
        };
        // Between the decision and the claim it may have been finished elsewhere.
        if work.stage.settings.cache
            && self.surroundings.cache.has_record(&work.key)?
            && let Decision::Hit(key) = self.planner.decide(self.graph.id(open))?
        {
            self.give_back(grant);
            let ready = self.found(open, key);
            return ready.into_iter().try_for_each(|reader| self.decide(reader));
        }
        self.board.transition(open, Status::Running);
        self.busy.insert(work.key);
        self.running += 1;
        self.grants.insert(open, grant.clone());
        let stage = work.stage.name.clone();
        (self.events)(Event::Running { stage, key: work.key.to_string(), reasons: work.reasons.clone(), threads: grant.threads });
        let begun = Begun { open, work, grant, tries: self.tries.get(&open).copied().unwrap_or(0) + 1, claim };
        let around = Arc::clone(&self.surroundings);
        if self.is_short_and_all(open, &begun.work) {
            let name = self.name(open);
            let mut say = |said| (self.events)(told(name.clone(), said));
            let finished = begun.carry_out(&around, &mut say, &mut || {});
            self.finish(finished)?;
            self.sync_if_due();
            return Ok(());
        }
        let sender = self.sender.clone();
        tokio::task::spawn_blocking(move || {
            // A loop that is gone no longer wants to hear anything.
            let mut say = |said| drop(sender.send(Note::Said(open, said)));
            let mut ended = || drop(sender.send(Note::Ended(open)));
            let finished = begun.carry_out(&around, &mut say, &mut ended);
            drop(sender.send(Note::Finished(finished)));
        });
        Ok(())
    }

    /// Whether a stage that was just begun is all that can be done now, and does not take long.
    fn is_short_and_all(&self, open: usize, work: &Work) -> bool {
        let others =
            self.running > 1 || self.queue.len() > 0 || !(self.blocked.is_empty() && self.elsewhere.is_empty() && self.pauses.is_empty());
        let size = |content: &Content| match content {
            Content::Blob { size, .. } => Some(*size),
            // Nobody knows yet.
            Content::Tree { .. } => None,
        };
        let size: Option<u64> = work.contents.iter().flatten().map(size).sum();
        !others && (1..=SHORT_MS).contains(&self.planner.expected_ms(self.graph.id(open))) && size.is_some_and(|size| size <= SMALL_INPUTS)
    }

    /// The process of a stage has ended.
    fn ended(&mut self, open: usize) {
        if let Some(grant) = self.grants.remove(&open) {
            self.give_back(grant);
        }
    }

    fn finish(&mut self, finished: Finished) -> Result<(), Error> {
        let Finished { open, work, took, result, _claim } = finished;
        self.running -= 1;
        self.ended(open);
        self.busy.remove(&work.key);
        match result {
            Ok(record) => self.done(open, &record, took)?,
            Err(work::Stop::Cancelled) => {
                self.board.transition(open, Status::Cancelled);
                let stage = self.name(open);
                (self.events)(Event::Cancelled { stage });
            }
            Err(work::Stop::Failed(failure)) => self.try_again_or_fail(open, &work, failure),
        }
        drop(_claim);
        // Stages that waited for the record of this key find it now, or run themselves.
        let (same, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.same).into_iter().partition(|(key, _)| *key == work.key);
        self.same = others;
        same.into_iter().try_for_each(|(_, open)| self.decide(open))
    }

    fn done(&mut self, open: usize, record: &ActionRecord, took: Duration) -> Result<(), Error> {
        self.planner.settle(self.graph.id(open), record, took);
        self.took += took;
        self.board.transition(open, Status::Done { cached: false });
        self.tell_done(open, record, took);
        self.release(open).into_iter().try_for_each(|reader| self.decide(reader))
    }

    fn tell_done(&mut self, open: usize, record: &ActionRecord, took: Duration) {
        let metrics: Value = record.metrics.iter().map(|(name, value)| (name.clone(), Value::from(*value))).collect();
        let stage = self.name(open);
        (self.events)(Event::Done {
            stage,
            key: record.key.to_string(),
            seconds: took.as_secs_f64(),
            metrics,
            peak_rss_kib: record.provenance.peak_rss_kib,
        });
    }

    fn try_again_or_fail(&mut self, open: usize, work: &Work, failure: Failure) {
        let retries = work.stage.settings.retries;
        let tries = self.tries.entry(open).or_insert(0);
        *tries += 1;
        if *tries > retries.times || self.stopping {
            return self.failed(open, failure);
        }
        let pause = retries.delay.saturating_mul(1 << (*tries - 1).min(20));
        let tries = *tries;
        self.board.transition(open, Status::Ready);
        let stage = self.name(open);
        (self.events)(Event::Retrying { stage, failure, tries, seconds: pause.as_secs_f64() });
        self.pauses.push((Instant::now() + pause, open));
    }

    fn failed(&mut self, open: usize, failure: Failure) {
        self.board.transition(open, Status::Failed);
        let stage = self.name(open);
        (self.events)(Event::Failed { stage: stage.clone(), failure });
        self.stopping |= !self.surroundings.options.keep_going;
        self.first_failed.get_or_insert(open);
        let mut below = self.graph.readers(open).to_vec();
        while let Some(reader) = below.pop() {
            let reader = reader as usize;
            if self.board.status(reader) == Status::Waiting {
                self.skip(reader, &stage);
                below.extend(self.graph.readers(reader));
            }
        }
    }

    fn skip(&mut self, open: usize, because: &str) {
        self.board.transition(open, Status::Skipped);
        let stage = self.name(open);
        (self.events)(Event::Skipped { stage, because: because.to_owned() });
    }

    /// Gives a final state to what was never begun.
    fn close(&mut self) {
        let failed = self.first_failed.filter(|_| !self.surroundings.cancel.is_asked()).map(|open| self.name(open));
        for open in 0..self.graph.len() {
            if self.board.status(open).is_final() {
                continue;
            }
            match &failed {
                Some(because) => self.skip(open, because),
                None => {
                    self.board.transition(open, Status::Cancelled);
                    let stage = self.name(open);
                    (self.events)(Event::Cancelled { stage });
                }
            }
        }
        debug_assert!(self.board.is_settled(), "a stage was left without a final state");
    }
}
