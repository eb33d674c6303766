//! Making room: records that nobody refers to go, the oldest first, and with them the blobs that no other record has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::{Cache, RunLock};
use crate::digest::{ActionKey, BlobId};
use crate::error::{Error, Result};
use crate::files::now;
use crate::record::Lookup;

/// What is to be kept.
#[derive(Debug, Clone, Default)]
pub struct Bounds {
    /// Most bytes of blobs, as far as records that are referred to allow it.
    pub max_size: Option<u64>,
    /// Records made longer ago than this go, unless they are referred to.
    pub max_age: Option<Duration>,
    /// Only say what would go.
    pub dry_run: bool,
}

/// What went, or would go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Records before.
    pub records: usize,
    /// Of them, those that went.
    pub records_removed: usize,
    /// Of them, those that are referred to.
    pub records_live: usize,
    /// Blobs before.
    pub blobs: usize,
    /// Of them, those that went.
    pub blobs_removed: usize,
    /// Bytes of blobs before.
    pub bytes: u64,
    /// Of them, those that went.
    pub bytes_removed: u64,
    /// Checkpoints that went: of stages that are done by now, or that nobody went on from for long.
    pub kept_removed: usize,
}

/// A record as far as cleaning wants to know it.
struct Known {
    key: ActionKey,
    /// When it was made, in milliseconds since 1970.
    made: u64,
    blobs: Vec<BlobId>,
    live: bool,
}

impl Cache {
    /// Removes what is out of bounds. Records whose key is in `live` stay, with all that they name. The lock keeps runs away, so nothing is
    /// removed that another process is about to name.
    ///
    /// Blobs that no record names go in any case: a run that was killed left them.
    ///
    /// # Errors
    /// [`Error::Io`] names what cannot be read or removed; a second call goes on.
    pub fn collect(&self, _alone: &RunLock, live: &BTreeSet<ActionKey>, bounds: &Bounds) -> Result<Collected> {
        let sizes = self.blob_sizes()?;
        let mut records = self.known_records(live)?;
        records.sort_unstable_by_key(|record| (record.made, record.key));
        let mut uses: BTreeMap<BlobId, usize> = BTreeMap::new();
        records.iter().flat_map(|record| &record.blobs).for_each(|id| *uses.entry(*id).or_default() += 1);
        let size = |id: &BlobId| sizes.get(id).copied().unwrap_or(0);
        let mut left: u64 = uses.keys().map(size).sum();
        let oldest = bounds.max_age.map_or(0, |age| (now() / 1_000_000).cast_unsigned().saturating_sub(age.as_millis() as u64));
        let mut removed = BTreeSet::new();
        for record in records.iter().filter(|record| !record.live) {
            let is_too_much = bounds.max_size.is_some_and(|most| left > most);
            if record.made >= oldest && !is_too_much {
                continue;
            }
            removed.insert(record.key);
            for id in &record.blobs {
                let count = uses.entry(*id).or_default();
                *count = count.saturating_sub(1);
                if *count == 0 {
                    left -= size(id);
                }
            }
        }
        let gone: Vec<&BlobId> = sizes.keys().filter(|id| uses.get(*id).is_none_or(|count| *count == 0)).collect();
        let collected = Collected {
            records: records.len(),
            records_removed: removed.len(),
            records_live: records.iter().filter(|record| record.live).count(),
            blobs: sizes.len(),
            blobs_removed: gone.len(),
            bytes: sizes.values().sum(),
            bytes_removed: gone.iter().map(|id| size(id)).sum(),
            kept_removed: self.collect_kept(bounds.max_age, bounds.dry_run)?,
        };
        if !bounds.dry_run {
            // Records first: one whose blobs are gone would be found damaged, a blob without a record harms nobody.
            if !removed.is_empty() {
                self.store.records().rewrite(&self.store.temporary("records")?, |key| !removed.contains(key))?;
            }
            for id in gone {
                let path = self.blob_path(id);
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(collected)
    }

    fn known_records(&self, live: &BTreeSet<ActionKey>) -> Result<Vec<Known>> {
        let mut known = Vec::new();
        for key in self.store.records().keys()? {
            // One that cannot be believed is as good as none.
            let Lookup::Found(record) = self.lookup(&key)? else {
                known.push(Known { key, made: 0, blobs: Vec::new(), live: false });
                continue;
            };
            let mut blobs: Vec<BlobId> = record.provenance.log.into_iter().collect();
            for content in record.outputs.values() {
                // A damaged tree names nothing that could be kept.
                let _ = self.blobs_of(content, &mut blobs);
            }
            blobs.sort_unstable();
            blobs.dedup();
            let made = record.provenance.started_unix_ms + record.provenance.duration_ms;
            known.push(Known { key, made, blobs, live: live.contains(&key) });
        }
        Ok(known)
    }

    /// All blobs of the store with their sizes.
    pub(super) fn blob_sizes(&self) -> Result<BTreeMap<BlobId, u64>> {
        let mut sizes = BTreeMap::new();
        self.for_each_blob(&mut |id, meta| {
            sizes.insert(id, meta.len());
        })?;
        Ok(sizes)
    }

    /// Shows every blob there is, with what is known of its file.
    pub(super) fn for_each_blob(&self, each: &mut dyn FnMut(BlobId, &fs::Metadata)) -> Result<()> {
        let folder = self.root.join("blobs");
        let list = |path: &PathBuf| -> Result<Vec<fs::DirEntry>> {
            match fs::read_dir(path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
                other => other.and_then(Iterator::collect).map_err(Error::io("read the folder", path)),
            }
        };
        for shard in list(&folder)? {
            for item in list(&shard.path())? {
                let name = format!("{}{}", shard.file_name().to_string_lossy(), item.file_name().to_string_lossy());
                let path = item.path();
                if let Ok(digest) = name.parse() {
                    let meta = item.metadata().map_err(Error::io("examine", &path))?;
                    each(BlobId::new(digest), &meta);
                }
            }
        }
        Ok(())
    }
}
