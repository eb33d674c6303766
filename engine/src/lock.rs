//! The lock of a pipeline: what each stage gave, as a small text for version control.
//!
//! ```text
//! trestle lock v1
//!
//! count
//!   key 5f1c…
//!   n blob:9a0e… 2
//! ```
//!
//! A block a stage, by name; in it the key and the outputs, by name, with their contents and, for files, the number of bytes. The text
//! depends on nothing else, so that two people with the same results have the same file, and a change touches the block of its stage.
//!
//! A lock holds a pipeline to results without having them: the key of a stage follows from the contents of its inputs, and those are
//! sources, or outputs that the lock names. [`check`] so needs neither the outputs nor a run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};

use miette::Diagnostic;
use trestle_cache::{ActionKey, BlobId, Cache, Content, Manifest, TreeId};

use crate::action::{self, Contents};
use crate::compiled::{Compiled, Names};
use crate::error::Error;
use crate::pipeline::{Origin, Stage, StageId};

/// The first line.
const HEADER: &str = "trestle lock v1";

/// What each stage gave, by its name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lock {
    /// The stages.
    pub stages: BTreeMap<String, Locked>,
}

/// What one stage gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locked {
    /// Its key.
    pub key: ActionKey,
    /// Its outputs.
    pub outputs: BTreeMap<String, Content>,
}

/// A text that is not a lock.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Diagnostic)]
#[error("line {line} of the lock file {what}")]
#[diagnostic(code(engine::bad_lock), help("`trestle lock` writes it anew, once everything has run"))]
pub struct BadLock {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: &'static str,
}

impl Lock {
    /// Reads the text of a lock; an empty text is a lock of nothing.
    ///
    /// # Errors
    /// The first line that has no place in a lock.
    pub fn parse(text: &str) -> Result<Self, BadLock> {
        let mut lock = Self::default();
        let mut lines = text.lines().enumerate().map(|(i, line)| (i + 1, line)).filter(|(_, line)| !line.trim().is_empty()).peekable();
        match lines.next() {
            None => return Ok(lock),
            Some((_, HEADER)) => {}
            Some((line, _)) => return Err(BadLock { line, what: "is not `trestle lock v1`" }),
        }
        while let Some((line, name)) = lines.next() {
            let bad = |what| BadLock { line, what };
            let name = parse_name(name).map_err(bad)?;
            let mut key = None;
            let mut outputs = BTreeMap::new();
            while let Some((line, field)) = lines.next_if(|(_, line)| line.starts_with(' ')) {
                let bad = |what| BadLock { line, what };
                match field.trim().split(' ').collect::<Vec<_>>().as_slice() {
                    ["key", digest] if key.is_none() => key = Some(digest.parse().map_err(|_| bad("has no key"))?),
                    [output, content @ ..] => {
                        let content = parse_content(content).ok_or_else(|| bad("has no content"))?;
                        if outputs.insert((*output).to_owned(), content).is_some() {
                            return Err(bad("names an output a second time"));
                        }
                    }
                    [] => {}
                }
            }
            let key = key.ok_or_else(|| bad("begins a stage without a key"))?;
            if lock.stages.insert(name, Locked { key, outputs }).is_some() {
                return Err(bad("names a stage a second time"));
            }
        }
        Ok(lock)
    }
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}")?;
        self.stages.iter().try_for_each(|(name, stage)| write!(f, "\n{}", block(name, stage)))
    }
}

/// The lines of one stage.
fn block(name: &str, stage: &Locked) -> String {
    // `key` comes first, so an output of that name is told from it.
    let mut text = format!("{}\n  key {}\n", write_name(name), stage.key);
    for (output, content) in &stage.outputs {
        // Writing into a String cannot fail.
        let _ = match content {
            Content::Blob { size, .. } => writeln!(text, "  {output} {content} {size}"),
            Content::Tree { .. } => writeln!(text, "  {output} {content}"),
        };
    }
    text
}

/// A name that could be taken for something else is written as JSON.
fn write_name(name: &str) -> String {
    let is_odd = name.is_empty()
        || name.chars().any(char::is_control)
        || name.starts_with([' ', '"', '<', '>', '='])
        || name.trim() != name
        || name == HEADER;
    if is_odd { serde_json::Value::from(name).to_string() } else { name.to_owned() }
}

fn parse_name(line: &str) -> Result<String, &'static str> {
    if ["<<<<<<<", "=======", ">>>>>>>"].iter().any(|marker| line.starts_with(marker)) {
        return Err("is from a merge that was not finished");
    }
    if line.starts_with(' ') {
        return Err("stands outside of a stage");
    }
    if line.starts_with('"') { serde_json::from_str(line).map_err(|_| "is no name") } else { Ok(line.to_owned()) }
}

