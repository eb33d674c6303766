//! What the last run of a pipeline found: keys and outputs of its stages, and the stats of all files behind them.
//!
//! It belongs to one [`Compiled`] pipeline, by its stamp, and is a cache of what could be computed anew: a stage whose inputs are what they
//! were has the key that it had, so its manifest need not be made, hashed and looked up. Lost or damaged, it costs time and the
//! words of an explanation, never a result.
//!
//! ```text
//! trestle memo v2⏎  checksum of what follows (32)  stamp (32)
//! stat of the records file; sources; keys and durations of stages; outputs; blobs; blobs of each output
//! ```

use std::fs;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use trestle_cache::{ActionKey, BlobId, Content, Digest, FileStat, Hashing, TreeId};

use crate::compiled::{Compiled, Names, take, take_numbers, take_u32};
use crate::pipeline::StageId;

/// Opens the file. Raise the version whenever the layout changes.
pub const TAG: &[u8] = b"trestle memo v2\n";

/// See the module.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memo {
    /// Of the compiled pipeline that it belongs to.
    pub stamp: Option<Digest>,
    /// The file of records, as it was when every key below was found in it.
    pub records: Option<FileStat>,
    /// What each source was, and under which stat.
    pub sources: Vec<(Option<Content>, Option<FileStat>)>,
    /// The key of each stage when it was last run or found.
    pub keys: Vec<Option<ActionKey>>,
    /// Whether that key is the one for what the stage reads as it is here. It is not where the last run left the stage out and something above it
    /// changed: then the key only says what it was before.
    pub current: Vec<bool>,
    /// How long each stage took when it was run, in milliseconds; 0 if unknown.
    pub durations: Vec<u32>,
    /// What each output was.
    pub outputs: Vec<Option<Content>>,
    /// All blobs of all outputs, sorted, and under which stat each is sound.
    pub blobs: Vec<(BlobId, Option<FileStat>)>,
    /// Blobs of all outputs one after the other, by place in `blobs`, and where each output's begin.
    pub blobs_of: Vec<u32>,
    /// See `blobs_of`; one more at the end.
    pub blob_starts: Vec<u32>,
}

impl Memo {
    /// One that knows nothing of this pipeline.
    pub fn empty(compiled: &Compiled) -> Self {
        Self {
            stamp: Some(compiled.stamp),
            records: None,
            sources: vec![(None, None); compiled.sources.len()],
            keys: vec![None; compiled.len()],
            current: vec![false; compiled.len()],
            durations: vec![0; compiled.len()],
            outputs: vec![None; compiled.outputs()],
            blobs: Vec::new(),
            blobs_of: Vec::new(),
            blob_starts: vec![0; compiled.outputs() + 1],
        }
    }

    /// Whether it was made for this pipeline.
    pub fn fits(&self, compiled: &Compiled) -> bool {
        self.stamp == Some(compiled.stamp)
            && self.sources.len() == compiled.sources.len()
            && self.keys.len() == compiled.len()
            && self.current.len() == compiled.len()
            && self.durations.len() == compiled.len()
            && self.outputs.len() == compiled.outputs()
            && self.blob_starts.len() == compiled.outputs() + 1
    }

    /// Reads the memo at `path`; none if there is none that can be believed.
    pub fn load(path: &Path) -> Option<Self> {
        let bytes = fs::read(path).ok()?;
        let rest = bytes.strip_prefix(TAG)?;
        let (check, body) = rest.split_at_checked(32)?;
        if check != Digest::of(body).as_bytes() {
            return None;
        }
        decode(body)
    }

