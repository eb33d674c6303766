//! A store in a folder.
//!
//! ```text
//! blobs/ab/cdef…         a file's bytes under their BLAKE3, mode 0444; trees too
//! records                what actions gave, see `log`
//! tmp/                   temporary files, on the same file system, so that a rename ends every write
//! spare/                 an empty folder for the next of them
//! ```
//!
//! # Durability
//! A final name is only ever given by a rename of a finished file, so a process that is killed leaves temporary files alone. A
//! machine that loses power could still keep the name and lose the bytes. Where a lost blob would cost hours of training the caller
//! asks for it to be [`Durable`](Durability::Durable): it is synced before it gets its name. A stage of milliseconds is not worth
//! an fsync; what it gave is synced with everything else by [`LocalStore::sync`], or left to the system with a mark by [`LocalStore::leave`], and
//! whatever a crash before that took is found by its hash or missed by its name, and made again. Folders are not synced for the same reason.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use rayon::prelude::*;

use super::log::RecordLog;
use super::session::{Session, sweep};
use super::unsynced::{Mark, Stale};
use super::{Store, copy_hashed};
use crate::content::ObjectId;
use crate::digest::{ActionKey, BlobId};
use crate::error::{Error, Result};
use crate::parallel;

/// From this many files on, one `syncfs` is faster than an fsync for each.
const MANY: usize = 16;

/// Blobs and records in a folder of this machine.
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
    records: RecordLog,
    /// Of the file system.
    device: OnceLock<u64>,
    /// Begun by the first temporary file: who only reads leaves no trace, and may do so in a folder that cannot be written.
    session: OnceLock<Session>,
    /// Blobs that have their name and were not synced yet.
    unsynced: Mutex<Vec<PathBuf>>,
    mark: Mark,
}

