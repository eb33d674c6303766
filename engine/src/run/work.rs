//! One stage from its decided fate to its record: lay out the inputs, run, store the outputs, write the record.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use trestle_cache::{ActionRecord, BlobId, Cache, Content, Durability, How, Provenance};

use super::resources::Grant;
use super::room::{Layout, Room, Rooms};
use super::{Options, undeclared};
use crate::event::Failure;
use crate::executor::{Cancel, Ended, Executor, Order, Said, Task, VISIBLE_GPUS, visible};
use crate::job::Job;
use crate::pipeline::{Action, Bound, Origin, Stage, with_all};
use crate::plan::Work;
use crate::stage::{Input, StageError};

/// Longest end of a log that a failure carries.
const LOG_TAIL_BYTES: u64 = 2000;
/// Most lines of it.
const LOG_TAIL_LINES: usize = 20;
/// What took this long is on disk before it counts as done; what took less is synced with everything else, and left to the system if all of a run
/// took less: a wait for the disk may take longer than to make it again.
pub const WORTH_A_SYNC: Duration = Duration::from_secs(1);

/// What every stage's work needs.
pub struct Surroundings {
    pub cache: Arc<Cache>,
    pub executor: Arc<dyn Executor>,
    pub options: Options,
    pub cancel: Cancel,
    pub rooms: Arc<Rooms>,
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

/// Carries a stage out, on a thread that may wait. `ended` is called when its process has ended: what it was granted is free, although its outputs
/// are still to be stored.
pub fn carry_out(
    around: &Surroundings,
    work: &Work,
    grant: &Grant,
    tries: u32,
    say: &mut dyn FnMut(Said),
    ended: &mut dyn FnMut(),
) -> Result<Box<ActionRecord>, Stop> {
    let started = Instant::now();
    let began = SystemTime::now();
    let (stage, cache, options) = (&work.stage, &around.cache, &around.options);
    let (room, order) = prepare(around, work, grant)?;
    let outcome = around.executor.execute(&order, say, &around.cancel);
    ended();
    let outcome = outcome.map_err(|ended| stop(ended, work, &room, options))?;
    let took = started.elapsed();
    let durability = if took >= WORTH_A_SYNC { Durability::Durable } else { Durability::Later };
    let outputs = store(stage, cache, &room, durability).map_err(|error| stop(Ended::Failed(error), work, &room, options))?;
    let provenance = Provenance {
        stage: stage.name.clone(),
        started_unix_ms: began.duration_since(UNIX_EPOCH).map_or(0, milliseconds),
        duration_ms: milliseconds(took),
        peak_rss_kib: outcome.peak_rss_kib,
        cpu_ms: outcome.cpu.map(milliseconds),
        threads: grant.threads,
        tries,
        sandbox: outcome.sandbox,
        host: options.host.clone(),
        versions: options.versions.clone(),
        log: keep_log(cache, &room, &log_path(options, stage))?,
    };
    // Until the record is written, nothing of this stage exists for anybody.
    let record = ActionRecord { key: work.key, manifest: work.manifest.clone(), outputs, metrics: outcome.metrics, provenance };
    cache.put_record(&record).map_err(|e| in_words(&e))?;
    if durability == Durability::Durable {
        cache.sync_records().map_err(|e| in_words(&e))?;
    }
    // What cannot be removed now goes with the next `cache gc`.
    let _ = cache.remove_kept(&work.key);
    Ok(Box::new(record))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A failed stage leaves its log for people.
fn stop(ended: Ended, work: &Work, room: &Room, options: &Options) -> Stop {
    let error = match ended {
        Ended::Cancelled => return Stop::Cancelled,
        Ended::Failed(error) => error.seen_from(&room.work()),
    };
    let log_tail = tail(&room.log());
    let path = log_path(options, &work.stage);
    // Where even that cannot be written, the end of the log is all there is.
    let kept = create_parent(&path).is_ok() && std::fs::copy(room.log(), &path).is_ok();
    let error = match undeclared::named_in(&log_tail, &options.root, &work.stage) {
        Some(help) if error.help.is_none() => error.help(help),
        _ => error,
    };
    Stop::Failed(Failure { error, log: kept.then_some(path), log_tail })
}

fn log_path(options: &Options, stage: &Stage) -> PathBuf {
    options.logs.join(format!("{}.log", file_name(&stage.name)))
}

/// Stores what the stage printed, if it printed anything, and removes the log of an earlier failure.
fn keep_log(cache: &Cache, room: &Room, failed: &Path) -> Result<Option<BlobId>, StageError> {
    // There is mostly none.
    let _ = std::fs::remove_file(failed);
    let log = room.log();
    if !std::fs::metadata(&log).is_ok_and(|meta| meta.len() > 0) {
        return Ok(None);
    }
    match cache.ingest(&log, Durability::Later).map_err(|e| in_words(&e))? {
        Content::Blob { id, .. } => Ok(Some(id)),
        Content::Tree { .. } => Ok(None),
    }
}

/// The end of a log, in whole lines.
fn tail(log: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // No log, no end of it.
    let end = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let lines: Vec<&str> = end.lines().collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
}

/// Lays out the stage's folder and says how to run it.
fn prepare(around: &Surroundings, what: &Work, grant: &Grant) -> Result<(Room, Order), StageError> {
    let (cache, options) = (&around.cache, &around.options);
    let (stage, contents) = (&what.stage, &what.contents);
    let room = around.rooms.open(cache, &stage.name, layout(stage, contents))?;
    let work = room.work();
    // Native stages are ours and only read; a command may do anything to a file that it is handed.
    let how = if matches!(stage.action, Action::Native { .. }) { How::Link } else { How::Copy };
    let how = |place: &str| if room.is_kept(place) { How::Over } else { how };
    let values = stage.inputs.iter().zip(contents).flat_map(|(slot, contents)| slot.values.iter().zip(contents));
    let mut values: Vec<(&Bound, &Content)> = values.collect();
    // A folder before what is in it: a file of a folder that is an input too is there already.
    values.sort_by_key(|(bound, _)| &*bound.place);
    let mut laid: Vec<&str> = Vec::new();
    for (bound, content) in values {
        let place = work.join(&*bound.place);
        if laid.iter().any(|above| Path::new(&*bound.place).starts_with(above)) {
            check_laid(cache, bound, content, &place)?;
        } else {
            lay_out(cache, bound, content, &place, how(&bound.place))?;
            laid.push(&bound.place);
        }
    }
    let (task, log) = (task(stage, &room, grant, options, cache.kept_path(&what.key))?, room.log());
    Ok((room, Order { task, work, threads: grant.threads, log, timeout: stage.settings.timeout, verbose: options.verbose }))
}

/// The folders that the stage's inputs and outputs stand in, and the places of inputs that are small files.
fn layout(stage: &Stage, contents: &[Vec<Content>]) -> Layout {
    let mut layout = Layout::default();
    let mut trees = Vec::new();
    for (slot, contents) in stage.inputs.iter().zip(contents) {
        for (bound, content) in slot.values.iter().zip(contents) {
            let place = Path::new(&*bound.place);
            layout.add(place, false);
            match content {
                Content::Blob { size, .. } if *size <= Cache::SMALL => drop(layout.files.insert(place.to_owned())),
                Content::Blob { .. } => {}
                Content::Tree { .. } => trees.push(place),
            }
        }
    }
    stage.outputs.values().for_each(|output| layout.add(Path::new(&output.path), false));
    if let Action::Command { workdir, .. } = &stage.action {
        layout.add(Path::new(&**workdir), true);
    }
    // A folder among the inputs is laid down as a whole, with all that is in it.
    let is_inside = |path: &PathBuf| trees.iter().any(|tree| path.starts_with(tree));
    layout.dirs.retain(|dir| !is_inside(dir));
    layout.files.retain(|file| !is_inside(file));
    layout
}

fn task(stage: &Stage, room: &Room, grant: &Grant, options: &Options, kept: PathBuf) -> Result<Task, StageError> {
    match &stage.action {
        Action::Native { kind, version, params, aside } => {
            let path = room.job();
            let job = Job {
                stage: stage.name.clone(),
                kind: kind.clone(),
                version: *version,
                params: with_all(params, aside),
                inputs: stage
                    .inputs
                    .iter()
                    .map(|slot| (slot.name.to_string(), slot.values.iter().map(|bound| input(&room.work(), bound)).collect()))
                    .collect(),
                outputs: stage.outputs.iter().map(|(name, output)| (name.clone(), room.work().join(&output.path))).collect(),
                threads: grant.threads,
                kept: Some(kept),
            };
            let bytes = serde_json::to_vec_pretty(&job).map_err(|e| StageError::new(e.to_string()))?;
            std::fs::write(&path, bytes).map_err(|e| cannot("write", &path, &e))?;
            Ok(Task::Native { job: path, gpus: grant.gpus.clone() })
        }
        Action::Command { script, shell, env, workdir, stdout } => {
            let mut variables = options.env.clone();
            variables.insert("TMPDIR".to_owned(), room.tmp().to_string_lossy().into_owned());
            if !grant.gpus.is_empty() {
                variables.insert(VISIBLE_GPUS.to_owned(), visible(&grant.gpus));
            }
            variables.extend(env.clone());
            let target = stdout.as_ref().and_then(|name| stage.outputs.get(&**name));
            Ok(Task::Command {
                shell: Arc::clone(shell),
                script: script.to_string(),
                env: variables,
                workdir: workdir.to_string(),
                stdout: target.map(|output| room.work().join(&output.path)),
                network: stage.settings.network,
            })
        }
    }
}

fn input(work: &Path, bound: &Bound) -> Input {
    Input { path: work.join(&*bound.place), labels: bound.labels.iter().map(|(axis, value)| (axis.clone(), value.clone())).collect() }
}

/// Makes sure that what another input brought to this place is what the key was made of.
fn check_laid(cache: &Cache, bound: &Bound, content: &Content, place: &Path) -> Result<(), StageError> {
    if cache.source(place).map_err(|e| in_words(&e))? == *content { Ok(()) } else { Err(changed(&bound.origin)) }
}

fn changed(origin: &Origin) -> StageError {
    let what = match origin {
        Origin::File { written, .. } => format!("`{written}` changed while the run was under way"),
        Origin::Output { output, .. } => format!("two inputs have the same place, and not the same content (one is `{output}`)"),
    };
    StageError::new(what).help("run again; nothing was recorded for this stage")
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
        Origin::File { path, .. } => {
            let copied = cache.copy_source(path, place, how).map_err(|e| in_words(&e))?;
            if copied == *content { Ok(()) } else { Err(changed(&bound.origin)) }
        }
    }
}

/// Stores all outputs.
fn store(stage: &Stage, cache: &Cache, room: &Room, durability: Durability) -> Result<BTreeMap<String, Content>, StageError> {
    let mut outputs = BTreeMap::new();
    for (name, output) in stage.outputs.iter() {
        let path = room.work().join(&output.path);
        stays_inside(&room.work(), &output.path, name)?;
        let content = cache.ingest(&path, durability).map_err(|error| match error {
            trestle_cache::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound && !path.exists() => {
                StageError::new(format!("the stage ended well but did not write its output `{name}`"))
                    .help(format!("it was expected at `{}` in the stage's folder", output.path))
            }
            other => in_words(&other),
        })?;
        outputs.insert(name.clone(), content);
    }
    Ok(outputs)
}

/// A folder above an output may have been replaced by a link to anywhere; what lies there is not the stage's to give.
fn stays_inside(work: &Path, output: &str, name: &str) -> Result<(), StageError> {
    let mut folder = work.to_owned();
    for part in Path::new(output).parent().into_iter().flat_map(Path::components) {
        folder.push(part);
        if std::fs::symlink_metadata(&folder).is_ok_and(|meta| meta.is_symlink()) {
            let message = format!("the output `{name}` lies behind a link: {} was replaced by one", folder.display());
            return Err(StageError::new(message).help("write outputs where they were declared, into real folders"));
        }
    }
    Ok(())
}

fn create_parent(path: &Path) -> Result<(), StageError> {
    create_folder(path.parent().unwrap_or(path))
}

/// Mostly there already, or one level short of it.
fn create_folder(path: &Path) -> Result<(), StageError> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(|e| cannot("create", path, &e))
}

pub fn cannot(doing: &str, path: &Path, error: &std::io::Error) -> StageError {
    StageError::new(format!("cannot {doing} {}: {error}", path.display()))
}

/// An error with its causes, as one sentence.
pub fn in_words(error: &dyn std::error::Error) -> StageError {
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
