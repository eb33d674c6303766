//! Any bytes as the file of records: it is read without harm, and what is appended to it is found again.
#![no_main]

use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use trestle_cache::{ActionKey, Digest, LocalStore, Store};

fn key(number: u8) -> ActionKey {
    ActionKey::new(Digest::of(&[number]))
}

/// A folder of this process, in memory where that is possible.
fn folder() -> PathBuf {
    let shm = PathBuf::from("/dev/shm");
    let base = if shm.is_dir() { shm } else { std::env::temp_dir() };
    base.join(format!("trestle-fuzz-log-{}", std::process::id()))
}

fuzz_target!(|bytes: &[u8]| {
    let folder = folder();
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("records"), bytes).expect("a file");
    let store = LocalStore::open(&folder).expect("an open store");
    let before: Vec<_> = (0..4).map(|number| store.get_record(&key(number)).expect("a record or none")).collect();
    store.put_record(&key(9), b"new").expect("an append");
    let again = LocalStore::open(&folder).expect("an open store");
    for store in [&store, &again] {
        assert_eq!(store.get_record(&key(9)).expect("a record").as_deref(), Some(&b"new"[..]));
    }
    // What was there is there still.
    for (number, record) in (0..4).zip(before) {
        assert_eq!(again.get_record(&key(number)).expect("a record or none"), record);
    }
});
