//! All that the engine does with files: it names sources, keeps outputs, gives them out again and knows whether they are sound.
//!
//! ```text
//! CACHEDIR.TAG, .gitignore   backup programs and git pass it by
//! format                     which layout this is
//! blobs/ records tmp/        see LocalStore
//! index                      files known by their stat alone
//! checkpoints/               what killed stages go on from, by key
//! claims                     locks on what is being made, a byte a key
//! unsynced                   what was stored lately may not be on disk
//! lock                       shared by runs, alone for who changes the cache as a whole
//! ```
//!
//! # What is promised
//! - A wrong byte is never served: what is given out is hashed as it is given out.
//! - Nothing half-written has a final name, whenever the process is killed.
//! - A stat is trusted only where nothing can have changed behind it (see the module `index`).
//!
//! # What is not
//! A linked input ([`How::Link`]) is the store's own file, mode 0444. Root ignores the mode, and an owner can change it, so a stage
//! that writes to its inputs can damage the store. Such damage is never served: it is found by [`Cache::check`], by
//! [`Cache::settle`] and whenever the blob is given out.

mod claim;
mod gc;
mod give;
mod kept;
mod size;
mod stats;
mod take;
mod verify;

pub use claim::Claim;
pub use gc::{Bounds, Collected};
pub use stats::FileStat;
pub use verify::Verified;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::content::{Content, Entry, ObjectId, Tree, link_stays};
use crate::digest::{ActionKey, BlobId, TreeId};
use crate::error::{Error, Result};
use crate::files::{Hashed, Stat, hash_file, hash_open};
use crate::index::Index;
use crate::parallel;
use crate::record::{ActionRecord, Lookup};
use crate::store::{LocalStore, Store};

/// What the file `format` says. Raise the version whenever the layout of the folder changes.
const FORMAT: &str = "trestle cache v2";
/// See <https://bford.info/cachedir/>.
const CACHEDIR_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n# This folder is a cache made by trestle.\n";

/// Whether a content can be given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Every blob and every tree of it is there and is what its name promises.
    Sound,
    /// This object is not there.
    Missing(ObjectId),
    /// This object's bytes are not what its name promises.
    Damaged(ObjectId),
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sound => f.write_str("sound"),
            Self::Missing(object) => write!(f, "{object} is missing in the cache"),
            Self::Damaged(object) => write!(f, "{object} is damaged in the cache"),
        }
    }
}

/// How a content is laid down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// As [`How::Copy`], and a small file is written over one that lies in its place already, which must be the caller's own.
    Over,
    /// Files of one's own to write to, mode 0644 or 0755. Shares the disk's blocks where the file system can.
    Copy,
    /// Hard links to the store, mode 0444, and copies where that can't be: across file systems, and for executable files (0555), since
    /// the executable bit belongs to the content and not to the stored bytes.
    Link,
}

/// The right to run in a cache, shared, or to change it as a whole, alone. Given up when dropped, and by the kernel when the process ends.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

/// A cache in a folder: a local store, an index, the last keys and a lock. Shared by threads, and safe beside other processes.
#[derive(Debug)]
pub struct Cache {
    root: PathBuf,
    store: LocalStore,
    index: Index,
    /// See `claim`; opened by the first.
    claims: OnceLock<Arc<File>>,
    /// Blobs that were hashed while they were too fresh for the index. See [`Cache::settle`].
    fresh: Mutex<Vec<BlobId>>,
}

