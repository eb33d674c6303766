//! What came of an action.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::content::Content;
use crate::digest::{ActionKey, BlobId, Digest};
use crate::manifest::Manifest;

/// Key to outputs, with where they came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActionRecord {
    /// The key of the manifest.
    pub key: ActionKey,
    /// What the key was made of.
    pub manifest: Manifest,
    /// Outputs by name.
    pub outputs: BTreeMap<String, Content>,
    /// Figures that the stage reported.
    pub metrics: BTreeMap<String, f64>,
    /// Where, when and how.
    pub provenance: Provenance,
}

/// Where, when and how a record was made; never part of a key.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Provenance {
    /// Name of the stage at that time.
    pub stage: String,
    /// Start, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// Wall time in milliseconds.
    pub duration_ms: u64,
    /// Highest resident memory in KiB, if known.
    pub peak_rss_kib: Option<u64>,
    /// Threads used.
    pub threads: usize,
    /// Name of the machine.
    pub host: String,
    /// Versions and facts about the machine.
    pub versions: BTreeMap<String, String>,
    /// All that the stage printed.
    pub log: Option<BlobId>,
}

/// First line of an encoded record, before its checksum.
const TAG: &str = "trestle record v1 ";

impl ActionRecord {
    /// One line with the tag and the digest of the rest, then JSON.
    ///
    /// # Errors
    /// If a metric is not finite, which JSON cannot hold.
    pub fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let body = serde_json::to_vec(self)?;
        let mut bytes = format!("{TAG}{}\n", Digest::of(&body)).into_bytes();
        bytes.extend(body);
        Ok(bytes)
    }

    /// Reads an encoded record; `None` if it is cut off, edited, of another version, or if its key is not its manifest's.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|&b| b == b'\n')?;
        let (head, body) = (std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]);
        let digest: Digest = head.strip_prefix(TAG)?.parse().ok()?;
        if digest != Digest::of(body) {
            return None;
        }
        let record: Self = serde_json::from_slice(body).ok()?;
        (record.manifest.key() == record.key).then_some(record)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::manifest::Section;

    /// A record whose key depends on `name`.
    pub fn sample(name: &str) -> ActionRecord {
        let mut manifest = Manifest::new();
        manifest.push(Section::Command, "script", name);
        let outputs = BTreeMap::from([("out".to_owned(), Content::Blob { id: BlobId(Digest::of(b"x")), size: 1, executable: false })]);
        ActionRecord {
            key: manifest.key(),
            manifest,
            outputs,
            metrics: BTreeMap::from([("top1".to_owned(), 0.5)]),
            provenance: Provenance::default(),
        }
    }

    #[test]
    fn any_single_changed_or_missing_byte_is_noticed() {
        let record = sample("a");
        let bytes = record.encode().unwrap();
        assert_eq!(ActionRecord::decode(&bytes).unwrap(), record);
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 1;
            assert_eq!(ActionRecord::decode(&changed), None, "byte {i}");
            assert_eq!(ActionRecord::decode(&bytes[..i]), None, "cut at {i}");
        }
    }
}
