//! The words by which stages are chosen on a command line.
//!
//! A target is the name of a stage of the file (all its expansions), the name of an expanded stage, a pattern in which `*` stands for anything, or
//! `tag:` with a tag.

use crate::compiled::Compiled;
use crate::error::Error;
use crate::pipeline::{Pipeline, Stage, StageId, base_of};

/// What stands before a tag.
const TAG: &str = "tag:";

/// Which stages are needed for the targets; none if no target is given, which means all stages.
///
/// # Errors
/// If a target fits no stage, or the compiled pipeline cannot be read.
pub fn select(compiled: &Compiled, targets: &[String]) -> Result<Option<Vec<bool>>, Error> {
    if targets.is_empty() {
        return Ok(None);
    }
    let all = compiled.names()?;
    let mut wanted = vec![false; all.len()];
    for target in targets {
        let tagged = target.strip_prefix(TAG).and_then(|tag| compiled.tags.get(tag));
        let named = (0..all.len()).filter(|&id| names(target, &all[id]));
        let fitting: Vec<StageId> = named.chain(tagged.into_iter().flatten().copied()).collect();
        if fitting.is_empty() {
            return Err(unknown(target, all.iter(), compiled.tags.keys().map(String::as_str)));
        }
        fitting.into_iter().for_each(|id| wanted[id] = true);
    }
    add_upstream(&mut wanted, |id| compiled.upstream(id));
    Ok(Some(wanted))
}

/// Marks all that the marked stages read from, directly or not.
pub fn add_upstream(wanted: &mut [bool], upstream: impl Fn(StageId) -> Vec<StageId>) {
    for id in (0..wanted.len()).rev() {
        if wanted[id] {
            upstream(id).into_iter().for_each(|up| wanted[up] = true);
        }
    }
}

/// The stages that a target means.
///
/// # Errors
/// If it fits none.
pub fn matching(pipeline: &Pipeline, target: &str) -> Result<Vec<StageId>, Error> {
    let stages = &pipeline.stages;
    let fitting: Vec<StageId> = (0..stages.len()).filter(|&id| fits(target, &stages[id])).collect();
    if fitting.is_empty() {
        let tags = stages.iter().flat_map(|stage| &stage.settings.tags);
        return Err(unknown(target, stages.iter().map(|stage| stage.name.as_str()), tags.map(String::as_str)));
    }
    Ok(fitting)
}

/// Whether a target means this stage.
fn fits(target: &str, stage: &Stage) -> bool {
    names(target, &stage.name) || target.strip_prefix(TAG).is_some_and(|tag| stage.settings.tags.iter().any(|own| own == tag))
}

/// Whether a target means the expanded stage called `name`.
fn names(target: &str, name: &str) -> bool {
    target == name || target == base_of(name) || (target.contains('*') && glob(target, name))
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

/// The error for a target that fits no stage.
fn unknown<'n>(target: &str, names: impl Iterator<Item = &'n str>, tags: impl Iterator<Item = &'n str>) -> Error {
    let (kind, mut known): (_, Vec<&str>) = match target.strip_prefix(TAG) {
        Some(_) => ("tags", tags.collect()),
        None => ("stages", names.flat_map(|name| [base_of(name), name]).collect()),
    };
    if kind == "tags" {
        known.sort_unstable();
    }
    known.dedup();
    let help = match crate::problem::suggest(target.trim_start_matches(TAG), &known) {
        Some(name) if kind == "tags" => format!("did you mean `{TAG}{name}`?"),
        Some(name) => format!("did you mean `{name}`?"),
        None if known.is_empty() => format!("there are no {kind}"),
        None => format!("{kind} are: {}", known.iter().take(12).copied().collect::<Vec<_>>().join(", ")),
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
