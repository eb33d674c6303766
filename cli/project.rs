//! A pipeline file with its cache: where things are, and in which form a command needs them.
//!
//! Most commands want the whole pipeline ([`Project`]). `run` and `plan` want to know quickly that nothing changed ([`Session`]): they
//! take the compiled form that an earlier run left, as long as all that it was made from is the same.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trestle_cache::{Cache, RunLock};
use trestle_engine::compiled::Compiled;
use trestle_engine::memo::{History, Memo};
use trestle_engine::pipeline::{Later, Pipeline, StageId};
use trestle_engine::plan::Planner;
use trestle_engine::run::file_name;
use trestle_engine::stage::Registry;
use trestle_engine::target;

use crate::args::Source;
use crate::fail::Fail;
use crate::lists::Lists;
use crate::turns::Turns;
use crate::words;
use crate::written::Written;

/// Name of the folder that holds the cache and everything else of a project that is not its own.
const FOLDER: &str = ".trestle";
/// Name of the folder in it that holds the journals of runs.
pub const RUNS: &str = "runs";

/// From so many stages on they are worth the time that a file for them takes: half a kilobyte of memory each.
const MANY: usize = 20_000;

/// A pipeline file and where its cache is.
pub struct Place {
    /// The pipeline file, as named.
    pub file: PathBuf,
    /// The folder of the file.
    pub folder: PathBuf,
    /// The root of the project.
    pub root: PathBuf,
    /// The folder of the cache.
    pub cache: PathBuf,
}

impl Place {
    /// Of the pipeline file `file`, whose cache may be named.
    pub fn of(file: PathBuf, cache: Option<&Path>) -> Result<Self, Fail> {
        let absolute = std::path::absolute(&file).map_err(|e| Fail::message(format!("cannot find {}: {e}", file.display())))?;
        let folder = absolute.parent().map_or_else(|| PathBuf::from("/"), Path::to_path_buf);
        let root = root(&folder);
        let cache = cache.map_or_else(|| root.join(FOLDER), Path::to_path_buf);
        Ok(Self { file, folder, root, cache })
    }

    /// Where what one pipeline left is kept. By the file's place in the project, so that a project that was moved finds it.
    fn plans(&self, extension: &str) -> PathBuf {
        let absolute = self.folder.join(self.file.file_name().unwrap_or_default());
        let inside = absolute.strip_prefix(&self.root).unwrap_or(&absolute);
        self.cache.join("plans").join(format!("{}.{extension}", file_name(&inside.to_string_lossy())))
    }

    /// The keys that the stages had in the last run.
    fn history(&self, memo: Option<&Memo>) -> History {
        let names = || {
            Compiled::load_any(&self.plans("compiled")).ok().filter(|compiled| memo.is_some_and(|memo| memo.fits(compiled)))?.names().ok()
        };
        memo.zip(names()).map(|(memo, names)| History::of(names, memo)).unwrap_or_default()
    }
}

/// A resolved pipeline and its cache.
pub struct Project {
    /// The pipeline.
    pub pipeline: Arc<Pipeline>,
    /// Its cache.
    pub cache: Arc<Cache>,
    /// What each stage was when it was last run or found.
    pub history: Arc<History>,
    /// Folder of the cache.
    pub folder: PathBuf,
    /// The pipeline file, as named.
    pub file: PathBuf,
}

impl Project {
    /// Reads the pipeline that the command line names; the other words come back.
    pub fn open(free_words: &[String], source: &Source, registry: &Registry) -> Result<(Self, Vec<String>), Fail> {
        let (written, rest) = Written::read(free_words, source)?;
        let place = &written.place;
        let cache = Arc::new(Cache::open(&place.cache)?);
        let history = Arc::new(place.history(Memo::load(&place.plans("memo")).as_ref()));
        let (pipeline, _) = written.unfold(&cache, &history, registry)?;
        let place = written.place;
        Ok((Self { pipeline, cache, history, folder: place.cache, file: place.file }, rest))
    }

    /// Folder for the logs of this pipeline's stages.
    pub fn logs(&self) -> PathBuf {
        logs(&self.folder, &self.pipeline.name)
    }

