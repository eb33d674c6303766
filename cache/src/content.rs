//! What an input or an output is: a blob (one file) or a tree (one folder), named by content.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::{BlobId, Digest, TreeId};

/// Opens the canonical bytes of a tree.
const TREE_TAG: &[u8] = b"trestle tree v1\0";
/// Opens the pre-image of [`Content::digest`].
const CONTENT_TAG: &[u8] = b"trestle content v1\0";

/// A file or a folder, by content. Names, owners, times and all permissions but the executable bit do not take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Content {
    /// A file.
    Blob {
        /// Its bytes.
        id: BlobId,
        /// Its length in bytes.
        size: u64,
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// A folder.
    Tree {
        /// Its entries.
        id: TreeId,
    },
}

impl Content {
    /// One digest for all that counts: the kind, the id and, for a file, the executable bit.
    pub fn digest(&self) -> Digest {
        let mut bytes = CONTENT_TAG.to_vec();
        match self {
            Self::Blob { id, executable, .. } => {
                bytes.extend([0, u8::from(*executable)]);
                bytes.extend(id.as_bytes());
            }
            Self::Tree { id } => {
                bytes.push(1);
                bytes.extend(id.as_bytes());
            }
        }
        Digest::of(&bytes)
    }

    /// The object in the store.
    pub fn object(&self) -> ObjectId {
        match self {
            Self::Blob { id, .. } => ObjectId::Blob(*id),
            Self::Tree { id } => ObjectId::Tree(*id),
        }
    }

    /// Like `Display`, with 12 characters of the digest: for people.
    pub fn short(&self) -> String {
        match self {
            Self::Blob { id, executable: false, .. } => format!("blob:{}", id.short()),
            Self::Blob { id, executable: true, .. } => format!("blob+x:{}", id.short()),
            Self::Tree { id } => format!("tree:{}", id.short()),
        }
    }
}

impl fmt::Display for Content {
    /// `blob:HEX`, `blob+x:HEX` (executable) or `tree:HEX`, with the whole digest: two contents are written alike only if they
    /// are alike, so that the text may enter a manifest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob { id, executable: false, .. } => write!(f, "blob:{id}"),
            Self::Blob { id, executable: true, .. } => write!(f, "blob+x:{id}"),
            Self::Tree { id } => write!(f, "tree:{id}"),
        }
    }
}

/// Something that lies in the store under its digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectId {
    /// The bytes of a file.
    Blob(BlobId),
    /// The canonical bytes of a [`Tree`].
    Tree(TreeId),
}

impl ObjectId {
    /// Where the object lies: a tree is stored as the blob of its canonical bytes, whose plain BLAKE3 is the tree's id.
    pub fn blob(self) -> BlobId {
        match self {
            Self::Blob(id) => id,
            Self::Tree(id) => BlobId::new(id.digest()),
        }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob(id) => write!(f, "blob:{id}"),
            Self::Tree(id) => write!(f, "tree:{id}"),
        }
    }
}

/// One entry of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A file.
    File {
        /// Its bytes.
        id: BlobId,
        /// Its length in bytes.
        size: u64,
        /// Whether its owner may execute it.
        executable: bool,
    },
    /// A folder, empty ones too.
    Dir(TreeId),
    /// A symbolic link, kept as written and never followed. Its target is relative and stays within the whole tree.
    Symlink(String),
}

/// A folder: its entries by name. Deeper folders are trees of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// The entries. Names are UTF-8, not empty, not `.` or `..`, and hold neither `/` nor NUL.
    pub entries: BTreeMap<String, Entry>,
}

/// Bytes that are not the canonical bytes of a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a tree: {0}")]
pub struct BadTree(&'static str);

const FILE: u8 = 0;
const FILE_EXECUTABLE: u8 = 1;
const DIR: u8 = 2;
const SYMLINK: u8 = 3;

impl Tree {
    /// The canonical bytes: the tag, the number of entries, then in the order of the names each entry's kind, name and value.
    /// Numbers are little-endian `u64`, texts carry their length first, so no two trees share their bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = TREE_TAG.to_vec();
        out.extend((self.entries.len() as u64).to_le_bytes());
        for (name, entry) in &self.entries {
            out.push(entry.ordinal());
            put_text(&mut out, name);
            match entry {
                Entry::File { id, size, .. } => {
                    out.extend(id.as_bytes());
                    out.extend(size.to_le_bytes());
                }
                Entry::Dir(id) => out.extend(id.as_bytes()),
                Entry::Symlink(target) => put_text(&mut out, target),
            }
        }
        out
    }

    /// The id: BLAKE3 of [`Tree::bytes`].
    pub fn id(&self) -> TreeId {
        TreeId::new(Digest::of(&self.bytes()))
    }

    /// Reads what [`Tree::bytes`] wrote and nothing else: names out of order, odd names and bytes left over are refused.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadTree> {
        let mut reader = Reader(bytes);
        if reader.take(TREE_TAG.len())? != TREE_TAG {
            return Err(BadTree("the tag is not `trestle tree v1`"));
        }
        let count = reader.number()?;
        let mut tree = Self::default();
        for _ in 0..count {
            let (name, entry) = reader.entry()?;
            if tree.entries.last_key_value().is_some_and(|(last, _)| *last >= name) {
                return Err(BadTree("the names are not in order"));
            }
            tree.entries.insert(name, entry);
        }
        if reader.0.is_empty() { Ok(tree) } else { Err(BadTree("bytes follow the last entry")) }
    }
}

