//! `Makefile`.

use std::fmt::Write;
use std::io;
use std::path::Path;

use crate::dag::{Dag, output};

pub fn write(project: &Path, dag: &Dag) -> io::Result<()> {
    let mut text = String::from("all:");
    for stage in 0..dag.stages.len() {
        text.push(' ');
        text.push_str(&output(stage));
    }
    text.push('\n');
    for (stage, inputs) in dag.stages.iter().enumerate() {
        let (paths, output) = (super::paths(inputs), output(stage));
        let command = dag.command(&paths, &output);
        // Writing to a string cannot fail.
        let _ = write!(text, "{output}: {}\n\t{command}\n", paths.join(" "));
    }
    std::fs::write(project.join("Makefile"), text)
}
