//! Files known by their stat alone, so that an unchanged file is never read twice.
//!
//! An entry says: the file with this device, inode, size, mtime and ctime has this id. ctime is what makes it safe: no program can set
//! it, so bytes changed behind a restored mtime show. What remains is git's *racily clean* file: one that is changed twice within
//! one tick of the file system's clock, with the hash taken in between, keeps its stat. So an entry is only noted if the file's ctime
//! was older than the clock's grain when hashing began. A file that is too fresh is hashed again next time.
//!
//! The index is a cache of a cache: it may be lost, cut short or of another version, and costs time alone.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::digest::{BlobId, Digest};
use crate::error::{Error, Result};
use crate::files::{Hashed, Stat, now};

/// Opens the file. Raise the version whenever the layout changes.
const TAG: &[u8] = b"trestle index v1\0";
/// Bytes of an entry: device, inode, size, mtime, ctime, day, id.
const ENTRY: usize = 6 * 8 + 32;
/// Days after which an entry that nobody asked for is dropped.
const DAYS: u64 = 30;
/// Kernel ticks are 1 to 10 ms.
const GRAIN: i64 = 50_000_000;
/// A file system that keeps whole seconds (or, FAT, pairs of them).
const COARSE_GRAIN: i64 = 2_500_000_000;

/// The index in memory, shared by threads. The file is read when something is first asked of it: a run that changes nothing needs it not.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// By device and inode; none as long as the file was not read.
    entries: Option<Entries>,
    changed: bool,
}

type Entries = HashMap<(u64, u64), Known>;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Known {
    stat: Stat,
    id: BlobId,
    /// When it was last of use, in days since 1970.
    day: u64,
}

impl Index {
    /// The index at `path`; one that cannot be read is empty.
    pub fn open(path: PathBuf) -> Self {
        Self { path, state: Mutex::default() }
    }

    /// Whether there is something to flush.
    pub fn is_changed(&self) -> bool {
        self.lock().changed
    }

    /// The id of the file with this stat, if its bytes were hashed under it.
    pub fn known(&self, stat: &Stat) -> Option<BlobId> {
        let mut state = self.lock();
        let known = self.entries(&mut state).get_mut(&(stat.dev, stat.ino)).filter(|known| known.stat == *stat)?;
        let (id, today) = (known.id, today());
        if known.day != today {
            known.day = today;
            state.changed = true;
        }
        Some(id)
    }

    /// Notes what a file hashed to, unless it is too fresh. Says whether it was noted.
    pub fn note(&self, hashed: &Hashed) -> bool {
        let stat = hashed.stat;
        if !is_settled(&stat, hashed.began) {
            return false;
        }
        let mut state = self.lock();
        self.entries(&mut state).insert((stat.dev, stat.ino), Known { stat, id: hashed.id, day: today() });
        state.changed = true;
        true
    }

    /// Writes the index if it changed, with what another process wrote meanwhile. Not synced to disk: its loss costs time alone.
    pub fn flush(&self, temporary: &Path) -> Result<()> {
        let mut state = self.lock();
        if !state.changed {
            return Ok(());
        }
        let entries = self.entries(&mut state);
        for (file, known) in read(&self.path) {
            entries.entry(file).or_insert(known);
        }
        let today = today();
        entries.retain(|_, known| known.day + DAYS >= today);
        fs::write(temporary, encode(entries)).map_err(Error::io("write", temporary))?;
        fs::rename(temporary, &self.path).map_err(Error::io("write", &self.path))?;
        state.changed = false;
        Ok(())
    }

    fn entries<'s>(&self, state: &'s mut State) -> &'s mut Entries {
        state.entries.get_or_insert_with(|| read(&self.path))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is a single step, so a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a file that was read from `began` on can't have been changed since within the tick of its ctime.
pub fn is_settled(stat: &Stat, began: i64) -> bool {
    let grain = if stat.ctime % 1_000_000_000 == 0 { COARSE_GRAIN } else { GRAIN };
    stat.ctime.saturating_add(grain) <= began
}

/// Days since 1970.
fn today() -> u64 {
    now().unsigned_abs() / (24 * 3600 * 1_000_000_000)
}

fn encode(entries: &Entries) -> Vec<u8> {
    let mut body = Vec::with_capacity(entries.len() * ENTRY);
    let mut sorted: Vec<_> = entries.values().collect();
    sorted.sort_unstable_by_key(|known| (known.stat.dev, known.stat.ino));
    for Known { stat, id, day } in sorted {
        let numbers = [stat.dev, stat.ino, stat.size, stat.mtime.cast_unsigned(), stat.ctime.cast_unsigned(), *day];
        body.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        body.extend(id.as_bytes());
    }
    [TAG, Digest::of(&body).as_bytes(), &body].concat()
}

