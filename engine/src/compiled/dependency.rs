//! What a pipeline was made from, besides its file and the words of the command line.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use trestle_cache::Digest;

/// Something outside of the pipeline file that was asked while it was resolved, and a digest of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dependency {
    /// A variable of the caller.
    Variable {
        /// Its name.
        name: String,
        /// Of its value; `None` if it was not set.
        value: Option<Digest>,
    },
    /// Another file, such as an included one.
    File {
        /// Where.
        path: PathBuf,
        /// Of its text.
        text: Digest,
    },
    /// Files of the project that fit a pattern.
    Pattern {
        /// Folder that the pattern is relative to.
        root: PathBuf,
        /// As written.
        pattern: String,
        /// Of their names.
        names: Digest,
    },
    /// What a stage gave: it can only be known by planning that stage.
    List,
}

impl Dependency {
    /// A variable had this value.
    pub fn variable(name: &str, value: Option<&str>) -> Self {
        Self::Variable { name: name.to_owned(), value: value.map(|value| Digest::of(value.as_bytes())) }
    }

    /// A file had this text.
    pub fn file(path: &Path, text: &str) -> Self {
        Self::File { path: path.to_owned(), text: Digest::of(text.as_bytes()) }
    }

    /// A pattern fitted these files.
    pub fn pattern(root: &Path, pattern: &str, names: &[&str]) -> Self {
        Self::Pattern { root: root.to_owned(), pattern: pattern.to_owned(), names: digest(names) }
    }

    /// Whether the answer would be the same today.
    pub fn holds(&self, variable: &dyn Fn(&str) -> Option<String>) -> bool {
        match self {
            Self::Variable { name, value } => variable(name).map(|value| Digest::of(value.as_bytes())) == *value,
            Self::Pattern { root, pattern, names } => crate::resolve::project::names(root, pattern).is_some_and(|found| {
                let found: Vec<&str> = found.iter().map(String::as_str).collect();
                digest(&found) == *names
            }),
            Self::List => false,
            Self::File { path, text } => std::fs::read(path).is_ok_and(|bytes| Digest::of(&bytes) == *text),
        }
    }
}

/// A name has no zero byte.
fn digest(names: &[&str]) -> Digest {
    Digest::of(names.join("\0").as_bytes())
}
