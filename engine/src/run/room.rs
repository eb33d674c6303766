//! The folders in which stages work.
//!
//! A stage finds its declared inputs in its folder, and nothing else. Making a dozen folders and files and removing them again is most of what a command of a
//! millisecond costs, all the more as a file system may look long for a number that was not used a moment ago. So a folder whose stage is done is emptied and kept: the
//! next stage that wants exactly the same folders gets it. It writes its inputs over those of the one before where they have the same places;
//! the others are removed. When a run ends, a few such folders are put on a *shelf* in the cache for the next one, with what fills no more than a block
//! of a disk each.

use std::collections::{BTreeSet, VecDeque};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use trestle_cache::{Cache, Digest};

use super::work::{cannot, file_name, in_words};
use crate::stage::StageError;

/// Most folders that wait for a stage.
const MOST_KEPT: usize = 32;
/// Most folders that a run puts on the shelf.
const MOST_SHELVED: usize = 4;
/// When so many folders are on the shelf, it is cleared.
const SHELF: usize = 64;
/// Most folders in one on the shelf, and most files.
const MOST_INSIDE: usize = 64;
/// Largest file in one on the shelf: what takes one block of a disk.
const LARGEST_FILE: u64 = 4096;
/// The folder in a room where the stage runs.
const WORK: &str = "work";
/// The file in a room that takes what the stage prints.
const LOG: &str = "log";

/// What has to be in a room before its inputs are, by paths below the folder where the stage runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    /// Folders, without the one where the stage runs itself.
    pub dirs: BTreeSet<PathBuf>,
    /// Files that will be written as a whole.
    pub files: BTreeSet<PathBuf>,
}

impl Layout {
    /// Adds all folders above a path, and the path itself if it `is_dir`.
    pub fn add(&mut self, path: &Path, is_dir: bool) {
        let above = path.ancestors().skip(usize::from(!is_dir)).filter(|dir| !dir.as_os_str().is_empty());
        self.dirs.extend(above.map(Path::to_path_buf));
    }

    /// The same for those with the same folders, whatever their files.
    fn name(&self) -> String {
        let dirs: Vec<&[u8]> = self.dirs.iter().map(|dir| dir.as_os_str().as_bytes()).collect();
        Digest::of(&dirs.join(&0)).to_string()[..32].to_owned()
    }
}

/// Rooms that wait for a stage.
#[derive(Debug)]
pub struct Rooms {
    kept: Mutex<VecDeque<(Layout, PathBuf)>>,
    shelf: PathBuf,
}

/// The folder of one stage's work, and its `TMPDIR`. When it goes, its folder is emptied and kept for another, or goes too.
#[derive(Debug)]
pub struct Room {
    base: PathBuf,
    layout: Layout,
    rooms: Arc<Rooms>,
}

impl Rooms {
    /// None but those on the shelf of a cache.
    pub fn new(cache: &Cache) -> Self {
        Self { kept: Mutex::default(), shelf: shelf(cache) }
    }

    /// A room with this layout.
    pub fn open(self: &Arc<Self>, cache: &Cache, stage: &str, layout: Layout) -> Result<Room, StageError> {
        if let Some(base) = self.take(&layout) {
            return Ok(Room { base, layout, rooms: Arc::clone(self) });
        }
        let base = cache.tmp_path(&file_name(stage)).map_err(|e| in_words(&e))?;
        let mut room = Room { base, layout, rooms: Arc::clone(self) };
        if room.take_from_shelf() {
            return Ok(room);
        }
        std::fs::create_dir(&room.base).map_err(|e| cannot("create", &room.base, &e))?;
        let work = room.work();
        // In their order, folders come before what is in them.
        for dir in std::iter::once(work.clone()).chain(room.layout.dirs.iter().map(|dir| work.join(dir))) {
            std::fs::create_dir(&dir).map_err(|e| cannot("create", &dir, &e))?;
        }
        Ok(room)
    }

    /// A folder that waits for a stage and has this layout, or its folders alone: then the files of the other stage are removed.
    fn take(&self, layout: &Layout) -> Option<PathBuf> {
        let (other, base) = {
            let mut kept = self.kept();
            let same = kept.iter().rposition(|(other, _)| other == layout);
            let place = same.or_else(|| kept.iter().rposition(|(other, _)| other.dirs == layout.dirs))?;
            kept.remove(place)?
        };
        let is_gone = |file: &PathBuf| match std::fs::remove_file(base.join(WORK).join(file)) {
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
            Ok(()) => true,
        };
        if other.files.difference(&layout.files).all(is_gone) {
            return Some(base);
        }
        // A stage must not find what another declared.
        let _ = std::fs::remove_dir_all(base);
        None
    }

