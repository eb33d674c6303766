//! Files known by their stat alone, so that an unchanged file is never read twice.
//!
//! An entry says: the file with this device, inode, size, mtime and ctime has this id. ctime is what makes it safe: no program can set
//! it, so bytes changed behind a restored mtime show. What remains is git's *racily clean* file: one that is changed twice within
//! one tick of the file system's clock, with the hash taken in between, keeps its stat. So an entry is only noted if the file's ctime
//! was older than the clock's grain when hashing began. A file that is too fresh is hashed again next time.
//!
//! The index is a cache of a cache: it may be lost, cut short or of another version, and costs time alone.
//!
//! The file holds the entries in order and is searched as it is; what is noted lies apart until it is merged in.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::digest::{BlobId, Digest};
use crate::error::{Error, Result};
use crate::files::{Hashed, Stat, now};
use crate::hashing::Hashing;

/// Opens the file. Raise the version whenever the layout changes.
const TAG: &[u8] = b"trestle index v1\0";
/// Bytes of an entry: device, inode, size, mtime, ctime, day, id.
const ENTRY: usize = 6 * 8 + 32;
/// So many files of so many bytes in all are hashed in less time than the file of a small project is written.
const FEW: usize = 8;
const SMALL: u64 = 256 << 10;
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
    /// What the file holds; none as long as it was not read.
    file: Option<Arc<Entries>>,
    /// What goes over it.
    noted: BTreeMap<(u64, u64), Known>,
}

/// The entries of a file, by device and inode.
#[derive(Debug, Default)]
struct Entries(Vec<u8>);

#[derive(Debug, Clone, Copy, PartialEq)]
struct Known {
    stat: Stat,
    id: BlobId,
    /// When it was last of use, in days since 1970.
    day: u64,
}

impl State {
    fn entries(&mut self, path: &Path) -> &Arc<Entries> {
        self.file.get_or_insert_with(|| Arc::new(read(path)))
    }

    /// The id of the file with this stat, by what was noted, else as it is `known` from the file; notes that it was of use today.
    fn newer(&mut self, stat: &Stat, known: Option<Known>, today: u64) -> Option<BlobId> {
        let file = (stat.dev, stat.ino);
        let known = self.noted.get(&file).copied().or(known).filter(|known| known.stat == *stat)?;
        if known.day != today {
            self.noted.insert(file, Known { day: today, ..known });
        }
        Some(known.id)
    }
}

impl Index {
    /// The index at `path`; one that cannot be read is empty.
    pub fn open(path: PathBuf) -> Self {
        Self { path, state: Mutex::default() }
    }

    /// Whether there is something to flush.
    pub fn is_changed(&self) -> bool {
        !self.lock().noted.is_empty()
    }

    /// Whether what there is to flush takes longer to find again than to write.
    pub fn is_worth_a_flush(&self) -> bool {
        let noted = &self.lock().noted;
        noted.len() > FEW || noted.values().map(|known| known.stat.size).sum::<u64>() > SMALL
    }

    /// The id of the file with this stat, if its bytes were hashed under it.
    pub fn known(&self, stat: &Stat) -> Option<BlobId> {
        self.known_all([stat]).pop().flatten()
    }

