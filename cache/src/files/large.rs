//! BLAKE3 of a large file by all threads.
//!
//! BLAKE3 is a tree over the bytes. Every thread reads a piece of the file and hashes the subtree over it while its bytes are still in the
//! processor's cache; what comes of the pieces is then merged as the tree has it. Reading costs one copy that a memory map would save; in
//! return a file that shrinks while it is read is an error, not a SIGBUS.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use rayon::prelude::*;

use crate::digest::{BlobId, Digest};

/// Bytes of a piece: a power of two, so that every piece but the last is a whole subtree. Larger files are hashed in pieces.
pub const PIECE: u64 = 1 << 19;

/// Hashes the first `size` bytes of a file, which are more than a [`PIECE`]; `None` if it has fewer.
pub fn hash(file: &File, size: u64) -> io::Result<Option<BlobId>> {
    let pieces = (0..size.div_ceil(PIECE)).into_par_iter().map_init(
        || vec![0; PIECE as usize],
        |buffer, piece| {
            let start = piece * PIECE;
            let bytes = &mut buffer[..(size - start).min(PIECE) as usize];
            file.read_exact_at(bytes, start)?;
            Ok(blake3::Hasher::new().set_input_offset(start).update(bytes).finalize_non_root())
        },
    );
    let pieces = match pieces.collect::<io::Result<Vec<ChainingValue>>>() {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        pieces => pieces?,
    };
    let (left, right) = halves(size, &pieces);
    let hash = merge_subtrees_root(&left, &right, Mode::Hash);
    Ok(Some(BlobId::new(Digest::from(hash))))
}

/// What comes of a subtree of `size` bytes in these pieces.
fn subtree(size: u64, pieces: &[ChainingValue]) -> ChainingValue {
    if let [piece] = pieces {
        return *piece;
    }
    let (left, right) = halves(size, pieces);
    merge_subtrees_non_root(&left, &right, Mode::Hash)
}

fn halves(size: u64, pieces: &[ChainingValue]) -> (ChainingValue, ChainingValue) {
    let left = left_subtree_len(size);
    let (front, back) = pieces.split_at((left / PIECE) as usize);
    (subtree(left, front), subtree(size - left, back))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pieces_make_the_hash_of_the_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let bytes: Vec<u8> = (0..7 * PIECE + 12_345).map(|i| (i * i % 251) as u8).collect();
        for size in [PIECE + 1, 2 * PIECE - 1, 2 * PIECE, 3 * PIECE, 3 * PIECE + 1024, 5 * PIECE + 1, 7 * PIECE + 12_345] {
            let bytes = &bytes[..size as usize];
            std::fs::write(&path, bytes).unwrap();
            let file = File::open(&path).unwrap();
            assert_eq!(hash(&file, size).unwrap(), Some(BlobId::of(bytes)), "{size} bytes");
            assert_eq!(hash(&file, size + 1).unwrap(), None, "it is shorter than that");
        }
    }
}
