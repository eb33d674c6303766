//! Content-addressed cache of trestle: digests, contents, manifests, records, stores, and [`Cache`] over them.
//!
//! The crate knows neither YAML nor stages. It never prints, reads the environment or exits.
//!
//! | word | meaning |
//! |---|---|
//! | [`Content`] | what an input or an output *is*: a blob (a file's bytes) or a tree (a folder) |
//! | [`Manifest`] | all that can change an action's outputs; its bytes make the [`ActionKey`], its diff explains a miss |
//! | [`ActionRecord`] | what an action gave: named outputs, metrics, provenance |
//! | [`Store`] | where blobs and records lie |
//! | [`Cache`] | a local store with an index of files known by their stat, and all that the engine does with files |

mod cache;
mod content;
mod digest;
mod error;
mod files;
mod hashing;
mod index;
mod manifest;
mod parallel;
mod record;
mod store;

pub use cache::{Bounds, Cache, Claim, Collected, FileStat, Health, How, RunLock, Verified};
pub use content::{BadTree, Content, Entry, ObjectId, Tree};
pub use digest::{ActionKey, BlobId, Digest, ParseDigestError, TreeId};
pub use error::{Error, Result};
pub use hashing::Hashing;
pub use manifest::{Change, DuplicateIngredient, Ingredient, Manifest, Section};
pub use record::{ActionRecord, BadRecord, Lookup, Provenance};
pub use store::{Durability, LocalStore, MemoryStore, Store};
