//! The cache as the engine sees it: sources hashed, outputs stored, inputs laid out, and nothing believed that was not checked.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::Result;
use crate::content::{Content, Tree};
use crate::digest::{ActionKey, BlobId, Digest, TreeId};
use crate::error::{At, Error};
use crate::hash;
use crate::index::Index;
use crate::local::LocalStore;
use crate::lock::{self, RunLock};
use crate::record::ActionRecord;
use crate::store::{Name, Store};

/// Name of the folder of a cache; it is never part of a source.
const OWN_FOLDER: &str = ".trestle";
/// Deepest folder that is followed; a loop of links ends here.
const MAX_DEPTH: usize = 128;

/// How a content is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Hard links to the store, read-only; a copy where links cannot be. For readers that we trust not to write.
    Link,
    /// Writable copies (clones where the file system has them).
    Copy,
}

/// Whether a content in the store can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// All bytes are there and right.
    Sound,
    /// Something is gone.
    Missing(String),
    /// Something is not what its name says.
    Damaged(String),
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sound => f.write_str("sound"),
            Self::Missing(name) => write!(f, "{name} is missing from the store"),
            Self::Damaged(name) => write!(f, "{name} is damaged in the store"),
        }
    }
}

/// A cache in a folder.
pub struct Cache {
    folder: PathBuf,
    store: LocalStore,
    index: Index,
}

impl Cache {
    /// The cache in `folder`, which is created if it is not there.
    ///
    /// # Errors
    /// If the folder cannot be created.
    pub fn open(folder: &Path) -> Result<Self> {
        let store = LocalStore::open(folder)?;
        // A cache inside of a repository is nobody's to commit.
        let ignore = folder.join(".gitignore");
        if !ignore.exists() {
            fs::write(&ignore, "*\n").at("write", &ignore)?;
        }
        Ok(Self { folder: folder.to_owned(), store, index: Index::open(&folder.join("index")) })
    }

    /// The content of a file or folder of the project. Unchanged files are known by their stat; links are followed.
    ///
    /// # Errors
    /// If something cannot be read, is neither file nor folder, or changes meanwhile.
    pub fn source(&self, path: &Path) -> Result<Content> {
        self.measure(path, true, 0)
    }

    fn measure(&self, path: &Path, by_stat: bool, depth: usize) -> Result<Content> {
        let meta = fs::metadata(path).at("read", path)?;
        if meta.is_file() {
            let (id, size) = if by_stat { self.index.digest(path)? } else { hash::file(path)? };
            return Ok(Content::Blob { id, size, executable: is_executable(&meta) });
        }
        if !meta.is_dir() || depth > MAX_DEPTH {
            return Err(unsupported(path, &meta));
        }
        let names: Vec<String> = names(path)?.into_iter().filter(|name| name != OWN_FOLDER).collect();
        let entries: Result<Vec<_>> =
            names.into_par_iter().map(|name| Ok((name.clone(), self.measure(&path.join(&name), by_stat, depth + 1)?))).collect();
        let tree = Tree { entries: entries?.into_iter().collect() };
        Ok(Content::Tree { id: tree.id() })
    }

    /// Copies a file or folder of the project to `dest`, which must not exist, and says what was copied: that, and not what the
    /// source is or was, is what a stage will see.
    ///
    /// # Errors
    /// If something cannot be read or written.
    pub fn copy_source(&self, path: &Path, dest: &Path) -> Result<Content> {
        copy_all(path, dest, 0)?;
        self.measure(dest, false, 0)
    }

