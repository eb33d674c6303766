//! Past runs, read back.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{End, Header, Line, Outcome, StageLine, key_number, name_number, summand};
use crate::error::{At, Error};
use crate::event::Summary;

/// How the lines of stages begin: a list of runs need not read them.
const STAGE: &[u8] = br#"{"is":"stage""#;

/// All runs of a project, oldest first.
#[derive(Debug, Default)]
pub struct Runs {
    runs: Vec<Run>,
}

/// One past run.
#[derive(Debug, Clone)]
pub struct Run {
    /// What is known since it began.
    pub header: Header,
    /// Its counts; none if it was killed before its end.
    pub summary: Option<Summary>,
    journal: PathBuf,
    /// Number of runs before it in its journal.
    place: usize,
}

/// What a stage was in a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// What became of it.
    pub outcome: Outcome,
    /// Its key, where it was known.
    pub key: Option<String>,
    /// The line of the run that executed it under this key; none if that was before the journal began.
    pub execution: Option<Arc<StageLine>>,
}

/// All stages of one run, by name.
pub type Snapshot = BTreeMap<String, Known>;

impl Runs {
    /// The runs of all pipelines whose journals lie in `folder`; none if there is no such folder.
    ///
    /// # Errors
    /// If a journal cannot be read. Lines that are no lines of a journal are passed by.
    pub fn read(folder: &Path) -> Result<Self, Error> {
        let mut runs = Vec::new();
        let entries = match fs::read_dir(folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other.at("read", folder)?,
        };
        for entry in entries {
            let path = entry.at("read", folder)?.path();
            if path.extension().is_some_and(|extension| extension == "jsonl") {
                read_journal(&path, &mut runs)?;
            }
        }
        // Stable: runs of one millisecond stay in the order of their journal.
        runs.sort_by_key(|run: &Run| run.header.started_unix_ms);
        Ok(Self { runs })
    }

    /// The runs, oldest first.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// The run that a word names: `last`, `last~1` (the one before it, of the same pipeline), or the beginning of an id.
    ///
    /// # Errors
    /// If no run, or more than one, is named so.
    pub fn find(&self, word: &str) -> Result<&Run, Error> {
        let unknown = |help: String| Error::UnknownRun { run: word.to_owned(), help };
        let last = self.runs.last().ok_or_else(|| unknown("this project has no runs yet".to_owned()))?;
        if let Some(rest) = word.strip_prefix("last") {
            let back = if rest.is_empty() { Some(0) } else { rest.strip_prefix('~').and_then(|digits| digits.parse().ok()) };
            let back: usize = back.ok_or_else(|| unknown("write `last`, `last~1`, or the beginning of an id".to_owned()))?;
            let mut same = self.runs.iter().rev().filter(|run| run.header.pipeline == last.header.pipeline);
            let count = same.clone().count();
            return same.nth(back).ok_or_else(|| unknown(format!("`{}` has {count} recorded runs", last.header.pipeline)));
        }
        let fitting: Vec<&Run> = self.runs.iter().filter(|run| !word.is_empty() && run.header.id.starts_with(word)).collect();
        match fitting.as_slice() {
            [run] => Ok(run),
            [] => Err(unknown("`trestle runs` lists them; `last` and `last~1` are the newest two".to_owned())),
            several => Err(unknown(format!("{} runs begin so; write more of the id", several.len()))),
        }
    }

    /// The run before `run`, of the same pipeline.
    ///
    /// # Errors
    /// If it is the first.
    pub fn before(&self, run: &Run) -> Result<&Run, Error> {
        let earlier = self.runs.iter().take_while(|other| (&other.journal, other.place) != (&run.journal, run.place));
        let before = earlier.filter(|other| other.header.pipeline == run.header.pipeline).last();
        before.ok_or_else(|| Error::UnknownRun {
            run: format!("{}~1", run.header.id),
            help: format!("it is the first recorded run of `{}`", run.header.pipeline),
        })
    }
}