fn parse_content(words: &[&str]) -> Option<Content> {
    let (kind, digest) = words.first()?.split_once(':')?;
    match (kind, words) {
        ("blob" | "blob+x", [_, size]) => {
            Some(Content::Blob { id: digest.parse::<BlobId>().ok()?, size: size.parse().ok()?, executable: kind == "blob+x" })
        }
        ("tree", [_]) => Some(Content::Tree { id: digest.parse::<TreeId>().ok()? }),
        _ => None,
    }
}

/// Two locks that grew from one, put together stage by stage; the text, and whether it is free of conflicts.
///
/// A stage is in conflict only if both sides changed it, and differently. Its two blocks then stand between git's markers.
pub fn merge(base: &Lock, ours: &Lock, theirs: &Lock) -> (String, bool) {
    let names: BTreeSet<&String> = [base, ours, theirs].iter().flat_map(|lock| lock.stages.keys()).collect();
    let mut text = format!("{HEADER}\n");
    let mut is_clean = true;
    for name in names {
        let [old, a, b] = [base, ours, theirs].map(|lock| lock.stages.get(name));
        let chosen = match (a == b || b == old, a == old) {
            (true, _) => a,
            (_, true) => b,
            _ => {
                is_clean = false;
                let side = |stage: Option<&Locked>| stage.map(|stage| block(name, stage)).unwrap_or_default();
                text.push_str(&format!("\n<<<<<<< ours\n{}=======\n{}>>>>>>> theirs\n", side(a), side(b)));
                None
            }
        };
        if let Some(stage) = chosen {
            text.push_str(&format!("\n{}", block(name, stage)));
        }
    }
    (text, is_clean)
}

/// How a stage is not what the lock says.
#[derive(Debug, Clone, PartialEq)]
pub enum Deviation {
    /// The lock does not have it.
    New,
    /// The pipeline does not have it.
    Gone,
    /// With the inputs that the lock names it has another key.
    Key {
        /// What the lock says.
        locked: ActionKey,
        /// What the key would be.
        now: ActionKey,
        /// What that is made of.
        manifest: Manifest,
    },
    /// The cache has other outputs under the same key.
    Outputs {
        /// Their names.
        names: Vec<String>,
    },
}

/// Holds the wanted stages of a pipeline to its lock; gives those that deviate, in the order of the pipeline, then those that are gone.
///
/// A stage below one that deviates is held to the outputs that the lock names, so that only stages that were changed themselves are
/// listed. One that reads from a stage that the lock does not have cannot be told, and is not listed.
///
/// # Errors
/// If a source or the cache cannot be read.
pub fn check(compiled: &Compiled, wanted: &dyn Fn(StageId) -> bool, lock: &Lock, cache: &Cache) -> Result<Vec<(String, Deviation)>, Error> {
    let all = compiled.names()?;
    let mut deviations = Vec::new();
    for id in (0..compiled.len()).filter(|&id| wanted(id)) {
        let stage = compiled.stage(id)?;
        let deviation = match (lock.stages.get(&stage.name), contents(&all, &stage, lock, cache)?) {
            (None, _) => Some(Deviation::New),
            (Some(locked), Some(contents)) => deviation(action::manifest(&stage, &contents), locked, cache)?,
            (Some(_), None) => None,
        };
        deviations.extend(deviation.map(|deviation| (stage.name.clone(), deviation)));
    }
    let names: BTreeSet<&str> = all.iter().collect();
    let gone = lock.stages.keys().filter(|name| !names.contains(name.as_str()));
    deviations.extend(gone.map(|name| (name.clone(), Deviation::Gone)));
    Ok(deviations)
}

fn deviation(manifest: Manifest, locked: &Locked, cache: &Cache) -> Result<Option<Deviation>, Error> {
    let now = manifest.key();
    if now != locked.key {
        return Ok(Some(Deviation::Key { locked: locked.key, now, manifest }));
    }
    let Some(record) = cache.record(&now)? else { return Ok(None) };
    let names = other_outputs(locked, &record.outputs);
    Ok((!names.is_empty()).then_some(Deviation::Outputs { names }))
}

/// Names of outputs that are not what the lock says.
pub fn other_outputs(locked: &Locked, outputs: &BTreeMap<String, Content>) -> Vec<String> {
    let names: BTreeSet<&String> = locked.outputs.keys().chain(outputs.keys()).collect();
    names.into_iter().filter(|name| locked.outputs.get(*name) != outputs.get(*name)).cloned().collect()
}

