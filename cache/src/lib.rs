//! Content-addressed cache of trestle: digests, manifests, records, stores.
//!
//! It knows neither YAML nor stages. Everything that is read back is checked against the digest that names it.

mod cache;
mod content;
mod digest;
mod error;
mod hash;
mod index;
mod last;
mod local;
mod lock;
mod manifest;
mod memory;
mod record;
mod store;

pub use cache::{Cache, Health, How};
pub use content::{Content, Entry, Tree};
pub use digest::{ActionKey, BlobId, Digest, ParseDigestError, TreeId};
pub use error::Error;
pub use last::Last;
pub use local::LocalStore;
pub use lock::RunLock;
pub use manifest::{Change, Ingredient, Manifest, Section};
pub use memory::MemoryStore;
pub use record::{ActionRecord, Provenance};
pub use store::Store;

/// What most functions here return.
pub type Result<T> = std::result::Result<T, Error>;
