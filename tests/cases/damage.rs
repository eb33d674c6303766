//! Damaged stores and killed runs.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::changes::chain;
use crate::support::processes::{kill_session, signal};
use crate::support::{Project, Witness, files, store, trestle, trestle_in_session};

#[test]
fn a_deleted_output_is_made_again() {
    let project = chain();
    project.run();
    std::fs::remove_file(store::blob(&project, b"4\n")).unwrap();
    let planned = project.say(&["plan"]);
    assert!(planned.contains("run    times: output `m`") && planned.contains("missing"), "{planned}");
    project.run().did(&["times"]);
    assert_eq!(project.output("times", "m"), "4\n");
}

#[test]
fn a_damaged_output_is_noticed_and_never_served() {
    let project = chain();
    project.run();
    for bytes in [&b"4\n"[..], b"result: 4\n", b"2\n"] {
        std::thread::sleep(Duration::from_millis(80));
        project.say(&["plan"]);
        store::spoil(&store::blob(&project, bytes));
        let done = project.call(&["out", "words", "t"]);
        assert!(bytes != b"result: 4\n" || done.code == Some(2), "a damaged output was handed out: {}", done.out);
        assert_eq!(project.run().executed.len(), 1);
        assert_eq!(project.output("words", "t"), "result: 4\n");
    }
}

#[test]
fn a_damaged_record_counts_as_none() {
    let project = chain();
    project.run();
    let records = store::records(project.path());
    assert!(!records.is_empty());
    for record in &records {
        let bytes = std::fs::read(record).unwrap();
        store::overwrite(record, &vec![b'x'; bytes.len()]);
    }
    project.run().did(&["count", "times", "words"]);
}

/// Whatever byte of it is wrong.
#[test]
fn a_damaged_plan_is_made_again() {
    let project = chain();
    project.run();
    let mut lines = 100;
    for plan in files(&store::plans(project.path())) {
        let bytes = std::fs::read(&plan).unwrap();
        for at in (0..bytes.len()).step_by(23) {
            let mut other = bytes.clone();
            other[at] ^= 1;
            store::overwrite(&plan, &other);
            // Never the same number of lines, so that all stages run and so are looked at.
            lines += 1;
            project.write("src.txt", &"line\n".repeat(lines));
            let run = project.run_with(&[]);
            assert_eq!(run.code, Some(0), "{} at {at}: {:#?}", plan.display(), run.events);
            // Where the damage shows in the midst of a run, the rest is done in a second round: nothing is told of twice.
            let told = run.events.iter().filter(|event| event["event"] == "done" || event["event"] == "cached");
            let mut told: Vec<String> = told.map(|event| event["stage"].to_string()).collect();
            told.sort_unstable();
            assert_eq!(told, ["\"count\"", "\"times\"", "\"words\""], "{} at {at}: {:#?}", plan.display(), run.events);
        }
    }
}

#[test]
fn records_that_are_gone_are_missed_by_targets_and_all() {
    let project = chain();
    project.run();
    store::records(project.path()).iter().for_each(|path| std::fs::remove_file(path).unwrap());
    project.run_with(&["count"]).did(&["count"]);
    project.run().did(&["times", "words"]);
    assert_eq!(project.output("words", "t"), "result: 4\n");
}

#[test]
fn a_run_that_was_killed_goes_on_where_it_was() {
    let witness = Witness::new();
    let (log, says) = (witness.path(), witness.says("second"));
    let project = Project::new(&format!(
        "stages:
  first: {{ run: 'echo one > {{out.a}}', out: {{ a: a }} }}
  second:
    run: |
      printf half > {{out.b}}
      if ! grep -q second {log}; then {says}; sleep 30; fi
      printf ' and half' >> {{out.b}}
    in: {{ a: first }}
    out: {{ b: b }}
  third: {{ run: 'cat {{in.b}} > {{out.c}}', in: {{ b: second }}, out: {{ c: c }} }}
",
        log = log.display()
    ));
    let mut child = trestle_in_session(project.path()).arg("run").stdout(Stdio::null()).spawn().unwrap();
    witness.wait_for("second");
    kill_session(&child.id().to_string());
    child.wait().unwrap();
    let run = project.run();
    run.did(&["second", "third"]);
    assert_eq!(run.count("cached"), 1);
    assert_eq!(project.output("third", "c"), "half and half");
    assert_eq!(store::unfinished(&store::folder(project.path())), Vec::<PathBuf>::new(), "unfinished things are left");
}

#[test]
fn an_interruption_keeps_what_is_finished() {
    let witness = Witness::new();
    let project = Project::new(&format!(
        "stages:
  quick: {{ run: 'echo 1 > {{out.a}}', out: {{ a: a }} }}
  slow: {{ run: '{}; sleep 30; cat {{in.a}} > {{out.b}}', in: {{ a: quick }}, out: {{ b: b }} }}
",
        witness.says("slow")
    ));
    let child = trestle(project.path()).arg("run").stdout(Stdio::piped()).spawn().unwrap();
    witness.wait_for("slow");
    let start = Instant::now();
    signal("INT", &child.id().to_string());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(10));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("cancelled slow") && said.contains("1 executed"), "{said}");
    assert_eq!(project.plan()["quick"], "cached");
}

#[test]
fn two_runs_at_once_execute_each_stage_once() {
    let project = Project::new("stages:\n  slow: { run: 'sleep 0.5; echo 1 > {out.a}', out: { a: a } }\n");
    let start = || trestle(project.path()).args(["run", "--format", "json"]).stdout(Stdio::piped()).spawn().unwrap();
    let (a, b) = (start(), start());
    let said: Vec<String> = [a, b].map(|child| String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()).to_vec();
    let executed = said.iter().filter(|said| said.contains("\"executed\":1")).count();
    let cached = said.iter().filter(|said| said.contains("\"cached\":1")).count();
    assert_eq!((executed, cached), (1, 1), "{said:#?}");
}
