//! One stage from its decided fate to its record: lay out the inputs, run, store the outputs, write the record.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, watch};
use trestle_cache::{ActionRecord, Cache, Content, How, Provenance};

use super::Options;
use crate::event::Failure;
use crate::executor::{Ended, Executor, Order, Outcome, Task};
use crate::job::Job;
use crate::pipeline::{Action, Bound, Origin, Pipeline, Stage, StageId};
use crate::plan::Work;
use crate::stage::{Input, Progress, StageError};

/// Longest end of a log that a failure carries.
const LOG_TAIL_BYTES: usize = 2000;
/// Most lines of it.
const LOG_TAIL_LINES: usize = 20;

/// What every stage's work needs.
pub struct Surroundings {
    pub pipeline: Arc<Pipeline>,
    pub cache: Arc<Cache>,
    pub executor: Arc<dyn Executor>,
    pub options: Options,
    pub cancel: watch::Receiver<bool>,
}

/// Why there is no record.
pub enum Stop {
    Failed(Failure),
    Cancelled,
}

impl From<StageError> for Stop {
    fn from(error: StageError) -> Self {
        Self::Failed(error.into())
    }
}

/// The folder of one stage's work; it goes when this goes.
struct Room {
    base: PathBuf,
}

impl Room {
    fn open(cache: &Cache, stage: &Stage) -> Result<Self, StageError> {
        let room = Self { base: cache.tmp_dir(&file_name(&stage.name)).map_err(|e| in_words(&e))? };
        for folder in [room.work(), room.tmp()] {
            std::fs::create_dir_all(&folder).map_err(|e| cannot("create", &folder, &e))?;
        }
        Ok(room)
    }

    /// Where the stage runs.
    fn work(&self) -> PathBuf {
        self.base.join("work")
    }

    /// Its `TMPDIR`.
    fn tmp(&self) -> PathBuf {
        self.base.join("tmp")
    }

    fn job(&self) -> PathBuf {
        self.base.join("job.json")
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // What cannot be removed now is swept by a later run.
        let _ = std::fs::remove_dir_all(&self.base);
    }
}

/// Carries a stage out.
pub async fn carry_out(
    around: &Surroundings,
    id: StageId,
    work: Work,
    threads: usize,
    progress: mpsc::UnboundedSender<Progress>,
) -> Result<Box<ActionRecord>, Stop> {
    let started = Instant::now();
    let began = SystemTime::now();
    let (pipeline, cache, options) = (Arc::clone(&around.pipeline), Arc::clone(&around.cache), around.options.clone());
    let contents = work.contents.clone();
    let (room, order) = blocking(move || prepare(&pipeline.stages[id], &cache, &contents, threads, &options)).await?;
    let outcome = around.executor.execute(&order, progress, around.cancel.clone()).await.map_err(|ended| stop(ended, &order.log))?;
    let (pipeline, cache, options) = (Arc::clone(&around.pipeline), Arc::clone(&around.cache), around.options.clone());
    let log = order.log.clone();
    let record = move || {
        let stage = &pipeline.stages[id];
        let provenance = provenance(&cache, stage, &options, &outcome, (began, started), threads, &log)?;
        store(stage, &cache, &room, work, outcome, provenance)
    };
    blocking(record).await.map_err(Stop::from)
}

/// File work off the dispatcher's thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, StageError> + Send + 'static) -> Result<T, StageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn stop(ended: Ended, log: &Path) -> Stop {
    match ended {
        Ended::Cancelled => Stop::Cancelled,
        Ended::Failed(error) => {
            let log_tail = tail(log);
            Stop::Failed(Failure { error, log: Some(log.to_owned()), log_tail })
        }
    }
}

/// The end of a log, in whole lines.
fn tail(log: &Path) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let end = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned();
    let lines: Vec<&str> = end.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

/// Lays out the stage's folder and says how to run it.
fn prepare(
    stage: &Stage,
    cache: &Cache,
    contents: &[Vec<Content>],
    threads: usize,
    options: &Options,
) -> Result<(Room, Order), StageError> {
    let room = Room::open(cache, stage)?;
    let work = room.work();
    // Native stages are ours and only read; a command may do anything to a file that it is handed.
    let how = if matches!(stage.action, Action::Native { .. }) { How::Link } else { How::Copy };
    for (slot, contents) in stage.inputs.iter().zip(contents) {
        for (bound, content) in slot.values.iter().zip(contents) {
            lay_out(cache, bound, content, &work.join(&bound.place), how)?;
        }
    }
    for output in stage.outputs.values() {
        create_parent(&work.join(&output.path))?;
    }
    let log = options.logs.join(format!("{}.log", file_name(&stage.name)));
    create_parent(&log)?;
    std::fs::write(&log, b"").map_err(|e| cannot("write", &log, &e))?;
    let task = task(stage, &room, threads, options)?;
    Ok((room, Order { task, work, threads, log }))
}