impl Cache {
    /// Opens the cache in the folder `dir`, which is made if it is not there. After a loss of power, what was [left](Cache::leave) to the system
    /// is read again, and what it lost is removed.
    ///
    /// # Errors
    /// [`Error::Format`] for a cache of another version; [`Error::Io`] names the folder or file that cannot be made.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let root = fs::canonicalize(dir).map_err(Error::io("find", dir))?;
        check_format(&root)?;
        let store = LocalStore::open(&root)?;
        let index = Index::open(root.join("index"));
        let cache = Self { root, store, index, claims: OnceLock::new(), fresh: Mutex::default() };
        cache.recover()?;
        Ok(cache)
    }

    /// The cache's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a blob lies or would lie. Nothing is said about its health.
    pub fn blob_path(&self, id: &BlobId) -> PathBuf {
        self.store.blob_path(id)
    }

    /// Says whether all of a content is there and sound; the first trouble otherwise. A blob whose stat is known is not read.
    ///
    /// # Errors
    /// [`Error::Io`] if the store cannot be read at all.
    pub fn check(&self, content: &Content) -> Result<Health> {
        let listing = match self.listing(content) {
            Err(Error::Missing { object }) => return Ok(Health::Missing(object)),
            Err(Error::Damaged { object } | Error::BadTree { object, .. }) => return Ok(Health::Damaged(object)),
            other => other?,
        };
        let health = |file: &ListedFile| match self.check_blob(&file.id) {
            Ok(Health::Sound) => None,
            other => Some(other),
        };
        parallel::find_first(&listing.files, 2, health).unwrap_or(Ok(Health::Sound))
    }

    fn check_blob(&self, id: &BlobId) -> Result<Health> {
        let path = self.blob_path(id);
        let meta = match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Health::Missing(ObjectId::Blob(*id))),
            other => other.map_err(Error::io("examine", &path))?,
        };
        if !meta.is_file() {
            return Ok(Health::Damaged(ObjectId::Blob(*id)));
        }
        if self.index.known(&Stat::from(&meta)) == Some(*id) {
            return Ok(Health::Sound);
        }
        let hashed = match hash_file(&path) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(Health::Missing(ObjectId::Blob(*id))),
            // The disk cannot read it, or something writes to it: either way it is not to be served.
            Err(Error::Io { .. } | Error::Changing { .. }) => return Ok(Health::Damaged(ObjectId::Blob(*id))),
            other => other?,
        };
        self.note(&hashed);
        Ok(if hashed.id == *id { Health::Sound } else { Health::Damaged(ObjectId::Blob(*id)) })
    }

    /// Notes what a file of the store hashed to; one too fresh for the index is kept for [`Cache::settle`].
    fn note(&self, hashed: &Hashed) {
        if !self.index.note(hashed) {
            self.fresh.lock().unwrap_or_else(PoisonError::into_inner).push(hashed.id);
        }
    }

    /// Reads again, smallest first and at most `limit` bytes in all, the blobs that came or were linked in this run and were then too
    /// fresh for the index, so that the next run knows them by their stat. Gives those that were found damaged: a stage
    /// wrote to its inputs.
    ///
    /// To be called at the end of a run, before [`Cache::flush`].
    ///
    /// # Errors
    /// [`Error::Io`] if the store cannot be read at all.
    pub fn settle(&self, limit: u64) -> Result<Vec<BlobId>> {
        let mut ids = std::mem::take(&mut *self.fresh.lock().unwrap_or_else(PoisonError::into_inner));
        ids.sort_unstable();
        ids.dedup();
        let size = |id: &BlobId| fs::metadata(self.blob_path(id)).map_or(0, |meta| meta.len());
        let mut sized: Vec<_> = ids.into_iter().map(|id| (size(&id), id)).collect();
        sized.sort_unstable();
        let mut left = limit;
        let affordable = sized.iter().take_while(|(size, _)| {
            let fits = *size <= left;
            left = left.saturating_sub(*size);
            fits
        });
        let ids: Vec<_> = affordable.map(|(_, id)| *id).collect();
        let healths = parallel::map(&ids, 2, |id| Ok((*id, self.check_blob(id)?))).into_iter().collect::<Result<Vec<_>>>()?;
        Ok(healths.into_iter().filter(|(_, health)| matches!(health, Health::Damaged(_))).map(|(id, _)| id).collect())
    }

    /// Removes an object, so that ingesting it again replaces it. Nothing there is fine.
    ///
    /// # Errors
    /// [`Error::Io`] names the file that cannot be removed.
    pub fn forget(&self, object: ObjectId) -> Result<()> {
        self.store.remove(&object.blob())
    }

    /// The bytes of a blob, checked.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Damaged`], and the blob is removed; [`Error::Io`].
    pub fn read_blob(&self, id: &BlobId) -> Result<Vec<u8>> {
        self.read_object(ObjectId::Blob(*id)).map_err(|e| if matches!(e, Error::Damaged { .. }) { self.damaged(id) } else { e })
    }

    /// The complaint about a blob whose bytes turned out to be wrong. It is removed: bytes that rot on the disk keep their stat, so
    /// [`Cache::check`] alone could call them sound for ever.
    fn damaged(&self, id: &BlobId) -> Error {
        // If it cannot be removed, it is still not served.
        let _ = self.store.remove(id);
        Error::Damaged { object: ObjectId::Blob(*id) }
    }

    /// A blob open at its start, once all of its bytes were checked through the same handle.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::Damaged`], and the blob is removed; [`Error::Io`].
    pub fn open_blob(&self, id: &BlobId) -> Result<File> {
        let (path, object) = (self.blob_path(id), ObjectId::Blob(*id));
        let mut file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Error::Missing { object }),
            other => other.map_err(Error::io("open", &path))?,
        };
        let hashed = hash_open(&mut file, &path)?;
        self.note(&hashed);
        if hashed.id != *id {
            return Err(self.damaged(id));
        }
        file.rewind().map_err(Error::io("read", &path))?;
        Ok(file)
    }

    /// The bytes of a blob or the canonical bytes of a tree, checked.
    fn read_object(&self, object: ObjectId) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match self.store.read(&object.blob(), &mut bytes) {
            Ok(true) => Ok(bytes),
            Ok(false) => Err(Error::Missing { object }),
            Err(Error::Damaged { .. }) => Err(Error::Damaged { object }),
            Err(e) => Err(e),
        }
    }

    /// A folder's entries, checked.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Damaged`], [`Error::BadTree`], [`Error::Io`].
    pub fn read_tree(&self, id: &TreeId) -> Result<Tree> {
        let object = ObjectId::Tree(*id);
        Tree::from_bytes(&self.read_object(object)?).map_err(|source| Error::BadTree { object, source })
    }

    /// All that a content consists of.
    fn listing(&self, content: &Content) -> Result<Listing> {
        let mut listing = Listing::default();
        match *content {
            Content::Blob { id, executable, .. } => listing.files.push(ListedFile { path: PathBuf::new(), id, executable }),
            Content::Tree { id } => self.list(&id, Path::new(""), 0, &mut listing)?,
        }
        Ok(listing)
    }

    fn list(&self, id: &TreeId, at: &Path, depth: usize, listing: &mut Listing) -> Result<()> {
        listing.dirs.push(at.to_owned());
        for (name, entry) in self.read_tree(id)?.entries {
            let path = at.join(name);
            match entry {
                Entry::File { id, executable, .. } => listing.files.push(ListedFile { path, id, executable }),
                Entry::Dir(id) => self.list(&id, &path, depth + 1, listing)?,
                Entry::Symlink(target) if link_stays(&target, depth) => listing.links.push((path, target)),
                Entry::Symlink(target) => return Err(Error::LinkLeaves { path, target }),
            }
        }
        Ok(())
    }

    /// The record of an action; none if there is none that can be believed. [`Cache::lookup`] says why.
    ///
    /// # Errors
    /// [`Error::Io`] if the store cannot be read.
    pub fn record(&self, key: &ActionKey) -> Result<Option<ActionRecord>> {
        Ok(match self.lookup(key)? {
            Lookup::Found(record) => Some(*record),
            Lookup::Absent | Lookup::Bad(_) => None,
        })
    }

    /// Whether there is a record of an action whose checksum holds. Cheaper than [`Cache::record`].
    ///
    /// # Errors
    /// [`Error::Io`] if the store cannot be read.
    pub fn has_record(&self, key: &ActionKey) -> Result<bool> {
        Ok(self.store.get_record(key)?.is_some_and(|bytes| ActionRecord::is_whole(&bytes)))
    }

    /// The record of an action, its absence, or why it must not be believed.
    ///
    /// # Errors
    /// [`Error::Io`] if the store cannot be read.
    pub fn lookup(&self, key: &ActionKey) -> Result<Lookup> {
        let Some(bytes) = self.store.get_record(key)? else { return Ok(Lookup::Absent) };
        Ok(match ActionRecord::decode(key, &bytes) {
            Ok(record) => Lookup::Found(Box::new(record)),
            Err(reason) => Lookup::Bad(reason),
        })
    }

    /// Keeps a record, in place of what lies under its key. To be called once all of its outputs are ingested.
    ///
    /// # Errors
    /// [`Error::BadRecord`] if its key is not its manifest's; [`Error::Io`].
    pub fn put_record(&self, record: &ActionRecord) -> Result<()> {
        self.store.put_record(&record.key, &record.encode()?)
    }

    /// Removes a record. Nothing there is fine.
    ///
    /// # Errors
    /// [`Error::Io`] names the file that cannot be removed.
    pub fn remove_record(&self, key: &ActionKey) -> Result<()> {
        self.store.remove_record(key)
    }

    /// Writes the index, if it changed. Its loss costs time alone, so a cache that cannot be written is no error.
    ///
    /// # Errors
    /// [`Error::Io`] names the file that cannot be written.
    pub fn flush(&self) -> Result<()> {
        if !self.index.is_changed() {
            return Ok(());
        }
        let written = self.store.temporary("index").and_then(|temporary| self.index.flush(&temporary));
        if written.as_ref().is_err_and(Error::is_read_only) { Ok(()) } else { written }
    }

    /// As [`Cache::flush`], but a few small files are not worth it: whoever wants to know them, and has them not in a plan that was made before,
    /// hashes them again.
    ///
    /// # Errors
    /// As [`Cache::flush`].
    pub fn flush_if_worth(&self) -> Result<()> {
        if self.index.is_worth_a_flush() { self.flush() } else { Ok(()) }
    }

    /// Brings everything that was stored to disk: what was ingested for [`Later`](crate::Durability::Later), and the records.
    ///
    /// # Errors
    /// [`Error::Io`] names what cannot be synced.
    pub fn sync(&self) -> Result<()> {
        self.store.sync()
    }

    /// Leaves what was stored to the system, which brings it to disk within half a minute: for what took less time to make than a disk takes to say
    /// that it has it. After a loss of power in between it is made again.
    ///
    /// # Errors
    /// [`Error::Io`] names what cannot be synced, where no mark can be left.
    pub fn leave(&self) -> Result<()> {
        self.store.leave()
    }

    /// Brings the records to disk.
    ///
    /// # Errors
    /// [`Error::Io`] names the file.
    pub fn sync_records(&self) -> Result<()> {
        self.store.records().sync()
    }

    /// A fresh empty folder on the cache's file system. Removed with this `Cache`, or by a later [`Cache::sweep_tmp`].
    ///
    /// # Errors
    /// [`Error::Io`] names the folder that cannot be made.
    pub fn tmp_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.tmp_path(name)?;
        fs::create_dir(&path).map_err(Error::io("create", &path))?;
        Ok(path)
    }

    /// As [`Cache::tmp_dir`], for what is yet to be put there: nothing lies at the path.
    ///
    /// # Errors
    /// As [`Cache::tmp_dir`].
    pub fn tmp_path(&self, name: &str) -> Result<PathBuf> {
        let safe = name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_', "_");
        self.store.temporary(safe.get(..100).unwrap_or(&safe))
    }

    /// Removes the temporary files of processes that are no more, and says of how many. Those of living ones, this one included, are safe from
    /// it. `before` is called with each folder that is to go: what still works in there should be ended.
    ///
    /// # Errors
    /// [`Error::Io`] names what cannot be read.
    pub fn sweep_tmp(&self, before: &mut dyn FnMut(&Path)) -> Result<usize> {
        self.store.sweep(before)
    }

    /// The right to run, beside other runs; waits for whoever changes the cache as a whole.
    ///
    /// # Errors
    /// [`Error::Io`] where the file system cannot lock.
    pub fn share(&self) -> Result<RunLock> {
        // Where nothing can be written, nothing can be changed as a whole either: a lock that is there is enough.
        let path = self.root.join("lock");
        let file = self.lock_file().map(|(_, file)| file).or_else(|e| File::open(&path).map_err(|_| e))?;
        file.lock_shared().map_err(Error::io("lock", &path))?;
        Ok(RunLock { _file: file })
    }

    /// The right to change the cache as a whole, such as to clean it; none if another process runs.
    ///
    /// # Errors
    /// [`Error::Io`] where the file system cannot lock.
    pub fn try_lock(&self) -> Result<Option<RunLock>> {
        let (path, file) = self.lock_file()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(RunLock { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(Error::io("lock", &path)(e)),
        }
    }

    fn lock_file(&self) -> Result<(PathBuf, File)> {
        let path = self.root.join("lock");
        let file = File::options().write(true).create(true).truncate(false).open(&path).map_err(Error::io("open", &path))?;
        Ok((path, file))
    }
}

