//! Files and folders of the file system: their stat, their hash, and what a folder holds.

mod large;
pub mod mapped;
mod scan;

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use large::PIECE;
use rustix::fs::AtFlags;
pub use scan::{Folder, Scan};

use crate::content::Content;
use crate::digest::BlobId;
use crate::error::{Error, Result};

/// What the file system says about a file; the same stat means the same bytes (see [`crate::index`]). Times in ns since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    pub mtime: i64,
    pub ctime: i64,
}

impl From<&Metadata> for Stat {
    fn from(meta: &Metadata) -> Self {
        Self {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            mtime: nanoseconds(meta.mtime(), meta.mtime_nsec()),
            ctime: nanoseconds(meta.ctime(), meta.ctime_nsec()),
        }
    }
}

fn nanoseconds(seconds: i64, rest: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(rest)
}

/// What a look at a file shows.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub stat: Stat,
    pub is_file: bool,
    pub executable: bool,
}

/// Looks at a file by its path from an open folder; a link is what it points to.
pub fn look(folder: impl AsFd, path: impl rustix::path::Arg) -> io::Result<Seen> {
    let found = rustix::fs::statat(folder, path, AtFlags::empty())?;
    let stat = Stat {
        dev: found.st_dev,
        ino: found.st_ino,
        size: found.st_size.cast_unsigned(),
        mtime: nanoseconds(found.st_mtime, found.st_mtime_nsec.cast_signed()),
        ctime: nanoseconds(found.st_ctime, found.st_ctime_nsec.cast_signed()),
    };
    let is_file = rustix::fs::FileType::from_raw_mode(found.st_mode).is_file();
    Ok(Seen { stat, is_file, executable: found.st_mode & OWNER_EXECUTES != 0 })
}

/// The bit of a mode that lets the owner execute a file.
const OWNER_EXECUTES: u32 = 0o100;

/// Whether its owner may execute a file.
pub fn is_executable(meta: &Metadata) -> bool {
    meta.mode() & OWNER_EXECUTES != 0
}

/// Now, in ns since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// A file's bytes by name, and the stat that held before and after they were read.
#[derive(Debug, Clone, Copy)]
pub struct Hashed {
    pub id: BlobId,
    pub stat: Stat,
    pub executable: bool,
    /// When reading began, ns since 1970.
    pub began: i64,
}

impl Hashed {
    pub fn content(&self) -> Content {
        Content::Blob { id: self.id, size: self.stat.size, executable: self.executable }
    }
}

/// Hashes an open file from its start.
///
/// # Errors
/// [`Error::Changing`] if the file was written to meanwhile.
pub fn hash_open(file: &mut File, path: &Path) -> Result<Hashed> {
    let failed = || Error::io("read", path);
    let began = now();
    let before = file.metadata().map_err(failed())?;
    if before.is_dir() {
        return Err(failed()(io::ErrorKind::IsADirectory.into()));
    }
    let id = hash_bytes(file, before.len()).map_err(failed())?.ok_or_else(|| Error::Changing { path: path.to_owned() })?;
    let after = file.metadata().map_err(failed())?;
    let stat = Stat::from(&after);
    if (Stat { ctime: 0, ..Stat::from(&before) }) != (Stat { ctime: 0, ..stat }) {
        return Err(Error::Changing { path: path.to_owned() });
    }
    // A link or a chmod meanwhile moves ctime alone; began is then too early for the index to trust the entry.
    Ok(Hashed { id, stat, executable: is_executable(&after), began })
}

/// Hashes a file. See [`hash_open`].
pub fn hash_file(path: &Path) -> Result<Hashed> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    hash_open(&mut file, path)
}

/// Hashes the `size` bytes of a file; `None` if it has fewer by now. More show by its stat.
fn hash_bytes(file: &mut File, size: u64) -> io::Result<Option<BlobId>> {
    if size > PIECE {
        return large::hash(file, size);
    }
    // One byte more than wanted, so that the end shows without another allocation.
    let mut bytes = Vec::with_capacity(size as usize + 1);
    file.read_to_end(&mut bytes)?;
    Ok(Some(BlobId::of(&bytes)))
}

/// The complaint about a file that is neither a file, a folder nor a link.
pub fn special(path: &Path, kind: fs::FileType) -> Error {
    let kind = match kind {
        _ if kind.is_socket() => "socket",
        _ if kind.is_fifo() => "pipe",
        _ if kind.is_block_device() || kind.is_char_device() => "device",
        _ => "special file",
    };
    Error::Special { path: path.to_owned(), kind }
}

/// Removes a file or a folder with all below it, read-only folders too. Nothing there is fine.
pub fn remove_all(path: &Path) -> Result<()> {
    let failed = Error::io("remove", path);
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed(e)),
        Ok(meta) if !meta.is_dir() => fs::remove_file(path).map_err(failed),
        Ok(_) => match fs::remove_dir_all(path) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                unlock_dirs(path);
                fs::remove_dir_all(path).map_err(failed)
            }
            other => other.map_err(failed),
        },
    }
}

/// Gives the owner all rights on the folders below `path`. What cannot be changed shows when it is removed.
fn unlock_dirs(path: &Path) {
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
    for item in fs::read_dir(path).into_iter().flatten().flatten() {
        if item.file_type().is_ok_and(|kind| kind.is_dir()) {
            unlock_dirs(&item.path());
        }
    }
}
