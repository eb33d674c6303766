//! Files and folders of the file system: their stat, their hash, and what a folder holds.

mod large;
mod mapped;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use large::PIECE;

use crate::content::{Content, Entry, Tree, link_stays};
use crate::digest::{BlobId, TreeId};
use crate::error::{Error, Result};

/// What the file system says about a file; the same stat means the same bytes (see [`crate::index`]). Times in ns since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    pub mtime: i64,
    pub ctime: i64,
}

impl From<&Metadata> for Stat {
    fn from(meta: &Metadata) -> Self {
        let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Self {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.size(),
            mtime: nanoseconds(meta.mtime(), meta.mtime_nsec()),
            ctime: nanoseconds(meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// Whether its owner may execute a file.
pub fn is_executable(meta: &Metadata) -> bool {
    meta.mode() & 0o100 != 0
}

/// Now, in ns since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// A file's bytes by name, and the stat that held before and after they were read.
#[derive(Debug, Clone, Copy)]
pub struct Hashed {
    pub id: BlobId,
    pub stat: Stat,
    pub executable: bool,
    /// When reading began, ns since 1970.
    pub began: i64,
}

impl Hashed {
    pub fn content(&self) -> Content {
        Content::Blob { id: self.id, size: self.stat.size, executable: self.executable }
    }
}

/// Hashes an open file from its start.
///
/// # Errors
/// [`Error::Changing`] if the file was written to meanwhile.
pub fn hash_open(file: &mut File, path: &Path) -> Result<Hashed> {
    let failed = || Error::io("read", path);
    let began = now();
    let before = file.metadata().map_err(failed())?;
    if before.is_dir() {
        return Err(failed()(io::ErrorKind::IsADirectory.into()));
    }
    let id = hash_bytes(file, before.len()).map_err(failed())?.ok_or_else(|| Error::Changing { path: path.to_owned() })?;
    let after = file.metadata().map_err(failed())?;
    let stat = Stat::from(&after);
    if (Stat { ctime: 0, ..Stat::from(&before) }) != (Stat { ctime: 0, ..stat }) {
        return Err(Error::Changing { path: path.to_owned() });
    }
    // A link or a chmod meanwhile moves ctime alone; began is then too early for the index to trust the entry.
    Ok(Hashed { id, stat, executable: is_executable(&after), began })
}

/// Hashes a file. See [`hash_open`].
pub fn hash_file(path: &Path) -> Result<Hashed> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    hash_open(&mut file, path)
}

/// Hashes the `size` bytes of a file; `None` if it has fewer by now. More show by its stat.
fn hash_bytes(file: &mut File, size: u64) -> io::Result<Option<BlobId>> {
    if size > PIECE {
        return large::hash(file, size);
    }
    // One byte more than wanted, so that the end shows without another allocation.
    let mut bytes = Vec::with_capacity(size as usize + 1);
    file.read_to_end(&mut bytes)?;
    Ok(Some(BlobId::of(&bytes)))
}

/// What a folder holds, read before anything is done with it, so that a folder with something odd in it is refused as a whole.
#[derive(Debug)]
pub struct Scan {
    /// The files, in the order of the nodes that point here.
    pub files: Vec<PathBuf>,
    root: BTreeMap<String, Node>,
}

#[derive(Debug)]
enum Node {
    /// Index into the files.
    File(usize),
    Dir(BTreeMap<String, Node>),
    Symlink(String),
}

impl Scan {
    /// Reads the folder `path` and all below it. Links are not followed.
    pub fn new(path: &Path) -> Result<Self> {
        let mut files = Vec::new();
        let root = scan_dir(path, 0, &mut files)?;
        Ok(Self { files, root })
    }

    /// The tree's id, given what each file is. Puts the canonical bytes of every tree, the root's too, into `trees`.
    pub fn tree(&self, files: &[Content], trees: &mut BTreeMap<TreeId, Vec<u8>>) -> TreeId {
        tree_of(&self.root, files, trees)
    }
}

fn scan_dir(path: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<BTreeMap<String, Node>> {
    let mut nodes = BTreeMap::new();
    for item in fs::read_dir(path).map_err(Error::io("read the folder", path))? {
        let item = item.map_err(Error::io("read the folder", path))?;
        let here = item.path();
        let name = utf8(item.file_name(), &here)?;
        let kind = item.file_type().map_err(Error::io("examine", &here))?;
        let node = if kind.is_dir() {
            Node::Dir(scan_dir(&here, depth + 1, files)?)
        } else if kind.is_symlink() {
            Node::Symlink(link_target(&here, depth)?)
        } else if kind.is_file() {
            files.push(here);
            Node::File(files.len() - 1)
        } else {
            return Err(special(&here, kind));
        };
        nodes.insert(name, node);
    }
    Ok(nodes)
}

fn utf8(name: OsString, path: &Path) -> Result<String> {
    name.into_string().map_err(|_| Error::NotUtf8 { path: path.to_owned() })
}

/// The target of a link that stays within its tree.
fn link_target(path: &Path, depth: usize) -> Result<String> {
    let target = fs::read_link(path).map_err(Error::io("read the link", path))?;
    let target = utf8(target.into_os_string(), path)?;
    if link_stays(&target, depth) { Ok(target) } else { Err(Error::LinkLeaves { path: path.to_owned(), target }) }
}

/// The complaint about a file that is neither a file, a folder nor a link.
pub fn special(path: &Path, kind: fs::FileType) -> Error {
    let kind = match kind {
        _ if kind.is_socket() => "socket",
        _ if kind.is_fifo() => "pipe",
        _ if kind.is_block_device() || kind.is_char_device() => "device",
        _ => "special file",
    };
    Error::Special { path: path.to_owned(), kind }
}

fn tree_of(nodes: &BTreeMap<String, Node>, files: &[Content], trees: &mut BTreeMap<TreeId, Vec<u8>>) -> TreeId {
    let mut tree = Tree::default();
    for (name, node) in nodes {
        let entry = match node {
            Node::File(index) => match files[*index] {
                Content::Blob { id, size, executable } => Entry::File { id, size, executable },
                Content::Tree { id } => Entry::Dir(id),
            },
            Node::Dir(nodes) => Entry::Dir(tree_of(nodes, files, trees)),
            Node::Symlink(target) => Entry::Symlink(target.clone()),
        };
        tree.entries.insert(name.clone(), entry);
    }
    let id = tree.id();
    trees.insert(id, tree.bytes());
    id
}

/// Removes a file or a folder with all below it, read-only folders too. Nothing there is fine.
pub fn remove_all(path: &Path) -> Result<()> {
    let failed = Error::io("remove", path);
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed(e)),
        Ok(meta) if !meta.is_dir() => fs::remove_file(path).map_err(failed),
        Ok(_) => match fs::remove_dir_all(path) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                unlock_dirs(path);
                fs::remove_dir_all(path).map_err(failed)
            }
            other => other.map_err(failed),
        },
    }
}

/// Gives the owner all rights on the folders below `path`. What cannot be changed shows when it is removed.
fn unlock_dirs(path: &Path) {
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
    for item in fs::read_dir(path).into_iter().flatten().flatten() {
        if item.file_type().is_ok_and(|kind| kind.is_dir()) {
            unlock_dirs(&item.path());
        }
    }
}
