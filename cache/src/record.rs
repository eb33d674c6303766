//! What an action gave, as it is kept: named outputs, metrics and provenance beside the manifest that made its key.
//!
//! A record has three parts, so that a person can read it and a program can trust it:
//!
//! ```text
//! trestle record v1
//! blake3 <hex of the bytes that follow this line>
//! { …JSON… }
//! ```
//!
//! A record that is cut short, edited, of another version or under another key reads as [`BadRecord`]: the action is taken as never
//! run, and the reason can be told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::content::Content;
use crate::digest::{ActionKey, BlobId, Digest};
use crate::manifest::Manifest;

/// The first line. Raise the version whenever the JSON changes its meaning.
const HEADER: &str = "trestle record v1";

/// What an action gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionRecord {
    /// Equal to the manifest's key.
    pub key: ActionKey,
    /// What made the key.
    pub manifest: Manifest,
    /// The outputs by name.
    pub outputs: BTreeMap<String, Content>,
    /// Numbers that the stage reported, by name. Exact, not a number and infinities too.
    #[serde(with = "exact")]
    pub metrics: BTreeMap<String, f64>,
    /// How it came about. Never part of the key.
    pub provenance: Provenance,
}

/// How an action's outputs came about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// The stage's name in the pipeline that ran it first.
    pub stage: String,
    /// When it began, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// The largest resident set of its process, in KiB, where it is known.
    pub peak_rss_kib: Option<u64>,
    /// Processor time of its processes, in milliseconds, where it is known.
    pub cpu_ms: Option<u64>,
    /// How many threads it was given.
    pub threads: usize,
    /// How many times it was tried, the last one included.
    pub tries: u32,
    /// What kept it from undeclared files: `landlock`, or `folder` where it only ran in a folder of its own.
    pub sandbox: String,
    /// The machine.
    pub host: String,
    /// Versions of the program and of what else mattered, by name.
    pub versions: BTreeMap<String, String>,
    /// What it printed.
    pub log: Option<BlobId>,
}

/// What lies under a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Lookup {
    /// A record that holds together.
    Found(Box<ActionRecord>),
    /// Nothing.
    Absent,
    /// A record that must not be believed, and why.
    Bad(BadRecord),
}

/// Why a record must not be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRecord {
    /// Written by another version of the program, or not a record at all.
    #[error("the record does not begin with `trestle record v1`")]
    Version,
    /// The checksum line is missing or not a checksum.
    #[error("the record has no checksum")]
    NoChecksum,
    /// Cut short or edited.
    #[error("the record does not match its checksum: it was cut short or edited")]
    Checksum,
    /// The checksum holds and the JSON does not parse.
    #[error("the record does not parse: {0}")]
    Parse(String),
    /// It lies under a key that is not its own.
    #[error("the record belongs to the key {found}")]
    Key {
        /// The key of its manifest.
        found: ActionKey,
    },
}

