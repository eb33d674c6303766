//! Hit or run: the one place that decides. `run`, `plan` and `explain` all ask here.
//!
//! A stage is a hit if its key has a record and all outputs that the record names are sound. The key follows from the contents of its inputs; so
//! where the [`Memo`] of the last run shows that none of them changed, the key is the one it had, and only the outputs are looked at.

use std::sync::Arc;
use std::time::Duration;

use rayon::prelude::*;
use serde::Serialize;
use trestle_cache::{ActionKey, ActionRecord, BlobId, Cache, Change, Content, FileStat, Health, Manifest};

use crate::action::{self, Contents};
use crate::compiled::{Compiled, Edge, OutputId};
use crate::error::Error;
use crate::memo::{History, Memo};
use crate::pipeline::{Pipeline, Stage, StageId};

/// What is to become of a stage.
#[derive(Debug)]
pub enum Fate {
    /// Its outputs are in the cache, whole.
    Hit(Box<ActionRecord>),
    /// It has to run.
    Run(Box<Work>),
    /// It cannot be said before these stages have run: the contents of an input are not known.
    Later(Vec<StageId>),
}

/// What the planner decides: a [`Fate`] for which no record was read in vain.
#[derive(Debug)]
pub enum Decision {
    /// Its outputs are in the cache, whole, under this key.
    Hit(ActionKey),
    /// It has to run.
    Run(Box<Work>),
    /// It cannot be said before these stages have run.
    Later(Vec<StageId>),
}

/// A stage that has to run.
#[derive(Debug, Clone)]
pub struct Work {
    /// The stage.
    pub stage: Stage,
    /// Its key.
    pub key: ActionKey,
    /// What the key is made of.
    pub manifest: Manifest,
    /// Contents of its inputs.
    pub contents: Contents,
    /// Why.
    pub reasons: Vec<Reason>,
    /// How long it took when it was last run, in milliseconds; 0 if unknown.
    pub expected_ms: u32,
}

/// Why a stage has to run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Reason {
    /// No stage of this name has been run in this project.
    New,
    /// Something differs from the last time that a stage of this name was run or found in the cache.
    Changed {
        /// What, with old and new value.
        changes: Vec<Change>,
    },
    /// The record of the last time is gone or cannot be read.
    NoRecord,
    /// An output in the store is missing or damaged.
    Output {
        /// Its name.
        output: String,
        /// What is wrong with it.
        health: String,
    },
    /// It says `cache: false`.
    Always,
}

/// Decides what becomes of stages one after the other, as the contents of their inputs become known.
#[derive(Debug)]
pub struct Planner {
    compiled: Arc<Compiled>,
    cache: Arc<Cache>,
    /// What the last run found, and how much of it still holds.
    memo: Memo,
    records_same: bool,
    blob_changed: Vec<bool>,
    /// Keys of the last run where its pipeline was another.
    history: Arc<History>,
    sources: Vec<Option<Content>>,
    /// Where the stat of a source is the one in the memo.
    source_same: Vec<bool>,
    outputs: Vec<Option<Content>>,
    keys: Vec<Option<ActionKey>>,
    /// Stages whose key was found for what they read now.
    current: Vec<bool>,
    durations: Vec<u32>,
    /// Something was found that the memo does not have.
    learned: bool,
}

impl Planner {
    /// A planner that knows what still holds of the `memo`. Without one that fits, `history` says what stages were before.
    pub fn new(compiled: Arc<Compiled>, cache: Arc<Cache>, memo: Option<Memo>, history: Arc<History>) -> Self {
        let is_new = memo.is_none();
        let memo = memo.filter(|memo| memo.fits(&compiled)).unwrap_or_else(|| Memo::empty(&compiled));
        let paths: Vec<_> = compiled.sources.iter().zip(&memo.sources).map(|(path, (_, stat))| (&**path, *stat)).collect();
        let changed = cache.changed_sources(&paths);
        let sources = memo.sources.iter().zip(&changed).map(|((content, _), changed)| content.filter(|_| !changed)).collect();
        let source_same = changed.into_iter().map(|changed| !changed).collect();
        let records_same = memo.records.is_some() && cache.records_stat() == memo.records;
        let blob_changed = cache.changed_blobs(&memo.blobs);
        let (outputs, keys, durations) = (vec![None; compiled.outputs()], memo.keys.clone(), memo.durations.clone());
        let current = vec![false; compiled.len()];
        Self {
            compiled,
            cache,
            memo,
            records_same,
            blob_changed,
            history,
            sources,
            source_same,
            outputs,
            keys,
            current,
            durations,
            learned: is_new,
        }
    }