    /// Writes it to a file that will take the place of the last one, over whatever stands there. Not synced: its loss costs time alone.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, mut file: fs::File) -> io::Result<()> {
        file.write_all(TAG)?;
        file.write_all(&[0; 32])?;
        let mut out = io::BufWriter::with_capacity(1 << 18, Hashing::new(file));
        self.encode(&mut out)?;
        let (mut file, digest) = out.into_inner().map_err(io::IntoInnerError::into_error)?.end();
        let end = file.stream_position()?;
        file.set_len(end)?;
        file.seek(SeekFrom::Start(TAG.len() as u64))?;
        file.write_all(digest.as_bytes())
    }

    fn encode(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(self.stamp.unwrap_or(Digest::new([0; 32])).as_bytes())?;
        put_stat(out, self.records)?;
        put_count(out, self.sources.len())?;
        for (content, stat) in &self.sources {
            put_content(out, *content)?;
            put_stat(out, *stat)?;
        }
        put_count(out, self.keys.len())?;
        for ((key, duration), current) in self.keys.iter().zip(&self.durations).zip(&self.current) {
            out.write_all(&[u8::from(key.is_some()) + 2 * u8::from(*current)])?;
            out.write_all(&key.map_or([0; 32], |key| *key.as_bytes()))?;
            out.write_all(&duration.to_le_bytes())?;
        }
        put_count(out, self.outputs.len())?;
        self.outputs.iter().try_for_each(|content| put_content(out, *content))?;
        put_count(out, self.blobs.len())?;
        for (id, stat) in &self.blobs {
            out.write_all(id.as_bytes())?;
            put_stat(out, *stat)?;
        }
        for numbers in [&self.blobs_of, &self.blob_starts] {
            put_count(out, numbers.len())?;
            numbers.iter().try_for_each(|number| out.write_all(&number.to_le_bytes()))?;
        }
        Ok(())
    }
}

/// The last key of each stage of one pipeline, whatever it was made from then, for saying what changed since.
#[derive(Debug, Default)]
pub struct History {
    names: Names,
    keys: Vec<Option<ActionKey>>,
    /// Numbers of the stages, in the order of their names.
    sorted: Vec<u32>,
}

impl History {
    /// From what the last run left: the names of its stages and its memo.
    pub fn of(names: Names, memo: &Memo) -> Self {
        let mut sorted: Vec<u32> = (0..).take(names.len().min(memo.keys.len())).collect();
        sorted.sort_unstable_by_key(|&id| &names[id as usize]);
        Self { names, keys: memo.keys.clone(), sorted }
    }

    /// The key of a stage when it was last run or found.
    pub fn key(&self, stage: &str) -> Option<ActionKey> {
        let place = self.sorted.binary_search_by_key(&stage, |&id| &self.names[id as usize]).ok()?;
        self.keys[self.sorted[place] as usize]
    }
}

impl Memo {
    /// Places in `blobs` of the blobs of an output.
    pub fn blobs_of(&self, output: usize) -> &[u32] {
        &self.blobs_of[self.blob_starts[output] as usize..self.blob_starts[output + 1] as usize]
    }

    /// The last key of a stage.
    pub fn key(&self, id: StageId) -> Option<ActionKey> {
        self.keys[id]
    }
}

fn put_count(out: &mut impl Write, count: usize) -> io::Result<()> {
    out.write_all(&(count as u32).to_le_bytes())
}

/// One byte of kind, 32 of digest, 8 of size.
fn put_content(out: &mut impl Write, content: Option<Content>) -> io::Result<()> {
    let (kind, digest, size) = match content {
        None => (0, [0; 32], 0),
        Some(Content::Blob { id, size, executable: false }) => (1, *id.as_bytes(), size),
        Some(Content::Blob { id, size, executable: true }) => (2, *id.as_bytes(), size),
        Some(Content::Tree { id }) => (3, *id.as_bytes(), 0),
    };
    out.write_all(&[kind])?;
    out.write_all(&digest)?;
    out.write_all(&size.to_le_bytes())
}

fn put_stat(out: &mut impl Write, stat: Option<FileStat>) -> io::Result<()> {
    out.write_all(&[u8::from(stat.is_some())])?;
    out.write_all(&stat.map_or([0; FileStat::BYTES], FileStat::to_bytes))
}

