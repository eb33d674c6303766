//! Files of the project that inputs name: single ones, folders, and patterns such as `./src/**/*.py`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::compiled::Dependency;
use crate::problem::{Problem, Span};

/// Patterns match files that are named with `.` in front only where the pattern has one too, and never across a `/`.
const MATCHING: glob::MatchOptions =
    glob::MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// A file or folder of the project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Where it is.
    pub path: Arc<Path>,
    /// What it is called: as written, or as a pattern would have to be written for it alone.
    pub written: Arc<str>,
}

/// What was looked for, so that each is looked for once.
#[derive(Debug, Default)]
pub struct Finder {
    seen: HashMap<Arc<Path>, bool>,
    /// Patterns that were looked for, with what they fitted.
    pub patterns: Vec<Dependency>,
}

/// Whether a path is a pattern for several files.
pub fn is_pattern(written: &str) -> bool {
    written.contains(['*', '?'])
}

impl Finder {
    /// What `written` means in the folder `root`: one file or folder, or all files that fit a pattern, in the order of their names.
    ///
    /// # Errors
    /// If there is nothing.
    pub fn find(&mut self, root: &Path, written: &str, span: Span) -> Result<Vec<Found>, Problem> {
        if is_pattern(written) {
            let found = matching(root, written, span)?;
            let names: Vec<&str> = found.iter().map(|found| &*found.written).collect();
            self.patterns.push(Dependency::pattern(root, written, &names));
            return Ok(found);
        }
        let path: Arc<Path> = root.join(written).into();
        if !*self.seen.entry(Arc::clone(&path)).or_insert_with_key(|path| path.exists()) {
            return Err(Problem::new("input::not-found", format!("there is no file or folder `{written}`"))
                .at(span, "not found")
                .help("paths are relative to the folder of the pipeline file"));
        }
        Ok(vec![Found { path, written: written.into() }])
    }
}

/// Names of the files that fit a pattern; none if there is no such file.
pub fn names(root: &Path, pattern: &str) -> Option<Vec<String>> {
    Some(matching(root, pattern, Span::default()).ok()?.into_iter().map(|found| found.written.to_string()).collect())
}

fn matching(root: &Path, pattern: &str, span: Span) -> Result<Vec<Found>, Problem> {
    let bad = |message: String| Problem::new("input::pattern", format!("`{pattern}` is no pattern: {message}")).at(span, "here");
    let tidy = pattern.strip_prefix("./").unwrap_or(pattern);
    let whole = if Path::new(tidy).is_absolute() {
        tidy.to_owned()
    } else {
        let root = root.to_str().ok_or_else(|| bad("the folder of the pipeline has a name that is not text".to_owned()))?;
        format!("{}/{tidy}", glob::Pattern::escape(root))
    };
    let mut found = Vec::new();
    for entry in glob::glob_with(&whole, MATCHING).map_err(|error| bad(error.msg.to_owned()))? {
        let path = entry.map_err(|error| {
            Problem::new("input::unreadable", format!("cannot read {}: {}", error.path().display(), error.error()))
                .at(span, "for this pattern")
        })?;
        if !path.is_file() {
            continue;
        }
        let inside = path.strip_prefix(root).unwrap_or(&path);
        let written = inside.to_str().ok_or_else(|| bad(format!("it fits {}, whose name is not text", inside.display())))?.to_owned();
        found.push(Found { path: path.into(), written: written.into() });
    }
    if found.is_empty() {
        return Err(Problem::new("input::no-match", format!("no file fits `{pattern}`"))
            .at(span, "fits none")
            .help("`*` stands for any part of a name, `**` for any folders; names with a dot in front are written out; a folder is one input without `*`"));
    }
    found.sort_by(|a, b| a.written.cmp(&b.written));
    Ok(found)
}
