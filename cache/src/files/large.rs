//! BLAKE3 of a large file by all threads.
//!
//! BLAKE3 is a tree over the bytes. Every thread takes a piece of the file and hashes the subtree over it; what comes of the pieces is then
//! merged as the tree has it. A piece of a very large file is looked at where it lies ([`mapped`]), one of a smaller file is read: to map it
//! would cost more than the copy.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use rayon::prelude::*;

use super::mapped;
use crate::digest::{BlobId, Digest};

/// Bytes of a piece: a power of two, so that every piece but the last is a whole subtree. Larger files are hashed in pieces.
pub const PIECE: u64 = 1 << 19;
/// From so many bytes on a file is mapped.
const MAPPED: u64 = 1 << 25;
/// Bytes that are mapped at once by all threads together, if their pieces do not become smaller than is good: they count as memory of this
/// process, below which that of a stage cannot be told.
const MAPPED_AT_ONCE: u64 = 1 << 24;
/// Bytes of a piece that is mapped, at least and at most.
const MAPPED_PIECE: [u64; 2] = [1 << 21, 1 << 23];

/// Hashes the first `size` bytes of a file, which are more than a [`PIECE`]; `None` if it has fewer.
pub fn hash(file: &File, size: u64) -> io::Result<Option<BlobId>> {
    // What a file has no blocks for is read: a look through a map would make room for it in a file system that is in memory.
    let is_mapped = size >= MAPPED && file.metadata()?.blocks().saturating_mul(512) >= size;
    let length = if is_mapped { mapped_piece(rayon::current_num_threads()) } else { PIECE };
    let pieces = (0..size.div_ceil(length)).into_par_iter().map_init(Vec::new, |buffer, piece| {
        let (start, length) = (piece * length, (size - piece * length).min(length) as usize);
        let subtree = |bytes: &[u8]| blake3::Hasher::new().set_input_offset(start).update(bytes).finalize_non_root();
        let mapped = if is_mapped { mapped::with(file, start, length, subtree) } else { None };
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

/// Bytes of a piece that is mapped; a power of two.
fn mapped_piece(threads: usize) -> u64 {
    let share = MAPPED_AT_ONCE / threads.next_power_of_two() as u64;
    share.clamp(MAPPED_PIECE[0], MAPPED_PIECE[1])
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
        let piece = mapped_piece(2);
        let bytes: Vec<u8> = (0..5 * piece + 12_345).map(|i| (i % 251) as u8).collect();
        for size in [MAPPED - 1, MAPPED, MAPPED + 1, 5 * piece, 5 * piece + 12_345] {
            let bytes = &bytes[..size as usize];
            std::fs::write(&path, bytes).unwrap();
            let file = File::open(&path).unwrap();
            assert_eq!(hash(&file, size).unwrap(), Some(BlobId::of(bytes)), "{size} bytes");
            for missing in [1, 5000, piece] {
                assert_eq!(hash(&file, size + missing).unwrap(), None, "it is shorter than that");
            }
        }
    }
    #[test]
    fn pieces_that_are_mapped_are_whole_subtrees() {
        let pieces = [1, 2, 3, 4, 5, 16, 100].map(mapped_piece);
        assert_eq!(pieces, [8, 8, 4, 4, 2, 2, 2].map(|mebibytes| mebibytes << 20));
    }

    /// In a file system in memory a look through a map would fill them.
    #[test]
    fn a_file_of_holes_is_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MAPPED + 5).unwrap();
        let blocks = file.metadata().unwrap().blocks();
        assert_eq!(hash(&file, MAPPED + 5).unwrap(), Some(BlobId::of(&vec![0; MAPPED as usize + 5])));
        assert_eq!(file.metadata().unwrap().blocks(), blocks);
    }
}