    /// The one stage that a word names.
    pub fn stage(&self, word: &str) -> Result<StageId, Fail> {
        match target::matching(&self.pipeline, word)?.as_slice() {
            [only] => Ok(*only),
            several => {
                let names: Vec<String> = several.iter().take(8).map(|&id| format!("'{}'", self.pipeline.stages[id].name)).collect();
                Err(Fail::with_help(
                    format!("`{word}` stands for {} stages", several.len()),
                    format!("name one of them: {}", names.join(", ")),
                ))
            }
        }
    }

    /// Which stages the words ask for, with all that they need; all stages for no words.
    pub fn wanted(&self, targets: &[String]) -> Result<Vec<bool>, Fail> {
        let mut wanted = vec![targets.is_empty(); self.pipeline.stages.len()];
        for target in targets {
            target::matching(&self.pipeline, target)?.into_iter().for_each(|id| wanted[id] = true);
        }
        Ok(self.with_upstream(wanted))
    }

    /// The marked stages with all that they need.
    pub fn with_upstream(&self, mut wanted: Vec<bool>) -> Vec<bool> {
        target::add_upstream(&mut wanted, |id| self.pipeline.stages[id].upstream());
        wanted
    }
}

/// Reads the pipeline that the command line names, without its cache; its file and the other words come back.
pub fn read(free_words: &[String], source: &Source, registry: &Registry) -> Result<(Pipeline, PathBuf, Vec<String>), Fail> {
    let (written, rest) = Written::read(free_words, source)?;
    let (pipeline, _) = written.resolve(&Lists::new(), registry)?;
    Ok((pipeline, written.place.file, rest))
}

/// A compiled pipeline, its cache, and what the last run found.
pub struct Session {
    place: Place,
    /// The pipeline.
    pub compiled: Arc<Compiled>,
    /// Stages that cannot be expanded yet.
    pub later: Vec<Later>,
    /// Its cache.
    pub cache: Arc<Cache>,
    /// Says what has to be done.
    pub planner: Planner,
}

impl Session {
    /// Opens the pipeline that the command line names; the other words come back.
    pub fn open(free_words: &[String], source: &Source) -> Result<(Self, Vec<String>), Fail> {
        let (written, rest) = Written::read(free_words, source)?;
        let (place, stamp) = (&written.place, written.stamp());
        let memo = Memo::load(&place.plans("memo"));
        let holds = |compiled: &Compiled| {
            let variable = |name: &str| std::env::var(name).ok();
            compiled.dependencies.iter().all(|dependency| dependency.holds(&variable))
                && memo.as_ref().is_some_and(|memo| memo.fits(compiled))
        };
        let cache = Arc::new(Cache::open(&place.cache)?);
        let loaded = Compiled::load(&place.plans("compiled"), stamp).ok().filter(holds);
        let (place, compiled, later, memo, history) = match loaded {
            Some(compiled) => (written.into_place(), compiled, Vec::new(), memo, Arc::default()),
            None => {
                let history = Arc::new(place.history(memo.as_ref()));
                drop(memo);
                let (pipeline, dependencies) = written.unfold(&cache, &history, &trestle_stages::registry())?;
                // Memory peaks where the compiled form is made beside the resolved one: the text of a large pipeline goes before that.
                let place = written.into_place();
                let later = pipeline.later.clone();
                (place, put(Compiled::of(pipeline, stamp, dependencies), &cache), later, None, history)
            }
        };
        let compiled = Arc::new(compiled);
        let planner = Planner::new(Arc::clone(&compiled), Arc::clone(&cache), memo, history);
        Ok((Self { place, compiled, later, cache, planner }, rest))
    }

    /// Folder for the logs of this pipeline's stages.
    pub fn logs(&self) -> PathBuf {
        logs(&self.place.cache, &self.compiled.name)
    }

    /// The pipeline file, as named.
    pub fn file(&self) -> &Path {
        &self.place.file
    }

    /// The root of the project.
    pub fn root(&self) -> &Path {
        &self.place.root
    }