fn read_journal(path: &Path, runs: &mut Vec<Run>) -> Result<(), Error> {
    let bytes = fs::read(path).at("read", path)?;
    let mut place = 0;
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.starts_with(STAGE)) {
        match serde_json::from_slice(line) {
            Ok(Line::Run(header)) => {
                runs.push(Run { header, summary: None, journal: path.to_owned(), place });
                place += 1;
            }
            Ok(Line::End(end)) if place > 0 => {
                if let Some(run) = runs.last_mut() {
                    run.summary = Some(end.summary);
                }
            }
            // An empty line, or one that a kill tore.
            _ => {}
        }
    }
    Ok(())
}

impl Run {
    /// What every stage of the run was: the lines of this run and of those before it, put together.
    ///
    /// # Errors
    /// If the journal cannot be read, or lines of it are missing.
    pub fn snapshot(&self) -> Result<Snapshot, Error> {
        let bytes = fs::read(&self.journal).at("read", &self.journal)?;
        let mut replay = Replay::default();
        let mut runs = 0;
        for line in bytes.split(|byte| *byte == b'\n') {
            match serde_json::from_slice(line) {
                Ok(Line::Run(_)) if runs > self.place => break,
                Ok(Line::Run(header)) => {
                    runs += 1;
                    replay.begin(&header);
                }
                Ok(Line::Stage(line)) => replay.stage(line),
                Ok(Line::End(end)) => replay.end(&end),
                Err(_) => {}
            }
        }
        if replay.is_broken {
            return Err(Error::BrokenJournal { path: self.journal.clone(), run: self.header.id.clone() });
        }
        // A run that was killed was only what it listed.
        let is_killed = self.summary.is_none();
        Ok(replay
            .stages
            .into_iter()
            .filter(|(_, stage)| stage.present && (!is_killed || stage.seen))
            .map(|(name, stage)| (name, stage.known))
            .collect())
    }
}

/// A stage while lines are put together.
struct Stage {
    known: Known,
    present: bool,
    /// It has a line in this run.
    seen: bool,
}

#[derive(Default)]
struct Replay {
    stages: BTreeMap<String, Stage>,
    names: HashMap<u64, String>,
    executions: HashMap<String, Arc<StageLine>>,
    /// The checksum of the last run that ended is not what its lines give.
    is_broken: bool,
}

impl Replay {
    fn begin(&mut self, header: &Header) {
        if !header.carries_on {
            self.stages.clear();
            self.is_broken = false;
        }
        for stage in self.stages.values_mut() {
            stage.seen = false;
            // It is cached unless this run says otherwise; without outputs it is only where a run said so.
            if stage.known.outcome == Outcome::Executed {
                stage.known.outcome = Outcome::Cached;
            }
        }
    }

    fn stage(&mut self, line: StageLine) {
        self.names.insert(name_number(&line.stage), line.stage.clone());
        let (name, outcome, key) = (line.stage.clone(), line.outcome, line.key.clone());
        let execution = match (outcome, &key) {
            (Outcome::Executed, Some(key)) => {
                let line = Arc::new(line);
                self.executions.insert(key.clone(), Arc::clone(&line));
                Some(line)
            }
            (Outcome::Cached, Some(key)) => self.executions.get(key).cloned(),
            _ => None,
        };
        self.stages.insert(name, Stage { known: Known { outcome, key, execution }, present: true, seen: true });
    }

    fn end(&mut self, end: &End) {
        for (numbers, present) in [(&end.gone, false), (&end.back, true)] {
            for number in numbers {
                match self.names.get(number).and_then(|name| self.stages.get_mut(name)) {
                    Some(stage) => stage.present = present,
                    None => self.is_broken = true,
                }
            }
        }
        let sum = self.stages.iter().filter(|(_, stage)| stage.present).fold(0u64, |sum, (name, stage)| {
            let has_outputs = matches!(stage.known.outcome, Outcome::Executed | Outcome::Cached);
            let key = stage.known.key.as_deref().filter(|_| has_outputs);
            sum.wrapping_add(summand(name_number(name), key_number(key)))
        });
        self.is_broken |= format!("{sum:016x}") != end.checksum;
    }
}
