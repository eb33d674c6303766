//! What can go wrong in the cache.

use std::path::{Path, PathBuf};

use miette::Diagnostic;

/// An error of the cache.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum Error {
    /// The system refused.
    #[error("cannot {doing} {}", path.display())]
    #[diagnostic(code(cache::io))]
    Io {
        /// What was tried, such as `read`.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Something that a cache cannot hold.
    #[error("{} is {what}, which cannot be stored", path.display())]
    #[diagnostic(code(cache::unsupported), help("only files and folders are stored; copy what a link points to"))]
    Unsupported {
        /// The path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Stored bytes are not what their name says.
    #[error("{name} in the store is damaged: {detail}")]
    #[diagnostic(code(cache::damaged), help("run again: the stage that makes it will run"))]
    Damaged {
        /// Text of the blob or tree.
        name: String,
        /// What was seen.
        detail: String,
    },
    /// Stored bytes are gone.
    #[error("{name} is missing from the store")]
    #[diagnostic(code(cache::missing), help("run again: the stage that makes it will run"))]
    Missing {
        /// Text of the blob or tree.
        name: String,
    },
    /// A file changed again and again while it was read.
    #[error("{} changes while it is read", path.display())]
    #[diagnostic(code(cache::unstable), help("wait until nothing writes to it, then run again"))]
    Unstable {
        /// The path.
        path: PathBuf,
    },
    /// A record whose key is not that of its manifest.
    #[error("the record for {key} does not belong to that key")]
    #[diagnostic(code(cache::record))]
    WrongKey {
        /// The key.
        key: String,
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
