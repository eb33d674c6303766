//! A pipeline file with its cache: where things are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use trestle_cache::{Cache, Last};
use trestle_engine::pipeline::{Pipeline, StageId};
use trestle_engine::plan::unknown_target;
use trestle_engine::problem::Problems;
use trestle_engine::resolve::variants::Known;
use trestle_engine::resolve::{self, Choices, Override};
use trestle_engine::run::file_name;
use trestle_engine::source::Files;
use trestle_engine::stage::Registry;

use crate::args::Source;
use crate::fail::Fail;
use crate::lists::{self, Lists};
use crate::words;

/// Name of the folder that holds the cache and everything else of a project that is not its own.
const FOLDER: &str = ".trestle";

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
    file: PathBuf,
    source: Source,
    /// Lists that were read from the cache.
    lists: Lists,
}

impl Project {
    /// Reads the pipeline that the command line names; the other words come back.
    pub fn open(free_words: &[String], source: &Source, registry: &Registry) -> Result<(Self, Vec<String>), Fail> {
        let (file, rest) = words::split(free_words, source)?;
        let lists = Lists::new();
        let pipeline = load(&file, source, &lists, registry)?;
        let folder = match &source.cache {
            Some(folder) => folder.clone(),
            None => root(&pipeline.root).join(FOLDER),
        };
        let cache = Cache::open(&folder)?;
        let last = Last::open(&folder.join("last").join(format!("{}.journal", file_name(&pipeline.name))))?;
        let (pipeline, cache) = (Arc::new(pipeline), Arc::new(cache));
        let mut project = Self { pipeline, cache, last, folder, file, source: source.clone(), lists };
        project.unfold(registry)?;
        Ok((project, rest))
    }

    /// Expands what waits for lists, as long as more of these are in the cache. Says whether there were any.
    pub fn unfold(&mut self, registry: &Registry) -> Result<bool, Fail> {
        let before = self.lists.len();
        while !self.pipeline.later.is_empty() {
            let known = self.lists.len();
            self.lists.extend(lists::made(self)?);
            if self.lists.len() == known {
                break;
            }
            self.pipeline = Arc::new(load(&self.file, &self.source, &self.lists, registry)?);
        }
        Ok(self.lists.len() > before)
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
        Ok(lists::wanted(self, targets)?.0)
    }
}

fn load(file: &Path, source: &Source, lists: &Lists, registry: &Registry) -> Result<Pipeline, Fail> {
    let text = std::fs::read_to_string(file).map_err(|e| {
        Fail::with_help(
            format!("cannot read the pipeline file {}: {e}", file.display()),
            "the first word of the command, or `--file`, names it",
        )
    })?;
    let mut files = Files::new();
    files.add(file.display().to_string(), text);
    let resolved = resolve_files(file, source, lists, registry, &mut files)?;
    resolved.map_err(|problems| Fail::Pipeline { files, problems })
}

fn resolve_files(
    file: &Path,
    source: &Source,
    lists: &Lists,
    registry: &Registry,
    files: &mut Files,
) -> Result<Result<Pipeline, Problems>, Fail> {
    let absolute = std::path::absolute(file).map_err(|e| Fail::message(format!("cannot find {}: {e}", file.display())))?;
    let folder = absolute.parent().map_or_else(|| PathBuf::from("/"), Path::to_path_buf);
    let name = file.file_stem().map_or_else(|| "pipeline".to_owned(), |stem| stem.to_string_lossy().into_owned());
    let mut texts = Vec::new();
    for path in &source.params {
        let text = std::fs::read_to_string(path).map_err(|e| Fail::message(format!("cannot read the params {}: {e}", path.display())))?;
        texts.push((path.display().to_string(), text));
    }
    let known = |stage: &str, output: &str| lists.get(&(stage.to_owned(), output.to_owned())).cloned();
    Ok(choices(source, texts, &known, files).and_then(|choices| resolve::pipeline(files, &folder, &name, &choices, registry)))
}

/// What the command line and the environment choose.
fn choices<'k>(source: &Source, texts: Vec<(String, String)>, known: Known<'k>, files: &mut Files) -> Result<Choices<'k>, Problems> {
    let mut problems = Problems::new();
    let mut params = Vec::new();
    for (name, text) in texts {
        let added = files.add(name, text);
        match trestle_engine::source::parse(&added.text, added.base) {
            Ok(node) => params.push(node),
            Err(found) => problems.extend(found),
        }
    }
    let overrides = overrides(&source.set, files).unwrap_or_else(|found| {
        problems.extend(found);
        Vec::new()
    });
    problems.or(Choices { profile: source.profile.clone(), params, overrides, environment: &|name| std::env::var(name).ok(), known })
}

fn overrides(set: &[String], files: &mut Files) -> Result<Vec<Override>, Problems> {
    let mut problems = Problems::new();
    let mut overrides = Vec::new();
    for text in set {
        match Override::parse(text, files) {
            Ok(parsed) => overrides.push(parsed),
            Err(found) => problems.extend(found),
        }
    }
    problems.or(overrides)
}

/// The root of the project that `folder` belongs to: the nearest folder above that has a cache, else a repository, else itself.
fn root(folder: &Path) -> PathBuf {
    let nearest = |name: &str| folder.ancestors().find(|dir| dir.join(name).exists()).map(Path::to_path_buf);
    nearest(FOLDER).or_else(|| nearest(".git")).unwrap_or_else(|| folder.to_owned())
}
