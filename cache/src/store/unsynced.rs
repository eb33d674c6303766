//! The mark that blobs have their names and may not be on disk yet.
//!
//! What took a moment to make is not worth a wait for the disk: the system writes it within half a minute by itself. If the machine loses power before that, a
//! file system may have kept a blob's name, size and times and not its bytes, and then whoever knows the blob by these would take it for what
//! it was. So a mark is left before the memo of the run is: the file `unsynced`, which says in which start of the machine it was left, and by its
//! time since when. Found in another start, it says which blobs are to be read again. Nothing in it needs to have reached the disk itself:
//! a mark that says nothing is of another start. One that was copied with its cache says nothing of the copies.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use super::session::is_at;
use crate::error::{Error, Result};

/// Before a mark was left, blobs may be what it is about from so long on: a run syncs every five seconds.
const BEFORE: Duration = Duration::from_secs(60);
/// What is older is on disk: systems write within half a minute what they have to.
const WRITTEN: Duration = Duration::from_secs(300);

/// See the module.
#[derive(Debug)]
pub struct Mark {
    path: PathBuf,
    /// Number of this start of the machine; none where the system does not say.
    boot: fn() -> Option<String>,
}

/// A mark of another start of the machine. As long as it lives, nobody else leaves or lifts one.
#[derive(Debug)]
pub struct Stale {
    path: PathBuf,
    /// Blobs that changed since, in seconds since 1970, may not be what their names say.
    pub since: i64,
    _lock: File,
}

impl Mark {
    pub fn new(root: &Path) -> Self {
        Self { path: root.join("unsynced"), boot }
    }

    /// Leaves the mark. Says whether it is there: where it cannot be left, whoever stored something has to sync it.
    pub fn leave(&self) -> Result<bool> {
        let Some(boot) = (self.boot)() else { return Ok(false) };
        loop {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(&self.path);
            let file = file.map_err(Error::io("write", &self.path))?;
            match file.try_lock_shared() {
                Ok(()) => {}
                // Somebody syncs what was there before, or reads it again.
                Err(TryLockError::WouldBlock) => return Ok(false),
                Err(TryLockError::Error(e)) => return Err(Error::io("lock", &self.path)(e)),
            }
            // It may have been lifted before it was locked here.
            if !is_at(&file, &self.path) {
                continue;
            }
            let text = text(&boot, &file).map_err(Error::io("examine", &self.path))?;
            let written = read(&file).map_err(Error::io("read", &self.path))?;
            if written.is_empty() {
                if let Err(e) = file.write_all_at(&text, 0) {
                    // An empty one would be taken for one of another start.
                    let _ = fs::remove_file(&self.path);
                    return Err(Error::io("write", &self.path)(e));
                }
                return Ok(true);
            }
            if written != text {
                return Ok(false);
            }
            self.move_on(&file).map_err(Error::io("change the time of", &self.path))?;
            return Ok(true);
        }
    }

    /// The mark is about what was stored lately. Where the clock was set back, it is about what comes now.
    fn move_on(&self, file: &File) -> io::Result<()> {
        let (left, now) = (file.metadata()?.modified()?, SystemTime::now());
        match now.duration_since(left) {
            Ok(age) if age > 2 * WRITTEN => file.set_modified(now - WRITTEN),
            Err(_) => file.set_modified(now),
            Ok(_) => Ok(()),
        }
    }

    /// If there is a mark, calls `sync`, which has to bring everything to disk, and lifts the mark. Says whether there was one.
    pub fn lift(&self, sync: impl FnOnce() -> Result<()>) -> Result<bool> {
        let Some(file) = self.open()? else { return Ok(false) };
        file.lock().map_err(Error::io("lock", &self.path))?;
        if !is_at(&file, &self.path) {
            return Ok(false);
        }
        sync()?;
        fs::remove_file(&self.path).map_err(Error::io("remove", &self.path))?;
        Ok(true)
    }

    /// The mark, if it is of another start of the machine.
    pub fn stale(&self) -> Result<Option<Stale>> {
        let Some(file) = self.open()? else { return Ok(None) };
        let written = || read(&file).unwrap_or_default();
        let is_ours = || (self.boot)().is_some_and(|boot| text(&boot, &file).is_ok_and(|text| text == written()));
        if is_ours() {
            return Ok(None);
        }
        file.lock().map_err(Error::io("lock", &self.path))?;
        // Whoever had the lock may have seen to it, or have been about to write it.
        if !is_at(&file, &self.path) || is_ours() {
            return Ok(None);
        }
        let meta = file.metadata().map_err(Error::io("examine", &self.path))?;
        let since = meta.mtime().saturating_sub(BEFORE.as_secs().cast_signed());
        // Whoever copied it read the blobs that it copied.
        let is_copy = number_in(&written()).is_some_and(|number| number != meta.ino());
        let stale = Stale { path: self.path.clone(), since: if is_copy { i64::MAX } else { since }, _lock: file };
        Ok(Some(stale))
    }