    /// Puts some of the folders that wait for a stage on the shelf, and removes the others. What cannot be removed now is swept by a later run.
    pub fn close(&self, cache: &Cache) {
        let kept = std::mem::take(&mut *self.kept());
        if std::fs::read_dir(&self.shelf).map_or(0, Iterator::count) >= SHELF {
            // Most of them are of stages that are no more.
            clear_shelf(cache);
        }
        let mut places = MOST_SHELVED;
        // The last ones are of the stages that ran last, as those will that come after what is changed next.
        for (layout, base) in kept.into_iter().rev() {
            let is_worth = places > 0 && layout.dirs.len().max(layout.files.len()) <= MOST_INSIDE;
            if is_worth && self.put_on_shelf(&layout, &base).is_ok() {
                places -= 1;
            } else {
                drop(std::fs::remove_dir_all(base));
            }
        }
    }

    /// Another one of the same layout may be there already.
    fn put_on_shelf(&self, layout: &Layout, base: &Path) -> std::io::Result<()> {
        for file in layout.files.iter().map(|file| base.join(WORK).join(file)) {
            if std::fs::symlink_metadata(&file).is_ok_and(|meta| meta.len() > LARGEST_FILE) {
                std::fs::remove_file(file)?;
            }
        }
        let place = self.shelf.join(layout.name());
        match std::fs::rename(base, &place) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                std::fs::create_dir_all(&self.shelf)?;
                std::fs::rename(base, &place)
            }
            other => other,
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, VecDeque<(Layout, PathBuf)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shelf(cache: &Cache) -> PathBuf {
    cache.root().join("rooms")
}

/// Removes the folders that wait for the next run.
pub fn clear_shelf(cache: &Cache) {
    let Ok(gone) = cache.tmp_path("rooms") else { return };
    // Away first: another run may be about to take one of them, and then it is that run's.
    if std::fs::rename(shelf(cache), &gone).is_ok() {
        // What cannot be removed now is swept by a later run.
        let _ = std::fs::remove_dir_all(gone);
    }
}

impl Room {
    /// Where the stage runs.
    pub fn work(&self) -> PathBuf {
        self.base.join(WORK)
    }

    /// Where the stage may leave what it does not need for long.
    pub fn tmp(&self) -> &Path {
        &self.base
    }

    /// Where a native stage's job is written.
    pub fn job(&self) -> PathBuf {
        self.base.join("job.json")
    }

    /// What takes all that the stage prints.
    pub fn log(&self) -> PathBuf {
        self.base.join(LOG)
    }

    /// Whether a file of an earlier stage may lie at this place.
    pub fn is_kept(&self, place: &str) -> bool {
        self.layout.files.contains(Path::new(place))
    }

    /// Takes a room with this layout from the shelf, if one lies there. Anybody may have been there, so it is looked at as after a stage.
    fn take_from_shelf(&mut self) -> bool {
        if std::fs::rename(self.rooms.shelf.join(self.layout.name()), &self.base).is_err() {
            return false;
        }
        let is_dir = std::fs::symlink_metadata(&self.base).is_ok_and(|meta| meta.is_dir());
        let is_good = is_dir && self.empty(&self.base).unwrap_or(false);
        if !is_good {
            // If even that fails, the new one cannot be made and the stage fails.
            let _ = if is_dir { std::fs::remove_dir_all(&self.base) } else { std::fs::remove_file(&self.base) };
        }
        is_good
    }

    /// Removes all that the layout does not have. Says whether what it has is as it was made.
    fn empty(&self, base: &Path) -> std::io::Result<bool> {
        for entry in std::fs::read_dir(base)? {
            let path = entry?.path();
            let meta = std::fs::symlink_metadata(&path)?;
            let is_empty_log = path.ends_with(LOG) && is_own_file(&meta) && meta.len() == 0;
            if !path.ends_with(WORK) && !is_empty_log {
                remove(&path, &meta)?;
            }
        }
        let mut left = self.layout.dirs.len() + 1;
        self.empty_folder(&base.join(WORK), Path::new(""), &mut left)?;
        Ok(left == 0)
    }

