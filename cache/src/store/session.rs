//! Temporary files that a killed run cannot leave behind for good.
//!
//! Each open store has a session: a folder `tmp/<name>/` and a locked file `tmp/<name>.lock`. The kernel drops the lock when the
//! process ends, however it ends, so a folder whose lock can be taken, or that has none, belongs to nobody.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::files::{now, remove_all};

/// Tells apart the sessions and the files of one process.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A name that no other call in this process gives.
pub fn unique() -> String {
    format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// A folder for temporary files, removed when it is dropped.
#[derive(Debug)]
pub struct Session {
    folder: PathBuf,
    lock_path: PathBuf,
    /// Locked for as long as the session lives.
    _lock: File,
}

impl Session {
    /// Starts a session below the folder `tmp`.
    pub fn start(tmp: &Path) -> Result<Self> {
        loop {
            let name = format!("{}-{}", now(), unique());
            let (folder, lock_path) = (tmp.join(&name), tmp.join(format!("{name}.lock")));
            let lock = File::create_new(&lock_path).map_err(Error::io("create", &lock_path))?;
            // A sweep may take the new file before it is locked here: then start over under another name.
            if lock.try_lock().is_ok() && is_at(&lock, &lock_path) {
                fs::create_dir(&folder).map_err(Error::io("create", &folder))?;
                return Ok(Self { folder, lock_path, _lock: lock });
            }
        }
    }

    /// A path in the session's folder that was never given before. Nothing lies there.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}-{}", unique()))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What stays behind is swept by a later run.
        let _ = remove_all(&self.folder);
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// Whether the open file is the one that lies at `path`.
pub fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), fs::metadata(path)) else { return false };
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}

/// Removes what dead sessions left below `tmp`, each after a call of `before` with its folder, and says how many there were. What cannot be removed,
/// because something still writes to it, is left for another time.
pub fn sweep(tmp: &Path, before: &mut dyn FnMut(&Path)) -> Result<usize> {
    let mut removed = 0;
    for item in fs::read_dir(tmp).map_err(Error::io("read the folder", tmp))? {
        let path = item.map_err(Error::io("read the folder", tmp))?.path();
        if path.extension().is_some_and(|extension| extension == "lock") {
            removed += usize::from(sweep_locked(&path, before)?);
        } else if !path.with_extension("lock").exists() && path.exists() {
            // The lock comes before the folder and goes after it, so this folder's session is over.
            before(&path);
            removed += usize::from(remove_all(&path).is_ok());
        }
    }
    Ok(removed)
}

/// Removes the session of a lock that can be taken.
fn sweep_locked(lock_path: &Path, before: &mut dyn FnMut(&Path)) -> Result<bool> {
    let lock = match File::open(lock_path) {
        Ok(lock) => lock,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(Error::io("open", lock_path)(e)),
    };
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(e)) => Err(Error::io("lock", lock_path)(e)),
        Ok(()) => {
            let folder = lock_path.with_extension("");
            before(&folder);
            // The lock goes last: without it the folder counts as dead all the same.
            Ok(remove_all(&folder).and_then(|()| remove_all(lock_path)).is_ok())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_dead_sessions_are_swept() {
        let tmp = tempfile::tempdir().unwrap();
        let live = Session::start(tmp.path()).unwrap();
        fs::write(live.path("work"), "x").unwrap();
        let dead = Session::start(tmp.path()).unwrap();
        fs::write(dead.path("work"), "x").unwrap();
        // What SIGKILL leaves: the files, without the lock.
        let (folder, lock_path) = (dead.folder.clone(), dead.lock_path.clone());
        dead._lock.unlock().unwrap();
        std::mem::forget(dead);
        fs::create_dir(tmp.path().join("without-a-lock")).unwrap();

        assert_eq!(sweep(tmp.path(), &mut |_| {}).unwrap(), 2);
        assert!(!folder.exists() && !lock_path.exists() && live.folder.exists());
        drop(live);
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 0);
    }
}
