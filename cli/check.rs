//! `trestle check`: everything but running.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs::{self, File};
use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use trestle_engine::pipeline::{Origin, Pipeline};
use trestle_engine::problem::{Problem, Problems, Span};
use trestle_engine::source::{Files, Source as Text};

use crate::args::{Report, Source};
use crate::fail::{Fail, WRONG};
use crate::github::{Annotation, Level, Place};
use crate::project;
use crate::render::words::count;

/// What `check --help` ends with.
pub const EXAMPLES: &str = "Examples:
  trestle check                                    trestle.yaml in this folder
  trestle check pipelines/*.yaml                   each of several files
  trestle check --set optim.lr=0.1                 with another param
  trestle check --format github                    mistakes as annotations, in CI
  trestle check --format json | jq -r .message     one JSON value a mistake, then a summary

Exit codes: 0 nothing is wrong, 2 something is.";

/// `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Pipeline files [default: trestle.yaml]
    #[arg(value_name = "FILE")]
    pub words: Vec<String>,
    #[command(flatten)]
    pub source: Source,
    /// How to print
    #[arg(long, value_enum, default_value = "human")]
    pub format: Report,
}

/// Resolves pipelines and looks at their inputs; reads no cache and makes none.
pub fn check(args: &Check) -> Result<ExitCode, Fail> {
    let mut code = ExitCode::SUCCESS;
    let files: Vec<Vec<String>> =
        if args.words.is_empty() { vec![Vec::new()] } else { args.words.iter().map(|word| vec![word.clone()]).collect() };
    for words in &files {
        match checked(words, args) {
            Ok(pipeline) => drop(say_sound(&pipeline, files.len() > 1, args.format)?),
            Err(Fail::Pipeline { files, problems }) if args.format != Report::Human => {
                crate::print(&reports(&files, &problems, args.format))?;
                code = ExitCode::from(WRONG);
            }
            Err(fail @ Fail::Pipeline { .. }) => code = fail.print(),
            Err(other) => return Err(other),
        }
    }
    Ok(code)
}

fn checked(words: &[String], args: &Check) -> Result<Pipeline, Fail> {
    let (pipeline, file, rest) = project::read(words, &args.source, &trestle_stages::registry())?;
    if let Some(word) = rest.first() {
        return Err(Fail::with_help(format!("`{word}` is not a pipeline file"), "`check` takes pipeline files only"));
    }
    let problems = unreadable(&pipeline);
    problems.or(pipeline).map_err(|problems| {
        // These mistakes have no place in the text.
        let mut files = Files::new();
        files.add(file.display().to_string(), String::new());
        Fail::Pipeline { files, problems }
    })
}

fn say_sound(pipeline: &Pipeline, named: bool, format: Report) -> Result<ExitCode, Fail> {
    let stages = pipeline.stages.len();
    let counted = count(stages, "stage");
    let name = if named { format!("{}: ", pipeline.name) } else { String::new() };
    crate::print(&match format {
        Report::Human => format!("{name}ok: {counted}\n"),
        Report::Json => format!("{}\n", json!({"event": "checked", "pipeline": pipeline.name, "stages": stages, "mistakes": 0})),
        Report::Github => String::new(),
    })
}

/// Sources that are there and cannot be read.
fn unreadable(pipeline: &Pipeline) -> Problems {
    let mut problems = Problems::new();
    let mut seen = BTreeSet::new();
    for stage in &pipeline.stages {
        for bound in stage.inputs.iter().flat_map(|slot| &slot.values) {
            let Origin::File { path, written } = &bound.origin else { continue };
            if seen.insert(path)
                && let Err(why) = readable(path)
            {
                let message = format!("the input `{written}` of stage `{}` cannot be read: {why}", stage.name);
                problems.push(Problem::new("check::unreadable-input", message));
            }
        }
    }
    problems
}

fn readable(path: &Path) -> Result<(), String> {
    let kind = fs::metadata(path).map_err(|e| e.to_string())?.file_type();
    // A pipe would block whoever opens it.
    let opened = match (kind.is_file(), kind.is_dir()) {
        (true, _) => File::open(path).map(drop),
        (_, true) => fs::read_dir(path).map(drop),
        _ => return Err("it is neither a file nor a folder".to_owned()),
    };
    opened.map_err(|e| e.to_string())
}

fn reports(files: &Files, problems: &Problems, format: Report) -> String {
    let mut out = String::new();
    let mut mistakes = 0;
    for problem in problems.clone() {
        mistakes += 1;
        let at = problem.labels.first().and_then(|(span, _)| files.locate(*span));
        // Writing into a String cannot fail.
        let _ = match format {
            Report::Github => writeln!(out, "{}", annotation(files, at, &problem)),
            _ => writeln!(out, "{}", as_json(files, at, &problem)),
        };
    }
    if format == Report::Json {
        out.push_str(&format!("{}\n", json!({"event": "checked", "file": main_file(files), "mistakes": mistakes})));
    }
    out
}

fn main_file(files: &Files) -> &str {
    files.first().map_or("", |source| &source.name)
}

/// A text, and a place inside of it.
type At<'f> = Option<(&'f Text, Span)>;

fn as_json(files: &Files, at: At<'_>, problem: &Problem) -> serde_json::Value {
    let mut value = json!({"event": "mistake", "file": main_file(files), "code": problem.code, "message": problem.message});
    if let Some((source, span)) = at {
        value["file"] = source.name.as_str().into();
        for (end, byte) in [("", span.start()), ("end_", span.end())] {
            let (line, column) = place(&source.text, byte);
            value[format!("{end}line")] = line.into();
            value[format!("{end}column")] = column.into();
        }
    }
    if let Some(help) = &problem.help {
        value["help"] = help.as_str().into();
    }
    value
}

fn annotation(files: &Files, at: At<'_>, problem: &Problem) -> String {
    let (file, (line, column)) = match at {
        Some((source, span)) => (source.name.as_str(), place(&source.text, span.start())),
        None => (main_file(files), (1, 1)),
    };
    let help = problem.help.as_ref().map(|help| format!("\nhelp: {help}")).unwrap_or_default();
    let message = format!("{}{help}", problem.message);
    let place = Some(Place { file, line, column });
    Annotation { level: Level::Error, place, title: problem.code, message: &message }.to_string()
}

/// Line and column of a byte, both from 1; columns count characters.
fn place(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let text = "a: é\nbc: d";
        assert_eq!([place(text, 0), place(text, 5), place(text, 6), place(text, 10)], [(1, 1), (1, 5), (2, 1), (2, 5)]);
        // `é` has two bytes: its end is one character on.
        assert_eq!(place(text, 3), (1, 4));
    }
}
