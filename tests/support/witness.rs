//! What stages say about themselves, outside the project: a stage that ran twice, or ran though it need not, shows here.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A file outside the project to which commands append their names.
pub struct Witness {
    dir: TempDir,
}

impl Witness {
    pub fn new() -> Self {
        let witness = Self { dir: tempfile::tempdir().unwrap() };
        witness.clear();
        witness
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// The shell command by which a stage says that it runs. One `echo` is one write, so lines never mix.
    pub fn says(&self, word: &str) -> String {
        format!("echo {word} >> {}", self.path().display())
    }

    /// What was said, in order.
    pub fn heard(&self) -> Vec<String> {
        std::fs::read_to_string(self.path()).unwrap().lines().map(str::to_owned).collect()
    }

    pub fn clear(&self) {
        std::fs::write(self.path(), "").unwrap();
    }

    #[track_caller]
    pub fn wait_for(&self, word: &str) {
        await_that(word, || self.heard().iter().any(|heard| heard == word));
    }
}

/// Waits until `holds`, at most 30 s.
#[track_caller]
pub fn await_that(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
