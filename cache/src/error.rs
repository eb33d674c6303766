//! What can go wrong, with the path and the way out.

use std::io;
use std::path::{Path, PathBuf};

use miette::Diagnostic;

use crate::content::{BadTree, ObjectId};
use crate::record::BadRecord;

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that the cache can fail with.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    #[diagnostic(code(cache::io))]
    Io {
        /// What was tried, as a verb: `read`, `rename`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An object's bytes are not the ones that its name promises.
    #[error("{object} is damaged in the cache")]
    #[diagnostic(code(cache::damaged), help("run again: the stage that made it runs anew and replaces it"))]
    Damaged {
        /// Which.
        object: ObjectId,
    },
    /// An object is not in the cache.
    #[error("{object} is missing in the cache")]
    #[diagnostic(code(cache::missing), help("run again: the stage that made it runs anew"))]
    Missing {
        /// Which.
        object: ObjectId,
    },
    /// An object holds together and is not a tree.
    #[error("{object} cannot be read")]
    #[diagnostic(code(cache::bad_tree))]
    BadTree {
        /// Which.
        object: ObjectId,
        /// Why.
        source: BadTree,
    },
    /// A record that must not be written.
    #[error("the record cannot be written")]
    #[diagnostic(code(cache::bad_record))]
    BadRecord(#[from] BadRecord),
    /// Bytes that do not match the id under which they were to be stored.
    #[error("the bytes given for {expected} hash to {found}")]
    #[diagnostic(code(cache::mismatch))]
    Mismatch {
        /// The id that was promised.
        expected: ObjectId,
        /// The id of the bytes.
        found: ObjectId,
    },
    /// A file's name or a link's target is not UTF-8.
    #[error("the name {} is not UTF-8", path.display())]
    #[diagnostic(code(cache::not_utf8), help("rename it: names are part of a folder's identity on every machine"))]
    NotUtf8 {
        /// The file.
        path: PathBuf,
    },
    /// Neither a file, a folder nor a link.
    #[error("{} is a {kind}, not a file or a folder", path.display())]
    #[diagnostic(code(cache::special_file), help("only files, folders and links within a folder can be kept"))]
    Special {
        /// Where.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// A link in a folder whose target is outside the folder.
    #[error("the link {} leaves its folder: it points to {target}", path.display())]
    #[diagnostic(
        code(cache::link_leaves),
        help("put the file itself there, or make its target an input of its own; `..` may stand at the front of a target only")
    )]
    LinkLeaves {
        /// The link.
        path: PathBuf,
        /// Where it points.
        target: String,
    },
    /// A file that was written to while it was read.
    #[error("{} changes while it is read", path.display())]
    #[diagnostic(code(cache::changing), help("wait until whatever writes to it is done, and run again"))]
    Changing {
        /// The file.
        path: PathBuf,
    },
    /// The place for a materialised content is taken.
    #[error("{} is there already", path.display())]
    #[diagnostic(code(cache::exists), help("remove it or name another place"))]
    Exists {
        /// The place.
        path: PathBuf,
    },
    /// A folder that holds the cache itself, which changes with every run.
    #[error("{} holds the cache {}", path.display(), cache.display())]
    #[diagnostic(code(cache::holds_cache), help("name a folder that does not contain the cache"))]
    HoldsCache {
        /// The folder.
        path: PathBuf,
        /// The cache.
        cache: PathBuf,
    },
    /// A cache of another format.
    #[error("{} was made by another version: its format is `{found}`, this program reads `{wanted}`", path.display())]
    #[diagnostic(code(cache::format), help("remove the folder, name another one, or use the version that made it"))]
    Format {
        /// The cache's folder.
        path: PathBuf,
        /// What it says it is.
        found: String,
        /// What it should say.
        wanted: &'static str,
    },
}

impl Error {
    /// Attaches what was tried to an error of the operating system.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Whether the place cannot be written at all, as opposed to something being wrong with it.
    pub fn is_read_only(&self) -> bool {
        let kinds = [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied];
        matches!(self, Self::Io { source, .. } if kinds.contains(&source.kind()))
    }
}
