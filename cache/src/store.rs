//! A store keeps bytes under names. Blobs and trees are immutable and named by what is in them; a record is named by its key.
//!
//! A store need not be trusted: the cache checks everything that it reads. So a backend stays small, and a damaged or malicious one can cost time
//! but never serve a wrong byte.

use std::io::Read;

use crate::Result;
use crate::digest::{ActionKey, BlobId, Digest, TreeId};

/// The name of something in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// The bytes of a file.
    Blob(BlobId),
    /// The encoded entries of a folder.
    Tree(TreeId),
    /// An encoded record.
    Record(ActionKey),
}

impl Name {
    /// The folder of its kind.
    pub fn shelf(self) -> &'static str {
        match self {
            Self::Blob(_) => "blobs",
            Self::Tree(_) => "trees",
            Self::Record(_) => "records",
        }
    }

    /// Its digest.
    pub fn digest(self) -> Digest {
        match self {
            Self::Blob(id) => id.0,
            Self::Tree(id) => id.0,
            Self::Record(key) => key.0,
        }
    }
}

/// Something that keeps bytes.
pub trait Store: Send + Sync {
    /// The bytes under a name, if it has any.
    ///
    /// # Errors
    /// If the store cannot be read; a missing name is no error.
    fn read(&self, name: Name) -> Result<Option<Box<dyn Read>>>;

    /// Puts bytes under a name, replacing what was there. Readers see the old bytes or all of the new ones.
    ///
    /// # Errors
    /// If the bytes cannot be read or written; then the name is as it was.
    fn write(&self, name: Name, bytes: &mut dyn Read) -> Result<()>;

    /// Takes a name away; a missing one is no error.
    ///
    /// # Errors
    /// If the store cannot be changed.
    fn remove(&self, name: Name) -> Result<()>;

    /// Whether the name has bytes.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn has(&self, name: Name) -> Result<bool>;
}

/// What every backend must do.
#[cfg(test)]
pub(crate) mod conformance {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn get(store: &dyn Store, name: Name) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        store.read(name).unwrap()?.read_to_end(&mut bytes).unwrap();
        Some(bytes)
    }

    fn names() -> [Name; 3] {
        let digest = Digest::of(b"abc");
        [Name::Blob(BlobId(digest)), Name::Tree(TreeId(digest)), Name::Record(ActionKey(digest))]
    }

    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("broken"))
        }
    }

    /// Runs the whole suite on an empty store.
    pub fn run(store: &dyn Store) {
        for name in names() {
            assert_eq!(get(store, name), None);
            assert!(!store.has(name).unwrap());
            store.remove(name).unwrap();
            assert!(store.write(name, &mut b"half".chain(Broken)).is_err());
            assert!(!store.has(name).unwrap(), "a failed write left something");
            store.write(name, &mut &b""[..]).unwrap();
            assert_eq!(get(store, name).unwrap(), b"");
            store.write(name, &mut &b"abc"[..]).unwrap();
            assert_eq!(get(store, name).unwrap(), b"abc");
            assert!(store.write(name, &mut b"half".chain(Broken)).is_err());
            assert_eq!(get(store, name).unwrap(), b"abc", "a failed write changed something");
        }
        store.remove(names()[0]).unwrap();
        assert_eq!(get(store, names()[0]), None);
        assert_eq!(get(store, names()[1]).unwrap(), b"abc", "kinds of names are apart");
        many_writers(store, names()[0]);
    }

    fn many_writers(store: &dyn Store, name: Name) {
        let bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| store.write(name, &mut bytes.as_slice()).unwrap());
            }
        });
        assert_eq!(get(store, name).unwrap(), bytes);
    }
}