    /// Stores what a stage made at `path`; files are moved out of there where that is safe.
    ///
    /// # Errors
    /// If something cannot be read or written, or is a link, a device, a socket.
    pub fn ingest(&self, path: &Path) -> Result<Content> {
        let meta = fs::symlink_metadata(path).at("read", path)?;
        if meta.is_file() {
            // A file with another name elsewhere could change behind our back.
            return if meta.nlink() > 1 { self.store_file(path) } else { self.take_file(path, &meta) };
        }
        if !meta.is_dir() {
            return Err(unsupported(path, &meta));
        }
        let entries: Result<Vec<_>> =
            names(path)?.into_par_iter().map(|name| Ok((name.clone(), self.ingest(&path.join(&name))?))).collect();
        let tree = Tree { entries: entries?.into_iter().collect() };
        let id = tree.id();
        self.store.write(Name::Tree(id), &mut tree.encode().as_slice())?;
        Ok(Content::Tree { id })
    }

    /// Stores a copy of a file.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn store_file(&self, path: &Path) -> Result<Content> {
        let copy = self.store.fresh("copy");
        fs::copy(path, &copy).at("copy", path)?;
        let meta = fs::metadata(path).at("read", path)?;
        self.take_file(&copy, &meta)
    }

    /// What is stored is hashed where it will stay: nobody but us knows its name by then.
    fn take_file(&self, path: &Path, meta: &fs::Metadata) -> Result<Content> {
        let ours = self.store.fresh("take");
        match fs::rename(path, &ours) {
            Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
                fs::copy(path, &ours).at("copy", path)?;
            }
            other => other.at("take", path)?,
        }
        let (id, size) = hash::file(&ours)?;
        let name = Name::Blob(id);
        // An earlier copy may be damaged, so the new one takes its place.
        self.store.adopt(&ours, name)?;
        self.index.forget(&self.store.path(name));
        Ok(Content::Blob { id, size, executable: is_executable(meta) })
    }

    /// Whether a stored content can be used. Files whose stat is as it was when they were last hashed are believed.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn check(&self, content: &Content) -> Result<Health> {
        match content {
            Content::Blob { id, .. } => self.check_blob(id),
            Content::Tree { id } => match self.tree(id) {
                Ok(tree) => {
                    for entry in tree.entries.values() {
                        let health = self.check(entry)?;
                        if health != Health::Sound {
                            return Ok(health);
                        }
                    }
                    Ok(Health::Sound)
                }
                Err(Error::Missing { name }) => Ok(Health::Missing(name)),
                Err(Error::Damaged { name, .. }) => Ok(Health::Damaged(name)),
                Err(other) => Err(other),
            },
        }
    }

    fn check_blob(&self, id: &BlobId) -> Result<Health> {
        let path = self.store.path(Name::Blob(*id));
        let name = || format!("blob:{id}");
        match self.index.digest(&path) {
            Ok((found, _)) if found == *id => Ok(Health::Sound),
            Ok(_) => Ok(Health::Damaged(name())),
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(Health::Missing(name())),
            Err(other) => Err(other),
        }
    }

    fn tree(&self, id: &TreeId) -> Result<Tree> {
        let name = || format!("tree:{id}");
        let bytes = self.read(Name::Tree(*id))?.ok_or_else(|| Error::Missing { name: name() })?;
        if Digest::of(&bytes) != id.0 {
            return Err(Error::Damaged { name: name(), detail: "its bytes do not have its digest".to_owned() });
        }
        Tree::decode(&bytes).ok_or_else(|| Error::Damaged { name: name(), detail: "its bytes are not a folder".to_owned() })
    }

    fn read(&self, name: Name) -> Result<Option<Vec<u8>>> {
        let Some(mut reader) = self.store.read(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).at("read", &self.store.path(name))?;
        Ok(Some(bytes))
    }

    /// The bytes of a blob, checked.
    ///
    /// # Errors
    /// If it is missing or damaged.
    pub fn read_blob(&self, id: &BlobId) -> Result<Vec<u8>> {
        let name = || format!("blob:{id}");
        let bytes = self.read(Name::Blob(*id))?.ok_or_else(|| Error::Missing { name: name() })?;
        if Digest::of(&bytes) == id.0 {
            Ok(bytes)
        } else {
            Err(Error::Damaged { name: name(), detail: "its bytes do not have its digest".to_owned() })
        }
    }

    /// Lays a content out at `dest`, which must not exist. Every byte is checked as it is given out.
    ///
    /// # Errors
    /// If something is missing or damaged (a damaged blob is then removed from the store), or cannot be written. Nothing stays at `dest`.
    pub fn materialize(&self, content: &Content, dest: &Path, how: How) -> Result<()> {
        let result = self.lay_out(content, dest, how);
        if result.is_err() {
            // The error that matters is the first one.
            let _ = if dest.is_dir() { fs::remove_dir_all(dest) } else { fs::remove_file(dest) };
        }
        result
    }

    fn lay_out(&self, content: &Content, dest: &Path, how: How) -> Result<()> {
        match content {
            Content::Blob { id, executable, .. } => self.lay_out_blob(id, *executable, dest, how),
            Content::Tree { id } => {
                let tree = self.tree(id)?;
                fs::create_dir(dest).at("create", dest)?;
                tree.entries.par_iter().try_for_each(|(name, entry)| self.lay_out(entry, &dest.join(name), how))
            }
        }
    }

    fn lay_out_blob(&self, id: &BlobId, executable: bool, dest: &Path, how: How) -> Result<()> {
        let name = Name::Blob(*id);
        let path = self.store.path(name);
        if !self.store.has(name)? {
            return Err(Error::Missing { name: format!("blob:{id}") });
        }
        // A link shares its mode with the store, so an executable file is always a copy.
        let linked = how == How::Link && !executable && fs::hard_link(&path, dest).is_ok();
        if !linked {
            fs::copy(&path, dest).at("copy", &path)?;
            let mode = if executable { 0o755 } else { 0o644 };
            fs::set_permissions(dest, fs::Permissions::from_mode(mode)).at("set the mode of", dest)?;
        }
        let (found, _) = hash::file(dest)?;
        if found == *id {
            return Ok(());
        }
        self.store.remove(name)?;
        self.index.forget(&path);
        Err(Error::Damaged { name: format!("blob:{id}"), detail: format!("its bytes have the digest {}", found.short()) })
    }

    /// The record of an action. One that is cut off or edited counts as none.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn record(&self, key: &ActionKey) -> Result<Option<ActionRecord>> {
        Ok(self.read(Name::Record(*key))?.as_deref().and_then(ActionRecord::decode).filter(|record| record.key == *key))
    }

    /// Stores a record. Write all that it names first: from now on they are served.
    ///
    /// # Errors
    /// If it does not fit its own key or cannot be written.
    pub fn put_record(&self, record: &ActionRecord) -> Result<()> {
        let wrong = || Error::WrongKey { key: record.key.to_string() };
        if record.manifest.key() != record.key {
            return Err(wrong());
        }
        let bytes = record.encode().map_err(|_| wrong())?;
        self.store.write(Name::Record(record.key), &mut bytes.as_slice())
    }

    /// Where the bytes of a blob are.
    pub fn blob_path(&self, id: &BlobId) -> PathBuf {
        self.store.path(Name::Blob(*id))
    }

    /// Writes what is known about files, if that changed.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn flush(&self) -> Result<()> {
        self.index.flush(&self.store.fresh("index"))
    }

    /// A fresh folder on the file system of the store.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn tmp_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.store.fresh(name);
        fs::create_dir_all(&path).at("create", &path)?;
        Ok(path)
    }

    /// Removes what runs that died left unfinished.
    ///
    /// # Errors
    /// If the folder of unfinished things cannot be read.
    pub fn sweep_tmp(&self, _held: &RunLock) -> Result<()> {
        let tmp = self.store.tmp();
        for entry in fs::read_dir(&tmp).at("read", &tmp)? {
            let path = entry.at("read", &tmp)?.path();
            // What cannot be removed now may be removable next time; it is never taken for an output.
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
        Ok(())
    }

    /// Waits until no other run uses this cache.
    ///
    /// # Errors
    /// If the lock's file cannot be opened.
    pub fn lock(&self) -> Result<RunLock> {
        lock::wait(&self.folder.join("lock"))
    }

    /// The lock, if no other run uses this cache.
    ///
    /// # Errors
    /// If the lock's file cannot be opened.
    pub fn try_lock(&self) -> Result<Option<RunLock>> {
        lock::attempt(&self.folder.join("lock"))
    }
}

