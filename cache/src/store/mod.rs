//! Where blobs and records lie: a small trait, one conformance suite, and the backends.

#[cfg(test)]
mod conformance;
mod local;
mod log;
mod memory;
mod session;
mod unsynced;

use std::io::{Read, Write};
use std::path::PathBuf;

pub(crate) use local::Staged;
pub use local::{Durability, LocalStore};
pub use memory::MemoryStore;
pub(crate) use session::unique;

use crate::digest::{ActionKey, BlobId};
use crate::error::Result;

/// Blobs by their digest, and records by their action's key.
///
/// What is written is there for every later call, of any thread, or the write failed; a reader never meets half a blob or half a
/// record. Trees are blobs here.
pub trait Store: Send + Sync {
    /// Whether a blob lies there. Says nothing about its health.
    fn has(&self, id: &BlobId) -> Result<bool>;

    /// Copies a blob into `sink`, hashing what it gives. `false`, and nothing written, if it is not there.
    ///
    /// # Errors
    /// [`Error::Damaged`](crate::Error::Damaged) if the bytes were not the blob's: then what reached the sink must be thrown away.
    fn read(&self, id: &BlobId, sink: &mut dyn Write) -> Result<bool>;

    /// Stores what `source` gives under `id`, in place of what may lie there.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) if the bytes do not hash to `id`; then the store is as before.
    fn write(&self, id: &BlobId, source: &mut dyn Read) -> Result<()>;

    /// Removes a blob. Nothing there is fine.
    fn remove(&self, id: &BlobId) -> Result<()>;

    /// The encoded record of an action; [`ActionRecord::decode`](crate::ActionRecord::decode) says whether to believe it.
    fn get_record(&self, key: &ActionKey) -> Result<Option<Vec<u8>>>;

    /// Stores an encoded record in place of what may lie there.
    fn put_record(&self, key: &ActionKey, bytes: &[u8]) -> Result<()>;

    /// Removes a record. Nothing there is fine.
    fn remove_record(&self, key: &ActionKey) -> Result<()>;

    /// Where a blob would lie on this machine, for stores that have such a place.
    fn local_path(&self, _id: &BlobId) -> Option<PathBuf> {
        None
    }
}

/// Copies `source` into `sink` and gives the id of what went by.
fn copy_hashed(source: &mut dyn Read, sink: &mut dyn Write) -> std::io::Result<BlobId> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = match source.read(&mut buffer) {
            Ok(0) => return Ok(BlobId::new(hasher.finalize().into())),
            Ok(count) => count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hasher.update(&buffer[..count]);
        sink.write_all(&buffer[..count])?;
    }
}
