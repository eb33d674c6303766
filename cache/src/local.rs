//! A store in a folder: `blobs/64/37b3…`, `trees/…`, `records/…`.
//!
//! Everything is written to a temporary file, synced and renamed, so that a name has all of its bytes or does not exist. The sync
//! is for what costs hours to make again; a folder entry that is lost with the power costs one stage, so folders are not synced.
//! Files are read-only (0444) as a reminder, not as a protection: root, and whoever owns the store, can still write to them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Result;
use crate::error::{At, Error};
use crate::store::{Name, Store};

/// A store in a folder of this machine.
#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
    counter: AtomicU64,
}

impl LocalStore {
    /// The store in `root`, which is created if it is not there.
    ///
    /// # Errors
    /// If the folder cannot be created.
    pub fn open(root: &Path) -> Result<Self> {
        let store = Self { root: root.to_owned(), counter: AtomicU64::new(0) };
        fs::create_dir_all(store.tmp()).at("create", &store.tmp())?;
        Ok(store)
    }

    /// Where the bytes of a name are, or would be.
    pub fn path(&self, name: Name) -> PathBuf {
        let hex = name.digest().to_string();
        self.root.join(name.shelf()).join(&hex[..2]).join(&hex[2..])
    }

    /// Folder for what is not finished; on the same file system as the rest.
    pub fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// A path in [`tmp`](Self::tmp) that no other process or thread uses.
    pub fn fresh(&self, suffix: &str) -> PathBuf {
        let n = self.counter.fetch_add(1, Ordering::Relaxed);
        self.tmp().join(format!("{}-{n}-{suffix}", std::process::id()))
    }

    /// Makes a finished file of [`tmp`](Self::tmp) the bytes of a name.
    pub(crate) fn adopt(&self, file: &Path, name: Name) -> Result<()> {
        fs::set_permissions(file, fs::Permissions::from_mode(0o444)).at("protect", file)?;
        File::open(file).and_then(|f| f.sync_data()).at("sync", file)?;
        let path = self.path(name);
        match fs::rename(file, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = path.parent().unwrap_or(&self.root);
                fs::create_dir_all(parent).at("create", parent)?;
                fs::rename(file, &path).at("rename to", &path)
            }
            other => other.at("rename to", &path),
        }
    }
}

impl Store for LocalStore {
    fn read(&self, name: Name) -> Result<Option<Box<dyn Read>>> {
        let path = self.path(name);
        match File::open(&path) {
            Ok(file) => Ok(Some(Box::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::Io { doing: "read", path, source }),
        }
    }

    fn write(&self, name: Name, bytes: &mut dyn Read) -> Result<()> {
        let file = self.fresh("write");
        let written =
            File::create(&file).and_then(|mut f| io::copy(bytes, &mut f)).at("write", &file).and_then(|_| self.adopt(&file, name));
        if written.is_err() {
            // The error that matters is the first one.
            let _ = fs::remove_file(&file);
        }
        written
    }

    fn remove(&self, name: Name) -> Result<()> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::Io { doing: "remove", path, source: error }),
            _ => Ok(()),
        }
    }

    fn has(&self, name: Name) -> Result<bool> {
        let path = self.path(name);
        fs::exists(&path).at("look for", &path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn conforms() {
        let dir = tempfile::tempdir().unwrap();
        crate::store::conformance::run(&LocalStore::open(dir.path()).unwrap());
        assert_eq!(fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0, "temporary files are left");
    }
}