    /// Decides for all wanted stages, as far as it can be said now, and says how many are hits.
    ///
    /// # Errors
    /// As [`Planner::decide`].
    pub fn survey(&mut self, wanted: &dyn Fn(StageId) -> bool, each: &mut dyn FnMut(StageId, Decision)) -> Result<usize, Error> {
        self.hash_sources(wanted);
        let mut hits = 0;
        for id in (0..self.compiled.len()).filter(|&id| wanted(id)) {
            let decision = self.decide(id)?;
            hits += usize::from(matches!(decision, Decision::Hit(_)));
            each(id, decision);
        }
        Ok(hits)
    }

    /// Hashes what wanted stages read and what may have changed, on all threads. What cannot be read is complained about by who needs it.
    fn hash_sources(&mut self, wanted: &dyn Fn(StageId) -> bool) {
        if self.sources.iter().all(Option::is_some) {
            return;
        }
        let mut needed = vec![false; self.sources.len()];
        for id in (0..self.compiled.len()).filter(|&id| wanted(id)) {
            self.compiled.edges_of(id).for_each(|edge| {
                if let Edge::Source(source) = edge {
                    needed[source] = self.sources[source].is_none();
                }
            });
        }
        let needed: Vec<usize> = (0..needed.len()).filter(|&source| needed[source]).collect();
        let hash = |&source: &usize| (source, self.cache.source(&self.compiled.sources[source]).ok());
        let found: Vec<_> = if needed.len() < 8 { needed.iter().map(hash).collect() } else { needed.par_iter().map(hash).collect() };
        for (source, content) in found {
            self.sources[source] = content;
        }
        self.learned = true;
    }

    /// What becomes of a stage, given what is known by now. A hit is settled at once.
    ///
    /// # Errors
    /// If a source file, the cache or the compiled pipeline cannot be read.
    pub fn decide(&mut self, id: StageId) -> Result<Decision, Error> {
        if let Some(waits) = self.waits(id) {
            return Ok(Decision::Later(waits));
        }
        if let Some(key) = self.remembered(id)? {
            let outputs = self.compiled.outputs_of(id);
            self.outputs[outputs.clone()].copy_from_slice(&self.memo.outputs[outputs]);
            self.current[id] = true;
            return Ok(Decision::Hit(key));
        }
        self.learned = true;
        let compiled = Arc::clone(&self.compiled);
        let stage = compiled.stage(id)?;
        let contents = self.contents(id, &stage)?;
        let manifest = action::manifest(&stage, &contents);
        let key = manifest.key();
        let reasons = if stage.settings.cache {
            match self.cache.record(&key)? {
                None => self.why(id, &stage, &key, &manifest)?,
                Some(record) => {
                    let damage = self.damage(&stage, &record)?;
                    if damage.is_empty() {
                        let took = Duration::from_millis(record.provenance.duration_ms);
                        self.settle(id, &record, took);
                        return Ok(Decision::Hit(key));
                    }
                    damage
                }
            }
        } else {
            vec![Reason::Always]
        };
        let stage = stage.into_owned();
        Ok(Decision::Run(Box::new(Work { stage, key, manifest, contents, reasons, expected_ms: self.expected_ms(id) })))
    }

    /// Notes what a stage gave, and how long it took until that was stored.
    pub fn settle(&mut self, id: StageId, record: &ActionRecord, took: Duration) {
        for (slot, content) in self.compiled.outputs_of(id).zip(record.outputs.values()) {
            self.outputs[slot] = Some(*content);
        }
        self.keys[id] = Some(record.key);
        self.current[id] = true;
        self.durations[id] = u32::try_from(took.as_millis()).unwrap_or(u32::MAX).max(1);
        self.learned = true;
    }

    /// What an output is, if that is known.
    pub fn output(&self, output: OutputId) -> Option<Content> {
        self.outputs[output]
    }

    /// How long a stage took when it was last run, in milliseconds; 0 if unknown.
    pub fn expected_ms(&self, id: StageId) -> u32 {
        self.durations[id]
    }

    /// The key of a stage: that of this run once it is known, else that of the last one.
    pub fn key(&self, id: StageId) -> Option<ActionKey> {
        self.keys[id]
    }

    /// The key of a stage when it was last run or found.
    pub fn last_key(&self, id: StageId, name: &str) -> Option<ActionKey> {
        self.memo.key(id).or_else(|| self.history.key(name))
    }