fn task(stage: &Stage, room: &Room, threads: usize, options: &Options) -> Result<Task, StageError> {
    match &stage.action {
        Action::Native { kind, version, params } => {
            let path = room.job();
            let job = Job {
                stage: stage.name.clone(),
                kind: kind.clone(),
                version: *version,
                params: params.clone(),
                inputs: stage
                    .inputs
                    .iter()
                    .map(|slot| (slot.name.clone(), slot.values.iter().map(|bound| input(&room.work(), bound)).collect()))
                    .collect(),
                outputs: stage.outputs.iter().map(|(name, output)| (name.clone(), room.work().join(&output.path))).collect(),
                threads,
            };
            let bytes = serde_json::to_vec_pretty(&job).map_err(|e| StageError::new(e.to_string()))?;
            std::fs::write(&path, bytes).map_err(|e| cannot("write", &path, &e))?;
            Ok(Task::Native { job: path })
        }
        Action::Command { script, shell, env, .. } => {
            let mut variables = options.env.clone();
            variables.insert("TMPDIR".to_owned(), room.tmp().to_string_lossy().into_owned());
            variables.extend(env.clone());
            Ok(Task::Command { shell: shell.clone(), script: script.clone(), env: variables })
        }
    }
}

fn input(work: &Path, bound: &Bound) -> Input {
    Input { path: work.join(&bound.place), labels: bound.labels.clone() }
}

/// Puts one input in its place, and makes sure that it is what the key was made of.
fn lay_out(cache: &Cache, bound: &Bound, content: &Content, place: &Path, how: How) -> Result<(), StageError> {
    create_parent(place)?;
    match &bound.origin {
        Origin::Output { .. } => cache.materialize(content, place, how).map_err(|e| match e {
            trestle_cache::Error::Damaged { .. } => {
                in_words(&e).help("the damaged file was removed; run again, and the stage that makes it will run")
            }
            other => in_words(&other),
        }),
        Origin::File { path, written } => cache.copy_source(path, place).map_err(|e| in_words(&e)).and_then(|copied| {
            if copied == *content {
                return Ok(());
            }
            Err(StageError::new(format!("`{written}` changed while the run was under way"))
                .help("run again; nothing was recorded for this stage"))
        }),
    }
}

fn provenance(
    cache: &Cache,
    stage: &Stage,
    options: &Options,
    outcome: &Outcome,
    (began, started): (SystemTime, Instant),
    threads: usize,
    log: &Path,
) -> Result<Provenance, StageError> {
    let log = match std::fs::metadata(log) {
        Ok(meta) if meta.len() > 0 => match cache.store_file(log).map_err(|e| in_words(&e))? {
            Content::Blob { id, .. } => Some(id),
            Content::Tree { .. } => None,
        },
        _ => None,
    };
    Ok(Provenance {
        stage: stage.name.clone(),
        started_unix_ms: began.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        peak_rss_kib: outcome.peak_rss_kib,
        threads,
        host: options.host.clone(),
        versions: options.versions.clone(),
        log,
    })
}

/// Stores all outputs, then the record: until it is written, nothing of this stage exists for anybody.
fn store(
    stage: &Stage,
    cache: &Cache,
    room: &Room,
    work: Work,
    outcome: Outcome,
    provenance: Provenance,
) -> Result<Box<ActionRecord>, StageError> {
    let mut outputs = BTreeMap::new();
    for (name, output) in &stage.outputs {
        let path = room.work().join(&output.path);
        if std::fs::symlink_metadata(&path).is_err() {
            return Err(StageError::new(format!("the stage ended well but did not write its output `{name}`"))
                .help(format!("it was expected at `{}` in the stage's folder", output.path)));
        }
        outputs.insert(name.clone(), cache.ingest(&path).map_err(|e| in_words(&e))?);
    }
    let record = ActionRecord { key: work.key, manifest: work.manifest, outputs, metrics: outcome.metrics, provenance };
    cache.put_record(&record).map_err(|e| in_words(&e))?;
    Ok(Box::new(record))
}

fn create_parent(path: &Path) -> Result<(), StageError> {
    let parent = path.parent().unwrap_or(path);
    std::fs::create_dir_all(parent).map_err(|e| cannot("create", parent, &e))
}

fn cannot(doing: &str, path: &Path, error: &std::io::Error) -> StageError {
    StageError::new(format!("cannot {doing} {}: {error}", path.display()))
}

/// An error with its causes, as one sentence.
fn in_words(error: &dyn std::error::Error) -> StageError {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        message.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    StageError::new(message)
}

/// A stage's name as a file name that people recognise: `adapt[seed=1]` stays as it is.
pub fn file_name(stage: &str) -> String {
    stage.chars().map(|c| if c == '/' || c.is_control() { '_' } else { c }).collect()
}
