//! What the writer knows of the run before: a number for each stage's name and key, in the order of its events.
//!
//! The file: a line that names the format, the checksum at the end of the journal and the number of entries (`u64`), the entries (name,
//! key, whether it is part of the run), and the BLAKE3 of all that. Numbers are little-endian.

use std::collections::HashMap;
use std::path::Path;

use trestle_cache::Digest;

const TAG: &[u8] = b"trestle run state v1\n";
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

impl Entries {
    /// Reads the file if it belongs to a journal that ends with this checksum.
    pub fn read(path: &Path, checksum: u64) -> Option<Self> {
        // Whatever is wrong with the file, all stages are listed again.
        let bytes = std::fs::read(path).ok()?;
        let (body, digest) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
        if Digest::of(body).as_bytes() != digest {
            return None;
        }
        let (found, body) = body.strip_prefix(TAG)?.split_first_chunk::<8>()?;
        let (count, body) = body.split_first_chunk::<8>()?;
        let is_whole = u64::try_from(body.len() / ENTRY).ok()? == u64::from_le_bytes(*count) && body.len() % ENTRY == 0;
        if u64::from_le_bytes(*found) != checksum || !is_whole {
            return None;
        }
        let list = body.chunks_exact(ENTRY).map_while(entry).collect();
        Some(Self { list, cursor: 0, places: None })
    }

    /// The bytes of the file.
    pub fn bytes(&self, checksum: u64) -> Vec<u8> {
        let mut bytes = TAG.to_vec();
        bytes.reserve(self.list.len() * ENTRY + 48);
        bytes.extend(checksum.to_le_bytes());
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
