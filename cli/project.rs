//! A pipeline file with its cache: where things are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use trestle_cache::{Cache, Last};
use trestle_engine::pipeline::{Pipeline, StageId};
use trestle_engine::plan::{select, unknown_target};
use trestle_engine::problem::Problems;
use trestle_engine::resolve::{self, Override};
use trestle_engine::run::file_name;
use trestle_engine::stage::Registry;

use crate::args::Source;
use crate::fail::Fail;
use crate::words;

/// Name of the folder that holds the cache and everything else of a project that is not its own.
const FOLDER: &str = ".trestle";
/// Name of the folder in it that holds the journals of runs.
pub const RUNS: &str = "runs";

/// A resolved pipeline and its cache.
pub struct Project {
    /// The pipeline.
    pub pipeline: Arc<Pipeline>,
    /// Its cache.
    pub cache: Arc<Cache>,
    /// What each stage was when it was last run or found.
    pub last: Last,
    /// Folder of the cache.
    pub folder: PathBuf,
    /// The pipeline file, as named.
    pub file: PathBuf,
}

impl Project {
    /// Reads the pipeline that the command line names; the other words come back.
    pub fn open(free_words: &[String], source: &Source, registry: &Registry) -> Result<(Self, Vec<String>), Fail> {
        let (Read { pipeline, name, .. }, rest) = read(free_words, source, registry)?;
        let folder = match &source.cache {
            Some(folder) => folder.clone(),
            None => root(&pipeline.root).join(FOLDER),
        };
        let cache = Cache::open(&folder)?;
        let last = Last::open(&folder.join("last").join(format!("{}.journal", file_name(&pipeline.name))))?;
        Ok((Self { pipeline: Arc::new(pipeline), cache: Arc::new(cache), last, folder, file: PathBuf::from(name) }, rest))
    }

    /// Folder for the logs of this pipeline's stages.
    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs").join(file_name(&self.pipeline.name))
    }

    /// The one stage that a word names.
    pub fn stage(&self, word: &str) -> Result<StageId, Fail> {
        let stages = &self.pipeline.stages;
        let fitting: Vec<StageId> = (0..stages.len()).filter(|&id| stages[id].name == word || stages[id].base == word).collect();
        match fitting.as_slice() {
            [only] => Ok(*only),
            [] => Err(unknown_target(&self.pipeline, word).into()),
            several => {
                let names: Vec<String> = several.iter().take(8).map(|&id| format!("'{}'", stages[id].name)).collect();
                Err(Fail::with_help(
                    format!("`{word}` stands for {} stages", several.len()),
                    format!("name one of them: {}", names.join(", ")),
                ))
            }
        }
    }

    /// Which stages the words ask for.
    pub fn wanted(&self, targets: &[String]) -> Result<Vec<bool>, Fail> {
        Ok(select(&self.pipeline, targets)?)
    }
}

/// A pipeline file that has no mistakes.
pub struct Read {
    /// The file, as named.
    pub name: String,
    /// Its text.
    pub text: String,
    /// What it means.
    pub pipeline: Pipeline,
}

/// Reads the pipeline that the command line names, without its cache; the other words come back.
pub fn read(free_words: &[String], source: &Source, registry: &Registry) -> Result<(Read, Vec<String>), Fail> {
    let (file, rest) = words::split(free_words, source)?;
    Ok((load(&file, source, registry)?, rest))
}

fn load(file: &Path, source: &Source, registry: &Registry) -> Result<Read, Fail> {
    let text = std::fs::read_to_string(file).map_err(|e| {
        Fail::with_help(
            format!("cannot read the pipeline file {}: {e}", file.display()),
            "the first word of the command, or `--file`, names it",
        )
    })?;
    let wrong = |problems: Problems| Fail::Pipeline { name: file.display().to_string(), text: text.clone(), problems };
    let overrides = overrides(&source.set).map_err(wrong)?;
    let absolute = std::path::absolute(file).map_err(|e| Fail::message(format!("cannot find {}: {e}", file.display())))?;
    let folder = absolute.parent().map_or_else(|| PathBuf::from("/"), Path::to_path_buf);
    let name = file.file_stem().map_or_else(|| "pipeline".to_owned(), |stem| stem.to_string_lossy().into_owned());
    let pipeline = resolve::pipeline(&text, &folder, &name, &overrides, registry).map_err(wrong)?;
    Ok(Read { name: file.display().to_string(), text, pipeline })
}

fn overrides(set: &[String]) -> Result<Vec<Override>, Problems> {
    let mut problems = Problems::new();
    let mut overrides = Vec::new();
    for text in set {
        match Override::parse(text) {
            Ok(parsed) => overrides.push(parsed),
            Err(found) => problems.extend(found),
        }
    }
    problems.or(overrides)
}

/// The folder of the cache for commands that need no pipeline file.
pub fn folder(given: Option<&Path>) -> Result<PathBuf, Fail> {
    match given {
        Some(folder) => Ok(folder.to_owned()),
        None => {
            let here = std::env::current_dir().map_err(|e| Fail::message(format!("cannot find the current folder: {e}")))?;
            Ok(root(&here).join(FOLDER))
        }
    }
}

/// The root of the project that `folder` belongs to: the nearest folder above that has a cache, else a repository, else itself.
fn root(folder: &Path) -> PathBuf {
    let nearest = |name: &str| folder.ancestors().find(|dir| dir.join(name).exists()).map(Path::to_path_buf);
    nearest(FOLDER).or_else(|| nearest(".git")).unwrap_or_else(|| folder.to_owned())
}
