//! What can go wrong outside of a stage and outside of a pipeline file.

use std::path::{Path, PathBuf};

use miette::Diagnostic;

/// An error of the engine itself.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum Error {
    /// The cache cannot be used.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Cache(#[from] trestle_cache::Error),
    /// A file or folder cannot be used.
    #[error("cannot {doing} {}", path.display())]
    #[diagnostic(code(engine::io))]
    Io {
        /// What was tried, such as `read`.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// What was kept of the pipeline from an earlier run is damaged.
    #[error("the compiled pipeline beside the cache cannot be used")]
    #[diagnostic(code(engine::compiled), help("remove the folder `plans` of the cache; it is made anew from the YAML"))]
    Compiled(#[from] crate::compiled::LoadError),
    /// A record was removed while it was wanted.
    #[error("the record {key} was removed from the cache meanwhile")]
    #[diagnostic(code(engine::record_gone), help("something else cleans this cache; run again"))]
    RecordGone {
        /// Its key.
        key: trestle_cache::ActionKey,
    },
    /// A target that names no stage.
    #[error("no stage is called `{target}`")]
    #[diagnostic(code(engine::unknown_target))]
    UnknownTarget {
        /// As given.
        target: String,
        /// The way out.
        #[help]
        help: String,
    },
    /// A word that names no past run, or several.
    #[error("no one run is called `{run}`")]
    #[diagnostic(code(engine::unknown_run))]
    UnknownRun {
        /// As given.
        run: String,
        /// The way out.
        #[help]
        help: String,
    },
    /// A journal of runs whose lines do not add up.
    #[error("{} has lost lines: what the stages of run {run} were cannot be told", path.display())]
    #[diagnostic(code(engine::broken_journal), help("the next run begins a new account; `trestle clean --runs` removes the old one"))]
    BrokenJournal {
        /// The journal.
        path: PathBuf,
        /// The run.
        run: String,
    },
    /// A job file that does not hold a job.
    #[error("{} is not a job file", path.display())]
    #[diagnostic(code(engine::job), help("job files are written by `trestle run`; they are not for people"))]
    Job {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        #[source]
        source: serde_json::Error,
    },
}

/// Attaches what was tried and on what to an I/O error.
pub(crate) trait At<T> {
    /// `cannot {doing} {path}`.
    fn at(self, doing: &'static str, path: &Path) -> Result<T, Error>;
}

impl<T> At<T> for std::io::Result<T> {
    fn at(self, doing: &'static str, path: &Path) -> Result<T, Error> {
        self.map_err(|source| Error::Io { doing, path: path.to_owned(), source })
    }
}