fn is_executable(meta: &fs::Metadata) -> bool {
    meta.permissions().mode() & 0o100 != 0
}

fn unsupported(path: &Path, meta: &fs::Metadata) -> Error {
    let kind = meta.file_type();
    let what = if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_block_device() || kind.is_char_device() {
        "a device"
    } else {
        "too deep a folder"
    };
    Error::Unsupported { path: path.to_owned(), what }
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).at("read", folder)? {
        let entry = entry.at("read", folder)?;
        let name = entry
            .file_name()
            .into_string()
            .map_err(|_| Error::Unsupported { path: entry.path(), what: "something whose name is not UTF-8" })?;
        names.push(name);
    }
    names.sort_unstable();
    Ok(names)
}

fn copy_all(from: &Path, to: &Path, depth: usize) -> Result<()> {
    let meta = fs::metadata(from).at("read", from)?;
    if meta.is_file() {
        let mut source = File::open(from).at("read", from)?;
        let mut dest = File::create_new(to).at("create", to)?;
        std::io::copy(&mut source, &mut dest).at("copy", from)?;
        let mode = if is_executable(&meta) { 0o755 } else { 0o644 };
        return fs::set_permissions(to, fs::Permissions::from_mode(mode)).at("set the mode of", to);
    }
    if !meta.is_dir() || depth > MAX_DEPTH {
        return Err(unsupported(from, &meta));
    }
    fs::create_dir_all(to).at("create", to)?;
    for name in names(from)?.into_iter().filter(|name| name != OWN_FOLDER) {
        copy_all(&from.join(&name), &to.join(&name), depth + 1)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::record::tests::sample;
    use std::time::Duration;

    struct Scratch {
        dir: tempfile::TempDir,
        cache: Cache,
    }

    fn scratch() -> Scratch {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("cache")).unwrap();
        Scratch { dir, cache }
    }

    /// A folder with a file, an executable, an empty folder and one inside.
    fn folder(at: &Path) {
        fs::create_dir_all(at.join("deep/er")).unwrap();
        fs::create_dir(at.join("empty")).unwrap();
        fs::write(at.join("a.txt"), b"alpha").unwrap();
        fs::write(at.join("deep/er/b"), b"beta").unwrap();
        fs::set_permissions(at.join("deep/er/b"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn what_is_ingested_comes_back_the_same_whichever_way() {
        let Scratch { dir, cache } = scratch();
        let made = dir.path().join("made");
        folder(&made);
        let before = cache.source(&made).unwrap();
        let content = cache.ingest(&made).unwrap();
        assert_eq!(before, content);
        assert_eq!(cache.check(&content).unwrap(), Health::Sound);
        for (how, name) in [(How::Copy, "copy"), (How::Link, "link")] {
            let out = dir.path().join(name);
            cache.materialize(&content, &out, how).unwrap();
            assert_eq!(cache.source(&out).unwrap(), content, "{name}");
            assert!(out.join("empty").is_dir());
        }
        assert_eq!(cache.copy_source(&dir.path().join("copy"), &dir.path().join("again")).unwrap(), content);
        fs::write(dir.path().join("copy/a.txt"), b"changed").unwrap();
        assert_eq!(cache.check(&content).unwrap(), Health::Sound, "a copy is not tied to the store");
    }

    #[test]
    fn a_flipped_byte_is_found_even_with_size_and_mtime_kept() {
        let Scratch { dir, cache } = scratch();
        let file = dir.path().join("f");
        fs::write(&file, b"right").unwrap();
        let content = cache.ingest(&file).unwrap();
        std::thread::sleep(Duration::from_millis(80));
        assert_eq!(cache.check(&content).unwrap(), Health::Sound);
        let Content::Blob { id, .. } = &content else { panic!("a file is a blob") };
        let path = cache.blob_path(id);
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&path, b"wrong").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        assert!(matches!(cache.check(&content).unwrap(), Health::Damaged(_)));
        assert!(matches!(cache.read_blob(id), Err(Error::Damaged { .. })));
        let out = dir.path().join("out");
        assert!(matches!(cache.materialize(&content, &out, How::Link), Err(Error::Damaged { .. })));
        assert!(!out.exists());
        assert!(matches!(cache.check(&content).unwrap(), Health::Missing(_)));
        fs::write(&file, b"right").unwrap();
        cache.ingest(&file).unwrap();
        assert_eq!(cache.check(&content).unwrap(), Health::Sound);
    }

    #[test]
    fn ingesting_again_replaces_a_damaged_blob() {
        let Scratch { dir, cache } = scratch();
        let file = dir.path().join("f");
        fs::write(&file, b"right").unwrap();
        let content = cache.ingest(&file).unwrap();
        let Content::Blob { id, .. } = &content else { panic!("a file is a blob") };
        fs::remove_file(cache.blob_path(id)).unwrap();
        fs::write(cache.blob_path(id), b"wrong").unwrap();
        fs::write(&file, b"right").unwrap();
        cache.ingest(&file).unwrap();
        assert_eq!(cache.read_blob(id).unwrap(), b"right");
    }

    #[test]
    fn links_and_sockets_are_refused_as_outputs() {
        let Scratch { dir, cache } = scratch();
        let made = dir.path().join("made");
        fs::create_dir(&made).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", made.join("l")).unwrap();
        assert!(matches!(cache.ingest(&made), Err(Error::Unsupported { what: "a symbolic link", .. })));
        fs::remove_file(made.join("l")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(made.join("s")).unwrap();
        assert!(matches!(cache.ingest(&made), Err(Error::Unsupported { what: "a socket", .. })));
    }

    #[test]
    fn a_hard_linked_output_is_copied_not_taken() {
        let Scratch { dir, cache } = scratch();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, b"shared").unwrap();
        fs::hard_link(&a, &b).unwrap();
        let content = cache.ingest(&a).unwrap();
        fs::write(&b, b"SHARED").unwrap();
        assert_eq!(cache.check(&content).unwrap(), Health::Sound);
    }

    #[test]
    fn records_that_are_cut_off_count_as_none() {
        let Scratch { dir: _dir, cache } = scratch();
        let record = sample("a");
        assert_eq!(cache.record(&record.key).unwrap(), None);
        cache.put_record(&record).unwrap();
        assert_eq!(cache.record(&record.key).unwrap().as_ref(), Some(&record));
        let path = cache.store.path(Name::Record(record.key));
        let bytes = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert_eq!(cache.record(&record.key).unwrap(), None);
        let other = sample("b");
        fs::write(&path, other.encode().unwrap()).unwrap();
        assert_eq!(cache.record(&record.key).unwrap(), None, "a record under another's name");
        let mut forged = record.clone();
        forged.key = other.key;
        assert!(matches!(cache.put_record(&forged), Err(Error::WrongKey { .. })));
    }

    #[test]
    fn one_run_at_a_time() {
        let Scratch { dir, cache } = scratch();
        let held = cache.try_lock().unwrap();
        assert!(held.is_some());
        let other = Cache::open(&dir.path().join("cache")).unwrap();
        assert!(other.try_lock().unwrap().is_none());
        drop(held);
        assert!(other.try_lock().unwrap().is_some());
    }
}
