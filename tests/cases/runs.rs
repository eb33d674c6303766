//! `trestle runs` and `trestle diff`.

use serde_json::Value;

use super::changes::{CHAIN, chain};
use crate::support::{Project, trestle};

fn runs(project: &Project) -> Vec<Value> {
    project.say(&["runs", "--format", "json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn diff(project: &Project, args: &[&str]) -> Value {
    serde_json::from_str(&project.say(&[&["diff", "--format", "json"], args].concat())).unwrap()
}

#[test]
fn before_the_first_run_there_is_nothing_and_nothing_is_made() {
    let project = chain();
    assert_eq!(project.say(&["runs"]), "no runs yet\n");
    let done = project.call(&["diff", "last~1", "last"]);
    assert_eq!(done.code, Some(2));
    assert!(done.err.contains("this project has no runs yet"), "{}", done.err);
    assert!(!project.path().join(".trestle").exists());
}

#[test]
fn every_run_is_listed_with_its_counts_and_params() {
    let project = chain();
    project.run_with(&[]);
    project.run_with(&[]);
    project.run_with(&["words", "--set", "factor=3"]);
    let listed = runs(&project);
    let counts: Vec<_> = listed.iter().map(|run| (run["executed"].as_u64().unwrap(), run["cached"].as_u64().unwrap())).collect();
    assert_eq!(counts, [(3, 0), (0, 3), (2, 1)]);
    assert_eq!(listed[2]["params"]["factor"], 3);
    let said = project.say(&["runs", "-n", "2"]);
    assert_eq!(said.lines().count(), 2);
    assert!(said.contains("0 executed, 3 cached") && said.contains("run --format json words --set factor=3"), "{said}");
    assert_eq!(project.say(&["runs", "--pipeline", "other"]), "no runs yet\n");
}

#[test]
fn a_diff_names_params_ingredients_and_what_stayed() {
    let project = chain();
    project.run();
    project.run();
    project.edit("trestle.yaml", "factor: 2", "factor: 3");
    project.run();
    let said = project.say(&["diff", "last~1", "last"]);
    assert!(said.contains("\nparams\n  factor 2 → 3\n\nstages: 2 differ, 1 the same\n  times\n    command script echo"), "{said}");
    assert!(said.contains("  words\n    input m blob:") && said.contains("    time "), "{said}");
    let json = diff(&project, &["last"]);
    assert_eq!(json["stages"][0]["changes"][0]["section"], "command");
    assert_eq!((&json["same"], &json["stages"][1]["stage"]), (&1.into(), &"words".into()));
    // The second run had no lines of its own: everything was as in the first.
    let first = diff(&project, &["last~2", "last~1"]);
    assert_eq!((&first["same"], first["stages"].as_array().unwrap().len()), (&3.into(), 0));
    // Back again: everything is cached, and is told from the run before all the same.
    project.edit("trestle.yaml", "factor: 3", "factor: 2");
    project.run().did(&[]);
    assert_eq!(diff(&project, &["last"])["stages"].as_array().unwrap().len(), 2);
    assert_eq!(diff(&project, &["last~3", "last"])["same"], 3);
}

#[test]
fn stages_that_come_go_and_fail_are_told_apart() {
    let project = chain();
    project.run();
    project.write("trestle.yaml", &CHAIN.replace("words:", "text:").replace("sed 's/^/result: /' {in.m} > {out.t}", "exit 3"));
    assert_eq!(project.run_with(&[]).code, Some(1));
    let said = project.say(&["diff", "last"]);
    assert!(said.contains("only in a: words\nonly in b: text\n"), "{said}");
    project.edit("trestle.yaml", "exit 3", "echo 1 > {out.t}");
    project.run().did(&["text"]);
    let said = project.say(&["diff", "last~1", "last"]);
    assert!(said.contains("  text\n    failed → executed\n"), "{said}");
}

#[test]
fn a_lost_record_is_said_and_not_guessed() {
    let project = chain();
    project.run();
    project.edit("trestle.yaml", "factor: 2", "factor: 3");
    project.run();
    // Another cache has the account alone.
    let other = chain();
    let runs = std::path::Path::new(".trestle/runs");
    std::fs::create_dir_all(other.path().join(runs)).unwrap();
    for file in crate::support::files(&project.path().join(runs)) {
        std::fs::copy(&file, other.path().join(runs).join(file.file_name().unwrap())).unwrap();
    }
    let said = other.say(&["diff", "last"]);
    assert!(said.contains("  times\n    its key differs; a record is gone"), "{said}");
    let json = diff(&other, &["last"]);
    assert!(json["stages"][0]["changes"].is_null() && json["stages"][0]["a"]["seconds"].is_number(), "{json}");
}

#[test]
fn metrics_and_memory_of_native_stages_are_compared() {
    let project = Project::new(
        "params: { shots: 5 }
stages:
  target: { uses: dataset, in: { source: ./data/optdigits.safetensors }, with: { shots: '${shots}', seed: 0 } }
",
    );
    std::os::unix::fs::symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/data"), project.path().join("data")).unwrap();
    project.run().did(&["target"]);
    project.run_with(&["--set", "shots=10"]).did(&["target"]);
    let said = project.say(&["diff", "last"]);
    assert!(said.contains("    param shots 5 → 10\n"), "{said}");
    assert!(said.contains("    metric train 50.0 → 100.0 (+100.00 %)\n") && said.contains("    memory "), "{said}");
}

#[test]
fn words_that_name_no_run_get_the_way_out() {
    let project = chain();
    project.run_with(&[]);
    for (words, says) in [
        (&["last~1", "last"][..], "`trestle` has 1 recorded runs"),
        (&["last"], "it is the first recorded run"),
        (&["zzzz", "last"], "`trestle runs` lists them"),
        (&["lost", "last"], "`trestle runs` lists them"),
    ] {
        let done = project.call(&[&["diff"], words].concat());
        assert_eq!(done.code, Some(2));
        assert!(done.err.contains(says), "{words:?}: {}", done.err);
    }
}

#[test]
fn a_run_is_recorded_as_it_goes_and_a_killed_one_is_said_to_have_no_end() {
    let project = Project::new(
        "stages:\n  quick: { run: 'echo 1 > {out.a}', out: { a: a } }\n  slow: { run: 'sleep 5; cat {in.a} > {out.b}', in: { a: quick }, out: { b: b } }\n",
    );
    let mut child = trestle(project.path()).arg("run").stdout(std::process::Stdio::null()).spawn().unwrap();
    let start = std::time::Instant::now();
    while runs(&project).is_empty() {
        assert!(start.elapsed().as_secs() < 20, "the run has no account");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let said = project.say(&["runs"]);
    assert!(said.contains("did not end"), "{said}");
    assert_eq!(runs(&project)[0]["ended"], false);
    // Whether `quick` was done before the kill is chance; the next run has an end either way.
    assert_eq!(project.run_with(&["quick"]).code, Some(0));
    assert_eq!(runs(&project).iter().map(|run| run["ended"] == true).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn a_run_whose_account_cannot_be_written_is_a_run_all_the_same() {
    let project = chain();
    project.write(".trestle/runs", "in the way");
    let done = project.call(&["run"]);
    assert_eq!(done.code, Some(0));
    assert!(done.out.contains("warning: `trestle runs` will not have this run: cannot create"), "{}", done.out);
    assert!(done.out.contains("3 executed"), "{}", done.out);
}
