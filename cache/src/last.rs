//! Which action each stage of a pipeline was when it was last run or found: what `explain` compares with.
//!
//! A journal: one line a change, appended; the last line of a name stands. A line that a crash cut off is passed over. Losing the journal
//! costs explanations, never truth.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::Result;
use crate::digest::ActionKey;
use crate::error::At;

/// Dead lines that are put up with before the journal is written anew.
const SLACK: usize = 1000;

/// The journal of one pipeline.
#[derive(Debug)]
pub struct Last {
    path: PathBuf,
    keys: BTreeMap<String, ActionKey>,
    file: Option<File>,
}

impl Last {
    /// Reads a journal; one that is not there is empty, and nothing is created before the first [`put`](Self::put).
    ///
    /// # Errors
    /// If it is there and cannot be read or shortened.
    pub fn open(path: &Path) -> Result<Self> {
        let text = match fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).at("read", path),
        };
        let mut keys = BTreeMap::new();
        let mut lines = 0;
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            lines += 1;
            if let Some((name, key)) = parse(line.trim_end()) {
                keys.insert(name, key);
            }
        }
        let last = Self { path: path.to_owned(), keys, file: None };
        let torn = !text.is_empty() && !text.ends_with('\n');
        if torn || lines > 2 * last.keys.len() + SLACK {
            last.rewrite()?;
        }
        Ok(last)
    }

    /// The action that `stage` was.
    pub fn get(&self, stage: &str) -> Option<ActionKey> {
        self.keys.get(stage).copied()
    }

    /// Notes the action that `stage` is now.
    ///
    /// # Errors
    /// If the journal cannot be written.
    pub fn put(&mut self, stage: &str, key: &ActionKey) -> Result<()> {
        let path = &self.path;
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let parent = path.parent().unwrap_or(path);
                fs::create_dir_all(parent).at("create", parent)?;
                self.file.insert(File::options().create(true).append(true).open(path).at("open", path)?)
            }
        };
        file.write_all(line(stage, key).as_bytes()).at("write", path)?;
        self.keys.insert(stage.to_owned(), *key);
        Ok(())
    }

    fn rewrite(&self) -> Result<()> {
        let temporary = self.path.with_extension(format!("{}.tmp", std::process::id()));
        let text: String = self.keys.iter().map(|(name, key)| line(name, key)).collect();
        fs::write(&temporary, text).at("write", &temporary)?;
        fs::rename(&temporary, &self.path).at("rename to", &self.path)
    }
}

fn line(name: &str, key: &ActionKey) -> String {
    format!("{key} {}\n", serde_json::Value::from(name))
}

fn parse(line: &str) -> Option<(String, ActionKey)> {
    let (key, name) = line.split_once(' ')?;
    Some((serde_json::from_str(name).ok()?, key.parse().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn the_last_line_stands_and_a_torn_one_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.journal");
        let keys: Vec<ActionKey> = ["x", "y"].map(|t| ActionKey(Digest::of(t.as_bytes()))).to_vec();
        let mut last = Last::open(&path).unwrap();
        assert!(!path.exists());
        last.put("adapt[seed=\"1\"]\n", &keys[0]).unwrap();
        last.put("adapt[seed=\"1\"]\n", &keys[1]).unwrap();
        drop(last);
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("0123 \"torn");
        fs::write(&path, text).unwrap();
        let mut last = Last::open(&path).unwrap();
        assert_eq!(last.get("adapt[seed=\"1\"]\n"), Some(keys[1]));
        last.put("b", &keys[0]).unwrap();
        assert_eq!(Last::open(&path).unwrap().get("b"), Some(keys[0]));
    }
}
