//! The file of a compiled pipeline.
//!
//! ```text
//! trestle compiled v3⏎  stamp (32)  lengths of the three parts (3 × u64)  checksum of the graph part (32)
//! graph part    name, dependencies, tags, pools and params, sources, edges, starts, owners, stages that always run
//! names part    name of every stage, each ended by a line end (a name has none), then 32 bytes of checksum
//! stages part   where each stage begins (u64 each, one more at the end), then each stage: 8 bytes of checksum and its JSON
//! ```
//!
//! The graph part is read whole, names when they are asked for, stages one by one: a run that changes nothing reads the first
//! alone. Whatever does not match its checksum is an error that sends the caller back to the YAML.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trestle_cache::Digest;

use super::{Compiled, Names};
use crate::pipeline::{Pipeline, Stage, StageId};

const TAG: &[u8] = b"trestle compiled v3\n";
const HEAD: usize = TAG.len() + 32 + 3 * 8 + 32;

/// Why a compiled pipeline cannot be used; the YAML still can.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is not there, or cannot be read.
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
    /// It was made from something else.
    #[error("it was made from something else")]
    Stale,
    /// It does not match its checksums.
    #[error("it is damaged")]
    Damaged,
}

/// Where the stages are.
#[derive(Debug)]
pub enum Stages {
    /// Just resolved.
    Memory(Arc<Pipeline>),
    /// In the file of an earlier run.
    File {
        /// Opened once: a newer file under its name changes nothing here.
        file: File,
        /// Where the names part begins, and its length.
        names: (u64, u64),
        /// Where the stages part begins.
        at: u64,
        /// How many stages there are.
        count: usize,
        /// Where this process put it, until it is saved.
        put: Option<PathBuf>,
    },
}

impl Stages {
    /// A stage.
    pub fn get(&self, id: StageId) -> Result<Cow<'_, Stage>, LoadError> {
        match self {
            Self::Memory(pipeline) => Ok(Cow::Borrowed(&pipeline.stages[id])),
            Self::File { file, at, count, .. } => {
                let mut place = [0; 16];
                file.read_exact_at(&mut place, at + 8 * id as u64)?;
                let (start, end) = (u64_at(&place, 0), u64_at(&place, 8));
                let body = at + 8 * (*count as u64 + 1);
                let length = end.checked_sub(start).filter(|length| (8..1 << 30).contains(length)).ok_or(LoadError::Damaged)?;
                let mut bytes = vec![0; usize::try_from(length).map_err(|_| LoadError::Damaged)?];
                file.read_exact_at(&mut bytes, body + start)?;
                let (check, json) = bytes.split_at(8);
                if check != &check_of(id, json)[..] {
                    return Err(LoadError::Damaged);
                }
                serde_json::from_slice(json).map(Cow::Owned).map_err(|_| LoadError::Damaged)
            }
        }
    }

    /// Names of all stages.
    pub fn names(&self) -> Result<Names, LoadError> {
        match self {
            Self::Memory(pipeline) => Ok(pipeline.stages.iter().map(|stage| stage.name.as_str()).collect()),
            Self::File { file, names: (at, length), .. } => {
                let mut bytes = vec![0; usize::try_from(*length).map_err(|_| LoadError::Damaged)?];
                file.read_exact_at(&mut bytes, *at)?;
                let (text, check) = bytes.split_at_checked(bytes.len().wrapping_sub(32)).ok_or(LoadError::Damaged)?;
                if check != Digest::of(text).as_bytes() {
                    return Err(LoadError::Damaged);
                }
                bytes.truncate(bytes.len() - 32);
                String::from_utf8(bytes).map(Names::of_lines).map_err(|_| LoadError::Damaged)
            }
        }
    }
}

impl Compiled {
    /// Opens the file at `path`, if it was made from what has this stamp.
    ///
    /// # Errors
    /// Says why it cannot be used.
    pub fn load(path: &Path, stamp: Digest) -> Result<Self, LoadError> {
        let loaded = Self::load_any(path)?;
        if loaded.stamp == stamp { Ok(loaded) } else { Err(LoadError::Stale) }
    }

    /// Opens the file at `path`, whatever it was made from.
    ///
    /// # Errors
    /// Says why it cannot be used.
    pub fn load_any(path: &Path) -> Result<Self, LoadError> {
        let file = File::open(path)?;
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, 0)?;
        let (tag, rest) = head.split_at(TAG.len());
        let (stamp, rest) = rest.split_at(32);
        let (lengths, check) = rest.split_at(24);
        let length = |i: usize| u64_at(lengths, 8 * i);
        let whole = length(0).checked_add(length(1)).and_then(|sum| sum.checked_add(length(2))?.checked_add(HEAD as u64));
        if tag != TAG || whole != Some(file.metadata()?.len()) {
            return Err(LoadError::Damaged);
        }
        let mut bytes = vec![0; usize::try_from(length(0)).map_err(|_| LoadError::Damaged)?];
        file.read_exact_at(&mut bytes, HEAD as u64)?;
        if check != Digest::of(&bytes).as_bytes() {
            return Err(LoadError::Damaged);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(stamp);
        let names_at = HEAD as u64 + length(0);
        decode(&bytes, Digest::new(digest), file, (names_at, length(1)), names_at + length(1)).ok_or(LoadError::Damaged)
    }

