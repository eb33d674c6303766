//! All records in one file, `records`: appended, never edited, read by whoever likes.
//!
//! ```text
//! trestle records v1⏎
//! frame*        mark (8 bytes), length of the payload (u32), key (32 bytes), check of length and key (4 bytes), payload
//! ```
//!
//! Numbers are little-endian. The last frame of a key counts; an empty payload says that the record was removed. A payload carries its own
//! checksum (see [`ActionRecord`](crate::ActionRecord)); the check is for finding the next frame.
//!
//! # What may happen to it
//! - A process is killed while it appends: the torn frame at the end is cut off by the next append.
//! - Bytes rot: a frame that makes no sense is passed over up to the next mark, so damage costs the records that it hit. The next append writes the
//!   file anew without it, since what lies behind a wrong length may make sense once the file has grown.
//! - Several processes append: each locks the file meanwhile, and reads first what the others wrote.
//! - It is replaced as a whole ([`RecordLog::rewrite`]): whoever has the old one open notices by its inode.
//!
//! One file, because a cache of 100,000 records as files costs 100,000 inodes, and an fsync each.

use std::collections::HashMap;
use std::fs::{self, File};
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::digest::{ActionKey, Digest};
use crate::error::{Error, Result};
use crate::files::mapped;

/// Opens the file. Raise the version whenever the layout changes.
const TAG: &[u8] = b"trestle records v1\n";
/// Opens a frame. Not valid UTF-8, so no payload has it.
const MARK: [u8; 8] = *b"\xffrecord\xfe";
/// Bytes before the payload.
const HEAD: usize = 8 + 4 + 32 + 4;
/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;
/// From so many bytes on the file is looked at where it lies: of a frame only the head is wanted.
const MAPPED: u64 = 1 << 16;
/// Bytes that are mapped at a time: they count as memory of this process.
const WINDOW: u64 = 1 << 22;
/// A multiple of the size of a page, on every system.
const PAGE: u64 = 1 << 16;

/// The records of a cache, by key.
#[derive(Debug)]
pub struct RecordLog {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    file: Option<File>,
    /// Where each key's last payload lies.
    places: HashMap<ActionKey, Place, BuildHasherDefault<KeyHasher>>,
    /// Up to where the file was read: the end of a frame.
    seen: u64,
    /// Something was passed over.
    damaged: bool,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    at: u64,
    len: u32,
}

