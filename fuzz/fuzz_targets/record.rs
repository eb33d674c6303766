//! Any bytes as a record; and any bytes as the body of one whose checksum is right, which a fuzzer would not hit upon.
#![no_main]

use libfuzzer_sys::fuzz_target;
use trestle_cache::{ActionRecord, BadRecord, Digest, Manifest};

fuzz_target!(|bytes: &[u8]| {
    let nobody = Manifest::new().key();
    let _ = ActionRecord::decode(&nobody, bytes);
    let head = format!("trestle record v1\nblake3 {}\n", Digest::of(bytes));
    let whole = [head.as_bytes(), bytes].concat();
    // The complaint about the key names the right one.
    let record = match ActionRecord::decode(&nobody, &whole) {
        Err(BadRecord::Key { found }) => ActionRecord::decode(&found, &whole),
        other => other,
    };
    if let Ok(record) = record {
        let again = ActionRecord::decode(&record.key, &record.encode().expect("it was decoded"));
        assert_eq!(format!("{:?}", again.expect("what was encoded is decoded")), format!("{record:?}"));
    }
});
