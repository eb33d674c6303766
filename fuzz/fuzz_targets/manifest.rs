//! Any JSON as a manifest: what is read is what is written, under the same key.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trestle_cache::Manifest;

fuzz_target!(|bytes: &[u8]| {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) else { return };
    let text = serde_json::to_string(&manifest).expect("a manifest is JSON");
    let again: Manifest = serde_json::from_str(&text).expect("what was written is read");
    assert_eq!((again.key(), again.bytes()), (manifest.key(), manifest.bytes()));
    assert!(manifest.diff(&again).is_empty());
    let names = manifest.iter().count();
    assert_eq!(manifest.diff(&Manifest::new()).len(), names);
});
