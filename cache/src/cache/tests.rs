#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, FileTimes, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::*;
use crate::manifest::{Manifest, Section};
use crate::record::Provenance;
use crate::record::{BadRecord, tests::sample};
use crate::store::Durability;

/// A scratch project with a cache in it.
struct Project {
    folder: tempfile::TempDir,
    cache: Cache,
}

impl Project {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path().join(".trestle")).unwrap();
        Self { folder, cache }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A folder with everything that a folder may hold.
    fn rich_folder(&self, name: &str) -> PathBuf {
        self.write(&format!("{name}/a.txt"), "a");
        self.write(&format!("{name}/deep/er/b.bin"), vec![7; 300_000]);
        let script = self.write(&format!("{name}/deep/run.sh"), "#!/bin/sh\n");
        fs::set_permissions(script, Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(self.path(name).join("empty/nested")).unwrap();
        symlink("../a.txt", self.path(name).join("deep/up")).unwrap();
        self.path(name)
    }

    /// Opens the cache again, as the next run does, with the index of the last one.
    fn reopen(&mut self) {
        self.cache.flush().unwrap();
        self.cache = Cache::open(self.path(".trestle")).unwrap();
    }
}

/// Long enough for the index to trust a file.
fn settle() {
    std::thread::sleep(Duration::from_millis(60));
}

fn blob(content: &Content) -> BlobId {
    let Content::Blob { id, .. } = content else { panic!("{content} is not a blob") };
    *id
}

/// Flips one bit and restores the mtime: the stealthiest damage that needs no root.
fn flip(path: &Path) {
    let before = fs::metadata(path).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
    file.set_times(FileTimes::new().set_modified(before.modified().unwrap())).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o444)).unwrap();
    let after = fs::metadata(path).unwrap();
    assert_eq!((before.modified().unwrap(), before.len()), (after.modified().unwrap(), after.len()));
}

/// Every path below a folder with what matters of it.
fn describe(root: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for item in fs::read_dir(root).unwrap() {
        let path = item.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        let name = PathBuf::from(path.file_name().unwrap());
        if meta.is_symlink() {
            found.push((name, format!("link {}", fs::read_link(&path).unwrap().display())));
        } else if meta.is_dir() {
            found.push((name.clone(), "folder".to_owned()));
            found.extend(describe(&path).into_iter().map(|(below, what)| (name.join(below), what)));
        } else {
            let id = BlobId::of(&fs::read(&path).unwrap());
            found.push((name, format!("file {id} {}", meta.mode() & 0o100 != 0)));
        }
    }
    found.sort();
    found
}

#[test]
fn folders_come_back_as_they_went_in() {
    let project = Project::new();
    let folder = project.rich_folder("out");
    let before = describe(&folder);
    let named = project.cache.source(&folder).unwrap();
    let content = project.cache.ingest(&folder, Durability::Later).unwrap();
    assert_eq!(named, content, "a folder has one name, as a source and as an output");
    assert_eq!(project.cache.check(&content).unwrap(), Health::Sound);
    for how in [How::Copy, How::Link] {
        let dest = project.path(&format!("new/{how:?}"));
        project.cache.materialize(&content, &dest, how).unwrap();
        assert_eq!(describe(&dest), before, "{how:?}");
        assert_eq!(project.cache.source(&dest).unwrap(), content);
        let file = fs::metadata(dest.join("a.txt")).unwrap();
        let mode = if how == How::Copy { 0o644 } else { 0o444 };
        assert_eq!((file.mode() & 0o777, file.nlink()), (mode, if how == How::Copy { 1 } else { 2 }));
    }
    let error = project.cache.materialize(&content, project.path("new/Copy"), How::Copy).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }));
}

