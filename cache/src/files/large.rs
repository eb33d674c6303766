//! BLAKE3 of a large file by all threads.
//!
//! BLAKE3 is a tree over the bytes. Every thread takes a piece of the file and hashes the subtree over it; what comes of the pieces is then
//! merged as the tree has it. A piece of a very large file is looked at where it lies ([`mapped`]), one of a smaller file is read: to map it
//! would cost more than the copy.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use rayon::prelude::*;

use super::mapped;
use crate::digest::{BlobId, Digest};

/// Bytes of a piece: a power of two, so that every piece but the last is a whole subtree. Larger files are hashed in pieces.
pub const PIECE: u64 = 1 << 19;
/// Bytes of a piece that is mapped.
const MAPPED_PIECE: u64 = 1 << 23;
/// From so many bytes on a file is mapped.
const MAPPED: u64 = 4 * MAPPED_PIECE;

/// Hashes the first `size` bytes of a file, which are more than a [`PIECE`]; `None` if it has fewer.
pub fn hash(file: &File, size: u64) -> io::Result<Option<BlobId>> {
    let length = if size < MAPPED { PIECE } else { MAPPED_PIECE };
    let pieces = (0..size.div_ceil(length)).into_par_iter().map_init(Vec::new, |buffer, piece| {
        let (start, length) = (piece * length, (size - piece * length).min(length) as usize);
        let subtree = |bytes: &[u8]| blake3::Hasher::new().set_input_offset(start).update(bytes).finalize_non_root();
        let mapped = if size < MAPPED { None } else { mapped::with(file, start, length, subtree) };
        mapped.map_or_else(|| read(file, start, length, buffer).map(subtree), Ok)
    });
    let pieces = match pieces.collect::<io::Result<Vec<ChainingValue>>>() {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        pieces => pieces?,
    };
    // The rest of a page behind the end of a mapped file reads as zeros.
    if file.metadata()?.len() < size {
        return Ok(None);
    }
    let (left, right) = halves(size, length, &pieces);
    let hash = merge_subtrees_root(&left, &right, Mode::Hash);
    Ok(Some(BlobId::new(Digest::from(hash))))
}

fn read<'b>(file: &File, start: u64, length: usize, buffer: &'b mut Vec<u8>) -> io::Result<&'b [u8]> {
    buffer.resize(length, 0);
    file.read_exact_at(buffer, start)?;
    Ok(buffer)
}

/// What comes of a subtree of `size` bytes in pieces of `length`.
fn subtree(size: u64, length: u64, pieces: &[ChainingValue]) -> ChainingValue {
    if let [piece] = pieces {
        return *piece;
    }
    let (left, right) = halves(size, length, pieces);
    merge_subtrees_non_root(&left, &right, Mode::Hash)
}

fn halves(size: u64, length: u64, pieces: &[ChainingValue]) -> (ChainingValue, ChainingValue) {
    let left = left_subtree_len(size);
    let (front, back) = pieces.split_at((left / length) as usize);
    (subtree(left, length, front), subtree(size - left, length, back))
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
    #[test]
    fn a_file_that_is_mapped_has_the_same_hash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let bytes: Vec<u8> = (0..5 * MAPPED_PIECE + 12_345).map(|i| (i % 251) as u8).collect();
        for size in [MAPPED - 1, MAPPED, MAPPED + 1, 5 * MAPPED_PIECE, 5 * MAPPED_PIECE + 12_345] {
            let bytes = &bytes[..size as usize];
            std::fs::write(&path, bytes).unwrap();
            let file = File::open(&path).unwrap();
            assert_eq!(hash(&file, size).unwrap(), Some(BlobId::of(bytes)), "{size} bytes");
            for missing in [1, 5000, MAPPED_PIECE] {
                assert_eq!(hash(&file, size + missing).unwrap(), None, "it is shorter than that");
            }
        }
    }
}
