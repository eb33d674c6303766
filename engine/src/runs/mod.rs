//! What past runs were: a journal, one JSON value a line. Runs of one pipeline at the same time have a journal each.
//!
//! ```text
//! {"is":"run", …}      a run begins: its id, params, command line, host
//! {"is":"stage", …}    what became of a stage, if that is not what it was in the run before
//! {"is":"end", …}      the run ends: counts, stages that are no longer part of it or are again, a checksum
//! ```
//!
//! A stage that is cached under the key that it had in the run before has no line, so that a run of 100,000 cached stages costs a few
//! hundred bytes. What every stage was in a run follows from the lines of all runs before it. The writer knows the run before from the
//! file `*.state` (16 bytes a stage and a bit) and the last few lines: no more of the journal is read to write it.
//!
//! Neither file is synced: their loss costs an account of the past, never a result. A journal that ends in the middle, because the
//! run was killed, is carried on: the next run lists all of its stages.

mod known;
mod read;
mod write;

pub use read::{Known, Run, Runs, Snapshot};
pub use write::Recorder;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::event::Summary;

/// Version of the lines.
const VERSION: u32 = 1;

/// What is said of a run when it begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the lines.
    #[serde(rename = "v")]
    pub version: u32,
    /// Eight hexadecimal digits, unique in its journal for all that matters.
    pub id: String,
    /// Name of the pipeline.
    pub pipeline: String,
    /// Its params after overrides.
    pub params: Map<String, Value>,
    /// The words of the command line.
    pub command: Vec<String>,
    /// When it began, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// The machine.
    pub host: String,
    /// Version of the program.
    pub program: String,
    /// Whether stages without a line are what they were in the run before; else every stage has a line.
    pub carries_on: bool,
}

/// What became of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It ran, and its outputs are stored.
    Executed,
    /// Its outputs were in the cache.
    Cached,
    /// It failed.
    Failed,
    /// It was not tried, because one that it needs failed.
    Skipped,
    /// It was ended or not begun because the run was interrupted.
    Cancelled,
}

/// What became of a stage, with what it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageLine {
    /// Its name.
    pub stage: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Its key, where it was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Wall time, if it was executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Highest resident memory, if it was executed and the system told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_rss_kib: Option<u64>,
    /// Metrics that it reported.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metrics: Map<String, Value>,
}

impl StageLine {
    /// The number of its key; 0 for a stage without outputs.
    fn key_number(&self) -> u64 {
        let has_outputs = matches!(self.outcome, Outcome::Executed | Outcome::Cached);
        key_number(self.key.as_deref().filter(|_| has_outputs))
    }
}

/// What is said of a run when it ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct End {
    #[serde(flatten)]
    summary: Summary,
    /// Names, hashed, of stages that are no longer part of the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "hex")]
    gone: Vec<u64>,
    /// Names, hashed, of stages that are again part of it, as they were when they last were.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "hex")]
    back: Vec<u64>,
    /// Over all stages of the run and their keys.
    checksum: String,
}

/// One line of a journal. Lines of stages are told from the others by how they begin, so `is` comes first.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase")]
enum Line {
    Run(Header),
    Stage(StageLine),
    End(End),
}

/// Numbers as hexadecimal text: JSON has no whole numbers of 64 bits.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(numbers: &[u64], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(numbers.iter().map(|number| format!("{number:016x}")))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| u64::from_str_radix(text, 16).map_err(D::Error::custom)).collect()
    }
}

/// A journal of a pipeline in the folder of journals: the first, or one for runs beside another run.
fn journal(folder: &Path, pipeline: &str, lane: usize) -> PathBuf {
    let name = crate::run::file_name(pipeline);
    folder.join(if lane == 0 { format!("{name}.jsonl") } else { format!("{name}.{lane}.jsonl") })
}

/// A number for a stage's name. Two names of one number do no harm: their stages are listed more often than they need be.
fn name_number(name: &str) -> u64 {
    // FNV-1a, and a finish that spreads it: stable for ever, unlike the standard library's hash.
    mix(name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
}

/// A number for a key; 0 is for none.
fn key_number(key: Option<&str>) -> u64 {
    key.and_then(|key| u64::from_str_radix(key.get(..16)?, 16).ok()).map_or(0, |number| number.max(1))
}

/// What a stage adds to the checksum; a sum does not depend on the order of events.
fn summand(name: u64, key: u64) -> u64 {
    mix(name ^ mix(key))
}

/// The finish of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests;
