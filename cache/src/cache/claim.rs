//! Claims: that only one process at a time carries out the action of a key, whoever else wants it too.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::Cache;
use crate::digest::ActionKey;
use crate::error::{Error, Result};

/// The right to carry out the action of a key. Given up when dropped, and by the kernel when the process ends, however that ends.
///
/// It is a lock on one byte of the file `claims`, at a place that the key gives. The file stays empty, so there is nothing to clean up.
#[derive(Debug)]
pub struct Claim {
    file: Arc<File>,
    place: i64,
}

impl Cache {
    /// Claims a key; none if another process holds it. Two claims of one key in one process are the caller's mistake: both are given.
    ///
    /// # Errors
    /// [`Error::Io`] where the file system cannot lock.
    pub fn claim(&self, key: &ActionKey) -> Result<Option<Claim>> {
        let path = self.root.join("claims");
        let file = match self.claims.get() {
            Some(file) => file,
            None => {
                let file =
                    File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(Error::io("open", &path))?;
                self.claims.get_or_init(|| Arc::new(file))
            }
        };
        let mut eight = [0; 8];
        eight.copy_from_slice(&key.as_bytes()[..8]);
        let place = (u64::from_le_bytes(eight) >> 2).cast_signed();
        match lock(file, place, libc::F_WRLCK) {
            Ok(()) => Ok(Some(Claim { file: Arc::clone(file), place })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(e) => Err(cannot_lock(&path, e)),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // The kernel drops it with the process at the latest.
        let _ = lock(&self.file, self.place, libc::F_UNLCK);
    }
}

fn cannot_lock(path: &Path, error: Errno) -> Error {
    Error::io("lock", path)(error.into())
}

fn lock(file: &File, place: i64, kind: libc::c_int) -> nix::Result<()> {
    let whence = i16::try_from(libc::SEEK_SET).unwrap_or_default();
    let lock = libc::flock { l_type: kind as libc::c_short, l_whence: whence, l_start: place, l_len: 1, l_pid: 0 };
    // Of the open file, not of the process: a second cache in this process is a stranger too.
    #[cfg(target_os = "linux")]
    let argument = FcntlArg::F_OFD_SETLK(&lock);
    #[cfg(not(target_os = "linux"))]
    let argument = FcntlArg::F_SETLK(&lock);
    fcntl(file, argument).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn a_claim_is_held_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (Cache::open(folder.path()).unwrap(), Cache::open(folder.path()).unwrap());
        let key = |text: &str| ActionKey::new(Digest::of(text.as_bytes()));
        let claim = one.claim(&key("a")).unwrap().unwrap();
        assert!(two.claim(&key("a")).unwrap().is_none());
        assert!(two.claim(&key("b")).unwrap().is_some());
        drop(claim);
        assert!(two.claim(&key("a")).unwrap().is_some());
    }
}