impl Entry {
    /// The kind in the canonical bytes.
    fn ordinal(&self) -> u8 {
        match self {
            Self::File { executable: false, .. } => FILE,
            Self::File { executable: true, .. } => FILE_EXECUTABLE,
            Self::Dir(_) => DIR,
            Self::Symlink(_) => SYMLINK,
        }
    }
}

/// Appends the length of `text` and `text`.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Reads canonical bytes from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], BadTree> {
        let (head, tail) = self.0.split_at_checked(count).ok_or(BadTree("it ends too early"))?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], BadTree> {
        self.take(N)?.try_into().map_err(|_| BadTree("it ends too early"))
    }

    fn number(&mut self) -> Result<u64, BadTree> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn digest(&mut self) -> Result<Digest, BadTree> {
        Ok(Digest::new(self.array()?))
    }

    fn text(&mut self) -> Result<String, BadTree> {
        let count = usize::try_from(self.number()?).map_err(|_| BadTree("a length is too large"))?;
        String::from_utf8(self.take(count)?.to_vec()).map_err(|_| BadTree("a text is not UTF-8"))
    }

    fn entry(&mut self) -> Result<(String, Entry), BadTree> {
        let kind = self.array::<1>()?[0];
        let name = self.text()?;
        if !is_name(&name) {
            return Err(BadTree("an entry's name would leave the folder"));
        }
        let entry = match kind {
            FILE | FILE_EXECUTABLE => {
                let id = BlobId::new(self.digest()?);
                Entry::File { id, size: self.number()?, executable: kind == FILE_EXECUTABLE }
            }
            DIR => Entry::Dir(TreeId::new(self.digest()?)),
            SYMLINK => Entry::Symlink(self.text()?),
            _ => return Err(BadTree("an entry's kind is unknown")),
        };
        Ok((name, entry))
    }
}

/// Whether `name` names an entry of a folder and nothing outside it.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

/// Whether a symbolic link `depth` folders below the root of a tree stays within the tree.
///
/// The target must be relative with `..` at its front only: a `..` after a name could climb out through another link, although the
/// text looks as if it stayed.
pub(crate) fn link_stays(target: &str, depth: usize) -> bool {
    let climbs = target.split('/').take_while(|part| *part == "..").count();
    let rest_is_plain = target.split('/').skip(climbs).all(|part| part != "..");
    !target.is_empty() && !target.starts_with('/') && !target.contains('\0') && rest_is_plain && climbs <= depth
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn digest() -> impl Strategy<Value = Digest> {
        any::<[u8; 32]>().prop_map(Digest::new)
    }

    fn entry() -> impl Strategy<Value = Entry> {
        prop_oneof![
            (digest(), any::<u64>(), any::<bool>()).prop_map(|(id, size, executable)| Entry::File {
                id: BlobId::new(id),
                size,
                executable
            }),
            digest().prop_map(|id| Entry::Dir(TreeId::new(id))),
            "[a-z./]{1,9}".prop_map(Entry::Symlink),
        ]
    }

    fn tree() -> impl Strategy<Value = Tree> {
        prop::collection::btree_map("[a-zé.]{3,6}", entry(), 0..6).prop_map(|entries| Tree { entries })
    }

    proptest! {
        #[test]
        fn bytes_round_trip(tree in tree()) {
            prop_assert_eq!(Tree::from_bytes(&tree.bytes()).unwrap(), tree);
        }

        #[test]
        fn every_truncation_is_refused(tree in tree(), cut in any::<prop::sample::Index>()) {
            let bytes = tree.bytes();
            prop_assert!(Tree::from_bytes(&bytes[..cut.index(bytes.len())]).is_err());
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Tree::from_bytes(&[TREE_TAG, &bytes].concat());
        }
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for name in ["", ".", "..", "a/b", "a\0b"] {
            let tree = Tree { entries: [(name.to_owned(), Entry::Symlink("x".to_owned()))].into() };
            assert!(Tree::from_bytes(&tree.bytes()).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_executable_bit_counts() {
        let id = BlobId::of(b"#!/bin/sh\n");
        let plain = Content::Blob { id, size: 10, executable: false };
        let script = Content::Blob { id, size: 10, executable: true };
        assert_ne!(plain.digest(), script.digest());
        assert_ne!(plain.to_string(), script.to_string());
        let tree = Content::Tree { id: TreeId::new(id.digest()) };
        assert_ne!(plain.digest(), tree.digest());
        for content in [plain, script, tree] {
            let json = serde_json::to_string(&content).unwrap();
            assert_eq!(serde_json::from_str::<Content>(&json).unwrap(), content);
        }
    }

    #[test]
    fn links_stay_or_leave() {
        for (target, depth) in [("a", 0), ("a/b", 0), ("../a", 1), ("../../a", 2), ("./a", 0), ("..", 1)] {
            assert!(link_stays(target, depth), "{target} at {depth}");
        }
        for (target, depth) in [("../a", 0), ("/a", 3), ("a/../b", 1), ("../../a", 1), ("", 1), ("./../a", 1)] {
            assert!(!link_stays(target, depth), "{target} at {depth}");
        }
    }
}
