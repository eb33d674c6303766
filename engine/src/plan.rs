//! Hit or run: the one place that decides. `run`, `plan` and `explain` all ask here.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::Serialize;
use trestle_cache::{ActionKey, ActionRecord, Cache, Change, Content, Health, Last, Manifest};

use crate::action::{self, Contents};
use crate::error::Error;
use crate::pipeline::{Origin, Pipeline, StageId};

/// What is to become of a stage.
#[derive(Debug)]
pub enum Fate {
    /// Its outputs are in the cache, whole.
    Hit(Box<ActionRecord>),
    /// It has to run.
    Run(Box<Work>),
    /// It cannot be said before these stages have run: the contents of an input are not known.
    Later(Vec<StageId>),
}

/// A stage that has to run.
#[derive(Debug, Clone)]
pub struct Work {
    /// Its key.
    pub key: ActionKey,
    /// What the key is made of.
    pub manifest: Manifest,
    /// Contents of its inputs.
    pub contents: Contents,
    /// Why.
    pub reasons: Vec<Reason>,
}

/// Why a stage has to run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Reason {
    /// No stage of this name has been run in this project.
    New,
    /// Something differs from the last time that a stage of this name was run or found in the cache.
    Changed {
        /// What, with old and new value.
        changes: Vec<Change>,
    },
    /// The record of the last time is gone or cannot be read.
    NoRecord,
    /// An output in the store is missing or damaged.
    Output {
        /// Its name.
        output: String,
        /// What is wrong with it.
        health: String,
    },
}

/// Decides the fates of stages one after the other, as the contents of their inputs become known.
pub struct Planner<'a> {
    pipeline: &'a Pipeline,
    cache: &'a Cache,
    sources: HashMap<PathBuf, Content>,
    known: Vec<Option<BTreeMap<String, Content>>>,
}

impl<'a> Planner<'a> {
    /// A planner that knows nothing yet.
    pub fn new(pipeline: &'a Pipeline, cache: &'a Cache) -> Self {
        Self { pipeline, cache, sources: HashMap::new(), known: vec![None; pipeline.stages.len()] }
    }

    /// The fate of a stage, given what is known by now. A hit is [settled](Self::settle) at once.
    ///
    /// # Errors
    /// If a source file or the cache cannot be read.
    pub fn decide(&mut self, id: StageId, last: &Last) -> Result<Fate, Error> {
        let contents = match self.contents(id)? {
            Ok(contents) => contents,
            Err(waits) => return Ok(Fate::Later(waits)),
        };
        let manifest = action::manifest(&self.pipeline.stages[id], &contents);
        let key = manifest.key();
        let reasons = match self.cache.record(&key)? {
            None => self.why(id, &key, &manifest, last)?,
            Some(record) => {
                let damage = self.damage(id, &record)?;
                if damage.is_empty() {
                    self.settle(id, record.outputs.clone());
                    return Ok(Fate::Hit(Box::new(record)));
                }
                damage
            }
        };
        Ok(Fate::Run(Box::new(Work { key, manifest, contents, reasons })))
    }

    /// Notes the outputs of a stage that has run.
    pub fn settle(&mut self, id: StageId, outputs: BTreeMap<String, Content>) {
        self.known[id] = Some(outputs);
    }

    /// Contents of all inputs, or the stages whose outputs are not known.
    fn contents(&mut self, id: StageId) -> Result<Result<Contents, Vec<StageId>>, Error> {
        let pipeline = self.pipeline;
        let mut waits = Vec::new();
        let mut all = Contents::new();
        for slot in &pipeline.stages[id].inputs {
            let mut values = Vec::with_capacity(slot.values.len());
            for bound in &slot.values {
                match &bound.origin {
                    Origin::File { path, .. } => values.push(self.source(path)?),
                    Origin::Output { stage, output } => match self.known[*stage].as_ref().and_then(|outputs| outputs.get(output)) {
                        Some(content) => values.push(*content),
                        None => waits.push(*stage),
                    },
                }
            }
            all.push(values);
        }
        waits.sort_unstable();
        waits.dedup();
        Ok(if waits.is_empty() { Ok(all) } else { Err(waits) })
    }