impl RecordLog {
    /// The log at `path`, which need not be there.
    pub fn new(path: PathBuf) -> Self {
        Self { path, state: Mutex::default() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The last payload of a key.
    pub fn get(&self, key: &ActionKey) -> Result<Option<Vec<u8>>> {
        let mut state = self.lock();
        if !state.places.contains_key(key) {
            self.catch_up(&mut state)?;
        }
        let (Some(place), Some(file)) = (state.places.get(key).copied(), &state.file) else { return Ok(None) };
        let mut payload = vec![0; place.len as usize];
        match file.read_exact_at(&mut payload, place.at) {
            // Cut short behind our back: the record is gone.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            other => other.map(|()| Some(payload)).map_err(Error::io("read", &self.path)),
        }
    }

    /// The keys that have a record, sorted.
    pub fn keys(&self) -> Result<Vec<ActionKey>> {
        let mut state = self.lock();
        self.catch_up(&mut state)?;
        let mut keys: Vec<_> = state.places.keys().copied().collect();
        keys.sort_unstable();
        Ok(keys)
    }

    /// Appends a payload, which is the key's from now on; an empty one removes it. Synced to disk by [`RecordLog::sync`] alone.
    pub fn put(&self, key: &ActionKey, payload: &[u8]) -> Result<()> {
        let mut state = self.lock();
        let failed = || Error::io("write", &self.path);
        let len = u32::try_from(payload.len()).map_err(|_| failed()(io::ErrorKind::FileTooLarge.into()))?;
        let _turn = self.open_to_append(&mut state)?;
        let mut frame = Vec::with_capacity(TAG.len() + HEAD + payload.len());
        if state.seen == 0 {
            frame.extend(TAG);
        }
        frame.extend(head(key, len));
        frame.extend(payload);
        let Some(mut file) = state.file.as_ref() else { return Err(failed()(io::ErrorKind::NotFound.into())) };
        if let Err(e) = file.write_all(&frame) {
            // Half a frame would be cut off by the next append anyway.
            let _ = file.set_len(state.seen);
            return Err(failed()(e));
        }
        state.seen += frame.len() as u64;
        let place = Place { at: state.seen - u64::from(len), len };
        state.note(*key, place);
        Ok(())
    }

    /// Brings all that was appended to disk.
    pub fn sync(&self) -> Result<()> {
        let state = self.lock();
        state.file.as_ref().map_or(Ok(()), |file| file.sync_data().map_err(Error::io("sync", &self.path)))
    }

    /// Replaces the file by one with the records that `keep` wants, and says how many bytes it is smaller.
    pub fn rewrite(&self, temporary: &Path, keep: impl Fn(&ActionKey) -> bool) -> Result<u64> {
        let mut state = self.lock();
        let turn = self.open_to_append(&mut state)?;
        self.rewrite_open(&mut state, turn, temporary, keep)
    }

    fn rewrite_open(&self, state: &mut State, _turn: Turn, temporary: &Path, keep: impl Fn(&ActionKey) -> bool) -> Result<u64> {
        let before = state.seen;
        let mut places: Vec<_> = state.places.iter().filter(|(key, _)| keep(key)).map(|(key, place)| (*key, *place)).collect();
        places.sort_unstable_by_key(|(_, place)| place.at);
        let write = || -> io::Result<()> {
            let mut out = io::BufWriter::with_capacity(CHUNK, File::create_new(temporary)?);
            out.write_all(TAG)?;
            for (key, place) in &places {
                let mut payload = vec![0; place.len as usize];
                if let Some(file) = &state.file {
                    file.read_exact_at(&mut payload, place.at)?;
                }
                out.write_all(&head(key, place.len))?;
                out.write_all(&payload)?;
            }
            out.flush()?;
            out.get_ref().sync_data()?;
            fs::rename(temporary, &self.path)
        };
        write().map_err(Error::io("rewrite", &self.path))?;
        *state = State::default();
        self.catch_up(state)?;
        Ok(before.saturating_sub(state.seen))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the state as a prefix of the truth, and the rest is read again.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the file for appending and locks it against other processes until the turn is dropped; cuts off a torn end.
    fn open_to_append(&self, state: &mut State) -> Result<Turn> {
        let failed = || Error::io("open", &self.path);
        loop {
            if state.file.is_none() {
                let file = File::options().read(true).append(true).create(true).open(&self.path).map_err(failed())?;
                state.file = Some(file);
            }
            let Some(file) = &state.file else { continue };
            // A second handle of the same open file: the lock belongs to both.
            let turn = Turn(file.try_clone().map_err(failed())?);
            match turn.0.lock() {
                // Opened for reading alone.
                Err(e) => return Err(Error::io("lock", &self.path)(e)),
                Ok(()) if self.is_current(&turn.0) => {}
                Ok(()) => {
                    *state = State::default();
                    continue;
                }
            }
            self.catch_up(state)?;
            let end = turn.0.metadata().map_err(failed())?.len();
            if end > state.seen {
                turn.0.set_len(state.seen).map_err(Error::io("mend", &self.path))?;
            }
            if state.damaged {
                let temporary = self.path.with_extension(format!("{}.tmp", std::process::id()));
                self.rewrite_open(state, turn, &temporary, |_| true)?;
                continue;
            }
            return Ok(turn);
        }
    }

    /// Whether the open file is the one that lies at the path.
    fn is_current(&self, file: &File) -> bool {
        let (Ok(open), Ok(there)) = (file.metadata(), fs::metadata(&self.path)) else { return false };
        (open.dev(), open.ino()) == (there.dev(), there.ino())
    }

    /// Reads what was appended since, by this or another process.
    fn catch_up(&self, state: &mut State) -> Result<()> {
        if state.file.as_ref().is_some_and(|file| !self.is_current(file)) {
            *state = State::default();
        }
        if state.file.is_none() {
            // A cache that may only be read is opened for reading.
            let open = File::options().read(true).append(true).open(&self.path).or_else(|_| File::open(&self.path));
            state.file = match open {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => Some(other.map_err(Error::io("open", &self.path))?),
            };
        }
        let Some(file) = &state.file else { return Ok(()) };
        let handle = file.try_clone().map_err(Error::io("read", &self.path))?;
        let end = handle.metadata().map_err(Error::io("read", &self.path))?.len();
        if end < state.seen {
            // Cut short behind our back: what is left is read anew.
            state.places.clear();
            state.seen = 0;
        }
        if end > state.seen {
            scan(handle, end, state).map_err(Error::io("read", &self.path))?;
        }
        Ok(())
    }
}

impl State {
    fn note(&mut self, key: ActionKey, place: Place) {
        if place.len == 0 {
            self.places.remove(&key);
        } else {
            self.places.insert(key, place);
        }
    }
}

/// A key is a hash already.
#[derive(Debug, Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 ^= bytes.first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The right to append, given up when dropped.
struct Turn(File);

impl Drop for Turn {
    fn drop(&mut self) {
        // The kernel drops it with the handle at the latest.
        let _ = self.0.unlock();
    }
}

/// Notes the frames from `state.seen` up to the last whole one before `end`.
fn scan(mut file: File, end: u64, state: &mut State) -> io::Result<()> {
    let mut at = state.seen;
    if at == 0 {
        let mut tag = [0; TAG.len()];
        if end < tag.len() as u64 {
            // Torn before its first frame: an append begins it anew.
            return Ok(());
        }
        file.read_exact_at(&mut tag, 0)?;
        // A damaged tag costs nothing: `format` says which layout this is, and the frames are found by their marks.
        if tag == *TAG {
            at = TAG.len() as u64;
            state.seen = at;
        }
    }
    if end - at >= MAPPED {
        at = look(&file, at, end, state);
    }
    file.seek(SeekFrom::Start(at))?;
    let mut reader = BufReader::with_capacity(CHUNK.min(usize::try_from(end - at).unwrap_or(CHUNK)).max(4096), file);
    while at + HEAD as u64 <= end {
        let mut head = [0; HEAD];
        reader.read_exact(&mut head)?;
        let (key, len) = parse(&head);
        let next = at + HEAD as u64 + u64::from(len);
        if head == self::head(&key, len) && next <= end {
            state.note(key, Place { at: at + HEAD as u64, len });
            reader.seek_relative(i64::from(len))?;
            at = next;
            state.seen = at;
            continue;
        }
        // Damage, or a torn end: go on from the next mark, if there is one.
        reader.seek(SeekFrom::Start(at + 1))?;
        match find_mark(&mut reader)? {
            Some(skipped) => {
                at += 1 + skipped;
                state.damaged = true;
            }
            None => break,
        }
        reader.seek(SeekFrom::Start(at))?;
    }
    Ok(())
}

/// Notes the frames from `at` on, as far as they are whole and can be looked at without reading them. Gives the end of the last.
fn look(file: &File, mut at: u64, end: u64, state: &mut State) -> u64 {
    loop {
        let start = at - at % PAGE;
        let length = usize::try_from((end - start).min(WINDOW)).unwrap_or(0);
        // What was seen while the file shrank is not to be believed, so it is noted afterwards.
        let Some(found) = mapped::with(file, start, length, |bytes| frames(bytes, (at - start) as usize, end - start)) else { return at };
        let Some((_, last)) = found.last() else { return at };
        at = start + last.at + u64::from(last.len);
        for (key, place) in found {
            state.note(key, Place { at: start + place.at, ..place });
        }
        state.seen = at;
    }
}

/// The whole frames from `at` on whose heads lie in `bytes`, and whose payloads end at `end` at the latest.
fn frames(bytes: &[u8], mut at: usize, end: u64) -> Vec<(ActionKey, Place)> {
    let mut found = Vec::with_capacity(bytes.len() / 1024);
    while let Some(head) = bytes.get(at..).and_then(|rest| rest.first_chunk::<HEAD>()) {
        let (key, len) = parse(head);
        let place = Place { at: (at + HEAD) as u64, len };
        let next = place.at + u64::from(len);
        if *head != self::head(&key, len) || next > end {
            break;
        }
        found.push((key, place));
        // Beyond what can be addressed there are no bytes to find.
        at = usize::try_from(next).unwrap_or(usize::MAX);
    }
    found
}

/// The bytes before a payload.
fn head(key: &ActionKey, len: u32) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(&MARK);
    head[8..12].copy_from_slice(&len.to_le_bytes());
    head[12..44].copy_from_slice(key.as_bytes());
    let check = Digest::of(&head[8..44]);
    head[44..].copy_from_slice(&check.as_bytes()[..4]);
    head
}

fn parse(head: &[u8; HEAD]) -> (ActionKey, u32) {
    let mut key = [0; 32];
    key.copy_from_slice(&head[12..44]);
    (ActionKey::new(Digest::new(key)), u32::from_le_bytes([head[8], head[9], head[10], head[11]]))
}

/// How many bytes lie before the next mark.
fn find_mark(reader: &mut impl BufRead) -> io::Result<Option<u64>> {
    let (mut skipped, mut matched) = (0u64, 0usize);
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(None);
        }
        for byte in buffer {
            skipped += 1;
            // The first byte of the mark is nowhere else in it, so a failed match can only begin anew.
            matched = if *byte == MARK[matched] { matched + 1 } else { usize::from(*byte == MARK[0]) };
            if matched == MARK.len() {
                return Ok(Some(skipped - MARK.len() as u64));
            }
        }
        let length = buffer.len();
        reader.consume(length);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(number: u32) -> ActionKey {
        ActionKey::new(Digest::of(&number.to_le_bytes()))
    }

    fn filled(path: &Path, count: u32) -> RecordLog {
        let log = RecordLog::new(path.to_owned());
        for number in 0..count {
            log.put(&key(number), format!("payload {number}").as_bytes()).unwrap();
        }
        log
    }

    fn present(path: &Path, count: u32) -> Vec<u32> {
        let log = RecordLog::new(path.to_owned());
        let right = |number: &u32| log.get(&key(*number)).unwrap() == Some(format!("payload {number}").into_bytes());
        (0..count).filter(right).collect()
    }

    #[test]
    fn a_torn_end_costs_the_last_record_and_the_next_append_mends_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        filled(&path, 3);
        let bytes = fs::read(&path).unwrap();
        let third = bytes.len() - HEAD - "payload 2".len();
        for cut in 0..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            let whole = present(&path, 3);
            if cut >= third {
                assert_eq!(whole, [0, 1], "cut at {cut}");
            }
            RecordLog::new(path.clone()).put(&key(7), b"payload 7").unwrap();
            let mut wanted = whole;
            wanted.push(7);
            assert_eq!(present(&path, 8), wanted, "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_byte_costs_one_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        filled(&path, 4);
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut edited = bytes.clone();
            edited[at] ^= 0x41;
            fs::write(&path, &edited).unwrap();
            assert!(present(&path, 4).len() >= 3, "flipped at {at}");
        }
    }

