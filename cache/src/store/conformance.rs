//! What every store must do: a new backend runs [`suite!`] and inherits all of it.

#![allow(clippy::unwrap_used)]

use std::io::Read;

use super::Store;
use crate::digest::{ActionKey, BlobId, Digest};
use crate::error::Error;

/// A store under test.
pub trait Fixture: Sync {
    /// The store, empty when the fixture is new.
    fn store(&self) -> &dyn Store;
    /// Puts other bytes where a blob lies, as a failing disk would.
    fn damage(&self, id: &BlobId);
}

/// Runs every test of the suite on a new fixture each.
macro_rules! suite {
    ($fixture:expr) => {
        $crate::store::conformance::suite!(
            $fixture,
            blobs_come_back,
            absent_blobs_are_said_to_be_absent,
            wrong_bytes_are_refused,
            a_failing_source_leaves_nothing,
            damage_is_found_and_mended,
            removal_is_idempotent,
            records_come_back_and_are_replaced,
            many_threads_write_one_blob,
        );
    };
    ($fixture:expr, $($test:ident),+ $(,)?) => {
        $(#[test]
        fn $test() {
            $crate::store::conformance::$test(&$fixture);
        })+
    };
}
pub(crate) use suite;

fn read(fixture: &impl Fixture, id: &BlobId) -> Result<Option<Vec<u8>>, Error> {
    let mut bytes = Vec::new();
    Ok(fixture.store().read(id, &mut bytes)?.then_some(bytes))
}

fn write(fixture: &impl Fixture, bytes: &[u8]) -> BlobId {
    let id = BlobId::of(bytes);
    fixture.store().write(&id, &mut &*bytes).unwrap();
    id
}

pub fn blobs_come_back(fixture: &impl Fixture) {
    for size in [0, 1, 4096, 1 << 20] {
        let bytes: Vec<u8> = (0..size).map(|i: u32| (i % 251) as u8).collect();
        let id = write(fixture, &bytes);
        assert_eq!(write(fixture, &bytes), id, "writing again is fine");
        assert!(fixture.store().has(&id).unwrap());
        assert_eq!(read(fixture, &id).unwrap(), Some(bytes.clone()));
        if let Some(path) = fixture.store().local_path(&id) {
            assert_eq!(std::fs::read(path).unwrap(), bytes);
        }
    }
}

pub fn absent_blobs_are_said_to_be_absent(fixture: &impl Fixture) {
    let id = BlobId::of(b"never written");
    assert!(!fixture.store().has(&id).unwrap());
    assert_eq!(read(fixture, &id).unwrap(), None);
}

pub fn wrong_bytes_are_refused(fixture: &impl Fixture) {
    let id = BlobId::of(b"right");
    let error = fixture.store().write(&id, &mut &b"wrong"[..]).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    assert!(!fixture.store().has(&id).unwrap() && !fixture.store().has(&BlobId::of(b"wrong")).unwrap());
    write(fixture, b"right");
    assert!(fixture.store().write(&id, &mut &b"wrong"[..]).is_err());
    assert_eq!(read(fixture, &id).unwrap(), Some(b"right".to_vec()), "the store is as before");
}

pub fn a_failing_source_leaves_nothing(fixture: &impl Fixture) {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the cable was pulled"))
        }
    }
    let id = BlobId::of(b"right");
    let mut source = (&b"rig"[..]).chain(Failing);
    assert!(matches!(fixture.store().write(&id, &mut source).unwrap_err(), Error::Io { .. }));
    assert!(!fixture.store().has(&id).unwrap());
}

pub fn damage_is_found_and_mended(fixture: &impl Fixture) {
    let id = write(fixture, b"right");
    fixture.damage(&id);
    let error = read(fixture, &id).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    write(fixture, b"right");
    assert_eq!(read(fixture, &id).unwrap(), Some(b"right".to_vec()));
}

pub fn removal_is_idempotent(fixture: &impl Fixture) {
    let (id, key) = (write(fixture, b"x"), ActionKey::new(Digest::of(b"k")));
    fixture.store().put_record(&key, b"r").unwrap();
    for _ in 0..2 {
        fixture.store().remove(&id).unwrap();
        fixture.store().remove_record(&key).unwrap();
        assert!(!fixture.store().has(&id).unwrap());
        assert_eq!(fixture.store().get_record(&key).unwrap(), None);
    }
}

pub fn records_come_back_and_are_replaced(fixture: &impl Fixture) {
    let (one, two) = (ActionKey::new(Digest::of(b"1")), ActionKey::new(Digest::of(b"2")));
    assert_eq!(fixture.store().get_record(&one).unwrap(), None);
    fixture.store().put_record(&one, b"old").unwrap();
    fixture.store().put_record(&one, b"new").unwrap();
    assert_eq!(fixture.store().get_record(&one).unwrap(), Some(b"new".to_vec()));
    assert_eq!(fixture.store().get_record(&two).unwrap(), None);
}

pub fn many_threads_write_one_blob(fixture: &impl Fixture) {
    let bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let id = write(fixture, &bytes);
                assert_eq!(read(fixture, &id).unwrap().as_ref(), Some(&bytes), "whole at every moment after a write");
            });
        }
    });
}
