//! Damaged stores and killed runs.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::changes::chain;
use crate::support::{Project, await_that, store, trestle};

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

#[test]
fn a_run_that_was_killed_goes_on_where_it_was() {
    let project = Project::new("");
    let marker = project.path().join("second-runs");
    project.write(
        "trestle.yaml",
        &format!(
            "stages:
  first: {{ run: 'echo one > {{out.a}}', out: {{ a: a }} }}
  second:
    run: |
      printf half > {{out.b}}
      if [ ! -e {marker} ]; then touch {marker}; sleep 30; fi
      printf ' and half' >> {{out.b}}
    in: {{ a: first }}
    out: {{ b: b }}
  third: {{ run: 'cat {{in.b}} > {{out.c}}', in: {{ b: second }}, out: {{ c: c }} }}
",
            marker = marker.display()
        ),
    );
    let mut child = trestle(project.path()).arg("run").process_group(0).spawn().unwrap();
    await_that("the marker", || marker.exists());
    let killed = std::process::Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]).status().unwrap();
    assert!(killed.success());
    child.wait().unwrap();
    let run = project.run();
    run.did(&["second", "third"]);
    assert_eq!(run.count("cached"), 1);
    assert_eq!(project.output("third", "c"), "half and half");
    assert_eq!(store::unfinished(&store::folder(project.path())), Vec::<PathBuf>::new(), "unfinished things are left");
}

#[test]
fn an_interruption_keeps_what_is_finished() {
    let project = Project::new(
        "stages:\n  quick: { run: 'echo 1 > {out.a}', out: { a: a } }\n  slow: { run: 'touch /tmp/trestle-test-$MARK; sleep 30; cat {in.a} > {out.b}', in: { a: quick }, out: { b: b }, env: { MARK: '0' } }\n",
    );
    let mark = format!("{}-{}", std::process::id(), line!());
    let marker = PathBuf::from(format!("/tmp/trestle-test-{mark}"));
    project.edit("trestle.yaml", "MARK: '0'", &format!("MARK: '{mark}'"));
    let child = trestle(project.path()).arg("run").stdout(std::process::Stdio::piped()).spawn().unwrap();
    await_that("the marker", || marker.exists());
    std::fs::remove_file(&marker).unwrap();
    let start = Instant::now();
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
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
    let start = || trestle(project.path()).args(["run", "--format", "json"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let (a, b) = (start(), start());
    let said: Vec<String> = [a, b].map(|child| String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()).to_vec();
    let executed = said.iter().filter(|said| said.contains("\"executed\":1")).count();
    let cached = said.iter().filter(|said| said.contains("\"cached\":1")).count();
    assert_eq!((executed, cached), (1, 1), "{said:#?}");
}
