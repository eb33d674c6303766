//! Reading everything in the cache again, and mending what is wrong by removing it: the stages that made it then run anew.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use rayon::prelude::*;

use super::{Cache, Health};
use crate::content::ObjectId;
use crate::digest::{ActionKey, BlobId};
use crate::error::{Error, Result};
use crate::files::hash_file;
use crate::record::Lookup;

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Verified {
    /// Records that hold together and whose outputs are all there.
    pub records: usize,
    /// Blobs whose bytes are what their name promises.
    pub blobs: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// Records that cannot be believed, and why.
    pub bad_records: Vec<(ActionKey, String)>,
    /// Blobs whose bytes are wrong.
    pub bad_blobs: Vec<BlobId>,
    /// Records that name something missing or damaged: the stage's name, and what.
    pub incomplete: Vec<(ActionKey, String, ObjectId)>,
}

impl Verified {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.bad_records.is_empty() && self.bad_blobs.is_empty() && self.incomplete.is_empty()
    }
}

impl Cache {
    /// Reads every blob and every record. With `repair`, what is wrong is removed, so that the stages that made it run again.
    ///
    /// # Errors
    /// [`Error::Io`] if the store cannot be read at all, or something wrong not be removed.
    pub fn verify(&self, repair: bool) -> Result<Verified> {
        let sizes = self.blob_sizes()?;
        let right = |id: &BlobId| match hash_file(&self.blob_path(id)) {
            Ok(hashed) => {
                self.note(&hashed);
                hashed.id == *id
            }
            // It cannot be read, or something writes to it.
            Err(_) => false,
        };
        let ids: Vec<&BlobId> = sizes.keys().collect();
        let bad_blobs: Vec<BlobId> = ids.par_iter().filter(|id| !right(id)).map(|id| **id).collect();
        let bad: BTreeSet<&BlobId> = bad_blobs.iter().collect();
        let mut verified = Verified { blobs: sizes.len() - bad_blobs.len(), bytes: sizes.values().sum(), ..Verified::default() };
        for key in self.store.records().keys()? {
            match self.lookup(&key)? {
                Lookup::Found(record) => {
                    let broken = record.outputs.values().find_map(|content| self.first_broken(content, &bad).transpose()).transpose()?;
                    match broken {
                        Some(object) => verified.incomplete.push((key, record.provenance.stage.clone(), object)),
                        None => verified.records += 1,
                    }
                }
                Lookup::Bad(why) => verified.bad_records.push((key, why.to_string())),
                Lookup::Absent => {}
            }
        }
        if repair {
            bad_blobs.iter().try_for_each(|id| self.forget(ObjectId::Blob(*id)))?;
            let records = verified.bad_records.iter().map(|(key, _)| key).chain(verified.incomplete.iter().map(|(key, ..)| key));
            records.into_iter().try_for_each(|key| self.remove_record(key))?;
        }
        verified.bad_blobs = bad_blobs;
        Ok(verified)
    }

    /// Reads again what a machine that lost power may have lost, though its name and its stat are there, and removes what is wrong. In a cache that
    /// may not be written it stays for whoever may.
    pub(super) fn recover(&self) -> Result<()> {
        let Some(mark) = self.store.stale_mark()? else { return Ok(()) };
        let mut ids = Vec::new();
        self.for_each_blob(&mut |id, meta| {
            // A rename changes this time, whatever others a file was given.
            if meta.ctime() >= mark.since {
                ids.push(id);
            }
        })?;
        ids.sort_unstable();
        // What cannot be read now is not known to be wrong.
        let is_wrong = |id: &&BlobId| hash_file(&self.blob_path(id)).is_ok_and(|hashed| hashed.id != **id);
        let wrong: Vec<&BlobId> = ids.par_iter().filter(is_wrong).collect();
        let mend = || {
            wrong.iter().try_for_each(|id| self.forget(ObjectId::Blob(**id)))?;
            // What was read may have come from memory: who left the mark may have been on a machine that goes on.
            self.store.sync_all()?;
            mark.lift()
        };
        match mend() {
            Err(e) if e.is_read_only() => Ok(()),
            other => other,
        }
    }

    fn first_broken(&self, content: &crate::content::Content, bad: &BTreeSet<&BlobId>) -> Result<Option<ObjectId>> {
        let mut blobs = Vec::new();
        match self.blobs_of(content, &mut blobs) {
            Err(Error::Missing { object } | Error::Damaged { object } | Error::BadTree { object, .. }) => return Ok(Some(object)),
            other => other?,
        }
        if let Some(id) = blobs.iter().find(|id| bad.contains(id)) {
            return Ok(Some(ObjectId::Blob(*id)));
        }
        // What was just hashed is known by its stat, so this reads nothing again.
        Ok(match self.check(content)? {
            Health::Sound => None,
            Health::Missing(object) | Health::Damaged(object) => Some(object),
        })
    }
}