    /// What the next run should know; none if it knows it already.
    ///
    /// # Errors
    /// If a tree in the cache cannot be read.
    pub fn into_memo(mut self) -> Result<Option<Memo>, Error> {
        if !self.learned && self.records_same {
            return Ok(None);
        }
        let records = self.cache.records_stat();
        // What this run had no need of is as the last one left it; but a key from before holds only for what was read before, and while its
        // record is there.
        for (slot, before) in self.outputs.iter_mut().zip(&self.memo.outputs) {
            *slot = slot.or(*before);
        }
        let current = (0..self.keys.len())
            .map(|id| self.current[id] || (self.records_same && self.memo.current[id] && self.reads_the_same(id)))
            .collect();
        // Of very many stages everything here is large, so it goes as soon as it is not needed.
        drop(std::mem::take(&mut self.memo.outputs));
        let source = |(i, content): (usize, Option<Content>)| {
            let unchanged = self.memo.sources[i].0 == content && self.source_same[i];
            let vouch = || content.and_then(|content| self.cache.vouch_source(&self.compiled.sources[i], &content));
            (content, if unchanged { self.memo.sources[i].1 } else { vouch() })
        };
        let sources = std::mem::take(&mut self.sources).into_iter().enumerate().map(source).collect();
        drop(std::mem::take(&mut self.memo.sources));
        let mut blobs_of: Vec<BlobId> = Vec::with_capacity(self.outputs.len());
        let mut blob_starts = Vec::with_capacity(self.outputs.len() + 1);
        for slot in &mut self.outputs {
            let start = blobs_of.len();
            blob_starts.push(number(start));
            if let Some(content) = *slot
                && self.cache.blobs_of(&content, &mut blobs_of).is_err()
            {
                // Damaged since: the next run will look for itself.
                *slot = None;
                blobs_of.truncate(start);
            }
        }
        blob_starts.push(number(blobs_of.len()));
        let (blobs, blobs_of) = numbered(blobs_of, &self.memo, &self.blob_changed, &self.cache);
        let (stamp, keys, durations, outputs) = (Some(self.compiled.stamp), self.keys, self.durations, self.outputs);
        Ok(Some(Memo { stamp, records, sources, keys, current, durations, outputs, blobs, blobs_of, blob_starts }))
    }

    /// The stages that an input is missing from, if any.
    fn waits(&self, id: StageId) -> Option<Vec<StageId>> {
        let missing = |edge: &Edge| matches!(edge, Edge::Output(output) if self.outputs[*output].is_none());
        self.compiled.edges_of(id).any(|edge| missing(&edge)).then(|| {
            let owners = self.compiled.edges_of(id).filter(missing);
            let mut waits: Vec<_> =
                owners.filter_map(|edge| if let Edge::Output(output) = edge { Some(self.compiled.owner(output)) } else { None }).collect();
            waits.sort_unstable();
            waits.dedup();
            waits
        })
    }

    /// Whether all that a stage reads is what the memo has.
    fn reads_the_same(&self, id: StageId) -> bool {
        self.compiled.edges_of(id).all(|edge| match edge {
            Edge::Source(source) => self.sources[source].is_some() && self.sources[source] == self.memo.sources[source].0,
            Edge::Output(output) => self.outputs[output].is_some() && self.outputs[output] == self.memo.outputs[output],
        })
    }

    /// The key that a stage had, if nothing that it reads has changed since and what it gave is still there and sound.
    fn remembered(&self, id: StageId) -> Result<Option<ActionKey>, Error> {
        let Some(key) = self.memo.key(id).filter(|_| self.memo.current[id]) else { return Ok(None) };
        let inputs_same = self.reads_the_same(id);
        let mut outputs = self.compiled.outputs_of(id);
        let sound = |output: OutputId| {
            self.memo.outputs[output].is_some() && self.memo.blobs_of(output).iter().all(|&blob| !self.blob_changed[blob as usize])
        };
        if !inputs_same || self.compiled.runs_always(id) || !outputs.all(sound) {
            return Ok(None);
        }
        let recorded = self.records_same || self.cache.has_record(&key)?;
        Ok(recorded.then_some(key))
    }

    /// Contents of all inputs, once all are known.
    fn contents(&mut self, id: StageId, stage: &Stage) -> Result<Contents, Error> {
        let compiled = Arc::clone(&self.compiled);
        let mut edges = compiled.edges_of(id);
        let mut all = Contents::with_capacity(stage.inputs.len());
        for slot in &stage.inputs {
            let mut values = Vec::with_capacity(slot.values.len());
            for edge in edges.by_ref().take(slot.values.len()) {
                values.push(match edge {
                    Edge::Source(source) => self.source(source)?,
                    Edge::Output(output) => self.outputs[output].unwrap_or_else(|| unreachable!("decided before its inputs were known")),
                });
            }
            all.push(values);
        }
        Ok(all)
    }

    /// A source is hashed once a run: all its readers see the same version of it.
    fn source(&mut self, source: usize) -> Result<Content, Error> {
        if let Some(content) = self.sources[source] {
            return Ok(content);
        }
        let content = self.cache.source(&self.compiled.sources[source])?;
        self.sources[source] = Some(content);
        Ok(content)
    }