#[test]
fn files_come_back_with_their_executable_bit() {
    let project = Project::new();
    let path = project.write("run.sh", "#!/bin/sh\n");
    let plain = project.cache.source(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    let content = project.cache.ingest(&path, Durability::Later).unwrap();
    assert_ne!(content, plain);
    assert_eq!(blob(&content), blob(&plain), "the bytes are the same blob");
    assert_eq!(project.cache.read_blob(&blob(&content)).unwrap(), b"#!/bin/sh\n");
    for (how, mode) in [(How::Copy, 0o755), (How::Link, 0o555)] {
        let dest = project.path(&format!("{how:?}"));
        project.cache.materialize(&content, &dest, how).unwrap();
        assert_eq!(fs::metadata(dest).unwrap().mode() & 0o777, mode);
    }
}

#[test]
fn damage_with_the_mtime_restored_is_found_and_mended() {
    let mut project = Project::new();
    let content = project.cache.ingest(project.write("out", "right"), Durability::Later).unwrap();
    let path = project.cache.blob_path(&blob(&content));
    settle();
    assert_eq!(project.cache.check(&content).unwrap(), Health::Sound);
    project.reopen();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(project.cache.index.known(&Stat::from(&meta)), Some(blob(&content)), "known by its stat alone");

    flip(&path);
    let damaged = ObjectId::Blob(blob(&content));
    assert_eq!(project.cache.check(&content).unwrap(), Health::Damaged(damaged));
    let again = || {
        project.cache.ingest(project.write("out", "right"), Durability::Later).unwrap();
        flip(&path);
    };
    for how in [How::Copy, How::Link] {
        let error = project.cache.materialize(&content, project.path("dest"), how).unwrap_err();
        assert!(matches!(error, Error::Damaged { object } if object == damaged), "{error}");
        assert_eq!(project.cache.check(&content).unwrap(), Health::Missing(damaged), "removed, so that it is made again");
        again();
    }
    let left: Vec<_> = fs::read_dir(project.folder.path()).unwrap().map(|item| item.unwrap().file_name()).collect();
    assert_eq!(left, [".trestle"], "nothing stays, under no name");
    assert!(matches!(project.cache.read_blob(&blob(&content)), Err(Error::Damaged { .. })));
    again();
    assert!(matches!(project.cache.open_blob(&blob(&content)), Err(Error::Damaged { .. })));

    again();
    // Made anew: the damaged blob is replaced, with or without being forgotten first.
    assert_eq!(project.cache.ingest(project.write("out", "right"), Durability::Later).unwrap(), content);
    assert_eq!(project.cache.check(&content).unwrap(), Health::Sound);
    flip(&path);
    project.cache.forget(damaged).unwrap();
    assert_eq!(project.cache.check(&content).unwrap(), Health::Missing(damaged));
    project.cache.ingest(project.write("out", "right"), Durability::Later).unwrap();
    assert_eq!(project.cache.check(&content).unwrap(), Health::Sound);
}

/// Bytes that rot on the disk keep their stat, so the index vouches for them. They are not served, and found missing from then on.
#[test]
fn bytes_that_rot_behind_their_stat_are_not_served() {
    let project = Project::new();
    let content = project.cache.ingest(project.write("out", "right"), Durability::Later).unwrap();
    let path = project.cache.blob_path(&blob(&content));
    flip(&path);
    let rotten = hash_file(&path).unwrap();
    assert!(project.cache.index.note(&Hashed { id: blob(&content), began: i64::MAX, ..rotten }));
    assert_eq!(project.cache.check(&content).unwrap(), Health::Sound);
    let error = project.cache.materialize(&content, project.path("dest"), How::Link).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }) && !project.path("dest").exists());
    assert!(matches!(project.cache.check(&content).unwrap(), Health::Missing(_)));
}

#[test]
fn damage_at_once_after_the_ingest_is_found() {
    for _ in 0..50 {
        let project = Project::new();
        let content = project.cache.ingest(project.write("out", "right"), Durability::Later).unwrap();
        assert_eq!(project.cache.check(&content).unwrap(), Health::Sound);
        flip(&project.cache.blob_path(&blob(&content)));
        assert!(matches!(project.cache.check(&content).unwrap(), Health::Damaged(_)));
    }
}

#[test]
fn every_object_of_a_tree_is_checked() {
    let project = Project::new();
    let folder = project.rich_folder("out");
    let content = project.cache.ingest(&folder, Durability::Later).unwrap();
    let blobs = project.path(".trestle/blobs");
    let objects: Vec<_> = describe(&blobs).into_iter().filter(|(_, what)| what.starts_with("file")).collect();
    assert_eq!(objects.len(), 3 + 5, "three files; the root, deep, deep/er, empty, empty/nested");
    for (path, _) in objects {
        let path = blobs.join(path);
        let kept = fs::read(&path).unwrap();
        flip(&path);
        assert!(matches!(project.cache.check(&content).unwrap(), Health::Damaged(_)), "{}", path.display());
        assert!(matches!(project.cache.materialize(&content, project.path("to"), How::Link), Err(Error::Damaged { .. })));
        remove_all_of(&path);
        assert!(matches!(project.cache.check(&content).unwrap(), Health::Missing(_)), "{}", path.display());
        assert!(matches!(project.cache.materialize(&content, project.path("to"), How::Copy), Err(Error::Missing { .. })));
        assert!(!project.path("to").exists());
        fs::write(&path, kept).unwrap();
        assert_eq!(project.cache.check(&content).unwrap(), Health::Sound);
    }
}

