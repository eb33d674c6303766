//! `trestle verify`.

use super::changes::chain;
use crate::support::Project;

#[test]
fn stages_that_give_the_same_are_said_to_and_nothing_is_changed() {
    let project = chain();
    let empty = project.say(&["verify"]);
    assert_eq!(empty, "0 stages the same, 3 not cached and passed by\n");
    project.run();
    let said = project.say(&["verify"]);
    assert!(said.starts_with("same    count  ") && said.ends_with("3 stages the same\n"), "{said}");
    // One stage alone: what it reads comes from the cache.
    let said = project.say(&["verify", "words"]);
    assert!(said.starts_with("same    words") && said.ends_with("1 stage the same\n"), "{said}");
    project.run().did(&[]);
    let left = std::fs::read_dir(project.path().join(".trestle/tmp")).unwrap().count();
    assert_eq!(left, 0, "the scratch place is left");
}

#[test]
fn what_differs_is_named_and_what_may_differ_may() {
    let project = Project::new(
        "stages:
  fixed: { run: 'echo 1 > {out.x}', out: { x: x } }
  draw: { run: 'head -c 16 /dev/urandom > {out.x}; echo same > {out.y}', in: { a: fixed }, out: { x: x, y: y } }
  use: { run: 'cp {in.x} {out.z}', in: { x: draw.x }, out: { z: z } }
",
    );
    project.run();
    let done = project.call(&["verify"]);
    assert_eq!(done.code, Some(1));
    let line = done.out.lines().find(|line| line.contains("draw")).unwrap();
    assert!(line.starts_with("differs draw  output x blob:") && !line.contains("output y"), "{line}");
    // `use` got what `draw` gave at first, so it gives the same.
    assert!(done.out.contains("same    use") && done.out.ends_with("2 stages the same, 1 not the same\n"), "{}", done.out);
    project.edit("trestle.yaml", "draw: {", "draw: { pure: false,");
    let said = project.say(&["verify", "draw", "--format", "json"]);
    assert!(said.contains(r#""result":"allowed""#), "{said}");
    assert!(project.say(&["verify", "draw"]).contains("it says `pure: false`"));
}

#[test]
fn a_stage_that_was_not_run_has_nothing_to_compare_with() {
    let project = chain();
    let done = project.call(&["verify", "words"]);
    assert_eq!(done.code, Some(2));
    assert!(done.err.contains("nothing to compare with: words"), "{}", done.err);
}
