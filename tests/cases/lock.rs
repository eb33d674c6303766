//! `trestle lock`: what it holds, what it merges.

use std::process::{Command, Output};

use super::changes::{CHAIN, chain};
use crate::support::{Project, trestle};

fn locked() -> Project {
    let project = chain();
    project.run();
    assert_eq!(project.say(&["lock"]), "wrote trestle.lock: 3 stages, 3 new or changed\n");
    project
}

fn text(project: &Project) -> String {
    std::fs::read_to_string(project.path().join("trestle.lock")).unwrap()
}

#[test]
fn a_lock_has_a_block_a_stage_and_depends_on_results_alone() {
    let project = locked();
    let lock = text(&project);
    assert!(lock.starts_with("trestle lock v1\n\ncount\n  key "), "{lock}");
    let two = format!("  n blob:{} 2\n", blake3::hash(b"2\n"));
    assert!(lock.contains(&two), "{lock}");
    assert_eq!(project.say(&["lock"]), "trestle.lock is up to date: 3 stages\n");
    assert_eq!(project.say(&["lock", "--check"]), "ok: 3 stages as locked\n");
    let other = locked();
    assert_eq!(text(&other), lock);
}

#[test]
fn what_has_not_run_cannot_be_locked() {
    let project = chain();
    let done = project.call(&["lock"]);
    assert_eq!(done.code, Some(2));
    assert!(done.err.contains("3 stages without outputs to lock: count, times, words"), "{}", done.err);
    assert!(!project.path().join("trestle.lock").exists());
    let done = project.call(&["lock", "--check"]);
    assert!(done.code == Some(2) && done.err.contains("`trestle lock` writes it"), "{}", done.err);
}

#[test]
fn a_check_needs_no_outputs_and_names_only_what_was_changed() {
    let project = locked();
    // As in CI: a clone without a cache.
    project.say(&["clean", "--cache", "--yes"]);
    assert_eq!(project.say(&["lock", "--check"]), "ok: 3 stages as locked\n");
    project.edit("trestle.yaml", "factor: 2", "factor: 3");
    let done = project.call(&["lock", "--check"]);
    assert_eq!(done.code, Some(1));
    let lines: Vec<&str> = done.out.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("times: its key would be "), "{lines:?}");
    assert_eq!(lines[1], "not what trestle.lock says: 1 of 3 stages");
    let done = project.call(&["lock", "--check", "--format", "github"]);
    assert!(done.out.starts_with("::error title=times is not as locked::its key would be "), "{}", done.out);
    let done = project.call(&["lock", "--check", "--format", "json"]);
    let lines: Vec<serde_json::Value> = done.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[0]["stage"], &lines[1]["deviations"]), (&"times".into(), &1.into()));
}

#[test]
fn with_the_records_a_check_says_what_differs() {
    let project = locked();
    project.write("src.txt", "a\n");
    project.edit("trestle.yaml", "words:", "text:");
    let done = project.call(&["lock", "--check"]);
    assert_eq!(done.code, Some(1));
    let lines: Vec<&str> = done.out.lines().collect();
    assert!(lines[0].starts_with("count: input src blob:"), "{lines:?}");
    assert_eq!(lines[1..3], ["text: the lock does not have it", "words: the pipeline does not have it any more"]);
}

#[test]
fn a_locked_run_runs_what_the_lock_says_and_nothing_else() {
    let project = locked();
    project.say(&["clean", "--cache", "--yes"]);
    project.run_with(&["--locked"]).did(&["count", "times", "words"]);
    let other = project.call(&["run", "--locked", "--set", "factor=3"]);
    assert_eq!((other.code, other.out.as_str()), (Some(1), ""));
    assert!(other.err.contains("1 stage not what trestle.lock says; nothing was run"), "{}", other.err);
    assert!(other.err.contains("times: command script"), "{}", other.err);
    // What is not wanted is not held.
    project.run_with(&["count", "--locked", "--set", "factor=3"]).did(&[]);
}

#[test]
fn a_locked_run_ends_where_a_stage_gives_something_else() {
    let project = Project::new(
        "stages:
  draw: { run: 'head -c 16 /dev/urandom > {out.x}', out: { x: x } }
  use: { run: 'cp {in.x} {out.y}', in: { x: draw }, out: { y: y } }
",
    );
    project.run();
    project.say(&["lock"]);
    project.run_with(&["--locked"]).did(&[]);
    project.say(&["clean", "--cache", "--yes"]);
    let done = project.call(&["run", "--locked"]);
    assert_eq!(done.code, Some(1));
    assert!(done.err.contains("`draw` gave other outputs than the lock says: x"), "{}", done.err);
    assert!(!done.out.contains("done    use"), "{}", done.out);
    let check = project.call(&["lock", "--check"]);
    assert!(check.code == Some(1) && check.out.starts_with("draw: under the same key"), "{}", check.out);
}

