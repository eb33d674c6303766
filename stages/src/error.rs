//! Why reading, writing or computing failed, with the place.

use std::path::{Path, PathBuf};

use trestle_engine::stage::StageError;

/// The result of this crate's library functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a library function of this crate failed; turns into a [`StageError`] with `?`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file was read, but what it holds is wrong.
    #[error("{}: {message}", path.display())]
    Data {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, with the row or index.
        message: String,
    },
    /// An argument makes no sense.
    #[error("{0}")]
    Argument(String),
    /// A tensor operation failed.
    #[error("tensor: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    /// The file at `path` could not be read or written.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_path_buf(), source }
    }

    /// What the file at `path` holds is wrong.
    pub fn data(path: &Path, message: impl std::fmt::Display) -> Self {
        Self::Data { path: path.to_path_buf(), message: message.to_string() }
    }

    /// An argument makes no sense.
    pub fn argument(message: impl Into<String>) -> Self {
        Self::Argument(message.into())
    }
}

impl From<Error> for StageError {
    fn from(error: Error) -> Self {
        Self::new(error.to_string())
    }
}
