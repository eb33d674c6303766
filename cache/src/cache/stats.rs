//! What a later run needs to know that nothing changed: the stats under which files were last found to be what they should be.
//!
//! The index answers that for one file at a time and by reading all of itself. A plan that was made before keeps the stats of its own
//! files instead, in its own order, so that comparing is one `stat` a file and nothing else.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};

use super::Cache;
use crate::content::Content;
use crate::digest::BlobId;
use crate::error::{Error, Result};
use crate::files::{Stat, look};
use crate::parallel;

/// From this many files on, stats are taken by all threads.
const MANY: usize = 2048;

/// The stat under which a file's bytes are known. Opaque; kept as [`FileStat::BYTES`] bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStat(Stat);

impl FileStat {
    /// Length of [`FileStat::to_bytes`].
    pub const BYTES: usize = 40;

    /// As bytes.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let Stat { dev, ino, size, mtime, ctime } = self.0;
        let mut bytes = [0; Self::BYTES];
        for (place, number) in bytes.chunks_exact_mut(8).zip([dev, ino, size, mtime.cast_unsigned(), ctime.cast_unsigned()]) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// From [`FileStat::to_bytes`].
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let number = |at: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&bytes[at * 8..at * 8 + 8]);
            u64::from_le_bytes(eight)
        };
        Self(Stat { dev: number(0), ino: number(1), size: number(2), mtime: number(3).cast_signed(), ctime: number(4).cast_signed() })
    }
}

impl Cache {
    /// The stat of a source file, if its bytes are known to be those of `content` under it. None for a folder.
    pub fn vouch_source(&self, path: &Path, content: &Content) -> Option<FileStat> {
        let Content::Blob { id, .. } = content else { return None };
        let stat = Stat::from(&fs::metadata(path).ok()?);
        (self.index.known(&stat) == Some(*id)).then_some(FileStat(stat))
    }

    /// Gives those that have no stat theirs, where their bytes are known to be right under it.
    pub fn vouch_blobs(&self, blobs: &mut [(BlobId, Option<FileStat>)]) {
        let Ok(folder) = self.blobs_folder() else { return };
        for (id, stat) in blobs.iter_mut().filter(|(_, stat)| stat.is_none()) {
            *stat = blob_stat(&folder, id).filter(|stat| self.index.known(stat) == Some(*id)).map(FileStat);
        }
    }

    /// Where a source's stat is no longer the one that was vouched for, in the order given. A source without a stat counts as changed.
    pub fn changed_sources<'p>(&self, sources: &[(&'p Path, Option<FileStat>)]) -> Vec<bool> {
        // The way to the folder that all are in is gone once.
        let common = common_folder(sources.iter().map(|(path, _)| *path));
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH;
        let folder = if common == 0 { None } else { sources.first() }
            .and_then(|(path, _)| rustix::fs::open(&path.as_os_str().as_bytes()[..common], flags, Mode::empty()).ok());
        let look = |path: &Path| match &folder {
            Some(folder) => stat_at(folder, &path.as_os_str().as_bytes()[common..]),
            None => stat_at(CWD, path),
        };
        let changed = |(path, stat): &(&'p Path, Option<FileStat>)| stat.is_none_or(|stat| look(path) != Some(stat.0));
        parallel::map(sources, MANY, changed)
    }

    /// Where a blob's stat is no longer the one that was vouched for, in the order given.
    pub fn changed_blobs(&self, blobs: &[(BlobId, Option<FileStat>)]) -> Vec<bool> {
        let Ok(folder) = self.blobs_folder() else { return vec![true; blobs.len()] };
        let changed = |(id, stat): &(BlobId, Option<FileStat>)| stat.is_none_or(|stat| blob_stat(&folder, id) != Some(stat.0));
        parallel::map(blobs, MANY, changed)
    }

    /// The stat of the file that holds all records: as long as it stays, so do they.
    pub fn records_stat(&self) -> Option<FileStat> {
        Some(FileStat(Stat::from(&fs::metadata(self.store.records().path()).ok()?)))
    }

    fn blobs_folder(&self) -> Result<OwnedFd> {
        let path = self.root.join("blobs");
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH;
        rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| Error::io("open", &path)(e.into()))
    }
}

/// How many bytes of each path are the way to a folder that all are in, with the slash behind it.
fn common_folder<'p>(mut paths: impl Iterator<Item = &'p Path>) -> usize {
    let Some(first) = paths.next() else { return 0 };
    let first = first.as_os_str().as_bytes();
    let folder = |length: usize| first[..length].iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    paths.fold(folder(first.len()), |length, path| {
        let path = path.as_os_str().as_bytes();
        if path.starts_with(&first[..length]) {
            return length;
        }
        folder(first[..length].iter().zip(path).take_while(|(a, b)| a == b).count())
    })
}

/// The stat of a regular file.
fn stat_at(folder: impl AsFd, path: impl rustix::path::Arg) -> Option<Stat> {
    look(folder, path).ok().filter(|seen| seen.is_file).map(|seen| seen.stat)
}

fn blob_stat(folder: &OwnedFd, id: &BlobId) -> Option<Stat> {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut name = [b'/'; 65];
    for (i, byte) in id.as_bytes().iter().enumerate() {
        let at = if i == 0 { 0 } else { 2 * i + 1 };
        name[at] = HEX[usize::from(byte >> 4)];
        name[at + 1] = HEX[usize::from(byte & 15)];
    }
    stat_at(folder, &name[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_folder_ends_with_a_slash() {
        let common = |paths: &[&str]| common_folder(paths.iter().map(Path::new));
        assert_eq!(common(&[]), 0);
        assert_eq!(common(&["/a/b/c"]), 5);
        assert_eq!(common(&["/a/b/c", "/a/b/cd", "/a/b/./x/c"]), 5);
        assert_eq!(common(&["/a/bc/x", "/a/bd/x"]), 3);
        assert_eq!(common(&["/a/b/c", "/a/b"]), 3);
        assert_eq!(common(&["/a/b", "/c"]), 1);
        assert_eq!(common(&["a", "/a"]), 0);
    }
}
