//! What a watched run depends on, and whether it is still the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use trestle_engine::pipeline::{Origin, Pipeline};

/// Most changed files that are named.
const NAMED: usize = 3;

/// Files and folders that can change what a run does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    paths: BTreeSet<PathBuf>,
}

/// How the files of [`Sources`] were at one time: enough to see that one was written to, replaced, added or removed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Look {
    files: BTreeMap<PathBuf, Stat>,
}

/// Time of the last change of a file and of its entry, length, and which file it is.
type Stat = (i64, i64, i64, i64, u64, u64);

impl Sources {
    /// A pipeline file and, if it could be read, all that its stages read of the project.
    pub fn of(file: &Path, pipeline: Option<&Pipeline>) -> Self {
        let mut paths = BTreeSet::from([file.to_owned()]);
        for bound in pipeline.iter().flat_map(|p| &p.stages).flat_map(|stage| &stage.inputs).flat_map(|slot| &slot.values) {
            if let Origin::File { path, .. } = &bound.origin {
                paths.insert(path.to_path_buf());
            }
        }
        Self { paths }
    }

    /// Both together: while a pipeline cannot be read, what it was before may still be mended.
    pub fn and(&self, other: &Self) -> Self {
        Self { paths: self.paths.union(&other.paths).cloned().collect() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.paths.len()
    }

    /// Folders to listen to, each with whether all below it counts. A file is watched through its folder, since editors replace files.
    pub fn folders(&self) -> BTreeMap<PathBuf, bool> {
        let mut folders = BTreeMap::new();
        for path in &self.paths {
            if path.is_dir() {
                folders.insert(path.clone(), true);
            }
            // Of what is not there, the nearest folder that is.
            if let Some(parent) = path.ancestors().skip(1).find(|folder| folder.is_dir()) {
                folders.entry(parent.to_owned()).or_insert(false);
            }
        }
        folders
    }

    /// Looks at them now.
    pub fn look(&self) -> Look {
        let mut look = Look::default();
        let mut open: Vec<PathBuf> = self.paths.iter().cloned().collect();
        while let Some(path) = open.pop() {
            // What is not there has no entry, and so differs from what is.
            let Ok(meta) = fs::metadata(&path) else { continue };
            if meta.is_dir() {
                open.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| !is_loop(path)));
            }
            look.files.insert(path, stat(&meta));
        }
        look
    }
}

/// A link to a folder could lead back to where it stands.
fn is_loop(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()) && path.is_dir()
}

fn stat(meta: &Metadata) -> Stat {
    if meta.is_dir() {
        // Its entries are looked at one by one.
        return (0, 0, 0, 0, 0, meta.ino());
    }
    (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec(), meta.len(), meta.ino())
}

impl Look {
    /// What is not as it was, by name, relative to `here` where it lies below.
    pub fn changes(&self, now: &Self, here: &Path) -> Vec<String> {
        let names: BTreeSet<&PathBuf> = self.files.keys().chain(now.files.keys()).collect();
        let is_changed = |path: &&&PathBuf| self.files.get(**path) != now.files.get(**path);
        names.iter().filter(is_changed).map(|path| path.strip_prefix(here).unwrap_or(path).display().to_string()).collect()
    }
}

/// The names for one line.
pub fn in_words(changes: &[String]) -> String {
    let named = changes.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if changes.len() > NAMED { format!("{named} and {} more", changes.len() - NAMED) } else { named }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_change_a_file_is_seen() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        let write = |name: &str, text: &str| fs::write(at(name), text).expect("written");
        fs::create_dir(at("folder")).expect("made");
        write("a", "1");
        write("folder/b", "1");
        let sources = Sources { paths: [at("a"), at("folder"), at("missing/x")].into() };
        let mut before = sources.look();
        let mut changed = |what: &str| {
            let now = sources.look();
            assert_eq!(before.changes(&now, dir.path()), [what]);
            before = now;
        };
        write("a", "22");
        changed("a");
        write("new", "22");
        fs::rename(at("new"), at("a")).expect("renamed");
        changed("a");
        write("folder/b", "");
        changed("folder/b");
        write("folder/c", "");
        changed("folder/c");
        fs::remove_file(at("folder/b")).expect("removed");
        changed("folder/b");
        write("other", "1");
        assert_eq!(before.changes(&sources.look(), dir.path()), Vec::<String>::new());
        let folders = sources.folders();
        assert_eq!(folders, BTreeMap::from([(dir.path().to_owned(), false), (at("folder"), true)]));
    }
}
