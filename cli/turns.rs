//! A file that every run writes anew, by turns in two places.
//!
//! To make a file and to remove the one that it replaces costs ext4 a third of a millisecond, as much as it takes to find that nothing changed in a hundred stages. So the
//! old one waits beside the new one, and the next run writes over it. It is never cut down to nothing first, nor replaced by a rename:
//! either would make ext4 write the new bytes out at once. What is kept so has a checksum and is no more than a shortcut.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// A larger file is not kept twice: beside what else its run does, making one costs nothing.
const LARGEST: u64 = 1 << 20;

/// One such file.
#[derive(Debug)]
pub struct Turns {
    place: PathBuf,
    /// The one before.
    old: PathBuf,
    /// The next one, as long as it is written; this process's alone.
    new: PathBuf,
}

impl Turns {
    /// The file at `place`.
    pub fn at(place: PathBuf) -> Self {
        let beside = |ending: &str| {
            let mut path = place.clone().into_os_string();
            path.push(ending);
            PathBuf::from(path)
        };
        Self { old: beside(".old"), new: beside(&format!(".{}.tmp", std::process::id())), place }
    }

    /// The next one to write to, from its beginning on. Something may stand in it: it is for the caller to set its length.
    pub fn open(&self) -> io::Result<File> {
        // Whoever moves it has it; without one there is nothing to write over.
        let _ = fs::rename(&self.old, &self.new);
        File::options().write(true).create(true).truncate(false).open(&self.new)
    }

    /// Puts what was written in its place.
    pub fn replace(&self) -> io::Result<()> {
        if !exchange(&self.new, &self.place) {
            return fs::rename(&self.new, &self.place);
        }
        if fs::symlink_metadata(&self.new).is_ok_and(|meta| meta.is_file() && meta.len() <= LARGEST) {
            return fs::rename(&self.new, &self.old);
        }
        fs::remove_file(&self.new)
    }

    /// Lets go of what was written, which is in nobody's way but the disk's.
    pub fn discard(&self) {
        drop(fs::remove_file(&self.new));
    }
}

/// Whether two files have changed their places. Both have to be there.
#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    #[test]
    fn what_was_written_last_is_in_its_place_whatever_lay_there_before() {
        let folder = tempfile::tempdir().unwrap();
        let turns = Turns::at(folder.path().join("memo"));
        let write = |text: &str| {
            let mut file = turns.open().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.set_len(text.len() as u64).unwrap();
        };
        for text in ["a longer one", "short", "", "again a longer one", "x"] {
            write(text);
            turns.replace().unwrap();
            assert_eq!(fs::read_to_string(&turns.place).unwrap(), text);
            assert!(!turns.new.exists());
        }
        write("never");
        turns.discard();
        assert_eq!(fs::read_to_string(&turns.place).unwrap(), "x");
        // Another process may have removed either.
        drop(fs::remove_file(&turns.old));
        write("y");
        turns.replace().unwrap();
        fs::remove_file(&turns.place).unwrap();
        write("z");
        turns.replace().unwrap();
        assert_eq!(fs::read_to_string(&turns.place).unwrap(), "z");
        write(&"large".repeat(1 << 20));
        turns.replace().unwrap();
        write("small");
        turns.replace().unwrap();
        assert_eq!((fs::read_to_string(&turns.place).unwrap().as_str(), turns.old.exists()), ("small", false));
    }
}