fn decode(body: &[u8]) -> Option<Memo> {
    let mut rest = body;
    let mut memo = Memo { stamp: Some(take_digest(&mut rest)?), records: take_stat(&mut rest)?, ..Memo::default() };
    for _ in 0..announced(&mut rest, &mut memo.sources)? {
        memo.sources.push((take_content(&mut rest)?, take_stat(&mut rest)?));
    }
    let count = announced(&mut rest, &mut memo.keys)?;
    memo.current.reserve_exact(memo.keys.capacity());
    memo.durations.reserve_exact(memo.keys.capacity());
    for _ in 0..count {
        let flags = take(&mut rest, 1)?[0];
        let key = ActionKey::new(take_digest(&mut rest)?);
        memo.keys.push((flags & 1 != 0).then_some(key));
        memo.current.push(flags & 2 != 0);
        memo.durations.push(take_u32(&mut rest)?);
    }
    for _ in 0..announced(&mut rest, &mut memo.outputs)? {
        memo.outputs.push(take_content(&mut rest)?);
    }
    for _ in 0..announced(&mut rest, &mut memo.blobs)? {
        memo.blobs.push((BlobId::new(take_digest(&mut rest)?), take_stat(&mut rest)?));
    }
    memo.blobs_of = take_numbers(&mut rest)?;
    memo.blob_starts = take_numbers(&mut rest)?;
    let is_sound = memo.blob_starts.last().is_some_and(|&end| end as usize == memo.blobs_of.len())
        && memo.blob_starts.is_sorted()
        && memo.blobs_of.iter().all(|&blob| (blob as usize) < memo.blobs.len());
    (rest.is_empty() && is_sound).then_some(memo)
}

/// The number of entries to come, and room for them. There cannot be more than a million stages, whatever the bytes say.
fn announced<T>(rest: &mut &[u8], entries: &mut Vec<T>) -> Option<u32> {
    let count = take_u32(rest)?;
    entries.reserve_exact(count.min(1 << 20) as usize);
    Some(count)
}

fn take_digest(rest: &mut &[u8]) -> Option<Digest> {
    Some(Digest::new(take(rest, 32)?.try_into().ok()?))
}

fn take_content(rest: &mut &[u8]) -> Option<Option<Content>> {
    let kind = take(rest, 1)?[0];
    let digest = take_digest(rest)?;
    let size = u64::from_le_bytes(take(rest, 8)?.try_into().ok()?);
    match kind {
        0 => Some(None),
        1 | 2 => Some(Some(Content::Blob { id: BlobId::new(digest), size, executable: kind == 2 })),
        3 => Some(Some(Content::Tree { id: TreeId::new(digest) })),
        _ => None,
    }
}

fn take_stat(rest: &mut &[u8]) -> Option<Option<FileStat>> {
    let known = take(rest, 1)? == [1];
    let bytes: &[u8; FileStat::BYTES] = take(rest, FileStat::BYTES)?.try_into().ok()?;
    Some(known.then(|| FileStat::from_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample() -> Memo {
        let id = BlobId::of(b"x");
        let stat = FileStat::from_bytes(&[7; FileStat::BYTES]);
        Memo {
            stamp: Some(Digest::of(b"s")),
            records: Some(stat),
            sources: vec![(Some(Content::Blob { id, size: 1, executable: true }), None), (None, Some(stat))],
            keys: vec![None, Some(ActionKey::new(Digest::of(b"k")))],
            current: vec![false, true],
            durations: vec![0, 12],
            outputs: vec![
                None,
                Some(Content::Tree { id: TreeId::new(id.digest()) }),
                Some(Content::Blob { id, size: 1, executable: false }),
            ],
            blobs: vec![(id, Some(stat)), (BlobId::of(b"y"), None)],
            blobs_of: vec![0, 1, 1],
            blob_starts: vec![0, 0, 2, 3],
        }
    }

    #[test]
    fn survives_its_file_and_no_damage_passes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memo");
        // Over what stood there, which was longer.
        fs::write(&path, [1; 9000]).unwrap();
        sample().write(fs::File::options().write(true).open(&path).unwrap()).unwrap();
        assert_eq!(Memo::load(&path), Some(sample()));
        assert_eq!(sample().blobs_of(1), [0, 1]);
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut edited = bytes.clone();
            edited[at] ^= 1;
            fs::write(&path, &edited).unwrap();
            assert_eq!(Memo::load(&path), None, "flipped at {at}");
            fs::write(&path, &bytes[..at]).unwrap();
            assert_eq!(Memo::load(&path), None, "cut at {at}");
        }
    }
}
