//! Any bytes as a tree: only the canonical ones are read, so no two texts have one meaning.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trestle_cache::Tree;

/// Opens the bytes of a tree; a fuzzer finds it, but not at once.
const TAG: &[u8] = b"trestle tree v1\0";

fuzz_target!(|bytes: &[u8]| {
    for bytes in [bytes.to_vec(), [TAG, bytes].concat()] {
        if let Ok(tree) = Tree::from_bytes(&bytes) {
            assert_eq!(tree.bytes(), bytes);
            assert!(tree.entries.keys().all(|name| !name.contains('/') && !name.is_empty() && name != "." && name != ".."));
        }
    }
});
