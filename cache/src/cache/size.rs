//! What a content consists of, and how large it is when it is laid down.

use super::Cache;
use crate::content::{Content, Entry};
use crate::digest::{BlobId, TreeId};
use crate::error::Result;

impl Cache {
    /// Every blob of a content, the trees' own bytes among them.
    ///
    /// # Errors
    /// As [`Cache::read_tree`].
    pub fn blobs_of(&self, content: &Content, into: &mut Vec<BlobId>) -> Result<()> {
        match *content {
            Content::Blob { id, .. } => into.push(id),
            Content::Tree { id } => {
                into.push(BlobId::new(id.digest()));
                for entry in self.read_tree(&id)?.entries.into_values() {
                    match entry {
                        Entry::File { id, .. } => into.push(id),
                        Entry::Dir(id) => self.blobs_of(&Content::Tree { id }, into)?,
                        Entry::Symlink(_) => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Bytes of all files of a content. A file that a folder holds twice counts twice: so many bytes are laid down.
    ///
    /// # Errors
    /// As [`Cache::read_tree`], for a folder whose listing cannot be read.
    pub fn size(&self, content: &Content) -> Result<u64> {
        match content {
            Content::Blob { size, .. } => Ok(*size),
            Content::Tree { id } => self.tree_size(id),
        }
    }

    fn tree_size(&self, id: &TreeId) -> Result<u64> {
        let mut total = 0u64;
        for entry in self.read_tree(id)?.entries.values() {
            total = total.saturating_add(match entry {
                Entry::File { size, .. } => *size,
                Entry::Dir(id) => self.tree_size(id)?,
                Entry::Symlink(_) => 0,
            });
        }
        Ok(total)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    #[test]
    fn a_folder_is_as_large_as_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path().join("cache")).unwrap();
        let folder = dir.path().join("folder");
        fs::create_dir_all(folder.join("below")).unwrap();
        for (name, bytes) in [("a", &b"12345"[..]), ("below/b", b"12345"), ("below/c", b"123")] {
            fs::write(folder.join(name), bytes).unwrap();
        }
        std::os::unix::fs::symlink("a", folder.join("link")).unwrap();
        assert_eq!(cache.size(&cache.store_file(folder.join("a")).unwrap()).unwrap(), 5);
        assert_eq!(cache.size(&cache.ingest(&folder, crate::Durability::Later).unwrap()).unwrap(), 13);
    }
}
