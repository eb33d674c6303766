//! A stage run in this very process, and the memory that it took.

use std::collections::BTreeMap;
use std::path::Path;

use trestle_engine::stage::{Context, Input, Kind, Silent};

/// The largest memory that this process has had, in MB.
pub fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

/// Runs a stage of this kind on two threads, with these params, input files and output files.
pub fn run(kind: &Kind, with: &serde_json::Value, inputs: &[(&str, &Path)], outputs: &[(&str, &Path)]) {
    let inputs = inputs.iter().map(|(name, path)| ((*name).to_owned(), vec![Input { path: path.to_path_buf(), labels: BTreeMap::new() }]));
    let outputs = outputs.iter().map(|(name, path)| ((*name).to_owned(), path.to_path_buf()));
    let params = kind.check(with).unwrap().params;
    kind.run(&params, &mut Context::new(inputs.collect(), outputs.collect(), 2, &mut Silent)).unwrap();
}
