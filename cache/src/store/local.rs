//! A store in a folder.
//!
//! ```text
//! blobs/ab/cdef…         a file's bytes under their BLAKE3, mode 0444; trees too
//! records/ab/cdef….rec   what an action gave
//! tmp/                   temporary files, on the same file system, so that a rename ends every write
//! ```
//!
//! # Durability
//! A final name is only ever given by a rename of a finished file, so a process that is killed leaves temporary files alone. A
//! machine that loses power could still keep the name and lose the bytes, and a lost blob may cost hours of training, so blobs and
//! records are synced before the rename: one by one if they are few, else with one `syncfs`. Folders are not synced: a name that is
//! lost is found missing, and its stage runs again.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::session::{Session, sweep};
use super::{Store, copy_hashed};
use crate::content::ObjectId;
use crate::digest::{ActionKey, BlobId};
use crate::error::{Error, Result};

/// From this many files on, one `syncfs` is faster than an fsync for each.
const MANY: usize = 16;

/// Blobs and records in a folder of this machine.
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
    session: Session,
}

/// A finished temporary file that waits for its name.
#[derive(Debug)]
pub(crate) struct Staged {
    pub id: BlobId,
    pub path: PathBuf,
}

impl LocalStore {
    /// Opens the store in the folder `root`, which is made if it is not there.
    ///
    /// # Errors
    /// Names the folder that cannot be made.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        for name in ["blobs", "records", "tmp"] {
            let folder = root.join(name);
            fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        }
        let session = Session::start(&root.join("tmp"))?;
        Ok(Self { root, session })
    }

    /// Where a blob lies or would lie.
    pub fn blob_path(&self, id: &BlobId) -> PathBuf {
        let name = id.to_string();
        self.root.join("blobs").join(&name[..2]).join(&name[2..])
    }

    fn record_path(&self, key: &ActionKey) -> PathBuf {
        let name = key.to_string();
        self.root.join("records").join(&name[..2]).join(format!("{}.rec", &name[2..]))
    }

    /// A path for a temporary file or folder of this process, never given before.
    pub(crate) fn temporary(&self, name: &str) -> PathBuf {
        self.session.path(name)
    }

    /// Removes what killed processes left in `tmp/`, and says how many they were.
    ///
    /// # Errors
    /// Names what cannot be removed.
    pub fn sweep(&self) -> Result<usize> {
        sweep(&self.root.join("tmp"))
    }

    /// Writes `source` to a temporary file.
    pub(crate) fn stage(&self, source: &mut dyn Read) -> Result<Staged> {
        let path = self.temporary("blob");
        let mut write = || {
            let mut file = File::create_new(&path)?;
            let id = copy_hashed(source, &mut file)?;
            file.set_permissions(Permissions::from_mode(0o444))?;
            Ok(id)
        };
        match write() {
            Ok(id) => Ok(Staged { id, path }),
            Err(e) => {
                remove(&path)?;
                Err(Error::io("write", &path)(e))
            }
        }
    }

    /// Gives staged blobs their names, once their bytes are on disk. Replaces what lies there.
    pub(crate) fn commit(&self, staged: &[Staged]) -> Result<()> {
        if staged.len() >= MANY {
            let root = File::open(&self.root).map_err(Error::io("open", &self.root))?;
            rustix::fs::syncfs(&root).map_err(|e| Error::io("sync", &self.root)(e.into()))?;
        } else {
            staged.par_iter().try_for_each(|blob| sync(&blob.path))?;
        }
        staged.iter().try_for_each(|blob| rename(&blob.path, &self.blob_path(&blob.id)))
    }
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("sync", path))
}

/// Renames, and makes the folder above `to` if it is not there.
fn rename(from: &Path, to: &Path) -> Result<()> {
    match (fs::rename(from, to), to.parent()) {
        (Err(e), Some(parent)) if e.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            fs::rename(from, to).map_err(Error::io("write", to))
        }
        (result, _) => result.map_err(Error::io("write", to)),
    }
}

/// Removes a file. Nothing there is fine.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

impl Store for LocalStore {
    fn has(&self, id: &BlobId) -> Result<bool> {
        let path = self.blob_path(id);
        path.try_exists().map_err(Error::io("examine", &path))
    }