impl ActionRecord {
    /// A record under its manifest's key.
    pub fn new(manifest: Manifest, outputs: BTreeMap<String, Content>, metrics: BTreeMap<String, f64>, provenance: Provenance) -> Self {
        Self { key: manifest.key(), manifest, outputs, metrics, provenance }
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// [`BadRecord::Key`] if the key is not the manifest's: such a record could never be read again.
    pub fn encode(&self) -> Result<Vec<u8>, BadRecord> {
        self.check_key(&self.key)?;
        let body = serde_json::to_string(self).map_err(|e| BadRecord::Parse(e.to_string()))?;
        let body = format!("{body}\n");
        Ok(format!("{HEADER}\nblake3 {}\n{body}", Digest::of(body.as_bytes())).into_bytes())
    }

    /// Reads what [`ActionRecord::encode`] wrote for `key`.
    ///
    /// # Errors
    /// Says why the bytes must not be believed.
    pub fn decode(key: &ActionKey, bytes: &[u8]) -> Result<Self, BadRecord> {
        let body = checked_body(bytes)?;
        let record: Self = serde_json::from_slice(body).map_err(|e| BadRecord::Parse(e.to_string()))?;
        record.check_key(key)?;
        Ok(record)
    }

    /// Whether the bytes match their checksum.
    pub(crate) fn is_whole(bytes: &[u8]) -> bool {
        checked_body(bytes).is_ok()
    }

    fn check_key(&self, wanted: &ActionKey) -> Result<(), BadRecord> {
        let found = self.manifest.key();
        if found == *wanted && self.key == *wanted { Ok(()) } else { Err(BadRecord::Key { found }) }
    }
}

/// The JSON, once header and checksum hold.
fn checked_body(bytes: &[u8]) -> Result<&[u8], BadRecord> {
    let (header, rest) = split_line(bytes).ok_or(BadRecord::Version)?;
    if header != HEADER.as_bytes() {
        return Err(BadRecord::Version);
    }
    let (checksum, body) = split_line(rest).ok_or(BadRecord::NoChecksum)?;
    let checksum = std::str::from_utf8(checksum).ok().and_then(|line| line.strip_prefix("blake3 "));
    let checksum: Digest = checksum.and_then(|hex| hex.parse().ok()).ok_or(BadRecord::NoChecksum)?;
    if checksum != Digest::of(body) {
        return Err(BadRecord::Checksum);
    }
    Ok(body)
}

/// The first line without its end, and what follows.
fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// Floating-point numbers as text. JSON has no NaN and its reader may be off by one bit; Rust's shortest text is exact.
mod exact {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(map: &BTreeMap<String, f64>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(map.iter().map(|(name, value)| (name, value.to_string())))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
        let texts = BTreeMap::<String, String>::deserialize(deserializer)?;
        texts.into_iter().map(|(name, text)| Ok((name, text.parse().map_err(de::Error::custom)?))).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::digest::TreeId;
    use crate::manifest::Section;
    use proptest::prelude::*;

    pub fn sample() -> ActionRecord {
        let mut manifest = Manifest::new();
        manifest.push(Section::Stage, "kind", "dataset");
        manifest.push(Section::Param, "seed", "0");
        let id = BlobId::of(b"abc");
        let outputs = [
            ("file".to_owned(), Content::Blob { id, size: 3, executable: false }),
            ("folder".to_owned(), Content::Tree { id: TreeId::new(id.digest()) }),
        ];
        let provenance = Provenance { stage: "a".into(), threads: 2, log: Some(id), peak_rss_kib: Some(9), ..Provenance::default() };
        ActionRecord::new(manifest, outputs.into(), [("top1".to_owned(), 0.1 + 0.2)].into(), provenance)
    }

    #[test]
    fn round_trips() {
        let record = sample();
        assert_eq!(ActionRecord::decode(&record.key, &record.encode().unwrap()).unwrap(), record);
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_found() {
        let record = sample();
        let bytes = record.encode().unwrap();
        for cut in 0..bytes.len() {
            assert!(ActionRecord::decode(&record.key, &bytes[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..bytes.len() {
            let mut edited = bytes.clone();
            edited[at] ^= 1;
            assert!(ActionRecord::decode(&record.key, &edited).is_err(), "flipped at {at}");
        }
    }

    #[test]
    fn a_record_under_another_key_is_refused() {
        let record = sample();
        let other = Manifest::new().key();
        let error = ActionRecord::decode(&other, &record.encode().unwrap()).unwrap_err();
        assert_eq!(error, BadRecord::Key { found: record.key });
        let lying = ActionRecord { key: other, ..record };
        assert!(lying.encode().is_err());
    }

    proptest! {
        #[test]
        fn metrics_are_exact(bits in any::<u64>()) {
            let mut record = sample();
            let value = f64::from_bits(bits);
            record.metrics.insert("x".into(), value);
            let read = ActionRecord::decode(&record.key, &record.encode().unwrap()).unwrap().metrics["x"];
            prop_assert!(read.to_bits() == bits || (read.is_nan() && value.is_nan()));
        }
    }
}
