//! Training stages that are killed go on from their last checkpoint, and give what they would have given.

use std::path::PathBuf;
use std::process::Stdio;

use crate::support::processes::kill_session;
use crate::support::{Project, Run, await_that, files, trestle_in_session};

/// A few seconds of training; every option that has a memory of its own is on.
fn pipeline(every: &str) -> String {
    let data = format!("{}/pipelines/data/optdigits.safetensors", env!("CARGO_MANIFEST_DIR"));
    format!(
        "stages:
  digits: {{ uses: dataset, in: {{ source: {data} }}, with: {{ shots: 20, seed: 0 }} }}
  train:
    uses: synthetic-pretrain
    in: {{ data: digits.train }}
    with: {{ width: 16, steps: 240, batch: 32, mixup: 0.2, ema: 0.99, early_stopping: {{ patience: 1000 }}, augment: {{ shift: 1 }}, {every} }}
"
    )
}

fn checkpoints(project: &Project) -> Vec<PathBuf> {
    let found = files(&project.path().join(".trestle/checkpoints"));
    found.into_iter().filter(|path| path.ends_with("training")).collect()
}

/// Runs until a checkpoint is there, then kills the program with all that it started.
fn killed(project: &Project) {
    let mut child =
        trestle_in_session(project.path()).args(["run", "-j", "2"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    await_that("a checkpoint", || !checkpoints(project).is_empty());
    kill_session(&child.id().to_string());
    child.wait().unwrap();
}

fn notes(run: &Run) -> Vec<&str> {
    run.events.iter().filter(|event| event["event"] == "output").map(|event| event["line"].as_str().unwrap()).collect()
}

fn model(project: &Project) -> Vec<u8> {
    let place = |output: &str| project.path().join(project.say(&["out", "train", output]).trim());
    let mut bytes = std::fs::read(place("model").join("model.safetensors")).unwrap();
    bytes.extend(["metrics", "epochs"].iter().flat_map(|output| std::fs::read(place(output)).unwrap()));
    bytes
}

#[test]
fn a_killed_training_goes_on_and_gives_the_same_bytes() {
    let never = Project::new(&pipeline("checkpoint_every: 0"));
    let run = never.run();
    run.did(&["digits", "train"]);
    assert!(notes(&run).is_empty() && checkpoints(&never).is_empty());

    let project = Project::new(&pipeline("checkpoint_every: 30"));
    killed(&project);
    let left = checkpoints(&project);
    assert_eq!(left.len(), 1);
    let run = project.run();
    run.did(&["train"]);
    let note = notes(&run)[0];
    let step: usize = note.strip_prefix("goes on after step ").unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(step > 0 && step < 240 && step.is_multiple_of(30), "{note}");
    assert_eq!(model(&project), model(&never));
    assert!(checkpoints(&project).is_empty(), "what is done needs no checkpoint");
    assert!(project.say(&["log", "train"]).contains(note));

    // How often one is written is no part of the key.
    project.edit("trestle.yaml", "checkpoint_every: 30", "checkpoint_every: 7");
    project.run().did(&[]);
    assert!(!project.say(&["explain", "train"]).contains("checkpoint_every"));
}

#[test]
fn a_checkpoint_that_cannot_be_used_is_not() {
    let never = Project::new(&pipeline("checkpoint_every: 0"));
    never.run().did(&["digits", "train"]);
    let project = Project::new(&pipeline("checkpoint_every: 30"));
    killed(&project);
    let path = checkpoints(&project).remove(0);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let run = project.run();
    run.did(&["train"]);
    assert!(notes(&run)[0].contains("it is damaged") && notes(&run)[0].contains("begins anew"), "{:?}", notes(&run));
    assert_eq!(model(&project), model(&never));
}

/// Another key has another checkpoint; `cache gc` takes those that nobody goes on from.
#[test]
fn another_training_does_not_go_on_from_it() {
    let project = Project::new(&pipeline("checkpoint_every: 30"));
    killed(&project);
    project.edit("trestle.yaml", "steps: 240", "steps: 20");
    let run = project.run();
    run.did(&["train"]);
    assert!(notes(&run).is_empty(), "{:?}", notes(&run));
    assert_eq!(checkpoints(&project).len(), 1);
    assert!(!project.say(&["cache", "gc"]).contains("checkpoint"));
    assert!(project.say(&["cache", "gc", "--max-age", "0s"]).contains("removed 1 checkpoint"));
    assert!(checkpoints(&project).is_empty());
}

/// Nothing of a training that comes to nothing is stored.
#[test]
fn a_loss_that_is_not_finite_fails_the_stage_and_names_the_step() {
    let project = Project::new(&pipeline("lr: 1e30"));
    let run = project.run_with(&[]);
    assert_eq!(run.code, Some(1));
    let failed = run.events.iter().find(|event| event["event"] == "failed").unwrap();
    let message = failed["message"].as_str().unwrap();
    assert_eq!(failed["stage"], "train");
    assert!(message.contains("the loss is") && message.contains(" at step ") && message.contains("`lr`"), "{message}");
    assert_eq!(project.plan()["train"], "run");
}