    fn damage(&self, stage: &Stage, record: &ActionRecord) -> Result<Vec<Reason>, Error> {
        let mut reasons = Vec::new();
        for name in stage.outputs.keys() {
            let health = match record.outputs.get(name) {
                Some(content) => self.cache.check(content)?.to_string(),
                None => "not in the record".to_owned(),
            };
            if health != Health::Sound.to_string() {
                reasons.push(Reason::Output { output: name.clone(), health });
            }
        }
        Ok(reasons)
    }

    fn why(&self, id: StageId, stage: &Stage, key: &ActionKey, manifest: &Manifest) -> Result<Vec<Reason>, Error> {
        let Some(before) = self.last_key(id, &stage.name) else { return Ok(vec![Reason::New]) };
        if before == *key {
            return Ok(vec![Reason::NoRecord]);
        }
        Ok(match self.cache.record(&before)? {
            Some(record) => vec![Reason::Changed { changes: record.manifest.diff(manifest) }],
            None => vec![Reason::NoRecord],
        })
    }
}

/// All blobs, with the stats of those that the last memo does not vouch for taken anew, and `blobs_of` by their places among them.
fn numbered(blobs_of: Vec<BlobId>, before: &Memo, changed: &[bool], cache: &Cache) -> (Vec<(BlobId, Option<FileStat>)>, Vec<u32>) {
    let mut ids = blobs_of.clone();
    ids.sort_unstable();
    ids.dedup();
    // Every id is in the sorted list, which was made from them.
    let places = blobs_of.into_iter().filter_map(|id| ids.binary_search(&id).ok()).map(number).collect();
    let held = |id: &BlobId| {
        let place = before.blobs.binary_search_by(|(other, _)| other.cmp(id)).ok()?;
        before.blobs[place].1.filter(|_| !changed[place])
    };
    let mut blobs: Vec<(BlobId, Option<FileStat>)> = ids.into_iter().map(|id| (id, held(&id))).collect();
    cache.vouch_blobs(&mut blobs);
    (blobs, places)
}

/// Places of blobs are kept in 32 bits.
fn number(place: usize) -> u32 {
    u32::try_from(place).unwrap_or(u32::MAX)
}

/// What would happen to each wanted stage, with the record of each hit; nothing is executed or changed.
///
/// # Errors
/// As [`Planner::decide`].
pub fn plan(pipeline: &Arc<Pipeline>, wanted: &[bool], cache: &Arc<Cache>, history: &Arc<History>) -> Result<Vec<(StageId, Fate)>, Error> {
    fates(pipeline, wanted, cache, history, |_, _| Ok(None))
}

/// As [`plan`], but a stage that always runs counts as done if it once ran on what it reads now: for those who only look at what it gave.
///
/// # Errors
/// As [`Planner::decide`].
pub fn given(pipeline: &Arc<Pipeline>, wanted: &[bool], cache: &Arc<Cache>, history: &Arc<History>) -> Result<Vec<(StageId, Fate)>, Error> {
    fates(pipeline, wanted, cache, history, |planner, work| {
        if work.reasons != [Reason::Always] {
            return Ok(None);
        }
        let Some(record) = cache.record(&work.key)? else { return Ok(None) };
        Ok(planner.damage(&work.stage, &record)?.is_empty().then_some(record))
    })
}

/// The fate of each wanted stage, where `stands` may give a record by which a stage that is to run counts as done.
fn fates(
    pipeline: &Arc<Pipeline>,
    wanted: &[bool],
    cache: &Arc<Cache>,
    history: &Arc<History>,
    stands: impl Fn(&Planner, &Work) -> Result<Option<ActionRecord>, Error>,
) -> Result<Vec<(StageId, Fate)>, Error> {
    let compiled = Compiled::of(Arc::clone(pipeline), trestle_cache::Digest::of(b"not kept"), Vec::new());
    let mut planner = Planner::new(Arc::new(compiled), Arc::clone(cache), None, Arc::clone(history));
    let mut fates = Vec::new();
    for id in (0..wanted.len()).filter(|&id| wanted[id]) {
        let fate = match planner.decide(id)? {
            Decision::Hit(key) => match cache.record(&key)? {
                Some(record) => Fate::Hit(Box::new(record)),
                None => return Err(Error::RecordGone { key }),
            },
            Decision::Run(work) => match stands(&planner, &work)? {
                Some(record) => {
                    planner.settle(id, &record, Duration::ZERO);
                    Fate::Hit(Box::new(record))
                }
                None => Fate::Run(work),
            },
            Decision::Later(waits) => Fate::Later(waits),
        };
        fates.push((id, fate));
    }
    Ok(fates)
}
