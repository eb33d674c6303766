//! What lies beside some folders and beside the folders above them: all that a domain which keeps those folders shut allows.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

/// Gives everything but the closed folders: what lies beside them and beside the folders above them. Opened for nothing but a rule, with
/// whether it is a folder.
pub fn for_all_beside(closed: &[PathBuf], allow: &mut dyn FnMut(OwnedFd, bool)) {
    let closed: Vec<PathBuf> = closed.iter().map(|path| std::fs::canonicalize(path).unwrap_or_else(|_| path.clone())).collect();
    beside(Path::new("/"), &closed, allow);
}

/// For a rule alone: nothing can be read through it.
pub const FOR_A_RULE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

fn beside(folder: &Path, closed: &[PathBuf], allow: &mut dyn FnMut(OwnedFd, bool)) {
    let reading = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(mut entries) = rustix::fs::open(folder, reading, Mode::empty()).and_then(rustix::fs::Dir::new) else { return };
    // What in this folder is closed or leads there.
    let on_the_way: Vec<&OsStr> = closed.iter().filter_map(|shut| shut.strip_prefix(folder).ok()?.iter().next()).collect();
    while let Some(entry) = entries.read() {
        let Ok(entry) = entry else { continue };
        let (name, kind) = (entry.file_name(), entry.file_type());
        let name = OsStr::from_bytes(name.to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        let kind = if kind == FileType::Unknown { kind_of(&entries, entry.file_name()).unwrap_or(kind) } else { kind };
        // What a link leads to is reached by its own name, and allowed there or not.
        if kind == FileType::Symlink {
            continue;
        }
        let path = folder.join(name);
        if !on_the_way.contains(&name) {
            allow_entry(&entries, name, kind == FileType::Directory, allow);
        } else if !closed.contains(&path) {
            beside(&path, closed, allow);
        }
    }
}

/// Of file systems that do not say it with the name.
fn kind_of(folder: &rustix::fs::Dir, name: &std::ffi::CStr) -> rustix::io::Result<FileType> {
    let meta = rustix::fs::statat(folder.fd()?, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(meta.st_mode))
}

/// A file that went meanwhile, or that may not be opened, is not needed.
fn allow_entry(folder: &rustix::fs::Dir, name: &OsStr, is_folder: bool, allow: &mut dyn FnMut(OwnedFd, bool)) {
    if let Ok(file) = folder.fd().and_then(|folder| rustix::fs::openat(folder, name, FOR_A_RULE, Mode::empty())) {
        allow(file, is_folder);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn everything_but_the_closed_folders_is_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(folder.path()).unwrap();
        for dir in ["a/project/data", "a/other", "b"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        std::os::unix::fs::symlink(root.join("a/project"), root.join("b/link")).unwrap();
        std::os::unix::fs::symlink(root.join("a"), root.join("up")).unwrap();
        std::fs::write(root.join("a/file"), "").unwrap();
        let mut allowed = Vec::new();
        for_all_beside(&[root.join("a/project")], &mut |file, is_folder| {
            let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
            assert_eq!(is_folder, path.is_dir(), "{}", path.display());
            allowed.push(path);
        });
        let here: Vec<_> = allowed.iter().filter_map(|path| Some(path.strip_prefix(&root).ok()?.to_str().unwrap().to_owned())).collect();
        assert_eq!(here.len(), 3, "{here:?}");
        for dir in ["a/other", "a/file", "b"] {
            assert!(here.contains(&dir.to_owned()), "{dir}");
        }
        assert!(allowed.contains(&PathBuf::from("/usr")) && !allowed.contains(&PathBuf::from("/")));
    }
}