/// Whether what is stored must survive a loss of power at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// On disk before it has its name.
    Durable,
    /// On disk with the next [`sync`](crate::Cache::sync).
    Later,
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
        let records = RecordLog::new(root.join("records"));
        let mark = Mark::new(&root);
        Ok(Self { root, records, device: OnceLock::new(), session: OnceLock::new(), unsynced: Mutex::default(), mark })
    }

    /// Where a blob lies or would lie.
    pub fn blob_path(&self, id: &BlobId) -> PathBuf {
        let name = id.to_string();
        self.root.join("blobs").join(&name[..2]).join(&name[2..])
    }

    /// Whether a file can become a blob by a rename: it lies on the store's file system, and no other name leads to its bytes.
    pub(crate) fn can_take(&self, file: &fs::Metadata) -> bool {
        let device = *self.device.get_or_init(|| fs::metadata(&self.root).map_or(0, |meta| meta.dev()));
        file.nlink() == 1 && file.dev() == device
    }

    /// The records.
    pub(crate) fn records(&self) -> &RecordLog {
        &self.records
    }

    /// A path for a temporary file or folder of this process, never given before.
    pub(crate) fn temporary(&self, name: &str) -> Result<PathBuf> {
        if let Some(session) = self.session.get() {
            return Ok(session.path(name));
        }
        let tmp = self.root.join("tmp");
        fs::create_dir_all(&tmp).map_err(Error::io("create", &tmp))?;
        let session = Session::start(&tmp, &self.root.join("spare"))?;
        // Two threads may start one each: the second goes again.
        Ok(self.session.get_or_init(|| session).path(name))
    }

    /// Removes what killed processes left in `tmp/`, and says how many they were. `before` is called with each folder that is to go.
    ///
    /// # Errors
    /// Names what cannot be read.
    pub fn sweep(&self, before: &mut dyn FnMut(&Path)) -> Result<usize> {
        let tmp = self.root.join("tmp");
        if tmp.exists() { sweep(&tmp, before) } else { Ok(0) }
    }

    /// Brings everything that was stored to disk, also what other processes [left](LocalStore::leave) to the system.
    ///
    /// # Errors
    /// Names what cannot be synced; it is tried again by the next call.
    pub fn sync(&self) -> Result<()> {
        let paths = std::mem::take(&mut *self.unsynced());
        let some = || {
            // A blob that is gone by now needs no sync.
            let sync = |path: &PathBuf| if path.exists() { sync(path) } else { Ok(()) };
            parallel::map(&paths, 2, sync).into_iter().collect()
        };
        let all = || sync_all(&self.root);
        let synced = self.mark.lift(all).and_then(|is_all| match is_all {
            true => Ok(()),
            false if paths.len() >= MANY => all(),
            false => some(),
        });
        if synced.is_err() {
            self.unsynced().extend(paths);
        }
        synced.and_then(|()| self.records.sync())
    }

    /// Leaves what was stored to the system, which brings it to disk within half a minute, with a mark in case that does not happen. Syncs where no
    /// mark can be left.
    ///
    /// # Errors
    /// Names what cannot be synced.
    pub fn leave(&self) -> Result<()> {
        if self.unsynced().is_empty() {
            return Ok(());
        }
        if matches!(self.mark.leave(), Ok(true)) {
            self.unsynced().clear();
            return Ok(());
        }
        self.sync()
    }

    /// Brings all of the file system to disk.
    pub(crate) fn sync_all(&self) -> Result<()> {
        sync_all(&self.root)
    }

    /// The mark of an earlier start of the machine, if what was stored then may not have reached the disk.
    pub(crate) fn stale_mark(&self) -> Result<Option<Stale>> {
        self.mark.stale()
    }

    fn unsynced(&self) -> std::sync::MutexGuard<'_, Vec<PathBuf>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes `source` to a temporary file.
    pub(crate) fn stage(&self, source: &mut dyn Read) -> Result<Staged> {
        let path = self.temporary("blob")?;
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

    /// Gives staged blobs their names, and if they are to be durable not before their bytes are on disk. Replaces what lies there.
    pub(crate) fn commit(&self, staged: &[Staged], durability: Durability) -> Result<()> {
        match durability {
            Durability::Durable if staged.len() >= MANY => sync_all(&self.root)?,
            Durability::Durable => staged.par_iter().try_for_each(|blob| sync(&blob.path))?,
            Durability::Later => {
                self.unsynced().extend(staged.iter().map(|blob| self.blob_path(&blob.id)));
            }
        }
        staged.iter().try_for_each(|blob| rename(&blob.path, &self.blob_path(&blob.id)))
    }
}

/// Syncs the whole file system of a folder.
fn sync_all(root: &Path) -> Result<()> {
    #[cfg(target_os = "linux")]
    {
        let folder = File::open(root).map_err(Error::io("open", root))?;
        rustix::fs::syncfs(&folder).map_err(|e| Error::io("sync", root)(e.into()))
    }
    // It begins to write what all file systems have to.
    #[cfg(not(target_os = "linux"))]
    {
        let _ = root;
        rustix::fs::sync();
        Ok(())
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
        self.commit(&[staged], Durability::Durable)
    }

    fn remove(&self, id: &BlobId) -> Result<()> {
        remove(&self.blob_path(id))
    }

    fn get_record(&self, key: &ActionKey) -> Result<Option<Vec<u8>>> {
        self.records.get(key)
    }

    fn put_record(&self, key: &ActionKey, bytes: &[u8]) -> Result<()> {
        self.records.put(key, bytes)
    }

    fn remove_record(&self, key: &ActionKey) -> Result<()> {
        if self.records.get(key)?.is_some() { self.records.put(key, b"") } else { Ok(()) }
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
            let blobs = self.folder.path().join("blobs");
            if blobs.exists() { list(blobs).flat_map(list).collect() } else { Vec::new() }
        }

        fn temporary(&self) -> usize {
            fs::read_dir(self.store.temporary("x").unwrap().parent().unwrap()).unwrap().count()
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
        local.store.commit(&staged, Durability::Later).unwrap();
        local.store.sync().unwrap();
        assert_eq!((local.named().len(), local.temporary()), (2 * MANY, 0));
    }
}
