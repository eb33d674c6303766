//! A pipeline file as it is written, with what the command line chooses: what a pipeline is resolved from.

use std::cell::RefCell;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use trestle_cache::{Cache, Digest};
use trestle_engine::compiled::Dependency;
use trestle_engine::memo::History;
use trestle_engine::pipeline::Pipeline;
use trestle_engine::problem::Problems;
use trestle_engine::resolve::commands::Environment;
use trestle_engine::resolve::variants::Known;
use trestle_engine::resolve::{self, Choices, Override};
use trestle_engine::source::{Files, parse};
use trestle_engine::stage::Registry;

use crate::args::Source;
use crate::fail::Fail;
use crate::lists::{self, Lists};
use crate::project::Place;
use crate::words;

/// Texts, and where they stand.
pub struct Written {
    /// Where the pipeline file is.
    pub place: Place,
    text: Arc<String>,
    source: Source,
    /// Names and texts of the files of params.
    params: Vec<(String, String)>,
}

impl Written {
    /// Reads the pipeline file that the command line names; the other words come back.
    pub fn read(free_words: &[String], source: &Source) -> Result<(Self, Vec<String>), Fail> {
        let (file, rest) = words::split(free_words, source)?;
        let text = std::fs::read_to_string(&file).map_err(|e| {
            Fail::with_help(
                format!("cannot read the pipeline file {}: {e}", file.display()),
                "the first word of the command, or `--file`, names it",
            )
        })?;
        let place = Place::of(file, source.cache.as_deref())?;
        let params = source.params.iter().map(|path| read_params(path)).collect::<Result<_, _>>()?;
        Ok((Self { place, text: text.into(), source: source.clone(), params }, rest))
    }

    /// The resolved pipeline, and all that was asked of the world outside of the file meanwhile.
    pub fn resolve(&self, lists: &Lists, registry: &Registry) -> Result<(Pipeline, Vec<Dependency>), Fail> {
        let mut files = Files::new();
        files.add(self.place.file.display().to_string(), Arc::clone(&self.text));
        let name = self.place.file.file_stem().map_or_else(|| "pipeline".to_owned(), |stem| stem.to_string_lossy().into_owned());
        let asked = RefCell::new(Vec::new());
        let environment = |name: &str| {
            let value = std::env::var(name).ok();
            asked.borrow_mut().push(Dependency::variable(name, value.as_deref()));
            value
        };
        let known = |stage: &str, output: &str| lists.get(&(stage.to_owned(), output.to_owned())).cloned();
        let resolved = self
            .choices(&environment, &known, &mut files)
            .and_then(|choices| resolve::pipeline(&mut files, &self.place.folder, &name, &choices, registry));
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
    pub fn unfold(
        &self,
        cache: &Arc<Cache>,
        history: &Arc<History>,
        registry: &Registry,
    ) -> Result<(Arc<Pipeline>, Vec<Dependency>), Fail> {
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

    /// Lets go of the texts.
    pub fn into_place(self) -> Place {
        self.place
    }

    /// Of all that a compiled pipeline is made from: the file, the values of params, the folder, and this very program.
    pub fn stamp(&self) -> Digest {
        let program = std::env::current_exe().and_then(std::fs::metadata);
        let build = program.map_or_else(
            |_| "unknown".to_owned(),
            |meta| format!("{} {} {} {} {}", meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()),
        );
        let mut bytes = Vec::new();
        let folder = self.place.folder.to_string_lossy();
        let text = Digest::of(self.text.as_bytes()).to_string();
        let parts = [build.as_str(), &folder, &self.place.file.to_string_lossy(), &text];
        let set = self.source.set.iter().flat_map(|set| ["set", set]);
        let params = self.params.iter().flat_map(|(_, text)| ["params", text]);
        let profile = self.source.profile.iter().flat_map(|profile| ["profile", profile]);
        for part in parts.into_iter().chain(set).chain(params).chain(profile) {
            bytes.extend((part.len() as u64).to_le_bytes());
            bytes.extend(part.as_bytes());
        }
        Digest::of(&bytes)
    }
}

fn read_params(path: &Path) -> Result<(String, String), Fail> {
    let text = std::fs::read_to_string(path).map_err(|e| Fail::message(format!("cannot read the params {}: {e}", path.display())))?;
    Ok((path.display().to_string(), text))
}
