//! `trestle.yaml`.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use super::Phase;
use crate::dag::{Dag, Input};

/// Names of inputs, in their order.
const NAMES: [&str; 3] = ["a", "b", "c"];

pub fn write(project: &Path, dag: &Dag) -> io::Result<()> {
    let mut text = String::from("stages:\n");
    for (stage, inputs) in dag.stages.iter().enumerate() {
        let named = || NAMES.iter().zip(inputs);
        let entries: Vec<String> = named().map(|(name, input)| format!("{name}: {}", reference(input))).collect();
        let places: Vec<String> = named().map(|(name, _)| format!("{{in.{name}}}")).collect();
        let command = dag.command(&places, "{out.out}");
        let entries = entries.join(", ");
        // Writing to a string cannot fail.
        let _ = write!(text, "  s{stage}:\n    in: {{ {entries} }}\n    run: \"{command}\"\n    out: {{ out: {stage}.txt }}\n");
    }
    fs::write(project.join("trestle.yaml"), text)
}

fn reference(input: &Input) -> String {
    match input {
        Input::Source(_) => format!("./{}", input.path()),
        Input::Output(stage) => format!("s{stage}.out"),
    }
}

/// How many stages ran, or would run, by the last line that says so.
pub fn ran(phase: Phase, log: &Path) -> Result<usize, String> {
    let text = fs::read_to_string(log).map_err(|e| format!("{}: {e}", log.display()))?;
    counted(phase, &text).ok_or_else(|| format!("no counts in its output, which ends with {:?}", text.lines().last().unwrap_or_default()))
}

/// `… 12 executed, 88 cached …` of a run; `12 to run, 3 later, 85 cached` of a plan.
fn counted(phase: Phase, text: &str) -> Option<usize> {
    let before = |line: &str, word: &str| line.split(word).next()?.split_whitespace().last()?.parse::<usize>().ok();
    let of = |word: &str| text.lines().rev().filter(|line| line.contains(word)).find_map(|line| before(line, word));
    match phase {
        Phase::Plan => Some(of(" to run")? + of(" later")?),
        _ => of(" executed"),
    }
}

pub fn output(program: &str, project: &Path, stage: usize) -> Result<Vec<u8>, String> {
    let output = Command::new(program).args(["out", &format!("s{stage}"), "out"]).current_dir(project).output();
    let output = output.map_err(|e| format!("`{program}`: {e}"))?;
    if !output.status.success() {
        return Err(format!("`trestle out s{stage} out`: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let path = project.join(String::from_utf8_lossy(&output.stdout).trim());
    fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_from_the_last_line_that_has_them() {
        let run = "trestle: 2 stages, 2 threads\ndone    s0  65 ms\n1 executed, 1 cached in 111 ms\n";
        assert_eq!(counted(Phase::Noop, run), Some(1));
        assert_eq!(counted(Phase::Plan, "1 to run, 2 later, 0 cached\n"), Some(3));
        assert_eq!(counted(Phase::Full, "killed\n"), None);
    }
}
