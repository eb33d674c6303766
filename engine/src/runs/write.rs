//! The record of a run, made from its events.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};
use trestle_cache::{ActionKey, Digest};

use super::known::State;
use super::{End, Header, Line, Outcome, StageLine, VERSION, journal, key_number, name_number};
use crate::error::{At, Error};
use crate::event::{Event, Summary};

/// After this long what is written reaches the file, so that a run that is killed leaves an account.
const FLUSH: Duration = Duration::from_secs(1);
/// Bytes of `"checksum":"0123456789abcdef"}` and the line's end.
const CHECKSUM_END: usize = 31;

/// Bytes at the end of a journal that its state may not know of: a dozen lines are read in less time than a file is replaced.
const MOST_MISSING: u64 = 4096;

/// Most runs of one pipeline at the same time that have an account.
const LANES: usize = 64;

/// Writes the record of a run. It holds the lock of its journal as long as it lives.
pub struct Recorder {
    path: PathBuf,
    state_path: PathBuf,
    out: BufWriter<File>,
    flushed: Instant,
    /// What the state file has, with what became of it since.
    state: State,
    /// Which entries had an event.
    seen: Vec<bool>,
    back: Vec<u64>,
    /// Keys of stages under way: a failure does not say its key.
    running: HashMap<String, String>,
}

impl Recorder {
    /// Begins the record of a run of `pipeline` in the folder of journals.
    ///
    /// # Errors
    /// If the journal cannot be written.
    pub fn begin(
        folder: &Path,
        pipeline: &str,
        params: &Map<String, Value>,
        command: Vec<String>,
        host: &str,
        program: &str,
    ) -> Result<Self, Error> {
        fs::create_dir_all(folder).at("create", folder)?;
        let (path, mut file) = free_journal(folder, pipeline)?;
        let state_path = path.with_extension("state");
        let length = file.metadata().at("examine", &path)?.len();
        let known = last_checksum(&mut file, length).and_then(|checksum| State::read(&state_path, &file, length, checksum, MOST_MISSING));
        // A line that a kill tore must not swallow the next one.
        if known.is_none() && length > 0 {
            file.write_all(b"\n").at("write", &path)?;
        }
        let started_unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        let id = Digest::of(format!("{started_unix_ms} {} {length} {host}", std::process::id()).as_bytes()).to_string()[..8].to_owned();
        let header = Header {
            version: VERSION,
            id,
            pipeline: pipeline.to_owned(),
            params: params.clone(),
            command,
            started_unix_ms,
            host: host.to_owned(),
            program: program.to_owned(),
            carries_on: known.is_some(),
        };
        let state = known.unwrap_or_default();
        let mut recorder = Self {
            path,
            state_path,
            out: BufWriter::new(file),
            flushed: Instant::now(),
            seen: Vec::new(),
            state,
            back: Vec::new(),
            running: HashMap::new(),
        };
        recorder.line(&Line::Run(header))?;
        recorder.out.flush().at("write", &recorder.path)?;
        Ok(recorder)
    }

    /// Takes an event of the run.
    ///
    /// # Errors
    /// If the journal cannot be written.
    pub fn event(&mut self, event: &Event) -> Result<(), Error> {
        match event {
            Event::Cached { stage, key } => self.cached(stage, key),
            Event::Running { stage, key, .. } => {
                self.running.insert(stage.clone(), key.clone());
                Ok(())
            }
            Event::Done { stage, key, seconds, metrics, peak_rss_kib } => {
                self.running.remove(stage);
                self.stage(StageLine {
                    stage: stage.clone(),
                    outcome: Outcome::Executed,
                    key: Some(key.clone()),
                    seconds: Some(*seconds),
                    peak_rss_kib: *peak_rss_kib,
                    metrics: metrics.as_object().cloned().unwrap_or_default(),
                })
            }
            Event::Failed { stage, .. } => self.without_outputs(stage, Outcome::Failed),
            Event::Skipped { stage, .. } => self.without_outputs(stage, Outcome::Skipped),
            Event::Cancelled { stage } => self.without_outputs(stage, Outcome::Cancelled),
            Event::Summary(summary) => self.end(*summary),
            Event::Started { .. } | Event::Progress { .. } | Event::Output { .. } | Event::Retrying { .. } => Ok(()),
        }
    }

