//! `build.ninja`, for ninja and n2.

use std::fmt::Write;
use std::io;
use std::path::Path;

use crate::dag::{Dag, output};

pub fn write(project: &Path, dag: &Dag) -> io::Result<()> {
    let mut text = String::from("rule r\n  command = $cmd\n");
    for (stage, inputs) in dag.stages.iter().enumerate() {
        let (paths, output) = (super::paths(inputs), output(stage));
        let command = dag.command(&paths, &output);
        // Writing to a string cannot fail.
        let _ = write!(text, "build {output}: r {}\n  cmd = {command}\n", paths.join(" "));
    }
    std::fs::write(project.join("build.ninja"), text)
}