    /// Throws away what earlier runs left of this pipeline: it turned out to be damaged.
    pub fn forget(words: &[String], source: &Source) -> Result<(), Fail> {
        let (file, _) = words::split(words, source)?;
        let place = Place::of(file, source.cache.as_deref())?;
        for path in ["compiled", "memo"].map(|extension| place.plans(extension)) {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(Fail::message(format!("cannot remove {}: {e}", path.display()))),
                _ => {}
            }
        }
        Ok(())
    }

    /// Leaves for the next run what this one found, once `durable` says that what was stored is on disk.
    ///
    /// What cannot be written costs the next run time and nothing else, so it is a remark, which comes back, and no failure.
    pub fn keep(self, durable: impl FnOnce() -> Result<(), Fail>) -> Result<Option<String>, Fail> {
        let Self { place, compiled, cache, planner, .. } = self;
        let memo = planner.into_memo()?;
        let turns = Turns::at(place.plans("memo"));
        let write = |memo: &Memo| {
            std::fs::create_dir_all(place.cache.join("plans"))?;
            memo.write(turns.open()?)
        };
        let written = memo.as_ref().map_or(Ok(()), write);
        durable().inspect_err(|_| turns.discard())?;
        let replace = || {
            let new = place.plans(&format!("compiled.{}.tmp", std::process::id()));
            // What is half-written is in nobody's way but the disk's.
            compiled.save(&new, &place.plans("compiled")).inspect_err(|_| drop(std::fs::remove_file(new)))?;
            turns.replace()
        };
        let kept = written.and_then(|()| if memo.is_some() { replace() } else { Ok(()) });
        if kept.is_err() {
            turns.discard();
        }
        let remark = kept
            .err()
            .filter(|e| e.kind() != ErrorKind::ReadOnlyFilesystem)
            .map(|e| format!("what the next run would know of this one cannot be kept in {}: {e}", place.cache.display()));
        // What the memo vouches for, the next run need not look up.
        let flushed = if remark.is_none() { cache.flush_if_worth() } else { cache.flush() };
        Ok(remark.or(flushed.err().map(|e| e.to_string())))
    }
}

/// A pipeline that was just resolved, its stages in a file if they are many and there is a place for it.
fn put(compiled: Compiled, cache: &Cache) -> Compiled {
    if compiled.len() < MANY {
        return compiled;
    }
    // Without a place for the file they stay in memory.
    let Ok(folder) = cache.tmp_dir("pipeline") else { return compiled };
    compiled.put(folder.join("compiled")).unwrap_or_else(|_| {
        // What was written of it would lie in the way of a disk that is full.
        let _ = std::fs::remove_dir_all(&folder);
        compiled
    })
}

fn logs(cache: &Path, pipeline: &str) -> PathBuf {
    cache.join("logs").join(file_name(pipeline))
}

/// The cache that is meant: the one named, else that of the project in which the command is called. It need not be there.
pub fn folder(named: Option<&Path>) -> Result<PathBuf, Fail> {
    let here = std::env::current_dir().map_err(|e| Fail::message(format!("cannot find the current folder: {e}")))?;
    Ok(named.map_or_else(|| root(&here).join(FOLDER), Path::to_path_buf))
}

/// The right to change a cache as a whole.
pub fn alone(cache: &Cache) -> Result<RunLock, Fail> {
    cache.try_lock()?.ok_or_else(|| Fail::with_help("a run is using this cache", "wait for its end, or interrupt it"))
}

/// As [`folder`], and it must be there.
pub fn cache_folder(named: Option<&Path>) -> Result<PathBuf, Fail> {
    let folder = folder(named)?;
    if folder.join("format").exists() {
        return Ok(folder);
    }
    Err(Fail::with_help(
        format!("there is no cache at {}", folder.display()),
        "call this inside of a project that has run, or name it with `--cache`",
    ))
}

/// The root of the project that `folder` belongs to: the nearest folder above that has a cache, else a repository, else itself.
fn root(folder: &Path) -> PathBuf {
    let nearest = |name: &str| folder.ancestors().find(|dir| dir.join(name).exists()).map(Path::to_path_buf);
    nearest(FOLDER).or_else(|| nearest(".git")).unwrap_or_else(|| folder.to_owned())
}
