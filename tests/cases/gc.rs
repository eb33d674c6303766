//! `trestle cache gc` and `trestle cache verify --repair`.

use serde_json::Value;

use super::changes::chain;
use crate::support::{Project, store};

/// A project that ran with two sources; the outputs of the first are no longer named by the last run.
fn outgrown() -> Project {
    let project = chain();
    project.run();
    project.say(&["lock"]);
    project.write("src.txt", "1\n2\n3\n4\n5\n");
    project.run();
    project
}

fn collected(project: &Project, args: &[&str]) -> Value {
    let all: Vec<&str> = ["cache", "gc", "--format", "json"].iter().chain(args).copied().collect();
    serde_json::from_str(&project.say(&all)).unwrap()
}

#[test]
fn a_dry_run_says_what_would_go_and_removes_nothing() {
    let project = outgrown();
    let before = project.blobs();
    let would = collected(&project, &["--dry-run", "--max-size", "0"]);
    assert_eq!(project.blobs(), before);
    let did = collected(&project, &["--max-size", "0"]);
    for what in ["records", "blobs", "bytes"] {
        let removed = format!("{what}_removed");
        assert_eq!(would.get(&removed), did.get(&removed), "{would} {did}");
    }
    assert!(project.blobs().len() < before.len(), "{did}");
}

/// The last run's outputs stay whatever the bound, and so do those of a lock that is named.
#[test]
fn what_the_last_run_or_a_named_lock_had_stays() {
    let project = outgrown();
    collected(&project, &["--max-size", "0", "--keep", "trestle.lock"]);
    project.run().did(&[]);
    project.write("src.txt", "a\nb\n");
    project.run().did(&[]);
    project.write("src.txt", "1\n2\n3\n4\n5\n");
    project.run().did(&[]);
    collected(&project, &["--max-size", "0"]);
    project.run().did(&[]);
    project.write("src.txt", "a\nb\n");
    project.run().did(&["count", "times", "words"]);
    let done = project.call(&["cache", "gc", "--keep", "none.lock"]);
    assert!(done.code == Some(2) && done.err.contains("none.lock"), "{}", done.err);
}

#[test]
fn a_size_or_an_age_that_is_none_is_refused() {
    let project = outgrown();
    for (option, value) in [("--max-size", "many"), ("--max-size", "-1GB"), ("--max-age", "old"), ("--max-age", "-1d")] {
        let done = project.call(&["cache", "gc", &format!("{option}={value}")]);
        assert!(done.code == Some(2) && done.err.contains(value) && done.err.contains("with a unit"), "{}", done.err);
    }
}

#[test]
fn repair_removes_what_is_damaged_and_the_next_run_makes_it_again() {
    let project = chain();
    project.run();
    let sound = project.say(&["cache", "verify"]);
    assert!(sound.contains("are sound"), "{sound}");
    std::thread::sleep(std::time::Duration::from_millis(80));
    let blob = store::blob(&project, b"4\n");
    store::spoil(&blob);
    let found = project.call(&["cache", "verify"]);
    assert!(found.code == Some(1) && found.out.contains("times"), "{}{}", found.out, found.err);
    assert!(blob.exists(), "it only looks");
    let repaired = project.call(&["cache", "verify", "--repair"]);
    assert!(repaired.out.contains("will run again") && !blob.exists(), "{}", repaired.out);
    project.run().did(&["times"]);
    assert_eq!(project.output("words", "t"), "result: 4\n");
    project.say(&["cache", "verify"]);
}
