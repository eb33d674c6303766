//! The free words of a command line: a pipeline file may stand first, everything else names stages.

use std::path::{Path, PathBuf};

use crate::args::Source;
use crate::fail::Fail;

/// Pipeline files that are looked for when none is named.
const DEFAULTS: [&str; 2] = ["trestle.yaml", "trestle.yml"];

/// Splits the words into the pipeline file and the rest.
pub fn split(words: &[String], source: &Source) -> Result<(PathBuf, Vec<String>), Fail> {
    if let Some(file) = &source.file {
        return Ok((file.clone(), words.to_vec()));
    }
    match words.split_first() {
        Some((first, rest)) if is_file(first) => Ok((PathBuf::from(first), rest.to_vec())),
        _ => Ok((default_file()?, words.to_vec())),
    }
}

fn is_file(word: &str) -> bool {
    let path = Path::new(word);
    path.extension().is_some_and(|e| e == "yaml" || e == "yml") || path.is_file()
}

fn default_file() -> Result<PathBuf, Fail> {
    DEFAULTS.iter().map(PathBuf::from).find(|path| path.is_file()).ok_or_else(|| {
        Fail::with_help(
            "no pipeline file is named, and this folder has no `trestle.yaml`",
            "name one: `trestle run pipelines/quickstart.yaml`",
        )
    })
}
