//! A pipeline file with its cache: where things are, and in which form a command needs them.
//!
//! Most commands want the whole pipeline ([`Project`]). `run` and `plan` want to know quickly that nothing changed ([`Session`]): they
//! take the compiled form that an earlier run left, as long as all that it was made from is the same.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use trestle_cache::{Cache, Digest, RunLock};
use trestle_engine::compiled::{Compiled, Dependency};
use trestle_engine::memo::{History, Memo};
use trestle_engine::pipeline::{Later, Pipeline, StageId};
use trestle_engine::plan::Planner;
use trestle_engine::problem::Problems;
use trestle_engine::resolve::commands::Environment;
use trestle_engine::resolve::variants::Known;
use trestle_engine::resolve::{self, Choices, Override};
use trestle_engine::run::file_name;
use trestle_engine::source::{Files, parse};
use trestle_engine::stage::Registry;
use trestle_engine::target;

use crate::args::Source;
use crate::fail::Fail;
use crate::lists::{self, Lists};
use crate::words;

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
    text: Arc<String>,
    /// The folder of the file.
    folder: PathBuf,
    /// The root of the project.
    pub root: PathBuf,
    /// The folder of the cache.
    pub cache: PathBuf,
    source: Source,
    /// Names and texts of the files of params.
    params: Vec<(String, String)>,
}

impl Place {
    /// Reads the pipeline file that the command line names; the other words come back.
    pub fn find(free_words: &[String], source: &Source) -> Result<(Self, Vec<String>), Fail> {
        let (file, rest) = words::split(free_words, source)?;
        let text = std::fs::read_to_string(&file).map_err(|e| {
            Fail::with_help(
                format!("cannot read the pipeline file {}: {e}", file.display()),
                "the first word of the command, or `--file`, names it",
            )
        })?;
        let absolute = std::path::absolute(&file).map_err(|e| Fail::message(format!("cannot find {}: {e}", file.display())))?;
        let folder = absolute.parent().map_or_else(|| PathBuf::from("/"), Path::to_path_buf);
        let root = root(&folder);
        let cache = source.cache.clone().unwrap_or_else(|| root.join(FOLDER));
        let params = source.params.iter().map(|path| read_params(path)).collect::<Result<_, _>>()?;
        Ok((Self { file, text: text.into(), folder, root, cache, source: source.clone(), params }, rest))
    }

