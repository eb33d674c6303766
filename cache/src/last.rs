//! The key that each stage of a pipeline had when it was last planned to run, so that `explain` can say what changed.
//!
//! A journal: one line a change, appended with one write. A line carries its own checksum, so a line that a kill tore is skipped. It is
//! rewritten when most of its lines are out of date. Not synced: its loss costs an
//! explanation, never a result.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::digest::{ActionKey, Digest};
use crate::error::{Error, Result};

/// Lines beyond twice the live ones after which the journal is rewritten.
const SLACK: usize = 64;

/// The last key of each stage of one pipeline.
#[derive(Debug)]
pub struct Last {
    path: PathBuf,
    /// Opened by the first change: who only asks leaves no file behind.
    file: Option<File>,
    keys: BTreeMap<String, ActionKey>,
}

impl Last {
    /// Reads the journal at `path`; one that is not there is empty.
    ///
    /// # Errors
    /// Names the file that cannot be read or rewritten.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = match fs::read(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other.map_err(Error::io("read", path))?,
        };
        let (keys, lines) = parse(&bytes);
        // A torn last line must not swallow the next one.
        let torn = bytes.last().is_some_and(|last| *last != b'\n');
        if torn || lines > 2 * keys.len() + SLACK {
            rewrite(path, &keys)?;
        }
        Ok(Self { path: path.to_owned(), file: None, keys })
    }

    /// The last key of a stage.
    pub fn get(&self, stage: &str) -> Option<ActionKey> {
        self.keys.get(stage).copied()
    }

    /// The stages and their last keys, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, ActionKey)> {
        self.keys.iter().map(|(stage, key)| (stage.as_str(), *key))
    }

    /// Notes the key of a stage.
    ///
    /// # Errors
    /// Names the file that cannot be written.
    pub fn put(&mut self, stage: &str, key: &ActionKey) -> Result<()> {
        if self.get(stage) == Some(*key) {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(append_to(&self.path)?),
        };
        file.write_all(line(stage, *key).as_bytes()).map_err(Error::io("write", &self.path))?;
        self.keys.insert(stage.to_owned(), *key);
        Ok(())
    }
}

/// Opens a journal, which is made with its folder if it is not there.
fn append_to(path: &Path) -> Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    }
    OpenOptions::new().append(true).create(true).open(path).map_err(Error::io("open", path))
}

/// A line: the checksum of the rest, the key, the stage's name as JSON (which has no line ends).
fn line(stage: &str, key: ActionKey) -> String {
    let rest = format!("{key} {}", serde_json::Value::from(stage));
    format!("{} {rest}\n", Digest::of(rest.as_bytes()).short())
}

/// The last key of each stage, and how many lines there are.
fn parse(bytes: &[u8]) -> (BTreeMap<String, ActionKey>, usize) {
    let lines = || bytes.split(|b| *b == b'\n');
    (lines().filter_map(parse_line).collect(), lines().count())
}

fn parse_line(line: &[u8]) -> Option<(String, ActionKey)> {
    let (checksum, rest) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    if checksum != Digest::of(rest.as_bytes()).short() {
        return None;
    }
    let (key, stage) = rest.split_once(' ')?;
    Some((serde_json::from_str(stage).ok()?, key.parse().ok()?))
}

/// Rewrites the journal with the live lines alone.
fn rewrite(path: &Path, keys: &BTreeMap<String, ActionKey>) -> Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let lines: String = keys.iter().map(|(stage, key)| line(stage, *key)).collect();
    fs::write(&temporary, lines).map_err(Error::io("write", &temporary))?;
    fs::rename(&temporary, path).map_err(Error::io("write", path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(number: u32) -> ActionKey {
        ActionKey::new(Digest::of(&number.to_le_bytes()))
    }

    #[test]
    fn keeps_the_last_key_of_each_stage_of_each_pipeline() {
        let folder = tempfile::tempdir().unwrap();
        let mut last = Last::open(&folder.path().join("last/a-b.journal")).unwrap();
        last.put("train[seed=0]", &key(1)).unwrap();
        last.put("train[seed=0]", &key(2)).unwrap();
        last.put("odd \"name\"\n", &key(3)).unwrap();
        let again = Last::open(&folder.path().join("last/a-b.journal")).unwrap();
        assert_eq!(again.iter().collect::<Vec<_>>(), [("odd \"name\"\n", key(3)), ("train[seed=0]", key(2))]);
        assert_eq!(Last::open(&folder.path().join("last/other.journal")).unwrap().get("train[seed=0]"), None);
    }

    #[test]
    fn a_torn_line_costs_that_line_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut last = Last::open(&folder.path().join("last/p.journal")).unwrap();
        last.put("a", &key(1)).unwrap();
        let whole = fs::read(&last.path).unwrap().len();
        last.put("b", &key(2)).unwrap();
        let bytes = fs::read(&last.path).unwrap();
        for cut in whole..bytes.len() {
            fs::write(&last.path, &bytes[..cut]).unwrap();
            let mut torn = Last::open(&folder.path().join("last/p.journal")).unwrap();
            // A line is whole without its end: nothing that counts is missing.
            let wanted = (cut == bytes.len() - 1).then_some(key(2));
            assert_eq!((torn.get("a"), torn.get("b")), (Some(key(1)), wanted), "cut at {cut}");
            torn.put("c", &key(3)).unwrap();
            assert_eq!(Last::open(&folder.path().join("last/p.journal")).unwrap().get("c"), Some(key(3)));
        }
    }

    #[test]
    fn is_rewritten_when_mostly_out_of_date() {
        let folder = tempfile::tempdir().unwrap();
        let mut last = Last::open(&folder.path().join("last/p.journal")).unwrap();
        for number in 0..200 {
            last.put("a", &key(number)).unwrap();
        }
        let before = fs::metadata(&last.path).unwrap().len();
        let again = Last::open(&folder.path().join("last/p.journal")).unwrap();
        assert!(fs::metadata(&again.path).unwrap().len() * 100 < before);
        assert_eq!(again.get("a"), Some(key(199)));
        assert_eq!(Last::open(&folder.path().join("last/p.journal")).unwrap().get("a"), Some(key(199)));
    }
}