fn read(path: &Path) -> Entries {
    fs::read(path).ok().and_then(|bytes| decode(&bytes)).unwrap_or_default()
}

fn decode(bytes: &[u8]) -> Option<Entries> {
    let (checksum, body) = bytes.strip_prefix(TAG)?.split_at_checked(32)?;
    if checksum != Digest::of(body).as_bytes() || body.len() % ENTRY != 0 {
        return None;
    }
    let known = body.chunks_exact(ENTRY).map(decode_entry).collect::<Option<Vec<_>>>()?;
    Some(known.into_iter().map(|known| ((known.stat.dev, known.stat.ino), known)).collect())
}

fn decode_entry(entry: &[u8]) -> Option<Known> {
    let number = |at: usize| Some(u64::from_le_bytes(entry.get(at * 8..at * 8 + 8)?.try_into().ok()?));
    let stat =
        Stat { dev: number(0)?, ino: number(1)?, size: number(2)?, mtime: number(3)?.cast_signed(), ctime: number(4)?.cast_signed() };
    let id = Digest::new(entry.get(48..)?.try_into().ok()?);
    Some(Known { stat, id: BlobId::new(id), day: number(5)? })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::files::hash_file;

    fn hashed(ctime: i64, began: i64) -> Hashed {
        let stat = Stat { dev: 1, ino: 2, size: 3, mtime: 4, ctime };
        Hashed { id: BlobId::of(b"abc"), stat, executable: false, began }
    }

    #[test]
    fn a_fresh_file_is_not_noted() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::open(folder.path().join("index"));
        let second = 1_000_000_000;
        assert!(!index.note(&hashed(second + 1, second + 1)));
        assert!(!index.note(&hashed(second + 1, second + GRAIN)));
        assert!(!index.note(&hashed(second, second + GRAIN)), "a clock of whole seconds needs longer");
        assert!(!index.note(&hashed(second + 1, 0)), "a clock that went back");
        assert_eq!(index.known(&hashed(second + 1, 0).stat), None);
        assert!(index.note(&hashed(second + 1, second + 1 + GRAIN)));
        assert_eq!(index.known(&hashed(second + 1, 0).stat), Some(BlobId::of(b"abc")));
        assert_eq!(index.known(&hashed(second + 2, 0).stat), None, "another ctime");
    }

    #[test]
    fn a_damaged_index_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        let index = Index::open(path.clone());
        let (one, two) = (hashed(1, GRAIN * 2), Stat { ino: 9, ..hashed(1, 0).stat });
        index.note(&one);
        index.flush(&folder.path().join("t")).unwrap();
        assert_eq!(Index::open(path.clone()).known(&one.stat), Some(one.id));

        // Two processes: the later flush keeps what the earlier one wrote.
        let other = Index::open(folder.path().join("none"));
        let other = Index { path: path.clone(), ..other };
        other.note(&Hashed { stat: two, ..one });
        other.flush(&folder.path().join("t")).unwrap();
        assert_eq!(Index::open(path.clone()).known(&one.stat), Some(one.id));
        assert_eq!(Index::open(path.clone()).known(&two), Some(one.id));

        let bytes = fs::read(&path).unwrap();
        for cut in [0, 5, bytes.len() - 1] {
            fs::write(&path, &bytes[..cut]).unwrap();
            assert_eq!(Index::open(path.clone()).known(&one.stat), None);
        }
        let mut edited = bytes.clone();
        edited[60] ^= 1;
        fs::write(&path, &edited).unwrap();
        assert_eq!(Index::open(path).known(&one.stat), None);
    }

    /// Rewrites a file of one size as fast as possible: whatever the clock's grain, the index never answers with old bytes.
    #[test]
    fn rapid_rewrites_are_never_taken_for_the_old_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (path, index) = (folder.path().join("file"), Index::open(folder.path().join("index")));
        for round in 0..500u32 {
            fs::write(&path, round.to_le_bytes()).unwrap();
            let hashed = hash_file(&path).unwrap();
            if let Some(id) = index.known(&hashed.stat) {
                assert_eq!(id, BlobId::of(&round.to_le_bytes()));
            }
            index.note(&hashed);
        }
    }
}