#[test]
fn a_stage_that_writes_to_a_linked_input_is_found_out() {
    let project = Project::new();
    let content = project.cache.ingest(project.write("out", "right".repeat(20_000)), Durability::Later).unwrap();
    let dest = project.path("work/in");
    project.cache.materialize(&content, &dest, How::Link).unwrap();
    // As root, or after a chmod, mode 0444 does not protect it.
    flip(&dest);
    settle();
    assert_eq!(project.cache.settle(u64::MAX).unwrap(), [blob(&content)]);
    assert!(project.cache.materialize(&content, project.path("other"), How::Copy).is_err());
}

#[test]
fn settled_blobs_are_known_by_their_stat() {
    let mut project = Project::new();
    let content = project.cache.ingest(project.rich_folder("out"), Durability::Later).unwrap();
    project.cache.materialize(&content, project.path("in"), How::Link).unwrap();
    remove_all_of(&project.path("in"));
    settle();
    assert_eq!(project.cache.settle(u64::MAX).unwrap(), []);
    project.reopen();
    for file in project.cache.listing(&content).unwrap().files {
        let meta = fs::metadata(project.cache.blob_path(&file.id)).unwrap();
        assert_eq!(project.cache.index.known(&Stat::from(&meta)), Some(file.id), "{}", file.path.display());
    }
}

fn remove_all_of(path: &Path) {
    crate::files::remove_all(path).unwrap();
}

#[test]
fn sources_are_named_by_their_bytes_alone() {
    let project = Project::new();
    let path = project.write("data/file", "one");
    let one = project.cache.source(&path).unwrap();
    settle();
    assert_eq!(project.cache.source(&path).unwrap(), one);
    let known = project.cache.index.known(&Stat::from(&fs::metadata(&path).unwrap()));
    assert_eq!(known, Some(blob(&one)));

    // Another mtime, another name, another folder: the same content.
    OpenOptions::new().write(true).open(&path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let folder = project.cache.source(project.path("data")).unwrap();
    fs::rename(project.path("data"), project.path("moved")).unwrap();
    let path = project.path("moved/file");
    assert_eq!(project.cache.source(&path).unwrap(), one);
    assert_eq!(project.cache.source(project.path("moved")).unwrap(), folder);
    symlink(&path, project.path("link")).unwrap();
    assert_eq!(project.cache.source(project.path("link")).unwrap(), one);

    // Other bytes of the same length behind the same mtime: another content.
    settle();
    project.cache.source(&path).unwrap();
    flip(&path);
    assert_ne!(project.cache.source(&path).unwrap(), one);
}

#[test]
fn files_of_every_size_have_the_digest_of_their_bytes() {
    let project = Project::new();
    let chunk = 1 << 20;
    for size in [0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk, 3 * chunk + 7] {
        let bytes: Vec<u8> = (0..size).map(|i: u32| (i % 251) as u8).collect();
        let path = project.write("file", &bytes);
        assert_eq!(blob(&project.cache.source(&path).unwrap()), BlobId::of(&bytes), "{size} bytes");
    }
}

#[test]
fn a_file_rewritten_within_the_clock_s_grain_is_read_again() {
    let project = Project::new();
    for round in 0..200u32 {
        let path = project.write("file", round.to_le_bytes());
        assert_eq!(blob(&project.cache.source(&path).unwrap()), BlobId::of(&round.to_le_bytes()));
    }
}

#[test]
fn odd_things_are_refused_before_anything_is_moved() {
    let project = Project::new();
    let folder = project.rich_folder("out");
    let before = describe(&folder);
    let refused = |wanted: &str| {
        for error in [project.cache.source(&folder).unwrap_err(), project.cache.ingest(&folder, Durability::Later).unwrap_err()] {
            assert!(error.to_string().contains(wanted), "{error}");
        }
    };
    let odd = folder.join("deep/odd");
    let _socket = std::os::unix::net::UnixListener::bind(&odd).unwrap();
    refused("is a socket");
    fs::remove_file(&odd).unwrap();
    for target in ["/etc/passwd", "../../secret", "er/../../../secret"] {
        symlink(target, &odd).unwrap();
        refused("leaves its folder");
        fs::remove_file(&odd).unwrap();
    }
    let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"deep/\xff");
    fs::write(folder.join(name), "x").unwrap();
    refused("is not UTF-8");
    fs::remove_file(folder.join(name)).unwrap();
    assert_eq!(describe(&folder), before);

    let error = project.cache.source(project.folder.path()).unwrap_err();
    assert!(matches!(error, Error::HoldsCache { .. }), "{error}");
    assert!(matches!(project.cache.source("/dev/null"), Err(Error::Special { kind: "device", .. })));
    let error = project.cache.source(project.path("nowhere")).unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
    symlink("a.txt", project.path("link")).unwrap();
    assert!(matches!(project.cache.ingest(project.path("link"), Durability::Later), Err(Error::LinkLeaves { .. })));
}

