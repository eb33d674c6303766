//! All that tests know of how a cache lies on disk.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::{Project, files};

/// The folder of a project's cache.
pub fn folder(project: &Path) -> PathBuf {
    project.join(".trestle")
}

/// The stored file with these bytes.
#[track_caller]
pub fn blob(project: &Project, bytes: &[u8]) -> PathBuf {
    let found = project.blobs().into_iter().find(|path| std::fs::read(path).unwrap() == bytes);
    found.unwrap_or_else(|| panic!("no blob with these bytes: {}", String::from_utf8_lossy(bytes)))
}

/// The files that hold records.
pub fn records(project: &Path) -> Vec<PathBuf> {
    let path = folder(project).join("records");
    if path.is_file() { vec![path] } else { files(&path) }
}

/// What earlier runs left to make the next one quick.
pub fn plans(project: &Path) -> PathBuf {
    folder(project).join("plans")
}

/// What running processes have in the folder for unfinished things, or what dead ones left there.
pub fn unfinished(cache: &Path) -> Vec<PathBuf> {
    let items = std::fs::read_dir(cache.join("tmp")).into_iter().flatten();
    items.map(|item| item.unwrap().path()).collect()
}

/// Gives a file of the store other bytes.
pub fn overwrite(path: &Path, bytes: &[u8]) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// Other bytes of the same length, the time of change as it was.
pub fn spoil(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[0] ^= 1;
    let modified = std::fs::metadata(path).unwrap().modified().unwrap();
    overwrite(path, &bytes);
    std::fs::File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
}
