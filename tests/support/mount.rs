//! Small file systems of one's own, where this may mount.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A file system in memory, unmounted when dropped.
pub struct Tmpfs {
    dir: TempDir,
}

impl Tmpfs {
    /// A file system of this many bytes; none, with a note, where mounting is not allowed.
    pub fn mount(bytes: usize) -> Option<Self> {
        let fs = Self { dir: tempfile::tempdir().unwrap() };
        if mount(&["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs", &fs.text()]) {
            return Some(fs);
        }
        println!("skipped: this may not mount a file system");
        std::mem::forget(fs);
        None
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn text(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }

    /// From now on nobody may write, or may again.
    pub fn read_only(&self, yes: bool) {
        assert!(mount(&["-o", if yes { "remount,ro" } else { "remount,rw" }, &self.text()]));
    }

    /// Bytes that are free.
    fn free(&self) -> usize {
        let stat = Command::new("stat").args(["-f", "-c", "%a %S", &self.text()]).output().unwrap().stdout;
        let numbers: Vec<usize> = String::from_utf8(stat).unwrap().split_whitespace().map(|number| number.parse().unwrap()).collect();
        numbers[0] * numbers[1]
    }

    /// Removes the ballast; the kernel may take a moment to give its room back.
    pub fn lighten(&self, ballast: &Path) {
        std::fs::remove_file(ballast).unwrap();
        super::await_that("room", || self.free() > 1 << 20);
    }

    /// Fills all but `free` bytes, to the page; gives the file that does it.
    pub fn fill(&self, free: usize) -> PathBuf {
        let path = self.path().join("ballast");
        std::fs::write(&path, vec![0; self.free().saturating_sub(free)]).unwrap();
        path
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l", &self.text()]).stderr(Stdio::null()).status();
    }
}

fn mount(args: &[&str]) -> bool {
    Command::new("mount").args(args).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}