    fn open(&self) -> Result<Option<File>> {
        match File::open(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            other => Ok(Some(other.map_err(Error::io("open", &self.path))?)),
        }
    }
}

impl Stale {
    /// Says that all it was about was seen to.
    pub fn lift(self) -> Result<()> {
        fs::remove_file(&self.path).map_err(Error::io("remove", &self.path))
    }
}

/// What a mark of this start of the machine says: a copy of it lies in another place.
fn text(boot: &str, file: &File) -> io::Result<Vec<u8>> {
    Ok(format!("{}{}", boot, place(&file.metadata()?)).into_bytes())
}

fn place(meta: &fs::Metadata) -> String {
    format!(" {}\n", meta.ino())
}

/// The number of the file for which this was written; none if it is not whole.
fn number_in(written: &[u8]) -> Option<u64> {
    std::str::from_utf8(written).ok()?.strip_suffix('\n')?.rsplit_once(' ')?.1.parse().ok()
}

fn read(mut file: &File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    io::Seek::rewind(&mut file)?;
    file.read_to_end(&mut text)?;
    Ok(text)
}

/// A number that the system draws when it starts.
fn boot() -> Option<String> {
    static BOOT: OnceLock<Option<String>> = OnceLock::new();
    let read = || fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned()).filter(|id| !id.is_empty());
    BOOT.get_or_init(read).clone()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mark(root: &Path, boot: fn() -> Option<String>) -> Mark {
        Mark { boot, ..Mark::new(root) }
    }

    #[test]
    fn a_mark_is_stale_in_another_start_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (now, later) = (mark(dir.path(), || Some("a".into())), mark(dir.path(), || Some("b".into())));
        assert!(now.stale().unwrap().is_none(), "there is none");
        assert!(now.leave().unwrap() && now.leave().unwrap());
        assert!(now.stale().unwrap().is_none());
        assert!(!later.leave().unwrap(), "one of another start is not added to");
        let stale = later.stale().unwrap().unwrap();
        assert!(!now.leave().unwrap(), "it is being seen to");
        stale.lift().unwrap();
        assert!(later.stale().unwrap().is_none() && later.leave().unwrap());
        assert!(!mark(dir.path(), || None).leave().unwrap(), "nothing tells one start from another");
    }

    #[test]
    fn a_mark_whose_bytes_were_lost_is_stale() {
        let dir = tempfile::tempdir().unwrap();
        let mark = mark(dir.path(), || Some("a".into()));
        mark.leave().unwrap();
        for lost in ["", "\0\0\0\0", "a 1"] {
            fs::write(&mark.path, lost).unwrap();
            assert!(mark.stale().unwrap().is_some_and(|stale| stale.since < i64::MAX), "{lost:?}");
        }
    }

    #[test]
    fn a_mark_that_was_copied_is_about_nothing() {
        let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (now, later) = (mark(dir.path(), || Some("a".into())), mark(copy.path(), || Some("b".into())));
        now.leave().unwrap();
        fs::copy(&now.path, &later.path).unwrap();
        assert_eq!(later.stale().unwrap().unwrap().since, i64::MAX);
        // In the same start of the machine too.
        assert_eq!(mark(copy.path(), || Some("a".into())).stale().unwrap().unwrap().since, i64::MAX);
    }

    #[test]
    fn a_mark_goes_with_the_time() {
        let dir = tempfile::tempdir().unwrap();
        let mark = mark(dir.path(), || Some("a".into()));
        mark.leave().unwrap();
        let now = SystemTime::now();
        let left_at = |time: SystemTime| {
            File::options().write(true).open(&mark.path).unwrap().set_modified(time).unwrap();
            mark.leave().unwrap();
            fs::metadata(&mark.path).unwrap().modified().unwrap()
        };
        let near = |a: SystemTime, b: SystemTime| a.max(b).duration_since(a.min(b)).unwrap() < Duration::from_secs(60);
        assert!(near(left_at(now - 100 * WRITTEN), now - WRITTEN), "what was stored long ago is on disk");
        assert!(near(left_at(now - WRITTEN), now - WRITTEN));
        assert!(near(left_at(now + 100 * WRITTEN), now), "the clock was set back");
    }

    #[test]
    fn a_mark_is_lifted_by_a_sync_that_works() {
        let dir = tempfile::tempdir().unwrap();
        let mark = mark(dir.path(), || Some("a".into()));
        assert!(!mark.lift(|| panic!("there is none")).unwrap());
        mark.leave().unwrap();
        let failing = || Err(Error::io("sync", dir.path())(io::Error::other("no")));
        assert!(mark.lift(failing).is_err() && mark.path.exists());
        assert!(mark.lift(|| Ok(())).unwrap() && !mark.path.exists());
    }
}