    /// Takes in what the other stages of the run were: those that were cached from the outset, of which no event may tell.
    ///
    /// To be called before the event of the summary.
    ///
    /// # Errors
    /// If the journal cannot be written.
    pub fn others<'s>(&mut self, stages: impl IntoIterator<Item = (&'s str, ActionKey)>) -> Result<(), Error> {
        for (stage, key) in stages {
            let name = name_number(stage);
            let (place, is_known) = self.state.entries.place(name);
            if self.seen.get(place).copied().unwrap_or(false) {
                continue;
            }
            self.mark(place);
            let entry = self.state.entries.list()[place];
            let first = u64::from_be_bytes(*key.as_bytes().first_chunk().unwrap_or(&[0; 8])).max(1);
            if is_known && entry.key == first {
                if !entry.present {
                    self.back.push(name);
                }
            } else {
                self.stage(StageLine { key: Some(key.to_string()), ..bare(stage, Outcome::Cached) })?;
            }
        }
        Ok(())
    }

    fn cached(&mut self, stage: &str, key: &str) -> Result<(), Error> {
        let name = name_number(stage);
        let (place, is_known) = self.see(name);
        let entry = self.state.entries.list()[place];
        if is_known && entry.key == key_number(Some(key)) {
            if !entry.present {
                self.back.push(name);
            }
            return Ok(());
        }
        let line = StageLine { key: Some(key.to_owned()), ..bare(stage, Outcome::Cached) };
        self.stage(line)
    }

    fn without_outputs(&mut self, stage: &str, outcome: Outcome) -> Result<(), Error> {
        let key = self.running.remove(stage);
        self.stage(StageLine { key, ..bare(stage, outcome) })
    }

    /// A stage that is not what it was, or was executed.
    fn stage(&mut self, line: StageLine) -> Result<(), Error> {
        let name = name_number(&line.stage);
        let (place, _) = self.see(name);
        let entry = &mut self.state.entries.list()[place];
        entry.key = line.key_number();
        entry.present = true;
        self.state.is_old = true;
        self.line(&Line::Stage(line))?;
        if self.flushed.elapsed() > FLUSH {
            self.flushed = Instant::now();
            self.out.flush().at("write", &self.path)?;
        }
        Ok(())
    }

    /// Notes that a stage had an event; its place among the entries, and whether it had one before.
    fn see(&mut self, name: u64) -> (usize, bool) {
        let (place, is_known) = self.state.entries.place(name);
        self.mark(place);
        (place, is_known)
    }

    fn mark(&mut self, place: usize) {
        if self.seen.len() <= place {
            self.seen.resize(place + 1, false);
        }
        self.seen[place] = true;
    }

    fn end(&mut self, summary: Summary) -> Result<(), Error> {
        let mut gone = Vec::new();
        for (place, entry) in self.state.entries.list().iter_mut().enumerate() {
            let is_seen = self.seen.get(place).copied().unwrap_or(false);
            if entry.present && !is_seen {
                gone.push(entry.name);
            }
            entry.present = is_seen;
        }
        let sum = self.state.entries.sum();
        let back = std::mem::take(&mut self.back);
        self.state.is_old |= !gone.is_empty() || !back.is_empty();
        self.line(&Line::End(End { summary, gone, back, checksum: format!("{sum:016x}") }))?;
        self.out.flush().at("write", &self.path)?;
        let length = self.out.get_ref().metadata().at("examine", &self.path)?.len();
        // The file that is there is enough if nothing became of any stage, or if what did is in a few lines.
        let State { length: known, is_old, .. } = self.state;
        if known > 0 && (!is_old || length - known.min(length) <= MOST_MISSING) {
            return Ok(());
        }
        let temporary = self.state_path.with_extension("state.new");
        fs::write(&temporary, self.state.entries.bytes(sum, length)).at("write", &temporary)?;
        fs::rename(&temporary, &self.state_path).at("write", &self.state_path)
    }

    fn line(&mut self, line: &Line) -> Result<(), Error> {
        let mut text = serde_json::to_string(line).map_err(std::io::Error::from).at("write", &self.path)?;
        text.push('\n');
        self.out.write_all(text.as_bytes()).at("write", &self.path)
    }
}

fn bare(stage: &str, outcome: Outcome) -> StageLine {
    StageLine { stage: stage.to_owned(), outcome, key: None, seconds: None, peak_rss_kib: None, metrics: Map::new() }
}

/// Opens and locks the first journal that no other run is writing.
fn free_journal(folder: &Path, pipeline: &str) -> Result<(PathBuf, File), Error> {
    let mut lane = 0;
    loop {
        let path = journal(folder, pipeline, lane);
        let file = OpenOptions::new().append(true).create(true).read(true).open(&path).at("open", &path)?;
        match file.try_lock() {
            Ok(()) => return Ok((path, file)),
            Err(TryLockError::WouldBlock) if lane < LANES => lane += 1,
            Err(error) => return Err(error.into()).at("lock", &path),
        }
    }
}

/// The checksum at the end of a journal whose last run ended.
fn last_checksum(file: &mut File, length: u64) -> Option<u64> {
    let mut bytes = [0; CHECKSUM_END];
    file.seek(SeekFrom::Start(length.checked_sub(CHECKSUM_END as u64)?)).ok()?;
    file.read_exact(&mut bytes).ok()?;
    let digits = std::str::from_utf8(&bytes).ok()?.strip_prefix("\"checksum\":\"")?.strip_suffix("\"}\n")?;
    u64::from_str_radix(digits, 16).ok()
}
