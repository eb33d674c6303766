//! What comes in: sources are named where they lie, outputs are moved into the store.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use rustix::fs::{Mode, OFlags};

use super::Cache;
use crate::content::Content;
use crate::digest::BlobId;
use crate::error::{Error, Result};
use crate::files::{Folder, Scan, Seen, Stat, hash_file, is_executable, look, remove_all, special};
use crate::store::{Durability, Staged};

/// Files of a folder that are looked at by one thread in one go.
const AT_ONCE: usize = 256;

impl Cache {
    /// Names the project file or folder at `path`, a link to one too. A file whose stat is known is not read. Nothing is stored.
    ///
    /// Links inside a folder are kept as links, so they must stay within it.
    ///
    /// # Errors
    /// [`Error::Io`] if it is not there; [`Error::LinkLeaves`], [`Error::Special`], [`Error::NotUtf8`] and [`Error::HoldsCache`] for
    /// a folder that has no name of its own; [`Error::Changing`] if it is written to meanwhile.
    pub fn source(&self, path: impl AsRef<Path>) -> Result<Content> {
        let path = path.as_ref();
        let meta = fs::metadata(path).map_err(Error::io("read", path))?;
        if meta.is_file() {
            self.source_file(path)
        } else if meta.is_dir() {
            self.refuse_own_folder(path)?;
            let id = Scan::new(path)?.tree(&|folder| self.source_files(folder), &|_, _| {})?;
            Ok(Content::Tree { id })
        } else {
            Err(special(path, meta.file_type()))
        }
    }

