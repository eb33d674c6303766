//! What the writer knows of the run before: a number for each stage's name and key, in the order of its events.
//!
//! The file: a line that names the format, the checksum at the end of the journal, the journal's length and the number of entries (`u64`),
//! the entries (name, key, whether it is part of the run), and the BLAKE3 of all that. Numbers are little-endian. A journal that has a few
//! lines more is read from there on, so that the file need not be written after every run.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use trestle_cache::Digest;

use super::{Line, name_number, summand};

const TAG: &[u8] = b"trestle run state v2\n";
const ENTRY: usize = 17;

/// One stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: u64,
    /// Its key, 0 for none.
    pub key: u64,
    /// Whether it was part of the last run.
    pub present: bool,
}

/// The stages of the run before, and of runs before that if they were no part of it.
#[derive(Debug, Default)]
pub struct Entries {
    list: Vec<Entry>,
    /// Where the next event is expected: runs of one pipeline have their events in much the same order.
    cursor: usize,
    /// Built when an event comes out of order.
    places: Option<HashMap<u64, usize>>,
}

/// What the file says.
#[derive(Debug, Default)]
pub struct State {
    pub entries: Entries,
    /// At the end of the journal, when the file was written.
    pub checksum: u64,
    /// Length of the journal then; 0 if there is no file.
    pub length: u64,
    /// Something became of a stage since.
    pub is_old: bool,
}

impl State {
    /// Reads the file, and from `journal`, which ends with this checksum, what the file does not have. A file that lags behind by more than
    /// `limit` bytes is only left behind by runs in which nothing became of any stage.
    pub fn read(path: &Path, journal: &File, length: u64, checksum: u64, limit: u64) -> Option<Self> {
        let mut state = Self::load(path)?;
        let missing = length.checked_sub(state.length)?;
        if missing > limit {
            return (state.checksum == checksum).then_some(state);
        }
        let mut bytes = vec![0; usize::try_from(missing).ok()?];
        journal.read_exact_at(&mut bytes, state.length).ok()?;
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            state.is_old |= state.entries.take(serde_json::from_slice(line).ok()?);
        }
        (state.entries.sum() == checksum).then_some(state)
    }

    fn load(path: &Path) -> Option<Self> {
        // Whatever is wrong with the file, all stages are listed again.
        let bytes = std::fs::read(path).ok()?;
        let (body, digest) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        if Digest::of(body).as_bytes() != digest {
            return None;
        }
        let (checksum, body) = body.strip_prefix(TAG)?.split_first_chunk::<8>()?;
        let (length, body) = body.split_first_chunk::<8>()?;
        let (count, body) = body.split_first_chunk::<8>()?;
        let is_whole = u64::try_from(body.len() / ENTRY).ok()? == u64::from_le_bytes(*count) && body.len() % ENTRY == 0;
        if !is_whole {
            return None;
        }
        let list = body.chunks_exact(ENTRY).map_while(entry).collect();
        let entries = Entries { list, cursor: 0, places: None };
        Some(Self { entries, checksum: u64::from_le_bytes(*checksum), length: u64::from_le_bytes(*length), is_old: false })
    }
}

impl Entries {
    /// The bytes of the file, for a journal of this length that ends with this checksum.
    pub fn bytes(&self, checksum: u64, length: u64) -> Vec<u8> {
        let mut bytes = TAG.to_vec();
        bytes.reserve(self.list.len() * ENTRY + 56);
        bytes.extend(checksum.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend((self.list.len() as u64).to_le_bytes());
        for entry in &self.list {
            bytes.extend(entry.name.to_le_bytes());
            bytes.extend(entry.key.to_le_bytes());
            bytes.push(u8::from(entry.present));
        }
        let digest = Digest::of(&bytes);
        bytes.extend(digest.as_bytes());
        bytes
    }

    /// Place of a stage, which gets one if it has none; whether it had one.
    pub fn place(&mut self, name: u64) -> (usize, bool) {
        if self.list.get(self.cursor).is_some_and(|entry| entry.name == name) {
            self.cursor += 1;
            return (self.cursor - 1, true);
        }
        let places = self.places.get_or_insert_with(|| self.list.iter().enumerate().map(|(place, entry)| (entry.name, place)).collect());
        if let Some(&place) = places.get(&name) {
            self.cursor = place + 1;
            return (place, true);
        }
        places.insert(name, self.list.len());
        self.list.push(Entry { name, key: 0, present: false });
        (self.list.len() - 1, false)
    }

    /// Takes in a line of the journal. Says whether it changes anything.
    fn take(&mut self, line: Line) -> bool {
        match line {
            Line::Run(header) if header.carries_on => false,
            Line::Run(_) => {
                *self = Self::default();
                true
            }
            Line::Stage(line) => {
                let (place, _) = self.place(name_number(&line.stage));
                self.list[place].key = line.key_number();
                self.list[place].present = true;
                true
            }
            Line::End(end) => {
                for (names, present) in [(&end.gone, false), (&end.back, true)] {
                    for &name in names {
                        let (place, _) = self.place(name);
                        self.list[place].present = present;
                    }
                }
                self.cursor = 0;
                !end.gone.is_empty() || !end.back.is_empty()
            }
        }
    }

    /// The checksum over those that are part of the run.
    pub fn sum(&self) -> u64 {
        let present = self.list.iter().filter(|entry| entry.present);
        present.fold(0, |sum, entry| sum.wrapping_add(summand(entry.name, entry.key)))
    }

    /// All of them.
    pub fn list(&mut self) -> &mut Vec<Entry> {
        &mut self.list
    }
}

fn entry(bytes: &[u8]) -> Option<Entry> {
    let (name, rest) = bytes.split_first_chunk::<8>()?;
    let (key, rest) = rest.split_first_chunk::<8>()?;
    Some(Entry { name: u64::from_le_bytes(*name), key: u64::from_le_bytes(*key), present: *rest.first()? == 1 })
}
