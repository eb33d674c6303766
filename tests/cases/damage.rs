//! Damaged stores and killed runs.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::changes::chain;
use crate::support::{Project, files, trestle};

/// The stored file with these bytes.
fn stored(project: &Project, bytes: &[u8]) -> std::path::PathBuf {
    project.blobs().into_iter().find(|path| std::fs::read(path).unwrap() == bytes).unwrap()
}

/// Other bytes of the same length, the time of change as it was.
fn spoil(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[0] ^= 1;
    let modified = std::fs::metadata(path).unwrap().modified().unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(path, bytes).unwrap();
    std::fs::File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
}

#[test]
fn a_deleted_output_is_made_again() {
    let project = chain();
    project.run();
    std::fs::remove_file(stored(&project, b"4\n")).unwrap();
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
        spoil(&stored(&project, bytes));
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
    let records = files(&project.path().join(".trestle/records"));
    assert_eq!(records.len(), 3);
    for record in &records {
        let bytes = std::fs::read(record).unwrap();
        std::fs::set_permissions(record, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::write(record, &bytes[..bytes.len() - 7]).unwrap();
    }
    project.run().did(&["count", "times", "words"]);
}

/// Waits until a file is there.
fn await_file(path: &Path) {
    let start = Instant::now();
    while !path.exists() {
        assert!(start.elapsed() < Duration::from_secs(20), "{} did not appear", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
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
    await_file(&marker);
    let killed = std::process::Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]).status().unwrap();
    assert!(killed.success());
    child.wait().unwrap();
    let run = project.run();
    run.did(&["second", "third"]);
    assert_eq!(run.count("cached"), 1);
    assert_eq!(project.output("third", "c"), "half and half");
    let left = std::fs::read_dir(project.path().join(".trestle/tmp")).unwrap().count();
    assert_eq!(left, 0, "unfinished things are left");
}

#[test]
fn an_interruption_keeps_what_is_finished() {
    let project = Project::new(
        "stages:\n  quick: { run: 'echo 1 > {out.a}', out: { a: a } }\n  slow: { run: 'touch /tmp/trestle-test-$MARK; sleep 30; cat {in.a} > {out.b}', in: { a: quick }, out: { b: b }, env: { MARK: '0' } }\n",
    );
    let mark = format!("{}-{}", std::process::id(), line!());
    let marker = std::path::PathBuf::from(format!("/tmp/trestle-test-{mark}"));
    project.edit("trestle.yaml", "MARK: '0'", &format!("MARK: '{mark}'"));
    let child = trestle(project.path()).arg("run").stdout(std::process::Stdio::piped()).spawn().unwrap();
    await_file(&marker);
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