#[test]
fn a_file_with_another_hard_link_is_copied() {
    let project = Project::new();
    // Large enough to be linked.
    let right = "right".repeat(20_000);
    let path = project.write("out", &right);
    project.cache.store_file(&path).unwrap();
    assert_eq!((fs::read(&path).unwrap(), fs::metadata(&path).unwrap().mode() & 0o200), (right.into_bytes(), 0o200), "left as it was");
    fs::hard_link(&path, project.path("other")).unwrap();
    let content = project.cache.ingest(&path, Durability::Later).unwrap();
    fs::write(project.path("other"), "wrong").unwrap();
    assert_eq!(project.cache.check(&content).unwrap(), Health::Sound);

    // A stage that moves its linked input into its outputs shares no file with the store either.
    project.cache.materialize(&content, project.path("in"), How::Link).unwrap();
    fs::rename(project.path("in"), project.path("moved")).unwrap();
    assert_eq!(project.cache.ingest(project.path("moved"), Durability::Later).unwrap(), content);
    flip(&project.path("moved"));
    assert_eq!(project.cache.check(&content).unwrap(), Health::Sound);
}

#[test]
fn many_threads_ingest_one_blob() {
    let project = Project::new();
    let bytes = vec![9; 1 << 20];
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (project, bytes) = (&project, &bytes);
            scope.spawn(move || {
                for round in 0..5 {
                    let content = project.cache.ingest(project.write(&format!("{thread}-{round}"), bytes), Durability::Later).unwrap();
                    assert_eq!(project.cache.check(&content).unwrap(), Health::Sound);
                    let dest = project.path(&format!("in-{thread}-{round}"));
                    project.cache.materialize(&content, dest, How::Link).unwrap();
                }
            });
        }
    });
    let blobs: Vec<_> = describe(&project.path(".trestle/blobs")).into_iter().filter(|(_, what)| what != "folder").collect();
    assert_eq!(blobs.len(), 1);
}

#[test]
fn a_bad_record_is_absent_with_a_reason() {
    let project = Project::new();
    let record = sample();
    assert_eq!(project.cache.lookup(&record.key).unwrap(), Lookup::Absent);
    project.cache.put_record(&record).unwrap();
    assert_eq!(project.cache.record(&record.key).unwrap(), Some(record.clone()));
    let file = project.path(".trestle/records");
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() - 100;
    bytes[middle] ^= 1;
    fs::write(&file, &bytes).unwrap();
    assert_eq!(project.cache.lookup(&record.key).unwrap(), Lookup::Bad(BadRecord::Checksum));
    assert_eq!(project.cache.record(&record.key).unwrap(), None);
    project.cache.put_record(&record).unwrap();
    assert_eq!(project.cache.record(&record.key).unwrap(), Some(record.clone()));
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(project.cache.lookup(&record.key).unwrap(), Lookup::Absent, "cut short");
    project.cache.put_record(&record).unwrap();
    assert_eq!(project.cache.record(&record.key).unwrap(), Some(record.clone()));
    project.cache.remove_record(&record.key).unwrap();
    assert_eq!(project.cache.record(&record.key).unwrap(), None);
}

#[test]
fn a_copied_source_is_named_as_it_was_copied() {
    let project = Project::new();
    let folder = project.rich_folder("data");
    let content = project.cache.source(&folder).unwrap();
    assert_eq!(project.cache.copy_source(&folder, project.path("work/data"), How::Copy).unwrap(), content);
    assert_eq!(describe(&project.path("work/data")), describe(&folder));
    flip(&folder.join("a.txt"));
    assert_ne!(project.cache.copy_source(&folder, project.path("again"), How::Copy).unwrap(), content);
    assert!(matches!(project.cache.copy_source(&folder, project.path("again"), How::Copy), Err(Error::Exists { .. })));
    symlink("/etc/passwd", folder.join("odd")).unwrap();
    assert!(project.cache.copy_source(&folder, project.path("odd"), How::Copy).is_err());
    assert!(!project.path("odd").exists());
    let error = project.cache.copy_source(project.folder.path(), project.path("odd"), How::Copy).unwrap_err();
    assert!(matches!(error, Error::HoldsCache { .. }), "{error}");
}

