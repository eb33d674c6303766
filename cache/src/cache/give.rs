//! What goes out: contents are laid down as files and folders, hashed on the way.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::{Cache, How, ListedFile};
use crate::content::{Content, ObjectId};
use crate::digest::BlobId;
use crate::error::{Error, Result};
use crate::files::{hash_file, is_executable, remove_all, special};

impl Cache {
    /// Files up to this size, in bytes, are read whole and written anew: that is cheaper than a link, and harms nobody.
    pub const SMALL: u64 = 64 << 10;

    /// Lays a content down at `dest`, where nothing may lie yet. The folders above are made.
    ///
    /// It is built beside `dest` and renamed, so `dest` is there as a whole or not at all. The bytes laid down are hashed.
    ///
    /// # Errors
    /// [`Error::Damaged`] and [`Error::Missing`] name the object, and nothing stays, a damaged blob in the store neither;
    /// [`Error::Exists`]; [`Error::Io`].
    pub fn materialize(&self, content: &Content, dest: impl AsRef<Path>, how: How) -> Result<()> {
        if let Content::Blob { id, size, executable } = *content
            && size <= Self::SMALL
        {
            return self.give_small(&id, executable, dest.as_ref(), how);
        }
        let listing = self.listing(content)?;
        build_beside(dest.as_ref(), |root| {
            for dir in &listing.dirs {
                let path = below(root, dir);
                fs::create_dir(&path).map_err(Error::io("create", &path))?;
            }
            listing.files.par_iter().try_for_each(|file| self.give_file(file, &below(root, &file.path), how))?;
            for (path, target) in &listing.links {
                let path = below(root, path);
                symlink(target, &path).map_err(Error::io("create the link", &path))?;
            }
            Ok(())
        })
    }

    /// A small file is cheaper to write than to link, and a copy cannot damage the store.
    fn give_small(&self, id: &BlobId, executable: bool, dest: &Path, how: How) -> Result<()> {
        let bytes = self.read_blob(id)?;
        write_small(dest, &bytes, how, executable)
    }

    fn give_file(&self, file: &ListedFile, to: &Path, how: How) -> Result<()> {
        let from = self.blob_path(&file.id);
        let linked = how == How::Link && !file.executable && fs::hard_link(&from, to).is_ok();
        if !linked {
            self.copy_blob(&file.id, to)?;
        }
        let hashed = hash_file(to)?;
        if linked {
            self.note(&hashed);
        }
        if hashed.id != file.id {
            return Err(self.damaged(&file.id));
        }
        if linked { Ok(()) } else { set_mode(to, how, file.executable) }
    }

    fn copy_blob(&self, id: &BlobId, to: &Path) -> Result<()> {
        match fs::copy(self.blob_path(id), to) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound && !self.blob_path(id).exists() => {
                Err(Error::Missing { object: ObjectId::Blob(*id) })
            }
            Err(e) => Err(Error::io("write", to)(e)),
        }
    }

    /// Copies the project file or folder at `from` to `dest`, where nothing may lie yet, and names the copy: that, and not what the
    /// source was when the key was made, is what a stage will see. The caller compares.
    ///
    /// # Errors
    /// Those of [`Cache::source`] and [`Cache::materialize`], and nothing stays.
    pub fn copy_source(&self, from: impl AsRef<Path>, dest: impl AsRef<Path>, how: How) -> Result<Content> {
        let from = from.as_ref();
        let meta = fs::metadata(from).map_err(Error::io("read", from))?;
        if meta.is_file() && meta.len() <= Self::SMALL {
            let bytes = fs::read(from).map_err(Error::io("read", from))?;
            let executable = is_executable(&meta);
            let how = if how == How::Over { How::Over } else { How::Copy };
            write_small(dest.as_ref(), &bytes, how, executable)?;
            return Ok(Content::Blob { id: BlobId::of(&bytes), size: bytes.len() as u64, executable });
        }
        if meta.is_dir() {
            self.refuse_own_folder(from)?;
        }
        if how == How::Over {
            // It grew since its place was prepared.
            remove_all(dest.as_ref())?;
        }
        build_beside(dest.as_ref(), |root| {
            copy_all(from, root)?;
            self.source(root)
        })
    }
}

