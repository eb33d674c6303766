//! Any bytes as what the last run left, under a checksum that is right: what is read can be used and is written the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trestle_cache::Digest;
use trestle_engine::memo::{self, Memo};

fuzz_target!(|bytes: &[u8]| {
    let shm = std::path::PathBuf::from("/dev/shm");
    let base = if shm.is_dir() { shm } else { std::env::temp_dir() };
    let path = base.join(format!("trestle-fuzz-memo-{}", std::process::id()));
    std::fs::write(&path, [memo::TAG, &Digest::of(bytes).as_bytes()[..], bytes].concat()).expect("a file");
    let Some(memo) = Memo::load(&path) else { return };
    for output in 0..memo.blob_starts.len() - 1 {
        assert!(memo.blobs_of(output).iter().all(|blob| (*blob as usize) < memo.blobs.len()));
    }
    memo.write(std::fs::File::options().write(true).open(&path).expect("a file")).expect("a file");
    assert_eq!(Memo::load(&path), Some(memo));
});