    /// Saves the file, by way of `temporary`. Does nothing for one that was loaded.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, temporary: &Path, path: &Path) -> io::Result<()> {
        match &self.stages {
            Stages::Memory(pipeline) => {
                self.write(pipeline, temporary)?;
                fs::rename(temporary, path)
            }
            Stages::File { put: Some(put), .. } => fs::rename(put, path),
            Stages::File { put: None, .. } => Ok(()),
        }
    }

    /// Puts the stages into a file at `path`, from where they are read one by one: a run of very many stages then needs no memory for
    /// those whose turn it is not.
    ///
    /// # Errors
    /// If the file cannot be written, or not be read again.
    pub fn put(&self, path: PathBuf) -> Result<Self, LoadError> {
        if let Stages::Memory(pipeline) = &self.stages {
            self.write(pipeline, &path)?;
        }
        let mut loaded = Self::load(&path, self.stamp)?;
        if let Stages::File { put, .. } = &mut loaded.stages {
            *put = Some(path);
        }
        Ok(loaded)
    }

    fn write(&self, pipeline: &Pipeline, path: &Path) -> io::Result<()> {
        let graph = self.encode();
        let names: Names = pipeline.stages.iter().map(|stage| stage.name.as_str()).collect();
        let names = [names.lines().as_bytes(), Digest::of(names.lines().as_bytes()).as_bytes()].concat();
        let mut out = io::BufWriter::with_capacity(1 << 18, File::create(path)?);
        // What stands before the stages and can only be said after them is written last.
        let mut starts: Vec<u64> = vec![0; pipeline.stages.len() + 1];
        out.write_all(&[0; HEAD])?;
        out.write_all(&graph)?;
        out.write_all(&names)?;
        starts.iter().try_for_each(|start| out.write_all(&start.to_le_bytes()))?;
        let mut end = 0;
        for (id, stage) in pipeline.stages.iter().enumerate() {
            let json = serde_json::to_vec(stage)?;
            out.write_all(&check_of(id, &json))?;
            out.write_all(&json)?;
            end += 8 + json.len() as u64;
            starts[id + 1] = end;
        }
        out.seek(SeekFrom::Start((HEAD + graph.len() + names.len()) as u64))?;
        starts.iter().try_for_each(|start| out.write_all(&start.to_le_bytes()))?;
        out.seek(SeekFrom::Start(0))?;
        out.write_all(TAG)?;
        out.write_all(self.stamp.as_bytes())?;
        for length in [graph.len() as u64, names.len() as u64, 8 * starts.len() as u64 + end] {
            out.write_all(&length.to_le_bytes())?;
        }
        out.write_all(Digest::of(&graph).as_bytes())?;
        out.flush()
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, self.name.as_bytes());
        // Neither holds anything that JSON cannot.
        put_bytes(&mut out, &serde_json::to_vec(&(&self.dependencies, &self.tags, &self.pools, &self.params)).unwrap_or_default());
        out.extend((self.sources.len() as u32).to_le_bytes());
        for source in &self.sources {
            put_bytes(&mut out, source.as_os_str().as_bytes());
        }
        let [always, shown] = [&self.always, &self.shown].map(|ids| ids.iter().map(|&id| id as u32).collect::<Vec<u32>>());
        for numbers in [&self.edges, &self.edge_starts, &self.output_starts, &self.owners, &always, &shown] {
            out.extend((numbers.len() as u32).to_le_bytes());
            out.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        }
        out
    }
}

/// `None` if the bytes do not hold together.
fn decode(bytes: &[u8], stamp: Digest, file: File, names: (u64, u64), at: u64) -> Option<Compiled> {
    let mut rest = bytes;
    let name = String::from_utf8(take_bytes(&mut rest)?.to_vec()).ok()?;
    let (dependencies, tags, pools, params) = serde_json::from_slice(take_bytes(&mut rest)?).ok()?;
    let count = take_u32(&mut rest)?;
    let mut sources = Vec::with_capacity(count.min(1 << 20) as usize);
    for _ in 0..count {
        sources.push(Path::new(OsStr::from_bytes(take_bytes(&mut rest)?)).into());
    }
    let edges = take_numbers(&mut rest)?;
    let edge_starts = take_numbers(&mut rest)?;
    let output_starts = take_numbers(&mut rest)?;
    let owners = take_numbers(&mut rest)?;
    let always = take_numbers(&mut rest)?.into_iter().map(|id| id as usize).collect();
    let shown = take_numbers(&mut rest)?.into_iter().map(|id| id as usize).collect();
    let count = edge_starts.len().checked_sub(1)?;
    let stages = Stages::File { file, names, at, count, put: None };
    Some(Compiled {
        name,
        stamp,
        dependencies,
        params,
        tags,
        pools,
        sources,
        edges,
        edge_starts,
        output_starts,
        owners,
        always,
        shown,
        stages,
    })
}

/// Of a stage and its place: another stage's bytes are as wrong as damaged ones.
fn check_of(id: StageId, json: &[u8]) -> [u8; 8] {
    let digest = Digest::of(&[&(id as u64).to_le_bytes(), json].concat());
    let mut check = [0; 8];
    check.copy_from_slice(&digest.as_bytes()[..8]);
    check
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend(bytes);
}

pub(crate) fn take<'b>(rest: &mut &'b [u8], count: usize) -> Option<&'b [u8]> {
    let (front, back) = rest.split_at_checked(count)?;
    *rest = back;
    Some(front)
}

pub(crate) fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(take(rest, 4)?.try_into().ok()?))
}

pub(crate) fn take_bytes<'b>(rest: &mut &'b [u8]) -> Option<&'b [u8]> {
    let length = take_u32(rest)?;
    take(rest, length as usize)
}

pub(crate) fn take_numbers(rest: &mut &[u8]) -> Option<Vec<u32>> {
    let count = take_u32(rest)? as usize;
    let bytes = take(rest, count.checked_mul(4)?)?;
    Some(bytes.chunks_exact(4).map(|four| u32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}
