//! What an input or an output is: a file or a folder, by what is in it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::{BlobId, Digest, TreeId};

/// A file or a folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    /// A file.
    Blob {
        /// Its bytes.
        id: BlobId,
        /// Its size in bytes.
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
    /// Its digest.
    pub fn digest(&self) -> Digest {
        match self {
            Self::Blob { id, .. } => id.0,
            Self::Tree { id } => id.0,
        }
    }
}

/// `blob:6437…`, `exec:6437…` (an executable file) or `tree:9a1c…`: two contents are equal if and only if their texts are.
impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob { id, executable: false, .. } => write!(f, "blob:{id}"),
            Self::Blob { id, executable: true, .. } => write!(f, "exec:{id}"),
            Self::Tree { id } => write!(f, "tree:{id}"),
        }
    }
}

/// The entries of a folder, by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tree {
    /// Entries; a folder without entries is kept too.
    pub entries: BTreeMap<String, Entry>,
}

/// One entry of a [`Tree`].
pub type Entry = Content;

/// Kind and version of the encoding of a tree.
const TAG: &[u8] = b"trestle tree v1\0";

impl Tree {
    /// The bytes that are stored and hashed: the tag, then for each entry, in the order of its name's bytes, a kind
    /// (`f` file, `x` executable file, `d` folder), the length of the name (8 bytes, little-endian), the name, the size of a file
    /// (8 bytes), and the digest.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = TAG.to_vec();
        for (name, entry) in &self.entries {
            let (kind, size) = match entry {
                Content::Blob { size, executable: false, .. } => (b'f', *size),
                Content::Blob { size, executable: true, .. } => (b'x', *size),
                Content::Tree { .. } => (b'd', 0),
            };
            bytes.push(kind);
            bytes.extend((name.len() as u64).to_le_bytes());
            bytes.extend(name.as_bytes());
            bytes.extend(size.to_le_bytes());
            bytes.extend(entry.digest().as_bytes());
        }
        bytes
    }

    /// Its name.
    pub fn id(&self) -> TreeId {
        TreeId(Digest::of(&self.encode()))
    }

    /// Reads an encoded tree; `None` if the bytes are not one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(TAG)?;
        let mut entries = BTreeMap::new();
        while let Some((&kind, after)) = rest.split_first() {
            let (length, after) = after.split_first_chunk::<8>()?;
            let (name, after) = after.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
            let (size, after) = after.split_first_chunk::<8>()?;
            let (digest, after) = after.split_first_chunk::<32>()?;
            let digest = Digest::from(blake3::Hash::from_bytes(*digest));
            let entry = match kind {
                b'f' | b'x' => Content::Blob { id: BlobId(digest), size: u64::from_le_bytes(*size), executable: kind == b'x' },
                b'd' => Content::Tree { id: TreeId(digest) },
                _ => return None,
            };
            entries.insert(String::from_utf8(name.to_vec()).ok()?, entry);
            rest = after;
        }
        Some(Self { entries })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn entry() -> impl Strategy<Value = Content> {
        (any::<[u8; 32]>(), any::<u64>(), 0..3u8).prop_map(|(bytes, size, kind)| {
            let digest = Digest::from(blake3::Hash::from_bytes(bytes));
            match kind {
                0 => Content::Tree { id: TreeId(digest) },
                k => Content::Blob { id: BlobId(digest), size, executable: k == 1 },
            }
        })
    }

    proptest! {
        #[test]
        fn trees_survive_their_encoding(entries in prop::collection::btree_map("[a-z\u{e4}.]{1,9}", entry(), 0..6)) {
            let tree = Tree { entries };
            prop_assert_eq!(Tree::decode(&tree.encode()).unwrap(), tree);
        }

        #[test]
        fn any_bytes_are_a_tree_or_not_but_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut tagged = TAG.to_vec();
            tagged.extend(&bytes);
            if let Some(tree) = Tree::decode(&tagged) {
                prop_assert!(tree.encode().len() <= tagged.len());
            }
        }
    }
}
