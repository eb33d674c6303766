//! `trestle clean`.

use super::changes::chain;
use crate::support::trestle;

#[test]
fn without_a_cache_there_is_nothing_to_remove() {
    let project = chain();
    assert_eq!(project.say(&["clean"]), "nothing to remove\n");
    assert!(!project.path().join(".trestle").exists());
}

#[test]
fn logs_and_copies_go_and_no_output_is_lost() {
    let project = chain();
    // A failed stage leaves a log.
    project.edit("trestle.yaml", "sed 's", "echo no; exit 1; sed 's");
    assert_eq!(project.run_with(&[]).code, Some(1));
    project.edit("trestle.yaml", "echo no; exit 1; ", "");
    project.run();
    project.say(&["out", "words"]);
    let at = |name: &str| project.path().join(".trestle").join(name);
    assert!(at("logs").exists() && at("out").exists());
    let dry = project.say(&["clean", "--dry-run"]);
    assert!(dry.contains("would remove") && dry.contains(".trestle/out (10 B)") && at("out").exists(), "{dry}");
    let said = project.say(&["clean"]);
    assert_eq!(said, dry.replace("would remove", "removed"));
    assert!(!at("logs").exists() && !at("out").exists() && at("runs").exists());
    assert_eq!(project.say(&["clean"]), "nothing to remove\n");
    project.run().did(&[]);
    project.say(&["clean", "--runs"]);
    assert_eq!(project.say(&["runs"]), "no runs yet\n");
    project.run().did(&[]);
    assert_eq!(project.say(&["runs"]).lines().count(), 1);
}

#[test]
fn the_whole_cache_goes_only_with_a_yes() {
    let project = chain();
    project.run();
    let asked = project.call(&["clean", "--cache"]);
    assert_eq!(asked.code, Some(2));
    assert!(asked.err.contains("add `--yes`"), "{}", asked.err);
    project.run().did(&[]);
    let said = project.say(&["clean", "--cache", "--yes"]);
    assert!(said.starts_with("removed ") && !project.path().join(".trestle").exists(), "{said}");
    project.run().did(&["count", "times", "words"]);
}

#[test]
fn a_cache_of_another_version_can_be_removed() {
    let project = chain();
    project.write(".trestle/format", "trestle cache v999\n");
    assert_eq!(project.call(&["run"]).code, Some(2));
    project.say(&["clean", "--cache", "--yes"]);
    project.run().did(&["count", "times", "words"]);
}

#[test]
fn another_folder_is_not_removed() {
    let project = chain();
    let done = project.call(&["clean", "--cache", "--yes", "--cache-dir", "."]);
    assert_eq!(done.code, Some(2));
    assert!(done.err.contains("is not a cache of trestle") && project.path().join("src.txt").exists(), "{}", done.err);
}

#[test]
fn nothing_is_removed_under_a_run() {
    let project = crate::support::Project::new("stages: { s: { run: 'sleep 3; echo > {out.a}', out: { a: a } } }\n");
    let mut running = trestle(project.path()).arg("run").stdout(std::process::Stdio::null()).spawn().unwrap();
    let start = std::time::Instant::now();
    while !project.path().join(".trestle/runs/trestle.jsonl").exists() {
        assert!(start.elapsed().as_secs() < 20);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let done = project.call(&["clean", "--cache", "--yes"]);
    assert_eq!(done.code, Some(2));
    assert!(done.err.contains("a run is using this cache"), "{}", done.err);
    assert!(running.wait().unwrap().success());
}
