//! What files were when they were last hashed, so that an unchanged file is known by its stat alone.
//!
//! An entry is believed only if the file's size, times, inode and device are the same, and if the file was already older than the
//! clock's grain when it was hashed: a file that is written twice within one grain can keep its times (git calls such an entry "racily
//! clean"). Losing the index costs time, never truth.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::digest::BlobId;
use crate::error::{At, Error};
use crate::hash;

/// Coarsest grain of a clock that we expect of a file system here, in nanoseconds; Linux stamps files once a tick, 1 to 10 ms.
const GRAIN_NS: i128 = 50_000_000;
/// How often a file that changes while it is hashed is tried again.
const ATTEMPTS: usize = 3;
/// First line of the file.
const TAG: &str = "trestle index v1";

/// All of a file's stat that changes when its bytes do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stat {
    size: u64,
    mtime: i128,
    ctime: i128,
    inode: u64,
    device: u64,
}

impl Stat {
    fn of(path: &Path) -> Result<Self> {
        Ok(Self::from(&fs::metadata(path).at("read", path)?))
    }

    /// Whether the file was older than a grain at `time`.
    fn settled_at(&self, time: i128) -> bool {
        self.mtime.max(self.ctime) + GRAIN_NS < time
    }
}

impl From<&fs::Metadata> for Stat {
    fn from(meta: &fs::Metadata) -> Self {
        let nanoseconds = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Self {
            size: meta.len(),
            mtime: nanoseconds(meta.mtime(), meta.mtime_nsec()),
            ctime: nanoseconds(meta.ctime(), meta.ctime_nsec()),
            inode: meta.ino(),
            device: meta.dev(),
        }
    }
}

fn now() -> i128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i128::try_from(d.as_nanos()).unwrap_or(i128::MAX))
}

/// A file as it was when it was hashed.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Noted {
    stat: Stat,
    id: BlobId,
}

#[derive(Default)]
struct State {
    entries: HashMap<PathBuf, Noted>,
    changed: bool,
}

/// The index of one cache.
pub struct Index {
    file: PathBuf,
    state: Mutex<State>,
}

impl Index {
    /// Reads the index; one that cannot be read is an empty one.
    pub fn open(file: &Path) -> Self {
        let entries = fs::read_to_string(file).ok().and_then(|text| parse(&text)).unwrap_or_default();
        Self { file: file.to_owned(), state: Mutex::new(State { entries, changed: false }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Entries are inserted whole, so a panic elsewhere does not spoil the map.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Digest and size of a file: by its stat if that is enough, else by its bytes.
    ///
    /// # Errors
    /// If it cannot be read, or changes again and again meanwhile.
    pub fn digest(&self, path: &Path) -> Result<(BlobId, u64)> {
        for _ in 0..ATTEMPTS {
            let before = Stat::of(path)?;
            let noted = self.state().entries.get(path).copied();
            if let Some(noted) = noted.filter(|noted| noted.stat == before) {
                return Ok((noted.id, before.size));
            }
            let began = now();
            let (id, size) = hash::file(path)?;
            if Stat::of(path)? != before || size != before.size {
                continue;
            }
            if before.settled_at(began) {
                let mut state = self.state();
                state.entries.insert(path.to_owned(), Noted { stat: before, id });
                state.changed = true;
            }
            return Ok((id, size));
        }
        Err(Error::Unstable { path: path.to_owned() })
    }

    /// Forgets a file.
    pub fn forget(&self, path: &Path) {
        let mut state = self.state();
        state.changed |= state.entries.remove(path).is_some();
    }

    /// Writes the index if it changed, all at once.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn flush(&self, temporary: &Path) -> Result<()> {
        let mut state = self.state();
        if !state.changed {
            return Ok(());
        }
        let mut lines: Vec<String> = Vec::with_capacity(state.entries.len());
        for (path, noted) in &state.entries {
            // A path that is not UTF-8 is hashed anew every time.
            let line = path.to_str().and_then(|path| serde_json::to_string(&(path, noted)).ok());
            lines.extend(line.map(|line| line + "\n"));
        }
        lines.sort_unstable();
        let mut out = fs::File::create(temporary).at("write", temporary)?;
        out.write_all(format!("{TAG}\n{}", lines.concat()).as_bytes()).at("write", temporary)?;
        fs::rename(temporary, &self.file).at("rename to", &self.file)?;
        state.changed = false;
        Ok(())
    }
}

fn parse(text: &str) -> Option<HashMap<PathBuf, Noted>> {
    let mut lines = text.lines();
    (lines.next()? == TAG).then_some(())?;
    lines.map(|line| serde_json::from_str(line).ok()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_settled_file_is_known_by_stat_and_a_fresh_one_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, saved) = (dir.path().join("a"), dir.path().join("index"));
        fs::write(&file, b"one").unwrap();
        let index = Index::open(&saved);
        let one = index.digest(&file).unwrap();
        assert!(index.state().entries.is_empty(), "written within the grain, yet believed");
        std::thread::sleep(Duration::from_millis(80));
        assert_eq!(index.digest(&file).unwrap(), one);
        assert_eq!(index.state().entries.len(), 1);
        index.flush(&dir.path().join("tmp")).unwrap();
        let index = Index::open(&saved);
        assert_eq!(index.state().entries.len(), 1);
        // The same size and the same mtime, but other bytes: ctime tells.
        let before = fs::metadata(&file).unwrap().modified().unwrap();
        fs::write(&file, b"two").unwrap();
        fs::File::options().write(true).open(&file).unwrap().set_modified(before).unwrap();
        assert_ne!(index.digest(&file).unwrap(), one);
    }

    #[test]
    fn a_spoiled_index_is_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let saved = dir.path().join("index");
        fs::write(&saved, format!("{TAG}\nnonsense\n")).unwrap();
        assert!(Index::open(&saved).state().entries.is_empty());
    }
}