/// Copies a file, or a folder with all below it. Links inside are copied as links.
fn copy_all(from: &Path, to: &Path) -> Result<()> {
    let kind = fs::metadata(from).map_err(Error::io("read", from))?.file_type();
    if kind.is_file() {
        return fs::copy(from, to).map(drop).map_err(Error::io("copy", from));
    } else if !kind.is_dir() {
        return Err(special(from, kind));
    }
    fs::create_dir(to).map_err(Error::io("create", to))?;
    for item in fs::read_dir(from).map_err(Error::io("read the folder", from))? {
        let item = item.map_err(Error::io("read the folder", from))?;
        let (here, there) = (item.path(), to.join(item.file_name()));
        if item.file_type().map_err(Error::io("examine", &here))?.is_symlink() {
            let copy = || symlink(fs::read_link(&here)?, &there);
            copy().map_err(Error::io("copy the link", &here))?;
        } else {
            copy_all(&here, &there)?;
        }
    }
    Ok(())
}

/// Lets `build` make a file or folder beside `dest` and renames it to `dest`; removes it if that fails.
fn build_beside<T>(dest: &Path, build: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    if dest.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: dest.to_owned() });
    }
    let parent = dest.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    let temporary = parent.join(format!(".trestle-{}", crate::store::unique()));
    let result = build(&temporary).and_then(|built| {
        fs::rename(&temporary, dest).map_err(Error::io("create", dest))?;
        Ok(built)
    });
    if result.is_err() {
        // The first error is the one that tells; what cannot be removed lies under a temporary name.
        let _ = remove_all(&temporary);
    }
    result
}

/// `root` itself for the empty path, which `join` would give a slash.
fn below(root: &Path, path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { root.to_owned() } else { root.join(path) }
}

/// Writes a small file, over one of the caller's own if that is asked for.
fn write_small(path: &Path, bytes: &[u8], how: How, executable: bool) -> Result<()> {
    if how == How::Over {
        match fs::OpenOptions::new().write(true).open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("write", path)(e)),
            Ok(mut file) => {
                file.write_all(bytes).map_err(Error::io("write", path))?;
                let meta = file.metadata().map_err(Error::io("write", path))?;
                // Not cut down to nothing at first: then ext4 would write what comes after out at once.
                if meta.len() != bytes.len() as u64 {
                    file.set_len(bytes.len() as u64).map_err(Error::io("write", path))?;
                }
                let wanted = mode(How::Copy, executable);
                let found = meta.permissions().mode() & 0o7777;
                return if found == wanted { Ok(()) } else { set_mode(path, How::Copy, executable) };
            }
        }
    }
    write_new(path, bytes, mode(how, executable))
}

/// Writes a file that is not there yet; nothing stays of one that cannot be written whole.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let create = || fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = match create() {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Err(Error::Exists { path: path.to_owned() }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().unwrap_or(path);
            fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
            create()
        }
        other => other,
    }
    .map_err(Error::io("create", path))?;
    file.write_all(bytes).map_err(|e| {
        // The first error is the one that tells.
        let _ = fs::remove_file(path);
        Error::io("write", path)(e)
    })
}

fn mode(how: How, executable: bool) -> u32 {
    match (how, executable) {
        (How::Copy | How::Over, false) => 0o644,
        (How::Copy | How::Over, true) => 0o755,
        (How::Link, false) => 0o444,
        (How::Link, true) => 0o555,
    }
}

fn set_mode(path: &Path, how: How, executable: bool) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode(how, executable))).map_err(Error::io("change the mode of", path))
}
