//! What happens during a run, in the order in which the dispatcher saw it. The edge renders it; nothing else does.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::plan::Reason;
use crate::stage::{Progress, StageError};

/// One event. As JSON it is one line with the tag `event`.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The run begins.
    Started {
        /// Name of the pipeline.
        pipeline: String,
        /// Stages that are wanted.
        stages: usize,
        /// Threads that may be used at a time.
        cpus: usize,
    },
    /// A stage's outputs were in the cache.
    Cached {
        /// Name of the stage.
        stage: String,
        /// Its key.
        key: String,
    },
    /// A stage starts.
    Running {
        /// Name of the stage.
        stage: String,
        /// Its key.
        key: String,
        /// Why it has to run.
        reasons: Vec<Reason>,
        /// Threads granted.
        threads: usize,
    },
    /// A stage reports progress.
    Progress {
        /// Name of the stage.
        stage: String,
        /// Where it is.
        #[serde(flatten)]
        progress: Progress,
    },
    /// A stage printed a line, and those were asked for; or a native stage has a note for people.
    Output {
        /// Name of the stage.
        stage: String,
        /// The line.
        line: String,
    },
    /// A stage is done and its outputs are stored.
    Done {
        /// Name of the stage.
        stage: String,
        /// Its key.
        key: String,
        /// Wall time in seconds.
        seconds: f64,
        /// Metrics that it reported.
        metrics: Value,
        /// Highest resident memory of its process, in KiB, where the system tells.
        #[serde(skip_serializing_if = "Option::is_none")]
        peak_rss_kib: Option<u64>,
    },
    /// A stage failed; nothing of it is stored.
    Failed {
        /// Name of the stage.
        stage: String,
        /// Why.
        #[serde(flatten)]
        failure: Failure,
    },
    /// A stage failed and will be tried again.
    Retrying {
        /// Name of the stage.
        stage: String,
        /// Why it failed.
        #[serde(flatten)]
        failure: Failure,
        /// How often it was tried.
        tries: u32,
        /// The pause before it is tried again.
        seconds: f64,
    },
    /// A stage was not tried because one that it needs failed.
    Skipped {
        /// Name of the stage.
        stage: String,
        /// The stage that failed.
        because: String,
    },
    /// A stage was ended, or not begun, because the run was interrupted.
    Cancelled {
        /// Name of the stage.
        stage: String,
    },
    /// The run ends.
    Summary(Summary),
}

/// Why a stage failed.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// The error.
    #[serde(flatten)]
    pub error: StageError,
    /// File with everything that the stage printed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<std::path::PathBuf>,
    /// The end of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub log_tail: String,
}

/// The counts of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Stages that ran and whose outputs are stored.
    pub executed: usize,
    /// Stages whose outputs were in the cache.
    pub cached: usize,
    /// Stages that failed.
    pub failed: usize,
    /// Stages not tried because of a failure.
    pub skipped: usize,
    /// Stages ended or not begun because of an interruption.
    pub cancelled: usize,
    /// Wall time in seconds.
    pub seconds: f64,
}

impl From<StageError> for Failure {
    fn from(error: StageError) -> Self {
        Self { error, log: None, log_tail: String::new() }
    }
}