    /// The resolved pipeline, and all that was asked of the world outside of the file meanwhile.
    fn resolve(&self, lists: &Lists, registry: &Registry) -> Result<(Pipeline, Vec<Dependency>), Fail> {
        let mut files = Files::new();
        files.add(self.file.display().to_string(), Arc::clone(&self.text));
        let name = self.file.file_stem().map_or_else(|| "pipeline".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let asked = RefCell::new(Vec::new());
        let environment = |name: &str| {
            let value = std::env::var(name).ok();
            asked.borrow_mut().push(Dependency::variable(name, value.as_deref()));
            value
        };
        let known = |stage: &str, output: &str| lists.get(&(stage.to_owned(), output.to_owned())).cloned();
        let resolved = self
            .choices(&environment, &known, &mut files)
            .and_then(|choices| resolve::pipeline(&mut files, &self.folder, &name, &choices, registry));
        match resolved {
            Ok(pipeline) => {
                let mut dependencies = asked.into_inner();
                dependencies.extend(pipeline.dependencies.iter().cloned());
                Ok((pipeline, dependencies))
            }
            Err(problems) => Err(Fail::Pipeline { files, problems }),
        }
    }

    /// What the command line chooses.
    fn choices<'k>(&self, environment: Environment<'k>, known: Known<'k>, files: &mut Files) -> Result<Choices<'k>, Problems> {
        let mut problems = Problems::new();
        let mut params = Vec::new();
        for (name, text) in &self.params {
            let added = files.add(name, text.clone());
            match parse(&added.text, added.base) {
                Ok(node) => params.push(node),
                Err(found) => problems.extend(found),
            }
        }
        let mut overrides = Vec::new();
        for text in &self.source.set {
            match Override::parse(text, files) {
                Ok(parsed) => overrides.push(parsed),
                Err(found) => problems.extend(found),
            }
        }
        problems.or(Choices { profile: self.source.profile.clone(), params, overrides, environment, known })
    }

    /// The resolved pipeline, what waits for lists expanded as far as these are in the cache.
    fn unfold(&self, cache: &Arc<Cache>, history: &Arc<History>, registry: &Registry) -> Result<(Arc<Pipeline>, Vec<Dependency>), Fail> {
        let mut lists = Lists::new();
        loop {
            let (pipeline, dependencies) = self.resolve(&lists, registry)?;
            let pipeline = Arc::new(pipeline);
            let known = lists.len();
            if !pipeline.later.is_empty() {
                lists.extend(lists::made(&pipeline, cache, history)?);
            }
            if lists.len() == known {
                return Ok((pipeline, dependencies));
            }
        }
    }

    /// Of all that a compiled pipeline is made from: the file, the values of params, the folder, and this very program.
    fn stamp(&self) -> Digest {
        let program = std::env::current_exe().and_then(std::fs::metadata);
        let build = program.map_or_else(
            |_| "unknown".to_owned(),
            |meta| format!("{} {} {} {} {}", meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()),
        );
        let mut bytes = Vec::new();
        let folder = self.folder.to_string_lossy();
        let text = Digest::of(self.text.as_bytes()).to_string();
        let parts = [build.as_str(), &folder, &self.file.to_string_lossy(), &text];
        let set = self.source.set.iter().flat_map(|set| ["set", set]);
        let params = self.params.iter().flat_map(|(_, text)| ["params", text]);
        let profile = self.source.profile.iter().flat_map(|profile| ["profile", profile]);
        for part in parts.into_iter().chain(set).chain(params).chain(profile) {
            bytes.extend((part.len() as u64).to_le_bytes());
            bytes.extend(part.as_bytes());
        }
        Digest::of(&bytes)
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
        let (place, rest) = Place::find(free_words, source)?;
        let cache = Arc::new(Cache::open(&place.cache)?);
        let history = Arc::new(place.history(Memo::load(&place.plans("memo")).as_ref()));
        let (pipeline, _) = place.unfold(&cache, &history, registry)?;
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
    let (place, rest) = Place::find(free_words, source)?;
    let (pipeline, _) = place.resolve(&Lists::new(), registry)?;
    Ok((pipeline, place.file, rest))
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
        let (mut place, rest) = Place::find(free_words, source)?;
        let stamp = place.stamp();
        let memo = Memo::load(&place.plans("memo"));
        let holds = |compiled: &Compiled| {
            let variable = |name: &str| std::env::var(name).ok();
            compiled.dependencies.iter().all(|dependency| dependency.holds(&variable))
                && memo.as_ref().is_some_and(|memo| memo.fits(compiled))
        };
        let cache = Arc::new(Cache::open(&place.cache)?);
        let loaded = Compiled::load(&place.plans("compiled"), stamp).ok().filter(holds);
        let (compiled, later, memo, history) = match loaded {
            Some(compiled) => (compiled, Vec::new(), memo, Arc::default()),
            None => {
                let history = Arc::new(place.history(memo.as_ref()));
                drop(memo);
                let (pipeline, dependencies) = place.unfold(&cache, &history, &trestle_stages::registry())?;
                let later = pipeline.later.clone();
                (put(Compiled::of(pipeline, stamp, dependencies), &cache), later, None, history)
            }
        };
        // What is resolved needs its text no more, and that of a large pipeline is in the way for a whole run.
        place.text = Arc::default();
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
        let (place, _) = Place::find(words, source)?;
        for path in ["compiled", "memo"].map(|extension| place.plans(extension)) {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(Fail::message(format!("cannot remove {}: {e}", path.display()))),
                _ => {}
            }
        }
        Ok(())
    }

    /// Leaves for the next run what this one found.
    ///
    /// What cannot be written costs the next run time and nothing else, so it is a remark, which comes back, and no failure.
    pub fn keep(self) -> Result<Option<String>, Fail> {
        let Self { place, compiled, cache, planner, .. } = self;
        let mut remark = None;
        if let Some(memo) = planner.into_memo()? {
            let keep = || -> std::io::Result<()> {
                std::fs::create_dir_all(place.cache.join("plans"))?;
                let temporary = |extension: &str| place.plans(&format!("{extension}.{}.tmp", std::process::id()));
                compiled.save(&temporary("compiled"), &place.plans("compiled"))?;
                memo.save(&temporary("memo"), &place.plans("memo"))
            };
            let kept = keep();
            if kept.is_err() {
                // What is half-written is in nobody's way but the disk's.
                let _ = ["compiled", "memo"]
                    .map(|extension| std::fs::remove_file(place.plans(&format!("{extension}.{}.tmp", std::process::id()))));
            }
            remark = kept
                .err()
                .filter(|e| e.kind() != ErrorKind::ReadOnlyFilesystem)
                .map(|e| format!("what the next run would know of this one cannot be kept in {}: {e}", place.cache.display()));
        }
        let flushed = cache.flush().err().map(|e| e.to_string());
        Ok(remark.or(flushed))
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

fn read_params(path: &Path) -> Result<(String, String), Fail> {
    let text = std::fs::read_to_string(path).map_err(|e| Fail::message(format!("cannot read the params {}: {e}", path.display())))?;
    Ok((path.display().to_string(), text))
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