/// The parts of a content, by their path below its root.
#[derive(Debug, Default)]
struct Listing {
    /// Folders, each before what it holds; the first is the root. Empty for a file.
    dirs: Vec<PathBuf>,
    files: Vec<ListedFile>,
    links: Vec<(PathBuf, String)>,
}

#[derive(Debug)]
struct ListedFile {
    path: PathBuf,
    id: BlobId,
    executable: bool,
}

/// Refuses a folder of another format and marks a new one.
fn check_format(root: &Path) -> Result<()> {
    let path = root.join("format");
    match File::open(&path) {
        Ok(file) => {
            let mut found = String::new();
            file.take(100).read_to_string(&mut found).map_err(Error::io("read", &path))?;
            let found = found.trim_end().to_owned();
            if found == FORMAT { Ok(()) } else { Err(Error::Format { path: root.to_owned(), found, wanted: FORMAT }) }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            for (name, text) in [("CACHEDIR.TAG", CACHEDIR_TAG), (".gitignore", "*\n"), ("format", FORMAT)] {
                write_whole(root, name, text)?;
            }
            Ok(())
        }
        Err(e) => Err(Error::io("open", &path)(e)),
    }
}

/// Writes a small file by way of a temporary one: two processes may open a new cache at the same time.
fn write_whole(root: &Path, name: &str, text: &str) -> Result<()> {
    let (temporary, path) = (root.join(format!("{name}.{}", crate::store::unique())), root.join(name));
    let write = || File::create(&temporary)?.write_all(text.as_bytes());
    write().and_then(|()| fs::rename(&temporary, &path)).map_err(Error::io("write", &path))
}
