//! Temporary files that a killed run cannot leave behind for good.
//!
//! Each open store has a session: a folder `tmp/<name>/` and a locked file `tmp/<name>.lock`. The kernel drops the lock when the
//! process ends, however it ends, so a folder whose lock can be taken, or that has none, belongs to nobody.
//!
//! A folder that is empty at the end waits in `spare` for the next session, and its lock in `spare.lock`: to make them and to remove them costs up to ten times as
//! much as to move them, and a file system may look long for a number that was not given back a moment ago.

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
    /// Where an empty folder waits.
    spare: PathBuf,
    lock_path: PathBuf,
    /// Locked for as long as the session lives.
    _lock: File,
}

impl Session {
    /// Starts a session below the folder `tmp`; `spare` is a place beside it.
    pub fn start(tmp: &Path, spare: &Path) -> Result<Self> {
        loop {
            let name = format!("{}-{}", now(), unique());
            let (folder, lock_path) = (tmp.join(&name), tmp.join(format!("{name}.lock")));
            let lock = if fs::rename(spare.with_extension("lock"), &lock_path).is_ok() {
                File::options().read(true).write(true).open(&lock_path)
            } else {
                File::create_new(&lock_path)
            };
            let lock = match lock {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.map_err(Error::io("create", &lock_path))?,
            };
            // A sweep may take the file before it is locked here, or the session that it was before be about to let go of it: then start over under
            // another name. What is left here is swept.
            if lock.try_lock().is_ok() && is_at(&lock, &lock_path) {
                if !take(spare, &folder) {
                    fs::create_dir(&folder).map_err(Error::io("create", &folder))?;
                }
                return Ok(Self { folder, spare: spare.to_owned(), lock_path, _lock: lock });
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
        let is_empty = fs::read_dir(&self.folder).is_ok_and(|mut items| items.next().is_none());
        if !(is_empty && fs::rename(&self.folder, &self.spare).is_ok()) {
            // What stays behind is swept by a later run.
            let _ = remove_all(&self.folder);
        }
        // The lock comes before the folder and goes after it.
        let is_moved = fs::rename(&self.lock_path, self.spare.with_extension("lock")).is_ok();
        if !is_moved {
            let _ = fs::remove_file(&self.lock_path);
        }
    }
}

/// Moves the folder that waits to `folder`, if there is one and it is no link to another.
fn take(spare: &Path, folder: &Path) -> bool {
    let is_there = fs::rename(spare, folder).is_ok();
    let is_good = is_there && fs::symlink_metadata(folder).is_ok_and(|meta| meta.is_dir());
    if is_there && !is_good {
        // If even that fails, a folder cannot be made there, which is then said.
        let _ = fs::remove_file(folder);
    }
    is_good
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
        let (tmp, beside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let start = || Session::start(tmp.path(), &beside.path().join("spare")).unwrap();
        let live = start();
        fs::write(live.path("work"), "x").unwrap();
        let dead = start();
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

    #[test]
    fn an_empty_folder_waits_for_the_next_session() {
        let root = tempfile::tempdir().unwrap();
        let (tmp, spare) = (root.path().join("tmp"), root.path().join("spare"));
        fs::create_dir(&tmp).unwrap();
        let number = |path: &Path| fs::symlink_metadata(path).unwrap().ino();
        let (one, two) = (Session::start(&tmp, &spare).unwrap(), Session::start(&tmp, &spare).unwrap());
        let first = number(&one.folder);
        drop(one);
        assert_eq!(number(&spare), first);
        // Another one that ends takes its place.
        drop(two);
        let three = Session::start(&tmp, &spare).unwrap();
        assert!(number(&three.folder) != first && !spare.exists());
        fs::write(three.path("left"), "x").unwrap();
        drop(three);
        assert!(!spare.exists(), "what is not empty goes");
        assert_eq!(fs::read_dir(&tmp).unwrap().count(), 0);
    }

    #[test]
    fn a_lock_waits_for_the_next_session_and_is_nobodys_meanwhile() {
        let root = tempfile::tempdir().unwrap();
        let (tmp, spare) = (root.path().join("tmp"), root.path().join("spare"));
        fs::create_dir(&tmp).unwrap();
        let start = || Session::start(&tmp, &spare).unwrap();
        let one = start();
        let number = one._lock.metadata().unwrap().ino();
        drop(one);
        let two = start();
        assert_eq!(two._lock.metadata().unwrap().ino(), number);
        assert_eq!(sweep(&tmp, &mut |_| panic!("nobody is dead")).unwrap(), 0);
        // Somebody still holds what waits: another one is made, and that is swept when it is let go.
        drop(two);
        let held = File::open(root.path().join("spare.lock")).unwrap();
        held.lock().unwrap();
        let three = start();
        assert_ne!(three._lock.metadata().unwrap().ino(), number);
        drop(held);
        assert_eq!(sweep(&tmp, &mut |_| {}).unwrap(), 1);
        assert!(three.folder.exists() && three.lock_path.exists());
    }
}
