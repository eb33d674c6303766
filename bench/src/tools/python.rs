//! `Snakefile` and `dvc.yaml`.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use serde_json::{Map, json};

use crate::dag::{Dag, output};

/// One rule with an input function that reads the graph: of the ways to write it, the one that scales best.
const SNAKEFILE: &str = r#"import json
D = json.load(open("dag.json"))
rule all:
    input: expand("out/{i}.txt", i=list(D))
rule s:
    input: lambda w: D[w.i]["ins"]
    output: "out/{i}.txt"
    params: cmd=lambda w: D[w.i]["cmd"]
    shell: "{params.cmd}"
"#;

pub fn write_snakefile(project: &Path, dag: &Dag) -> io::Result<()> {
    let mut stages = Map::new();
    for (stage, inputs) in dag.stages.iter().enumerate() {
        let paths = super::paths(inputs);
        let command = dag.command(&paths, &output(stage));
        stages.insert(stage.to_string(), json!({ "ins": paths, "cmd": command }));
    }
    fs::write(project.join("dag.json"), serde_json::to_string(&stages)?)?;
    fs::write(project.join("Snakefile"), SNAKEFILE)
}

pub fn write_dvc(project: &Path, dag: &Dag, dvc: &str) -> io::Result<()> {
    let mut text = String::from("stages:\n");
    for (stage, inputs) in dag.stages.iter().enumerate() {
        let (paths, output) = (super::paths(inputs), output(stage));
        let command = dag.command(&paths, &output);
        let deps: String = paths.iter().map(|path| format!("    - {path}\n")).collect();
        // Writing to a string cannot fail.
        let _ = write!(text, "  s{stage}:\n    cmd: {command}\n    deps:\n{deps}    outs:\n    - {output}\n");
    }
    fs::write(project.join("dvc.yaml"), text)?;
    for words in [
        &["git", "init", "-q"][..],
        &[dvc, "init", "-q"],
        &[dvc, "config", "core.analytics", "false"],
        &[dvc, "config", "core.check_update", "false"],
        &["git", "add", "-A"],
        &["git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "commit", "-qm", "start"],
    ] {
        call(project, words)?;
    }
    Ok(())
}

/// Calls a program that must end well.
pub fn call(folder: &Path, words: &[&str]) -> io::Result<()> {
    let output = Command::new(words[0]).args(&words[1..]).current_dir(folder).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("`{}`: {}", words.join(" "), String::from_utf8_lossy(&output.stderr))))
}
