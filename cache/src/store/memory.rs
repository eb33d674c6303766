//! A store in memory, for tests.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Store, copy_hashed};
use crate::content::ObjectId;
use crate::digest::{ActionKey, BlobId};
use crate::error::{Error, Result};

/// Blobs and records in two maps.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    blobs: BTreeMap<BlobId, Vec<u8>>,
    records: BTreeMap<ActionKey, Vec<u8>>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one insertion or removal, so a panic elsewhere leaves the maps whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn has(&self, id: &BlobId) -> Result<bool> {
        Ok(self.lock().blobs.contains_key(id))
    }

    fn read(&self, id: &BlobId, sink: &mut dyn Write) -> Result<bool> {
        let Some(bytes) = self.lock().blobs.get(id).cloned() else { return Ok(false) };
        if BlobId::of(&bytes) != *id {
            return Err(Error::Damaged { object: ObjectId::Blob(*id) });
        }
        sink.write_all(&bytes).map_err(Error::io("write to", Path::new("the reader")))?;
        Ok(true)
    }

    fn write(&self, id: &BlobId, source: &mut dyn Read) -> Result<()> {
        let mut bytes = Vec::new();
        let found = copy_hashed(source, &mut bytes).map_err(Error::io("read", Path::new("the writer")))?;
        if found != *id {
            return Err(Error::Mismatch { expected: ObjectId::Blob(*id), found: ObjectId::Blob(found) });
        }
        self.lock().blobs.insert(*id, bytes);
        Ok(())
    }

    fn remove(&self, id: &BlobId) -> Result<()> {
        self.lock().blobs.remove(id);
        Ok(())
    }

    fn get_record(&self, key: &ActionKey) -> Result<Option<Vec<u8>>> {
        Ok(self.lock().records.get(key).cloned())
    }

    fn put_record(&self, key: &ActionKey, bytes: &[u8]) -> Result<()> {
        self.lock().records.insert(*key, bytes.to_vec());
        Ok(())
    }

    fn remove_record(&self, key: &ActionKey) -> Result<()> {
        self.lock().records.remove(key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{Fixture, suite};
    use super::*;

    impl Fixture for MemoryStore {
        fn store(&self) -> &dyn Store {
            self
        }

        fn damage(&self, id: &BlobId) {
            self.lock().blobs.insert(*id, b"damaged".to_vec());
        }
    }

    suite!(MemoryStore::new());
}