    fn read(&self, id: &BlobId, sink: &mut dyn Write) -> Result<bool> {
        let path = self.blob_path(id);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(Error::io("open", &path)(e)),
        };
        let found = copy_hashed(&mut file, sink).map_err(Error::io("read", &path))?;
        if found == *id { Ok(true) } else { Err(Error::Damaged { object: ObjectId::Blob(*id) }) }
    }

    fn write(&self, id: &BlobId, source: &mut dyn Read) -> Result<()> {
        let staged = self.stage(source)?;
        if staged.id != *id {
            remove(&staged.path)?;
            return Err(Error::Mismatch { expected: ObjectId::Blob(*id), found: ObjectId::Blob(staged.id) });
        }
        self.commit(&[staged])
    }

    fn remove(&self, id: &BlobId) -> Result<()> {
        remove(&self.blob_path(id))
    }

    fn get_record(&self, key: &ActionKey) -> Result<Option<Vec<u8>>> {
        let path = self.record_path(key);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", &path)(e)),
        }
    }

    fn put_record(&self, key: &ActionKey, bytes: &[u8]) -> Result<()> {
        let temporary = self.temporary("record");
        fs::write(&temporary, bytes).map_err(Error::io("write", &temporary))?;
        sync(&temporary)?;
        rename(&temporary, &self.record_path(key))
    }

    fn remove_record(&self, key: &ActionKey) -> Result<()> {
        remove(&self.record_path(key))
    }

    fn local_path(&self, id: &BlobId) -> Option<PathBuf> {
        Some(self.blob_path(id))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::conformance::{Fixture, suite};
    use super::*;

    struct Local {
        store: LocalStore,
        folder: tempfile::TempDir,
    }

    impl Local {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            Self { store: LocalStore::open(folder.path()).unwrap(), folder }
        }

        /// Every file of the store that has a final name.
        fn named(&self) -> Vec<PathBuf> {
            let list = |path: PathBuf| fs::read_dir(path).unwrap().map(|item| item.unwrap().path());
            let shards = ["blobs", "records"].into_iter().flat_map(|name| list(self.folder.path().join(name)));
            shards.flat_map(list).collect()
        }

        fn temporary(&self) -> usize {
            fs::read_dir(self.store.temporary("x").parent().unwrap()).unwrap().count()
        }
    }

    impl Fixture for Local {
        fn store(&self) -> &dyn Store {
            &self.store
        }

        fn damage(&self, id: &BlobId) {
            let path = self.store.blob_path(id);
            fs::remove_file(&path).unwrap();
            fs::write(path, "damaged").unwrap();
        }
    }

    suite!(Local::new());

    /// A source that looks at the store while it is being read: what SIGKILL at that moment would leave.
    struct Spy<'a>(&'a Local, &'static [u8], usize);

    impl Read for Spy<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            assert_eq!(self.0.named(), Vec::<PathBuf>::new(), "nothing has a final name before it is whole");
            self.2 += 1;
            let count = self.1.read(&mut buffer[..1])?;
            Ok(count)
        }
    }

    #[test]
    fn nothing_half_written_has_a_final_name() {
        let local = Local::new();
        let id = BlobId::of(b"trestle");
        let mut spy = Spy(&local, b"trestle", 0);
        local.store.write(&id, &mut spy).unwrap();
        assert_eq!(spy.2, 8);
        assert_eq!(local.named(), [local.store.blob_path(&id)]);
        assert_eq!(local.temporary(), 0);
    }

    #[test]
    fn a_failed_write_leaves_no_temporary_file() {
        let local = Local::new();
        assert!(local.store.write(&BlobId::of(b"right"), &mut &b"wrong"[..]).is_err());
        assert_eq!((local.named().len(), local.temporary()), (0, 0));
    }

    #[test]
    fn blobs_are_read_only_and_lie_where_b3sum_says() {
        let local = Local::new();
        local.store.write(&BlobId::of(b""), &mut &b""[..]).unwrap();
        let path = local.folder.path().join("blobs/af/1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o444);
    }

    #[test]
    fn many_blobs_are_committed_at_once() {
        let local = Local::new();
        let staged: Vec<_> = (0..2 * MANY as u32).map(|i| local.store.stage(&mut &i.to_le_bytes()[..]).unwrap()).collect();
        assert_eq!(local.named().len(), 0);
        local.store.commit(&staged).unwrap();
        assert_eq!((local.named().len(), local.temporary()), (2 * MANY, 0));
    }
}