#[test]
fn a_lock_in_conflict_or_cut_is_refused_with_the_line() {
    let project = locked();
    project.write("trestle.lock", "trestle lock v1\n\n<<<<<<< ours\n");
    let done = project.call(&["run", "--locked"]);
    assert_eq!(done.code, Some(2));
    assert!(done.err.contains("line 3 of the lock file is from a merge that was not finished"), "{}", done.err);
    // Writing it anew is the way out.
    project.say(&["lock"]);
    assert_eq!(project.say(&["lock", "--check"]), "ok: 3 stages as locked\n");
}

/// A repository with two branches from a locked state; each side's edit is run, locked and committed.
fn branches(ours: (&str, &str), theirs: (&str, &str)) -> (Project, Output) {
    let project = Project::new(&format!("{CHAIN}  other: {{ run: 'echo 1 > {{out.o}}', out: {{ o: o.txt }} }}\n"));
    project.write("src.txt", "a\nb\n");
    project.write(".gitignore", ".trestle/\n");
    project.write(".gitattributes", "*.lock merge=trestle-lock\n");
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.current_dir(project.path()).env("HOME", project.path()).env("GIT_CONFIG_NOSYSTEM", "1");
        command.args(["-c", "user.name=t", "-c", "user.email=t@example.org"]).args(args).output().unwrap()
    };
    let good = |args: &[&str]| assert!(git(args).status.success(), "{args:?}");
    good(&["init", "-q", "-b", "main"]);
    let program = trestle(project.path()).get_program().to_str().unwrap().to_owned();
    good(&["config", "merge.trestle-lock.driver", &format!("'{program}' lock --merge %O %A %B")]);
    let commit = |message: &str| {
        project.run();
        project.say(&["lock"]);
        good(&["add", "-A"]);
        good(&["commit", "-q", "-m", message]);
    };
    commit("base");
    good(&["checkout", "-q", "-b", "theirs"]);
    project.edit("trestle.yaml", theirs.0, theirs.1);
    commit("theirs");
    good(&["checkout", "-q", "main"]);
    project.edit("trestle.yaml", ours.0, ours.1);
    commit("ours");
    let merged = git(&["merge", "-q", "--no-edit", "theirs"]);
    (project, merged)
}

#[test]
fn git_merges_locks_stage_by_stage() {
    // The two blocks of `count` and `other` are neighbours: text alone would be in conflict.
    let (project, merged) = branches(("wc -l", "wc  -l"), ("echo 1", "echo 2"));
    assert!(merged.status.success(), "{merged:?}");
    assert_eq!(project.say(&["lock", "--check"]), "ok: 4 stages as locked\n");
    project.run_with(&["--locked"]).did(&[]);
}

#[test]
fn a_stage_that_both_sides_changed_is_the_only_conflict() {
    let (project, merged) = branches(("echo 1 >", "echo 3 >"), ("echo 1", "echo 2"));
    assert!(!merged.status.success(), "{merged:?}");
    let lock = text(&project);
    assert_eq!((lock.matches("<<<<<<< ours\nother\n").count(), lock.matches("<<<<<<<").count()), (1, 1), "{lock}");
    assert_eq!((lock.matches("\ncount\n").count(), lock.matches("\nother\n").count()), (1, 2), "{lock}");
}

#[test]
fn a_merge_that_no_run_gave_is_found_by_the_check() {
    // Ours changes what `times` gives, theirs adds a stage that reads it: each block merges, but together they are nobody's result.
    let more = "  more: { run: 'cp {in.m} {out.z}', in: { m: times }, out: { z: z } }\n  other:";
    let (project, merged) = branches(("factor: 2", "factor: 3"), ("  other:", more));
    assert!(merged.status.success(), "{merged:?}");
    let done = project.call(&["lock", "--check"]);
    assert_eq!(done.code, Some(1), "{}", done.out);
    assert!(done.out.starts_with("more: ") && done.out.ends_with("not what trestle.lock says: 1 of 5 stages\n"), "{}", done.out);
    project.run();
    project.say(&["lock"]);
    assert_eq!(project.say(&["lock", "--check"]), "ok: 5 stages as locked\n");
}
