//! Says that a failed command wanted a file of the project that it did not declare.
//!
//! Such a file is not in the stage's folder, and Landlock keeps its own place shut, so all that the command can say is that it was not
//! found or not permitted. The words of its last lines that name a file of the project tell the rest.

use std::path::{Component, Path, PathBuf};

use crate::pipeline::Stage;

/// What programs say of a file that they cannot have.
const REFUSALS: [&str; 6] = ["No such file", "not found", "Permission denied", "cannot open", "can't open", "FileNotFoundError"];

/// The way out, if the end of a log names a file of the project at `root` that the stage does not declare.
pub fn named_in(log_tail: &str, root: &Path, stage: &Stage) -> Option<String> {
    let refusals = log_tail.lines().filter(|line| REFUSALS.iter().any(|words| line.contains(words)));
    let file = refusals.flat_map(words).find_map(|word| project_file(word, root, stage))?;
    Some(format!(
        "`{file}` is a file of the project that the stage does not declare; add it under `in:`, such as `in: {{ file: ./{file} }}`"
    ))
}

/// The words of a line without the marks around them.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split([' ', '\'', '"', '`', '(', ')', '[', ']', '<', '>', ',', ';']).map(|word| word.trim_end_matches([':', '.']))
}

/// The word as a path below the root, if such a file is there and the stage's folder has it not.
fn project_file(word: &str, root: &Path, stage: &Stage) -> Option<String> {
    let inside = Path::new(word).strip_prefix(root).unwrap_or(Path::new(word));
    let is_plain = inside.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if word.is_empty() || !is_plain || !root.join(inside).is_file() {
        return None;
    }
    let inside: PathBuf = inside.components().filter(|part| *part != Component::CurDir).collect();
    let is_declared = stage.inputs.iter().flat_map(|slot| &slot.values).any(|bound| inside.starts_with(&*bound.place));
    (!is_declared).then(|| inside.to_string_lossy().into_owned())
}