#[test]
fn one_run_at_a_time() {
    let project = Project::new();
    let lock = project.cache.try_lock().unwrap().unwrap();
    assert!(project.cache.try_lock().unwrap().is_none());
    drop(lock);
    assert!(project.cache.try_lock().unwrap().is_some());
}

#[test]
fn temporary_folders_are_fresh_and_go_with_the_cache() {
    let project = Project::new();
    let (one, two) = (project.cache.tmp_dir("train[seed=0]/x").unwrap(), project.cache.tmp_dir("train[seed=0]/x").unwrap());
    assert_ne!(one, two);
    assert_eq!(fs::read_dir(&one).unwrap().count(), 0);
    project.write("sealed/file", "x");
    fs::rename(project.path("sealed"), one.join("sealed")).unwrap();
    fs::set_permissions(one.join("sealed"), Permissions::from_mode(0o500)).unwrap();
    assert_eq!(project.cache.sweep_tmp(&mut |_| {}).unwrap(), 0, "its owner lives");
    drop(project.cache);
    assert!(!one.exists() && !two.exists());
}

#[test]
fn another_format_is_refused() {
    let project = Project::new();
    fs::write(project.path(".trestle/format"), "trestle cache v0\n").unwrap();
    let error = Cache::open(project.path(".trestle")).unwrap_err();
    assert!(matches!(&error, Error::Format { found, .. } if found == "trestle cache v0"), "{error}");
}

fn record_of(project: &Project, name: &str, made: u64) -> ActionRecord {
    let mut manifest = Manifest::new();
    manifest.push(Section::Stage, "kind", name);
    let content = project.cache.ingest(project.write("out", name.repeat(1000)), Durability::Later).unwrap();
    let provenance = Provenance { stage: name.to_owned(), started_unix_ms: made, ..Provenance::default() };
    let record = ActionRecord::new(manifest, [("out".to_owned(), content)].into(), BTreeMap::new(), provenance);
    project.cache.put_record(&record).unwrap();
    record
}

#[test]
fn collecting_keeps_what_is_referred_to_and_the_newest() {
    let project = Project::new();
    let records: Vec<_> = (1..=4).map(|i| record_of(&project, &format!("{i}"), i)).collect();
    // A blob that no record names: a killed run.
    project.cache.ingest(project.write("out", "orphan"), Durability::Later).unwrap();
    let live = [records[0].key].into();
    let lock = project.cache.try_lock().unwrap().unwrap();
    let bounds = Bounds { max_size: Some(2000), dry_run: true, ..Bounds::default() };
    let planned = project.cache.collect(&lock, &live, &bounds).unwrap();
    assert_eq!((planned.records, planned.records_removed, planned.records_live, planned.blobs, planned.blobs_removed), (4, 2, 1, 5, 3));
    assert!(project.cache.record(&records[1].key).unwrap().is_some(), "a dry run removes nothing");
    assert_eq!(project.cache.collect(&lock, &live, &Bounds { dry_run: false, ..bounds }).unwrap(), planned);
    let left: Vec<bool> = records.iter().map(|record| project.cache.record(&record.key).unwrap().is_some()).collect();
    assert_eq!(left, [true, false, false, true]);
    assert_eq!(project.cache.check(&records[0].outputs["out"]).unwrap(), Health::Sound);
    let old = Bounds { max_age: Some(std::time::Duration::from_secs(1)), ..Bounds::default() };
    assert_eq!(project.cache.collect(&lock, &live, &old).unwrap().records_removed, 1);
    assert!(project.cache.record(&records[0].key).unwrap().is_some(), "it is referred to");
}

#[test]
fn verifying_finds_and_mends() {
    let project = Project::new();
    let records: Vec<_> = (1..=3).map(|i| record_of(&project, &format!("{i}"), i)).collect();
    assert!(project.cache.verify(false).unwrap().is_sound());
    flip(&project.cache.blob_path(&blob(&records[0].outputs["out"])));
    fs::remove_file(project.cache.blob_path(&blob(&records[1].outputs["out"]))).unwrap();
    let found = project.cache.verify(true).unwrap();
    assert_eq!((found.records, found.blobs, found.bad_blobs.len(), found.incomplete.len()), (1, 1, 1, 2));
    assert!(project.cache.verify(false).unwrap().is_sound());
    assert!(project.cache.record(&records[0].key).unwrap().is_none());
}