    /// The ids of the files with these stats, as [`Index::known`]. Quicker than one by one, the more so for files that were made together.
    pub fn known_all<'s>(&self, stats: impl IntoIterator<Item = &'s Stat>) -> Vec<Option<BlobId>> {
        let (entries, has_noted) = {
            let mut state = self.lock();
            (Arc::clone(state.entries(&self.path)), !state.noted.is_empty())
        };
        let (today, mut place, mut found) = (today(), 0, Vec::new());
        let mut others = Vec::new();
        for stat in stats {
            let known = entries.find((stat.dev, stat.ino), &mut place).filter(|known| known.stat == *stat);
            if has_noted || known.is_some_and(|known| known.day != today) {
                others.push((found.len(), *stat, known));
            }
            found.push(known.map(|known| known.id));
        }
        if !others.is_empty() {
            let mut state = self.lock();
            for (at, stat, known) in others {
                found[at] = state.newer(&stat, known, today);
            }
        }
        found
    }

    /// Notes what a file hashed to, unless it is too fresh. Says whether it was noted.
    pub fn note(&self, hashed: &Hashed) -> bool {
        let stat = hashed.stat;
        if !is_settled(&stat, hashed.began) {
            return false;
        }
        self.lock().noted.insert((stat.dev, stat.ino), Known { stat, id: hashed.id, day: today() });
        true
    }

    /// Writes the index if it changed, with what another process wrote meanwhile. Not synced to disk: its loss costs time alone.
    pub fn flush(&self, temporary: &Path) -> Result<()> {
        let mut state = self.lock();
        if state.noted.is_empty() {
            return Ok(());
        }
        let before = read(&self.path);
        let today = today();
        let merged = merge(before.iter().peekable(), state.noted.values().copied().peekable());
        write(temporary, merged.filter(|known| known.day + DAYS >= today)).map_err(Error::io("write", temporary))?;
        fs::rename(temporary, &self.path).map_err(Error::io("write", &self.path))?;
        state.file = None;
        state.noted.clear();
        Ok(())
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

impl Known {
    fn file(&self) -> (u64, u64) {
        (self.stat.dev, self.stat.ino)
    }
}

impl Entries {
    fn iter(&self) -> impl Iterator<Item = Known> {
        self.0.chunks_exact(ENTRY).filter_map(decode_entry)
    }

    /// The entry of a file. The search goes out from `place`, in steps that double, and leaves there where it ended: inodes of files that
    /// were made together lie together.
    fn find(&self, file: (u64, u64), place: &mut usize) -> Option<Known> {
        let (entries, _) = self.0.as_chunks::<ENTRY>();
        let is_before = |entry: &[u8; ENTRY]| file_of(entry) < file;
        let (mut low, mut high, mut step) = (0, (*place).min(entries.len()), 1);
        // Everything below `low` is before the file, nothing from `high` on is.
        if high < entries.len() && is_before(&entries[high]) {
            low = high + 1;
            high = low;
            while high < entries.len() && is_before(&entries[high]) {
                low = high + 1;
                high = low.saturating_add(step).min(entries.len());
                step *= 2;
            }
        } else {
            while let Some(last) = high.checked_sub(step) {
                if is_before(&entries[last]) {
                    low = last + 1;
                    break;
                }
                high = last;
                step *= 2;
            }
        }
        *place = low + entries[low..high].partition_point(is_before);
        entries.get(*place).filter(|entry| file_of(entry) == file).and_then(|entry| decode_entry(entry))
    }
}

/// Both in order, each file once; what was noted goes over what was there.
fn merge(
    mut before: Peekable<impl Iterator<Item = Known>>,
    mut noted: Peekable<impl Iterator<Item = Known>>,
) -> impl Iterator<Item = Known> {
    std::iter::from_fn(move || {
        let (old, new) = (before.peek().map(Known::file), noted.peek().map(Known::file));
        match (old, new) {
            (Some(old), Some(new)) if old < new => before.next(),
            (Some(old), Some(new)) if old == new => {
                before.next();
                noted.next()
            }
            (Some(_), None) => before.next(),
            _ => noted.next(),
        }
    })
}

/// Writes a file of entries that are in order.
fn write(path: &Path, entries: impl Iterator<Item = Known>) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&[TAG, &[0; 32]].concat())?;
    let mut out = BufWriter::with_capacity(1 << 18, Hashing::new(file));
    for Known { stat, id, day } in entries {
        for number in [stat.dev, stat.ino, stat.size, stat.mtime.cast_unsigned(), stat.ctime.cast_unsigned(), day] {
            out.write_all(&number.to_le_bytes())?;
        }
        out.write_all(id.as_bytes())?;
    }
    let (mut file, digest) = out.into_inner().map_err(io::IntoInnerError::into_error)?.end();
    file.seek(SeekFrom::Start(TAG.len() as u64))?;
    file.write_all(digest.as_bytes())
}

fn read(path: &Path) -> Entries {
    fs::read(path).ok().and_then(decode).unwrap_or_default()
}

fn decode(mut bytes: Vec<u8>) -> Option<Entries> {
    let (checksum, body) = bytes.strip_prefix(TAG)?.split_at_checked(32)?;
    if checksum != Digest::of(body).as_bytes() || body.len() % ENTRY != 0 {
        return None;
    }
    bytes.drain(..TAG.len() + 32);
    Some(Entries(bytes))
}

/// Device and inode of an entry.
fn file_of(entry: &[u8; ENTRY]) -> (u64, u64) {
    let (numbers, _) = entry.as_chunks::<8>();
    (u64::from_le_bytes(numbers[0]), u64::from_le_bytes(numbers[1]))
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
    fn entries_are_found_from_wherever_the_search_begins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index");
        for count in [0u64, 1, 2, 7, 40] {
            let known = |ino| Known { stat: Stat { ino, ..hashed(1, 0).stat }, id: BlobId::of(&[ino as u8]), day: 1 };
            write(&path, (0..count).map(|i| known(2 * i + 1))).unwrap();
            let entries = read(&path);
            for start in 0..=count as usize + 1 {
                for ino in 0..2 * count + 2 {
                    let wanted = (ino % 2 == 1 && ino < 2 * count).then(|| known(ino));
                    assert_eq!(entries.find((1, ino), &mut { start }), wanted, "{ino} of {count} from {start}");
                }
            }
        }
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
