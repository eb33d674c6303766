//! A store in memory, for tests.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Result;
use crate::error::At;
use crate::store::{Name, Store};

/// A store that forgets everything with its process.
#[derive(Debug, Default)]
pub struct MemoryStore {
    entries: Mutex<BTreeMap<Name, Vec<u8>>>,
}

impl MemoryStore {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<Name, Vec<u8>>> {
        // A map is whole between two of its operations, so a panic elsewhere does not spoil it.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn read(&self, name: Name) -> Result<Option<Box<dyn Read>>> {
        Ok(self.entries().get(&name).map(|bytes| Box::new(Cursor::new(bytes.clone())) as Box<dyn Read>))
    }

    fn write(&self, name: Name, bytes: &mut dyn Read) -> Result<()> {
        let mut all = Vec::new();
        bytes.read_to_end(&mut all).at("read", Path::new("the bytes to store"))?;
        self.entries().insert(name, all);
        Ok(())
    }

    fn remove(&self, name: Name) -> Result<()> {
        self.entries().remove(&name);
        Ok(())
    }

    fn has(&self, name: Name) -> Result<bool> {
        Ok(self.entries().contains_key(&name))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn conforms() {
        crate::store::conformance::run(&super::MemoryStore::default());
    }
}
