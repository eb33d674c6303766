//! One run at a time in a cache.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::Result;
use crate::error::{At, Error};

/// Held while a run is under way. The system frees it when the process ends, however that ends.
#[derive(Debug)]
pub struct RunLock(#[expect(dead_code, reason = "the open file is the lock")] File);

fn open(path: &Path) -> Result<File> {
    File::options().create(true).truncate(false).write(true).open(path).at("open", path)
}

/// Waits for the lock.
pub fn wait(path: &Path) -> Result<RunLock> {
    let file = open(path)?;
    file.lock().at("lock", path)?;
    Ok(RunLock(file))
}

/// The lock, if nobody has it.
pub fn attempt(path: &Path) -> Result<Option<RunLock>> {
    let file = open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(RunLock(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(source)) => Err(Error::Io { doing: "lock", path: path.to_owned(), source }),
    }
}
