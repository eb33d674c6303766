//! Any text as a pipeline file, and what stands behind a NUL as the value of a `--set`.
#![no_main]

use std::collections::HashSet;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use miette::{GraphicalReportHandler, GraphicalTheme, NamedSource, Report};
use trestle_engine::pipeline::Pipeline;
use trestle_engine::problem::Problems;
use trestle_engine::resolve::{self, Choices, Override};
use trestle_engine::source::Files;
use trestle_engine::stage::Registry;

fuzz_target!(|text: &str| {
    let (text, set) = text.split_once('\0').map_or((text, None), |(text, set)| (text, Some(set)));
    let mut files = Files::new();
    files.add("fuzz.yaml".to_owned(), text.to_owned());
    let overrides = match set.map(|set| Override::parse(set, &mut files)).transpose() {
        Ok(set) => set.into_iter().collect(),
        Err(problems) => return print(&files, problems),
    };
    let known = |_: &str, output: &str| Some(if output == "bad" { Err("no text".to_owned()) } else { Ok("one\ntwo\n".to_owned()) });
    let choices = Choices { profile: None, params: Vec::new(), overrides, environment: &|_| None, known: &known };
    match resolve::pipeline(&mut files, Path::new("/nonexistent"), "fuzz", &choices, &Registry::default()) {
        Ok(pipeline) => check(&pipeline),
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a reason");
            print(&files, problems);
        }
    }
});

/// A resolved pipeline is in order, and its names are unique.
fn check(pipeline: &Pipeline) {
    let mut names = HashSet::new();
    for (id, stage) in pipeline.stages.iter().enumerate() {
        assert!(names.insert(&stage.name), "two stages are called {}", stage.name);
        assert!(stage.upstream().into_iter().all(|up| up < id), "{} stands before what it reads", stage.name);
        for output in stage.outputs.values() {
            let path = Path::new(&output.path);
            assert!(path.is_relative() && !output.path.split('/').any(|part| part == ".."), "{} leads outside", output.path);
        }
    }
}

/// Every mistake can be shown, and its places lie in a text.
fn print(files: &Files, problems: Problems) {
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(100);
    for mut problem in problems.into_iter().take(20) {
        let mut source = files.first().expect("the first text");
        for (span, _) in &mut problem.labels {
            let (found, inside) = files.locate(*span).unwrap_or_else(|| panic!("{span:?} is nowhere"));
            assert!(span.end() <= found.base + found.text.len(), "{span:?} ends outside {}", found.name);
            *span = inside;
            source = found;
        }
        // Places in two texts are the edge's to sort out.
        problem.labels.truncate(1);
        let report = Report::new(problem).with_source_code(NamedSource::new(&source.name, source.text.to_string()));
        let mut shown = String::new();
        handler.render_report(&mut shown, report.as_ref()).expect("a mistake that cannot be shown");
    }
}