    /// A file of several windows, with payloads that are longer than one, and a byte flipped here and there.
    #[test]
    fn a_long_file_is_the_same_whether_it_is_mapped_or_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        let payload = |number: u32| vec![number as u8; [900, 70_000, 5 << 20, 3][number as usize % 4 * usize::from(number % 28 < 4)]];
        let log = RecordLog::new(path.clone());
        (0..400).for_each(|number| log.put(&key(number), &payload(number)).unwrap());
        let state = |path: &Path, is_mapped: bool| {
            let (file, mut state) = (File::open(path).unwrap(), State::default());
            let end = file.metadata().unwrap().len();
            // Nothing can be mapped in the middle of a map.
            let mut read = || scan(file.try_clone().unwrap(), end, &mut state).unwrap();
            if is_mapped {
                read()
            } else {
                mapped::with(&file, 0, 1, |_| read()).unwrap()
            }
            let mut places: Vec<_> = state.places.iter().map(|(key, place)| (*key, place.at, place.len)).collect();
            places.sort_unstable();
            (places, state.seen, state.damaged)
        };
        let whole = state(&path, true);
        assert_eq!((whole.0.len(), whole.2), (400, false));
        assert_eq!(whole, state(&path, false));
        let length = fs::metadata(&path).unwrap().len();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        for at in (0..length).step_by(length as usize / 40).chain(whole.0.iter().step_by(10).map(|(_, at, _)| at - 20)) {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            let damaged = state(&path, true);
            assert_eq!(damaged, state(&path, false), "flipped at {at}");
            assert!(damaged.0.len() >= 399);
            file.write_all_at(&byte, at).unwrap();
        }
        for cut in (0..length).rev().step_by(length as usize / 20) {
            file.set_len(cut).unwrap();
            assert_eq!(state(&path, true), state(&path, false), "cut at {cut}");
        }
    }

    #[test]
    fn what_lies_behind_a_wrong_length_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        filled(&path, 3);
        // Bytes vanish from the payload of the second: its length now reaches into the third.
        let mut bytes = fs::read(&path).unwrap();
        let second = TAG.len() + 2 * HEAD + "payload 0".len();
        bytes.drain(second..second + 4);
        fs::write(&path, &bytes).unwrap();
        let before = present(&path, 3);
        for number in 5..40 {
            RecordLog::new(path.clone()).put(&key(number), format!("payload {number}").as_bytes()).unwrap();
            assert_eq!(present(&path, 3), before, "after {number}");
        }
        assert_eq!(present(&path, 40).len(), before.len() + 35);
    }

    #[test]
    fn two_logs_of_one_file_see_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        let (one, two) = (RecordLog::new(path.clone()), RecordLog::new(path.clone()));
        assert_eq!(two.get(&key(1)).unwrap(), None);
        one.put(&key(1), b"payload 1").unwrap();
        assert_eq!(two.get(&key(1)).unwrap().unwrap(), b"payload 1");
        two.put(&key(2), b"payload 2").unwrap();
        one.put(&key(3), b"payload 3").unwrap();
        assert_eq!(present(&path, 4), [1, 2, 3]);
        one.put(&key(2), b"").unwrap();
        assert_eq!(present(&path, 4), [1, 3]);
    }

    #[test]
    fn a_rewritten_log_is_noticed_by_who_has_the_old_one_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        let old = filled(&path, 5);
        let other = RecordLog::new(path.clone());
        assert!(other.rewrite(&folder.path().join("t"), |k| *k != key(2)).unwrap() > 0);
        old.put(&key(6), b"payload 6").unwrap();
        assert_eq!(old.get(&key(2)).unwrap(), None);
        assert_eq!(present(&path, 7), [0, 1, 3, 4, 6]);
        fs::remove_file(&path).unwrap();
        old.put(&key(1), b"payload 1").unwrap();
        assert_eq!(present(&path, 7), [1]);
    }

    #[test]
    fn many_processes_worth_of_appends_lose_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("records");
        std::thread::scope(|scope| {
            for thread in 0..4u32 {
                let path = path.clone();
                scope.spawn(move || {
                    let log = RecordLog::new(path);
                    for number in (0..200).filter(|number| number % 4 == thread) {
                        log.put(&key(number), format!("payload {number}").as_bytes()).unwrap();
                    }
                });
            }
        });
        assert_eq!(present(&path, 200).len(), 200);
    }
}