    fn empty_folder(&self, work: &Path, dir: &Path, left: &mut usize) -> std::io::Result<()> {
        let folder = work.join(dir);
        let meta = std::fs::symlink_metadata(&folder)?;
        // One that was replaced by a link, or closed, is not what was made.
        if !meta.is_dir() || meta.permissions().mode() & 0o700 != 0o700 {
            return Ok(());
        }
        *left -= 1;
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let inside = dir.join(entry.file_name());
            if self.layout.dirs.contains(&inside) && entry.file_type()?.is_dir() {
                self.empty_folder(work, &inside, left)?;
                continue;
            }
            let meta = entry.metadata()?;
            if !(self.layout.files.contains(&inside) && is_own_file(&meta)) {
                remove(&entry.path(), &meta)?;
            }
        }
        Ok(())
    }
}

/// A file that nothing else leads to, and that may be written.
fn is_own_file(meta: &std::fs::Metadata) -> bool {
    meta.is_file() && meta.nlink() == 1 && meta.permissions().mode() & 0o600 == 0o600
}

fn remove(path: &Path, meta: &std::fs::Metadata) -> std::io::Result<()> {
    if meta.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut gone = Some(std::mem::take(&mut self.base));
        if let Some(base) = gone.take_if(|base| self.empty(base).unwrap_or(false)) {
            let mut kept = self.rooms.kept();
            kept.push_back((std::mem::take(&mut self.layout), base));
            // The one that nobody wanted for the longest time makes room.
            gone = if kept.len() > MOST_KEPT { kept.pop_front().map(|(_, base)| base) } else { None };
        }
        if let Some(base) = gone {
            // What cannot be removed now is swept by a later run.
            let _ = std::fs::remove_dir_all(base);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn layout() -> Layout {
        let mut layout = Layout::default();
        layout.add(Path::new("in/a/x.txt"), false);
        layout.add(Path::new("out"), true);
        layout.files.insert(PathBuf::from("in/a/x.txt"));
        layout
    }

    /// All below a folder, sorted.
    fn list(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut open = vec![folder.to_owned()];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                found.push(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
                if path.is_dir() && !path.is_symlink() {
                    open.push(path);
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn a_room_is_used_again_without_what_the_stage_left() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let rooms = Arc::new(Rooms::new(&cache));
        let room = rooms.open(&cache, "one", layout()).unwrap();
        let (base, work) = (room.base.clone(), room.work());
        assert_eq!(list(&base), ["work", "work/in", "work/in/a", "work/out"]);
        for (name, text) in [("in/a/x.txt", "input"), ("in/a/y", ""), ("out/o", "1"), ("z", "2")] {
            std::fs::write(work.join(name), text).unwrap();
        }
        std::fs::create_dir_all(work.join("deep/er")).unwrap();
        std::fs::write(base.join("tmp"), "").unwrap();
        drop(room);
        assert_eq!(list(&base), ["work", "work/in", "work/in/a", "work/in/a/x.txt", "work/out"]);
        let other = rooms.open(&cache, "two", Layout::default()).unwrap();
        assert_ne!(other.base, base, "another layout");
        let again = rooms.open(&cache, "three", layout()).unwrap();
        assert_eq!(again.base, base);
    }

    #[test]
    fn a_room_with_the_same_folders_is_used_again_without_the_files_of_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let rooms = Arc::new(Rooms::new(&cache));
        let with = |names: &[&str]| {
            let mut layout = Layout::default();
            for name in names {
                layout.add(Path::new(name), false);
                layout.files.insert(PathBuf::from(name));
            }
            layout
        };
        let room = rooms.open(&cache, "one", with(&["in/a/x", "in/b/y"])).unwrap();
        let base = room.base.clone();
        for name in ["in/a/x", "in/b/y"] {
            std::fs::write(room.work().join(name), "input").unwrap();
        }
        drop(room);
        let room = rooms.open(&cache, "two", with(&["in/a/z", "in/b/y"])).unwrap();
        assert_eq!(room.base, base);
        assert_eq!(list(&base), ["work", "work/in", "work/in/a", "work/in/b", "work/in/b/y"]);
        assert!(room.is_kept("in/b/y") && room.is_kept("in/a/z"));
        drop(room);
        // What cannot be removed is not for the next: here a folder has the name of a file.
        std::fs::create_dir(base.join("work/in/a/z")).unwrap();
        let room = rooms.open(&cache, "three", with(&["in/a/x", "in/b/y"])).unwrap();
        assert_ne!(room.base, base);
        assert!(!base.exists());
    }

    #[test]
    fn a_room_waits_on_the_shelf_for_the_next_run_with_its_inputs_alone() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let shelf = cache.root().join("rooms");
        let use_one = |change: &dyn Fn(&Path)| {
            let rooms = Arc::new(Rooms::new(&cache));
            let room = rooms.open(&cache, "one", layout()).unwrap();
            let mut found = list(&room.base);
            found.retain(|path| path != "work/in/a/x.txt");
            assert_eq!(found, ["work", "work/in", "work/in/a", "work/out"]);
            for file in ["in/a/x.txt", "in/a/y", "out/o"] {
                std::fs::write(room.work().join(file), "text").unwrap();
            }
            drop(room);
            rooms.close(&cache);
            let [place] = &*std::fs::read_dir(&shelf).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>() else { panic!() };
            assert_eq!(list(place), ["work", "work/in", "work/in/a", "work/in/a/x.txt", "work/out"]);
            let number = std::fs::metadata(place.join("work")).unwrap().ino();
            change(place);
            number
        };
        let first = use_one(&|_| {});
        assert_eq!(use_one(&|place| std::fs::write(place.join("work/in/a/z"), "not declared").unwrap()), first);
        assert_eq!(use_one(&|place| std::fs::remove_dir_all(place.join("work")).unwrap()), first);
        use_one(&|place| {
            std::fs::remove_dir_all(place.join("work/out")).unwrap();
            std::os::unix::fs::symlink("/tmp", place.join("work/out")).unwrap();
        });
        use_one(&|_| {});
        // A link is not followed.
        let place = std::fs::read_dir(&shelf).unwrap().next().unwrap().unwrap().path();
        std::fs::rename(&place, folder.path().join("elsewhere")).unwrap();
        std::fs::write(folder.path().join("elsewhere/work/x"), "mine").unwrap();
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &place).unwrap();
        use_one(&|_| {});
        assert!(folder.path().join("elsewhere/work/x").exists());
        // A large input does not stay.
        let rooms = Arc::new(Rooms::new(&cache));
        let room = rooms.open(&cache, "one", layout()).unwrap();
        std::fs::write(room.work().join("in/a/x.txt"), [b'x'; 5000]).unwrap();
        drop(room);
        rooms.close(&cache);
        let place = std::fs::read_dir(&shelf).unwrap().next().unwrap().unwrap().path();
        assert_eq!(list(&place), ["work", "work/in", "work/in/a", "work/out"]);
        // What has very many folders is not kept.
        clear_shelf(&cache);
        let mut many = Layout::default();
        (0..100).for_each(|i| many.add(Path::new(&format!("in/{i}")), true));
        let rooms = Arc::new(Rooms::new(&cache));
        drop(rooms.open(&cache, "many", many).unwrap());
        rooms.close(&cache);
        assert!(!shelf.exists());
    }

    #[test]
    fn a_room_that_was_changed_is_not_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let rooms = Arc::new(Rooms::new(&cache));
        let changes: [&dyn Fn(&Path); 4] = [
            &|work| std::fs::remove_dir_all(work.join("in")).unwrap(),
            &|work| {
                std::fs::remove_dir_all(work.join("out")).unwrap();
                std::os::unix::fs::symlink("/tmp", work.join("out")).unwrap();
            },
            &|work| std::fs::set_permissions(work.join("in/a"), std::fs::Permissions::from_mode(0o555)).unwrap(),
            &|work| std::fs::remove_dir_all(work).unwrap(),
        ];
        for change in changes {
            let room = rooms.open(&cache, "one", layout()).unwrap();
            let base = room.base.clone();
            change(&room.work());
            drop(room);
            assert!(!base.exists() && rooms.kept().is_empty());
        }
        // A file that another name leads to is not written over.
        let room = rooms.open(&cache, "one", layout()).unwrap();
        std::fs::write(room.work().join("in/a/x.txt"), "input").unwrap();
        std::fs::hard_link(room.work().join("in/a/x.txt"), folder.path().join("elsewhere")).unwrap();
        let file = room.work().join("in/a/x.txt");
        drop(room);
        assert!(!file.exists());
    }
}
