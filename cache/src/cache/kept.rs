//! What stages that were killed can go on from: a folder for each key, `checkpoints/KEY`.
//!
//! The stage alone writes there and knows what it means; nothing of it enters a record. Who carries out a key holds its claim, so nobody else
//! writes to its folder.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::Cache;
use crate::digest::ActionKey;
use crate::error::{Error, Result};

/// Name of the folder in a cache.
const FOLDER: &str = "checkpoints";
/// What nobody went on from for this long goes.
const LIFE: Duration = Duration::from_secs(14 * 24 * 60 * 60);

impl Cache {
    /// The folder for what a stage with this key can go on from. It need not exist.
    pub fn kept_path(&self, key: &ActionKey) -> PathBuf {
        self.root.join(FOLDER).join(key.to_string())
    }

    /// Removes that folder. Nothing there is fine.
    ///
    /// # Errors
    /// [`Error::Io`] names what cannot be removed.
    pub fn remove_kept(&self, key: &ActionKey) -> Result<()> {
        remove(&self.kept_path(key))
    }

    /// Removes such folders of stages that are done, and those that were not written to for two weeks, or for `max_age` if that is shorter.
    /// Gives how many went.
    pub(super) fn collect_kept(&self, max_age: Option<Duration>, dry_run: bool) -> Result<usize> {
        let folder = self.root.join(FOLDER);
        let entries = match fs::read_dir(&folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
            other => other.map_err(Error::io("read the folder", &folder))?,
        };
        let life = max_age.map_or(LIFE, |age| age.min(LIFE));
        let mut count = 0;
        for entry in entries {
            let path = entry.map_err(Error::io("read the folder", &folder))?.path();
            let key = path.file_name().and_then(|name| name.to_str()?.parse::<ActionKey>().ok());
            let is_done = match key {
                Some(key) => self.has_record(&key)?,
                None => true,
            };
            if is_done || age(&path).is_none_or(|age| age >= life) {
                count += 1;
                if !dry_run {
                    remove(&path)?;
                }
            }
        }
        Ok(count)
    }
}

/// Time since a folder was last written to.
fn age(path: &Path) -> Option<Duration> {
    let written = fs::metadata(path).ok()?.modified().ok()?;
    Some(SystemTime::now().duration_since(written).unwrap_or_default())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io("remove", path)(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;
    use crate::cache::Bounds;
    use crate::digest::Digest;

    #[test]
    fn what_is_too_old_goes() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let paths: Vec<PathBuf> = ["a", "b"].map(|text| cache.kept_path(&ActionKey::new(Digest::of(text.as_bytes())))).into();
        paths.iter().for_each(|path| fs::create_dir_all(path).unwrap());
        let day = Duration::from_secs(24 * 60 * 60);
        fs::File::open(&paths[0]).unwrap().set_modified(SystemTime::now() - 5 * day).unwrap();
        let gc = |max_age: Option<Duration>, dry_run| {
            let alone = cache.try_lock().unwrap().unwrap();
            cache.collect(&alone, &BTreeSet::new(), &Bounds { max_size: None, max_age, dry_run }).unwrap().kept_removed
        };
        assert_eq!((gc(None, false), gc(Some(4 * day), true)), (0, 1));
        assert!(paths[0].exists());
        assert_eq!(gc(Some(4 * day), false), 1);
        assert!(!paths[0].exists() && paths[1].exists());
    }
}
