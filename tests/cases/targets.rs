//! What can be named on a command line: stages, patterns, tags.

use crate::support::Project;

const TAGGED: &str = "\
stages:
  data: { run: 'echo 1 > {out.x}', out: { x: x }, tags: [data] }
  train: { run: 'cat {in.d} > {out.x}; echo ${seed} >> {out.x}', in: { d: data }, out: { x: x }, matrix: { seed: [1, 2] }, tags: [slow, gpu] }
  plot: { run: 'cat {in.t} > {out.x}', in: { t: 'train[*]' }, out: { x: x }, tags: [slow] }
  note: { run: 'echo note > {out.x}', out: { x: x } }
";

#[test]
fn a_tag_means_every_stage_that_has_it_and_what_they_read() {
    let project = Project::new(TAGGED);
    project.run_with(&["tag:gpu"]).did(&["data", "train[seed=1]", "train[seed=2]"]);
    project.run_with(&["tag:slow"]).did(&["plot"]);
    project.run_with(&["tag:data", "note"]).did(&["note"]);
    let listed = project.say(&["list", "tag:gpu"]);
    assert!(listed.contains("train[seed=1]") && !listed.contains("plot") && !listed.contains("note"), "{listed}");
    // From the compiled pipeline, too.
    project.run_with(&["tag:slow"]).did(&[]);
}

#[test]
fn an_unknown_tag_is_refused_with_the_nearest() {
    let project = Project::new(TAGGED);
    for command in ["run", "plan", "list", "status"] {
        let done = project.call(&[command, "tag:slov"]);
        assert_eq!(done.code, Some(2), "{command}: {}", done.out);
        assert!(done.err.contains("tag:slov") && done.err.contains("did you mean `tag:slow`?"), "{command}: {}", done.err);
    }
}

#[test]
fn a_pattern_means_every_expansion_that_fits() {
    let project = Project::new(TAGGED);
    project.run_with(&["train[*=2]"]).did(&["data", "train[seed=2]"]);
    project.run_with(&["train"]).did(&["train[seed=1]"]);
}

/// What always runs gave something too, and so did what reads it.
#[test]
fn outputs_of_what_always_runs_can_be_had() {
    let project = Project::new(
        "stages:
  now: { run: 'echo 1 > {out.x}', out: { x: x }, cache: false }
  use: { run: 'cat {in.n} {in.n} > {out.x}', in: { n: now }, out: { x: x } }
",
    );
    assert_eq!(project.call(&["out", "use"]).code, Some(2), "it never ran");
    project.run_with(&[]).did(&["now", "use"]);
    assert_eq!((project.output("now", "x").as_str(), project.output("use", "x").as_str()), ("1\n", "1\n1\n"));
    project.edit("trestle.yaml", "echo 1", "echo 2");
    assert_eq!(project.call(&["out", "use"]).code, Some(2), "it did not run as it is now");
}
