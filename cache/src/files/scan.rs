//! Folders, read before anything is done with what is in them.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::special;
use crate::content::{Content, Entry, Tree, link_stays};
use crate::digest::{Digest, TreeId};
use crate::error::{Error, Result};
use crate::parallel;

/// From so many folders on all threads look at them.
const FEW: usize = 4;

/// What a folder holds, read before anything is done with it, so that a folder with something odd in it is refused as a whole.
///
/// Folders are kept by their depth, not in each other, and looked at level by level: no path is so deep that a stack overflows.
#[derive(Debug)]
pub struct Scan {
    levels: Vec<Vec<Folder>>,
}

/// One folder of a scan.
#[derive(Debug)]
pub struct Folder {
    /// Where it is.
    pub path: PathBuf,
    /// Names of its files, in order.
    pub files: Vec<String>,
    /// Names of its folders, and where on the next level the first of them is.
    folders: Vec<String>,
    below: usize,
    /// Names and targets.
    links: Vec<(String, String)>,
}

impl Scan {
    /// Reads the folder `path` and all below it. Links are not followed.
    pub fn new(path: &Path) -> Result<Self> {
        let (mut levels, mut next) = (Vec::new(), vec![path.to_owned()]);
        while !next.is_empty() {
            let depth = levels.len();
            let mut level = parallel::map(&next, FEW, |path| Folder::read(path.clone(), depth)).into_iter().collect::<Result<Vec<_>>>()?;
            next = Vec::new();
            for folder in &mut level {
                folder.below = next.len();
                next.extend(folder.folders.iter().map(|name| folder.path.join(name)));
            }
            levels.push(level);
        }
        Ok(Self { levels })
    }

    /// The tree's id, where `contents` says of each folder what its files are, in the order of their names. The canonical bytes of every
    /// tree, the root's too, go to `keep`.
    pub fn tree(
        &self,
        contents: &(dyn Fn(&Folder) -> Result<Vec<Content>> + Sync),
        keep: &(dyn Fn(TreeId, Vec<u8>) + Sync),
    ) -> Result<TreeId> {
        let mut below: Vec<TreeId> = Vec::new();
        for level in self.levels.iter().rev() {
            let tree = |folder: &Folder| {
                let bytes = folder.tree(contents(folder)?, &below).bytes();
                let id = TreeId::new(Digest::of(&bytes));
                keep(id, bytes);
                Ok(id)
            };
            below = parallel::map(level, FEW, tree).into_iter().collect::<Result<_>>()?;
        }
        // The uppermost level is the folder itself.
        Ok(below[0])
    }
}

impl Folder {
    fn read(path: PathBuf, depth: usize) -> Result<Self> {
        let (mut files, mut folders, mut links) = (Vec::new(), Vec::new(), Vec::new());
        for item in fs::read_dir(&path).map_err(Error::io("read the folder", &path))? {
            let item = item.map_err(|e| Error::io("read the folder", &path)(e))?;
            let kind = item.file_type().map_err(|e| Error::io("examine", &item.path())(e))?;
            let name = utf8(item.file_name(), &path)?;
            if kind.is_dir() {
                folders.push(name);
            } else if kind.is_symlink() {
                let target = link_target(&item.path(), depth)?;
                links.push((name, target));
            } else if kind.is_file() {
                files.push(name);
            } else {
                return Err(special(&item.path(), kind));
            }
        }
        files.sort_unstable();
        Ok(Self { path, files, folders, below: 0, links })
    }

    /// Its tree, given what its files are and the trees of all folders on the next level.
    fn tree(&self, contents: Vec<Content>, below: &[TreeId]) -> Tree {
        let files = self.files.iter().zip(contents).map(|(name, content)| (name.clone(), entry(content)));
        let folders = self.folders.iter().zip(&below[self.below..]).map(|(name, id)| (name.clone(), Entry::Dir(*id)));
        let links = self.links.iter().map(|(name, target)| (name.clone(), Entry::Symlink(target.clone())));
        Tree { entries: files.chain(folders).chain(links).collect() }
    }
}

fn entry(content: Content) -> Entry {
    match content {
        Content::Blob { id, size, executable } => Entry::File { id, size, executable },
        Content::Tree { id } => Entry::Dir(id),
    }
}

fn utf8(name: OsString, folder: &Path) -> Result<String> {
    name.into_string().map_err(|name| Error::NotUtf8 { path: folder.join(name) })
}

/// The target of a link that stays within its tree.
fn link_target(path: &Path, depth: usize) -> Result<String> {
    let target = fs::read_link(path).map_err(Error::io("read the link", path))?;
    let target = target.into_os_string().into_string().map_err(|_| Error::NotUtf8 { path: path.to_owned() })?;
    if link_stays(&target, depth) { Ok(target) } else { Err(Error::LinkLeaves { path: path.to_owned(), target }) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::digest::BlobId;

    /// As deep as paths can be, on threads with as little stack as workers have.
    #[test]
    fn a_deep_folder_has_a_tree() {
        let top = tempfile::tempdir().unwrap();
        let deepest = top.path().join("d/".repeat(1900));
        fs::create_dir_all(&deepest).unwrap();
        fs::write(deepest.join("f"), "x").unwrap();
        let blob = Content::Blob { id: BlobId::of(b"x"), size: 1, executable: false };
        let tree = || {
            let count = std::sync::atomic::AtomicUsize::new(0);
            let contents = |folder: &Folder| Ok(folder.files.iter().map(|_| blob).collect());
            let count_one = |_, _| {
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            };
            (Scan::new(top.path()).unwrap().tree(&contents, &count_one).unwrap(), count.into_inner())
        };
        let (id, count) = rayon::join(tree, tree).1;
        assert_eq!(count, 1901);
        let mut expected = Tree { entries: [("f".to_owned(), entry(blob))].into() }.id();
        for _ in 0..1900 {
            expected = Tree { entries: [("d".to_owned(), Entry::Dir(expected))].into() }.id();
        }
        assert_eq!(id, expected);
    }
}
