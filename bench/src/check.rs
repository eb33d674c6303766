//! Whether outputs are what they must be: a fast tool that leaves a stale file is not fast.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::dag::{Dag, Input, Shape};
use crate::tools::Tool;

/// How far up from a stage that a changed source reaches.
const STEPS: usize = 4;

/// Checks the last stage and the one in the middle, with what they were made from, a few stages up.
pub fn outputs(tool: &Tool, project: &Path, dag: &Dag) -> Result<(), String> {
    let n = dag.stages.len();
    for start in [n - 1, n / 2] {
        let mut stage = start;
        for _ in 0..STEPS {
            let inputs = dag.stages[stage].iter().map(|input| bytes(tool, project, input)).collect::<Result<Vec<_>, _>>()?;
            if !holds(dag.shape, &inputs, &tool.output(project, stage)?)? {
                return Err(format!("the output of stage {stage} is not what its inputs give"));
            }
            let above = dag.stages[stage].iter().find_map(|input| match input {
                Input::Output(above) => Some(*above),
                Input::Source(_) => None,
            });
            let Some(above) = above else { break };
            stage = above;
        }
    }
    Ok(())
}

fn bytes(tool: &Tool, project: &Path, input: &Input) -> Result<Vec<u8>, String> {
    match input {
        Input::Source(_) => std::fs::read(project.join(input.path())).map_err(|e| format!("{}: {e}", input.path())),
        Input::Output(stage) => tool.output(project, *stage),
    }
}

fn holds(shape: Shape, inputs: &[Vec<u8>], output: &[u8]) -> Result<bool, String> {
    if shape != Shape::Layered {
        return Ok(inputs.concat() == output);
    }
    // `md5sum` writes a line an input: its digest and its path, which differs from tool to tool.
    let said: Vec<String> = String::from_utf8_lossy(output).lines().map(|line| line.chars().take(32).collect()).collect();
    Ok(said == inputs.iter().map(|bytes| md5(bytes)).collect::<Result<Vec<_>, _>>()?)
}

fn md5(bytes: &[u8]) -> Result<String, String> {
    let child = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.map_err(|e| format!("md5sum: {e}"))?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(bytes).map_err(|e| format!("md5sum: {e}"))?;
    }
    let output = child.wait_with_output().map_err(|e| format!("md5sum: {e}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).chars().take(32).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_stale_output_is_noticed() {
        let (a, b) = (b"a\n".to_vec(), b"b\n".to_vec());
        assert!(holds(Shape::Chain, &[a.clone(), b.clone()], b"a\nb\n").unwrap());
        assert!(!holds(Shape::Chain, &[a.clone(), b.clone()], b"a\n").unwrap());
        let digests = b"60b725f10c9c85c70d97880dfe8191b3  x\n3b5d5c3712955042212316173ccf37be  y\n";
        assert!(holds(Shape::Layered, &[a.clone(), b.clone()], digests).unwrap());
        assert!(!holds(Shape::Layered, &[b, a], digests).unwrap());
    }
}
