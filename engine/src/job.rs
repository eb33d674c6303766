//! The self-contained description of one native stage's work, and what the process that does it says meanwhile.
//!
//! The engine writes a [`Job`] as JSON; `trestle job FILE` reads it, runs the stage and writes [`Message`]s, one JSON value a line, to
//! its standard output. A crash, an out-of-memory kill or a time-out so takes one stage and never the run.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{At, Error};
use crate::stage::{Context, Input, Progress, Registry, Sink, StageError};

/// All that a process needs to run a native stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Name of the stage, for messages.
    pub stage: String,
    /// Stage kind.
    pub kind: String,
    /// Version of the kind: a process of another build refuses the job.
    pub version: u32,
    /// Params with every default explicit.
    pub params: Value,
    /// Inputs by name, absolute paths.
    pub inputs: BTreeMap<String, Vec<Input>>,
    /// Outputs by name, absolute paths.
    pub outputs: BTreeMap<String, PathBuf>,
    /// Threads to use.
    pub threads: usize,
    /// Folder for what a later try goes on from; absolute, need not exist.
    #[serde(default)]
    pub kept: Option<PathBuf>,
}

/// One line from a job to the engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Message {
    /// Progress.
    Progress(Progress),
    /// A metric.
    Metric {
        /// Its name.
        name: String,
        /// Its value, always finite.
        value: f64,
    },
    /// A line for people.
    Note {
        /// The line.
        text: String,
    },
    /// All outputs are written.
    Done {
        /// Highest resident memory of the process so far, in KiB, where the system tells.
        peak_rss_kib: Option<u64>,
    },
    /// The stage failed.
    Error(StageError),
}

impl Job {
    /// Reads a job file.
    ///
    /// # Errors
    /// If the file cannot be read or is no job file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).at("read", path)?;
        serde_json::from_slice(&bytes).map_err(|source| Error::Job { path: path.to_owned(), source })
    }

    /// Runs the stage in this process, writing messages to `out`.
    ///
    /// # Errors
    /// If a message cannot be written: whoever waits for it is gone.
    pub fn run(&self, registry: &Registry, out: &mut dyn Write) -> std::io::Result<bool> {
        let mut sink = Lines { out, last: None, broken: None, not_finite: None };
        let result = self.execute(registry, &mut sink);
        let Lines { out, broken, not_finite, .. } = sink;
        let result = not_finite.map_or(result, |name| Err(StageError::new(format!("the metric `{name}` is not a finite number"))));
        if let Some(error) = broken {
            return Err(error);
        }
        let ok = result.is_ok();
        send(out, &result.map_or_else(Message::Error, |()| Message::Done { peak_rss_kib: peak_rss_kib() }))?;
        Ok(ok)
    }

    fn execute(&self, registry: &Registry, sink: &mut Lines<'_>) -> Result<(), StageError> {
        let kind = registry.get(&self.kind).ok_or_else(|| StageError::new(format!("this build has no stage kind `{}`", self.kind)))?;
        if kind.version != self.version {
            let message = format!("the job is for version {} of `{}`, this build has version {}", self.version, self.kind, kind.version);
            return Err(StageError::new(message).help("the program was replaced during the run; run again"));
        }
        let mut cx = Context::new(self.inputs.clone(), self.outputs.clone(), self.threads, sink).keeping(self.kept.clone());
        kind.run(&self.params, &mut cx)
    }
}

/// Progress is written at most this often.
const INTERVAL: std::time::Duration = std::time::Duration::from_millis(100);

struct Lines<'w> {
    out: &'w mut dyn Write,
    last: Option<std::time::Instant>,
    broken: Option<std::io::Error>,
    not_finite: Option<String>,
}

impl Lines<'_> {
    fn write(&mut self, message: &Message) {
        if self.broken.is_none() {
            self.broken = send(self.out, message).err();
        }
    }
}

fn send(out: &mut dyn Write, message: &Message) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, message)?;
    out.write_all(b"\n")?;
    out.flush()
}

impl Sink for Lines<'_> {
    fn progress(&mut self, progress: Progress) {
        let is_last = progress.step >= progress.total;
        if !is_last && self.last.is_some_and(|last| last.elapsed() < INTERVAL) {
            return;
        }
        self.last = Some(std::time::Instant::now());
        self.write(&Message::Progress(progress));
    }

    fn metric(&mut self, name: &str, value: f64) {
        if value.is_finite() {
            self.write(&Message::Metric { name: name.to_owned(), value });
        } else {
            self.not_finite = Some(name.to_owned());
        }
    }

    fn note(&mut self, text: &str) {
        self.write(&Message::Note { text: text.to_owned() });
    }
}

/// `VmHWM` of this process, where the system has it.
fn peak_rss_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches(" kB").trim().parse().ok()
}
