//! Hashing files.

use std::fs::File;
use std::path::Path;

use crate::Result;
use crate::digest::{BlobId, Digest};
use crate::error::At;

/// Above this size a file is mapped and hashed by all threads of the pool; below, one read is faster.
const PARALLEL_BYTES: u64 = 1 << 20;

/// The digest of the bytes of a file and their number.
pub fn file(path: &Path) -> Result<(BlobId, u64)> {
    let size = std::fs::metadata(path).at("read", path)?.len();
    let mut hasher = blake3::Hasher::new();
    if size >= PARALLEL_BYTES {
        hasher.update_mmap_rayon(path).at("read", path)?;
    } else {
        hasher.update_reader(File::open(path).at("read", path)?).at("read", path)?;
    }
    Ok((BlobId(Digest::from(hasher.finalize())), hasher.count()))
}
