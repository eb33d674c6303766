//! The machine that is measured on, as far as it matters for the figures.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use crate::tools::cores;

/// What a reader of the figures must know.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// When it began, UTC.
    pub date: String,
    /// Model of the processor.
    pub processor: String,
    /// Processors.
    pub cores: usize,
    /// Memory, GiB.
    pub memory_gib: u64,
    /// Kernel.
    pub system: String,
    /// File system of the projects.
    pub file_system: String,
    /// Commit of the checkout that this was called in; the binary may be another's.
    pub commit: String,
    /// Load (processes that run or wait for the disk, mean of a minute) at the begin.
    pub load_before: f64,
    /// The same at the end.
    pub load_after: f64,
}

impl Machine {
    /// This one; projects are in `work`.
    pub fn here(work: &Path) -> Self {
        let first = |path: &str, key: &str| {
            let text = fs::read_to_string(path).unwrap_or_default();
            text.lines().find(|line| line.starts_with(key)).and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
        };
        let kib = first("/proc/meminfo", "MemTotal").and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        Self {
            date: said("date", &["-u", "+%Y-%m-%dT%H:%MZ"]),
            processor: first("/proc/cpuinfo", "model name").unwrap_or_else(|| said("uname", &["-m"])),
            cores: cores(),
            memory_gib: kib.unwrap_or(0).div_ceil(1 << 20),
            system: said("uname", &["-sr"]),
            file_system: file_system(work).unwrap_or_else(|| "unknown".to_owned()),
            commit: said("git", &["describe", "--always", "--dirty", "--abbrev=9"]),
            load_before: load(),
            load_after: f64::NAN,
        }
    }

    /// Whether other work may have disturbed the figures.
    pub fn was_busy(&self) -> bool {
        self.load_before > 0.5 * self.cores as f64
    }
}

/// Load of the last minute; not a number where the system does not say it.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    output.map_or_else(|_| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Type of the mount that a folder is on.
fn file_system(folder: &Path) -> Option<String> {
    let folder = folder.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let entries = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?, words.next()?))
    });
    // Of two on one place the later one holds, which `max_by_key` takes.
    let holding = entries.filter(|(place, _)| folder.starts_with(place)).max_by_key(|(place, _)| place.len());
    holding.map(|(_, kind)| kind.to_owned())
}