    /// A source is hashed once a run: all its readers see the same version of it.
    fn source(&mut self, path: &Path) -> Result<Content, Error> {
        if let Some(content) = self.sources.get(path) {
            return Ok(*content);
        }
        let content = self.cache.source(path)?;
        self.sources.insert(path.to_owned(), content);
        Ok(content)
    }

    fn damage(&self, id: StageId, record: &ActionRecord) -> Result<Vec<Reason>, Error> {
        let mut reasons = Vec::new();
        for name in self.pipeline.stages[id].outputs.keys() {
            let health = match record.outputs.get(name) {
                Some(content) => self.cache.check(content)?.to_string(),
                None => "not in the record".to_owned(),
            };
            if health != Health::Sound.to_string() {
                reasons.push(Reason::Output { output: name.clone(), health });
            }
        }
        Ok(reasons)
    }

    fn why(&self, id: StageId, key: &ActionKey, manifest: &Manifest, last: &Last) -> Result<Vec<Reason>, Error> {
        let Some(before) = last.get(&self.pipeline.stages[id].name) else { return Ok(vec![Reason::New]) };
        if before == *key {
            return Ok(vec![Reason::NoRecord]);
        }
        Ok(match self.cache.record(&before)? {
            Some(record) => vec![Reason::Changed { changes: record.manifest.diff(manifest) }],
            None => vec![Reason::NoRecord],
        })
    }
}

/// What would happen to each wanted stage; nothing is executed or changed.
///
/// # Errors
/// As [`Planner::decide`].
pub fn plan(pipeline: &Pipeline, wanted: &[bool], cache: &Cache, last: &Last) -> Result<Vec<(StageId, Fate)>, Error> {
    let mut planner = Planner::new(pipeline, cache);
    (0..pipeline.stages.len()).filter(|&id| wanted[id]).map(|id| Ok((id, planner.decide(id, last)?))).collect()
}

/// Which stages are needed for the targets; all of them if no target is given.
///
/// A target is the name of a stage of the file (all its expansions), of an expanded stage, or a pattern with `*`.
///
/// # Errors
/// If a target fits no stage.
pub fn select(pipeline: &Pipeline, targets: &[String]) -> Result<Vec<bool>, Error> {
    if targets.is_empty() {
        return Ok(vec![true; pipeline.stages.len()]);
    }
    let mut wanted = vec![false; pipeline.stages.len()];
    for target in targets {
        let matching: Vec<StageId> = (0..pipeline.stages.len()).filter(|&id| fits(target, &pipeline.stages[id])).collect();
        if matching.is_empty() {
            return Err(unknown_target(pipeline, target));
        }
        matching.into_iter().for_each(|id| wanted[id] = true);
    }
    for id in (0..pipeline.stages.len()).rev() {
        if wanted[id] {
            pipeline.stages[id].upstream().into_iter().for_each(|up| wanted[up] = true);
        }
    }
    Ok(wanted)
}

/// Whether a target names this stage.
pub fn fits(target: &str, stage: &crate::pipeline::Stage) -> bool {
    target == stage.name || target == stage.base || (target.contains('*') && glob(target, &stage.name))
}

/// Whether `text` has the form of `pattern`, in which `*` stands for any characters.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(tail) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(tail)
}

/// The error for a name that fits no stage.
pub fn unknown_target(pipeline: &Pipeline, target: &str) -> Error {
    let mut names: Vec<&str> = pipeline.stages.iter().flat_map(|stage| [stage.base.as_str(), stage.name.as_str()]).collect();
    names.dedup();
    let help = match crate::problem::suggest(target, &names) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("stages are: {}", names.iter().take(12).copied().collect::<Vec<_>>().join(", ")),
    };
    Error::UnknownTarget { target: target.to_owned(), help }
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn patterns() {
        assert!(glob("adapt*", "adapt[seed=1]"));
        assert!(glob("*seed=1]", "adapt[seed=1]"));
        assert!(glob("a*[*=1]", "adapt[seed=1]"));
        assert!(!glob("a*[*=2]", "adapt[seed=1]"));
        assert!(!glob("b*", "adapt"));
    }
}