/// Contents of a stage's inputs if all stages that it reads from gave what the lock says; none if the lock does not say.
fn contents(names: &Names, stage: &Stage, lock: &Lock, cache: &Cache) -> Result<Option<Contents>, Error> {
    let mut all = Contents::new();
    for slot in &stage.inputs {
        let mut values = Vec::with_capacity(slot.values.len());
        for bound in &slot.values {
            let content = match &bound.origin {
                Origin::File { path, .. } => Some(cache.source(path)?),
                Origin::Output { stage, output } => {
                    lock.stages.get(&names[*stage]).and_then(|locked| locked.outputs.get(&**output)).copied()
                }
            };
            match content {
                Some(content) => values.push(content),
                None => return Ok(None),
            }
        }
        all.push(values);
    }
    Ok(Some(all))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use trestle_cache::Digest;

    fn locked(number: u64) -> Locked {
        let digest = Digest::of(&number.to_le_bytes());
        let outputs = BTreeMap::from([
            ("key".to_owned(), Content::Tree { id: TreeId::new(digest) }),
            ("out".to_owned(), Content::Blob { id: BlobId::new(digest), size: number, executable: number % 2 == 1 }),
        ]);
        Locked { key: ActionKey::new(digest), outputs }
    }

    fn lock(stages: &[(&str, u64)]) -> Lock {
        Lock { stages: stages.iter().map(|(name, number)| ((*name).to_owned(), locked(*number))).collect() }
    }

    #[test]
    fn what_is_not_a_lock_is_refused_with_its_line() {
        let text = lock(&[("a", 1), ("b", 2)]).to_string();
        let line = |from: &str, to: &str| Lock::parse(&text.replacen(from, to, 1)).unwrap_err().line;
        assert_eq!(line("lock v1", "lock v2"), 1);
        assert_eq!(line("\na\n", "\na\n\nx\n"), 3);
        assert_eq!(line("  out", "  key"), 6);
        assert_eq!(line("  out blob", "  out bulb"), 6);
        assert_eq!(line("\nb\n", "\na\n"), 8);
        assert_eq!(line("\nb\n", "\n<<<<<<< ours\n"), 8);
        assert_eq!(Lock::parse("").unwrap(), Lock::default());
    }

    #[test]
    fn stages_merge_one_by_one() {
        let base = lock(&[("same", 1), ("ours", 2), ("theirs", 3), ("both", 4), ("gone", 5)]);
        let ours = lock(&[("same", 1), ("ours", 12), ("theirs", 3), ("both", 14), ("gone", 5), ("new a", 7)]);
        let theirs = lock(&[("same", 1), ("ours", 2), ("theirs", 13), ("both", 14), ("new b", 8)]);
        let (text, is_clean) = merge(&base, &ours, &theirs);
        assert!(is_clean, "{text}");
        let wanted = lock(&[("same", 1), ("ours", 12), ("theirs", 13), ("both", 14), ("new a", 7), ("new b", 8)]);
        assert_eq!(text, wanted.to_string());
    }

    #[test]
    fn a_stage_that_both_changed_is_in_conflict_alone() {
        let base = lock(&[("a", 1), ("b", 2), ("c", 3)]);
        let (text, is_clean) = merge(&base, &lock(&[("a", 11), ("b", 12), ("c", 3)]), &lock(&[("a", 1), ("b", 22)]));
        assert!(!is_clean);
        let conflict = format!("\n<<<<<<< ours\n{}=======\n{}>>>>>>> theirs\n", block("b", &locked(12)), block("b", &locked(22)));
        assert_eq!(text, format!("{HEADER}\n\n{}{conflict}", block("a", &locked(11))));
        assert_eq!(Lock::parse(&text).unwrap_err().what, "is from a merge that was not finished");
        // Changed here, removed there.
        let (text, is_clean) = merge(&base, &lock(&[("a", 9), ("b", 2), ("c", 3)]), &lock(&[("b", 2), ("c", 3)]));
        assert!(!is_clean && text.contains("=======\n>>>>>>> theirs\n"), "{text}");
    }

    proptest! {
        #[test]
        fn every_lock_reads_back(names in proptest::collection::btree_map("\\PC*|[\n\"<= a]*", 0u64..9, 0..6)) {
            let names: Vec<(&str, u64)> = names.iter().map(|(name, number)| (name.as_str(), *number)).collect();
            let lock = lock(&names);
            prop_assert_eq!(Lock::parse(&lock.to_string()).unwrap(), lock);
        }
    }
}