    /// Names the files of a folder. Most are known: they are looked at from the open folder, many at a time, and the others hashed.
    fn source_files(&self, folder: &Folder) -> Result<Vec<Content>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::open(&folder.path, flags, Mode::empty()).map_err(|e| Error::io("open", &folder.path)(e.into()))?;
        let some = |names: &[String]| -> Result<Vec<Content>> {
            let see = |name: &String| match look(&open, name) {
                Ok(seen) if seen.is_file => Ok(seen),
                Ok(_) => Err(Error::Changing { path: folder.path.join(name) }),
                Err(e) => Err(Error::io("read", &folder.path.join(name))(e)),
            };
            let seen: Vec<Seen> = names.iter().map(see).collect::<Result<_>>()?;
            let known = self.index.known_all(seen.iter().map(|seen| &seen.stat));
            let content = |((name, seen), id): ((&String, &Seen), &Option<BlobId>)| match id {
                Some(id) => Ok(Content::Blob { id: *id, size: seen.stat.size, executable: seen.executable }),
                None => self.hashed_source(&folder.path.join(name)),
            };
            if known.iter().all(Option::is_some) {
                return names.iter().zip(&seen).zip(&known).map(content).collect();
            }
            names.par_iter().zip(&seen).zip(&known).map(content).collect()
        };
        let parts = folder.files.par_chunks(AT_ONCE).map(some).collect::<Result<Vec<_>>>()?;
        Ok(parts.concat())
    }

    fn source_file(&self, path: &Path) -> Result<Content> {
        let meta = fs::metadata(path).map_err(Error::io("read", path))?;
        let stat = Stat::from(&meta);
        if let Some(id) = self.index.known(&stat) {
            return Ok(Content::Blob { id, size: stat.size, executable: is_executable(&meta) });
        }
        self.hashed_source(path)
    }

    /// Names a file that is not known by its stat.
    fn hashed_source(&self, path: &Path) -> Result<Content> {
        let hashed = hash_file(path)?;
        self.index.note(&hashed);
        Ok(hashed.content())
    }

    /// A folder that holds the cache is never twice the same.
    pub(super) fn refuse_own_folder(&self, path: &Path) -> Result<()> {
        let folder = fs::canonicalize(path).map_err(Error::io("find", path))?;
        if self.root.starts_with(&folder) {
            return Err(Error::HoldsCache { path: path.to_owned(), cache: self.root.clone() });
        }
        Ok(())
    }

    /// Stores the file or folder that a stage produced at `path`, and names it. Its files are moved where that is safe (same file
    /// system, no other hard link), so afterwards, after an error too, they may be gone: the caller removes what is left.
    ///
    /// What is hashed is what is stored. A blob that lies there already is replaced unless it is known to be sound. Nobody may have
    /// the files open for writing any more.
    ///
    /// # Errors
    /// [`Error::LinkLeaves`], [`Error::Special`], [`Error::NotUtf8`] and [`Error::HoldsCache`] before anything is moved;
    /// [`Error::Changing`] if a file is still being written to; [`Error::Io`].
    pub fn ingest(&self, path: impl AsRef<Path>, durability: Durability) -> Result<Content> {
        let path = path.as_ref();
        let meta = fs::symlink_metadata(path).map_err(Error::io("read", path))?;
        if meta.is_symlink() {
            let target = fs::read_link(path).map_err(Error::io("read the link", path))?;
            Err(Error::LinkLeaves { path: path.to_owned(), target: target.to_string_lossy().into_owned() })
        } else if meta.is_file() {
            let (content, staged) = self.take_file(path, true)?;
            self.store.commit(staged.as_slice(), durability)?;
            Ok(content)
        } else if meta.is_dir() {
            self.refuse_own_folder(path)?;
            self.ingest_folder(&Scan::new(path)?, durability)
        } else {
            Err(special(path, meta.file_type()))
        }
    }

    fn ingest_folder(&self, scan: &Scan, durability: Durability) -> Result<Content> {
        let (staged, trees) = (Mutex::new(Vec::new()), Mutex::new(BTreeMap::new()));
        let take = |folder: &Folder| -> Result<Vec<Content>> {
            let taken = folder.files.par_iter().map(|name| self.take_file(&folder.path.join(name), true)).collect::<Result<Vec<_>>>()?;
            let (contents, blobs): (Vec<_>, Vec<_>) = taken.into_iter().unzip();
            staged.lock().unwrap_or_else(PoisonError::into_inner).extend(blobs.into_iter().flatten());
            Ok(contents)
        };
        let id = scan.tree(&take, &|id, bytes| {
            trees.lock().unwrap_or_else(PoisonError::into_inner).insert(id, bytes);
        })?;
        let mut staged = staged.into_inner().unwrap_or_else(PoisonError::into_inner);
        for bytes in trees.into_inner().unwrap_or_else(PoisonError::into_inner).values() {
            staged.push(self.store.stage(&mut bytes.as_slice())?);
        }
        self.store.commit(&staged, durability)?;
        Ok(Content::Tree { id })
    }

    /// Stores a copy of the file at `path`, which stays as it is, and names it.
    ///
    /// # Errors
    /// [`Error::Io`] if it is not there or not a file.
    pub fn store_file(&self, path: impl AsRef<Path>) -> Result<Content> {
        let (content, staged) = self.take_file(path.as_ref(), false)?;
        self.store.commit(staged.as_slice(), Durability::Later)?;
        Ok(content)
    }

    /// Makes a file a staged blob, moving it if it `may_move`; none if the store has it and knows it to be sound.
    fn take_file(&self, path: &Path, may_move: bool) -> Result<(Content, Option<Staged>)> {
        let meta = fs::metadata(path).map_err(Error::io("read", path))?;
        let staged = if may_move && self.store.can_take(&meta) && fs::set_permissions(path, Permissions::from_mode(0o444)).is_ok() {
            path.to_owned()
        } else {
            let copy = self.store.temporary("blob")?;
            copy_bytes(path, &copy)?;
            copy
        };
        let hashed = hash_file(&staged)?;
        let content = Content::Blob { id: hashed.id, size: hashed.stat.size, executable: is_executable(&meta) };
        if self.is_known_sound(&hashed.id) {
            remove_all(&staged)?;
            return Ok((content, None));
        }
        // The rename into the store moves ctime, so the index learns of the blob when it is settled.
        self.note(&hashed);
        Ok((content, Some(Staged { id: hashed.id, path: staged })))
    }

    /// Whether a blob is there under a stat that vouches for it. Reads nothing.
    fn is_known_sound(&self, id: &BlobId) -> bool {
        let meta = fs::symlink_metadata(self.blob_path(id));
        meta.is_ok_and(|meta| meta.is_file() && self.index.known(&Stat::from(&meta)) == Some(*id))
    }
}

/// Copies a file's bytes into a new read-only file. Shares the disk's blocks where the file system can.
fn copy_bytes(from: &Path, to: &Path) -> Result<()> {
    let failed = || Error::io("copy", from);
    let mut source = File::open(from).map_err(failed())?;
    let mut sink = File::create_new(to).map_err(failed())?;
    std::io::copy(&mut source, &mut sink).map_err(failed())?;
    sink.set_permissions(Permissions::from_mode(0o444)).map_err(failed())
}
