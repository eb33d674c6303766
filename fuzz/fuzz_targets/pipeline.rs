//! Any text as a pipeline file, and what stands behind a NUL as the value of a `--set`.
#![no_main]

use std::collections::HashSet;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use miette::{GraphicalReportHandler, GraphicalTheme, NamedSource, Report};
use trestle_engine::pipeline::Pipeline;
use trestle_engine::problem::Problems;
use trestle_engine::resolve::{self, Override};
use trestle_engine::stage::Registry;

fuzz_target!(|text: &str| {
    let (text, set) = text.split_once('\0').map_or((text, None), |(text, set)| (text, Some(set)));
    let overrides: Vec<Override> = set.and_then(|set| Override::parse(set).map_err(|problems| print(text, problems)).ok()).into_iter().collect();
    match resolve::pipeline(text, Path::new("/nonexistent"), "fuzz", &overrides, &Registry::default()) {
        Ok(pipeline) => check(&pipeline),
        Err(problems) => {
            assert!(!problems.is_empty(), "refused without a reason");
            print(text, problems);
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

/// Every mistake can be shown: its places lie in the text.
fn print(text: &str, problems: Problems) {
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(100);
    for problem in problems.into_iter().take(20) {
        for (span, _) in &problem.labels {
            assert!(span.start <= span.end && span.end <= text.len(), "{span:?} of {}: {problem:?}", text.len());
        }
        let report = Report::new(problem).with_source_code(NamedSource::new("fuzz.yaml", text.to_owned()));
        let mut shown = String::new();
        handler.render_report(&mut shown, report.as_ref()).expect("a mistake that cannot be shown");
    }
}
