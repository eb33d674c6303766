//! `trestle check`: mistakes for people, programs and CI.

use super::changes::chain;
use crate::support::Project;

const BAD: &str = "\
stages:
  # Zwei Fehler.
  a: { run: 'echo > {out.x}', out: { x: x }, fragil: yes }
  b: { run: 'cat {in.a} > {out.y}', in: { a: aa }, out: { y: y } }
";

#[test]
fn a_sound_pipeline_is_counted_and_nothing_is_made() {
    let project = chain();
    assert_eq!(project.say(&["check"]), "ok: 3 stages\n");
    assert_eq!(project.say(&["check", "--format", "github"]), "");
    let json: serde_json::Value = serde_json::from_str(&project.say(&["check", "--format", "json"])).unwrap();
    assert_eq!((&json["stages"], &json["mistakes"]), (&3.into(), &0.into()));
    assert!(!project.path().join(".trestle").exists());
}

#[test]
fn mistakes_are_reported_with_their_places() {
    let project = Project::new(BAD);
    let human = project.call(&["check"]);
    assert_eq!((human.code, human.out.as_str()), (Some(2), ""));
    assert!(human.err.contains("trestle.yaml:3:") && human.err.contains("2 mistakes"), "{}", human.err);

    let json = project.call(&["check", "--format", "json"]);
    assert_eq!(json.code, Some(2));
    let lines: Vec<serde_json::Value> = json.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["code"], "spec::unknown-key");
    let column = BAD.lines().nth(2).unwrap().find("fragil").unwrap() + 1;
    assert_eq!((&lines[0]["line"], &lines[0]["column"], &lines[0]["end_column"]), (&3.into(), &column.into(), &(column + 6).into()));
    assert_eq!((&lines[1]["line"], &lines[1]["file"]), (&4.into(), &"trestle.yaml".into()));
    assert_eq!(lines[2]["mistakes"], 2);

    let github = project.call(&["check", "--format", "github"]);
    assert_eq!(github.code, Some(2));
    let first = github.out.lines().next().unwrap();
    assert!(first.starts_with(&format!("::error file=trestle.yaml,line=3,col={column},title=spec%3A%3Aunknown-key::")), "{first}");
    assert_eq!(github.out.lines().count(), 2);
}

#[test]
fn several_files_are_all_checked() {
    let project = chain();
    project.write("bad.yaml", BAD);
    project.write("good.yaml", "stages: { a: { run: 'echo > {out.x}', out: { x: x } } }\n");
    let done = project.call(&["check", "bad.yaml", "good.yaml"]);
    assert_eq!((done.code, done.out.as_str()), (Some(2), "good: ok: 1 stage\n"));
    let no_file = project.call(&["check", "count"]);
    assert_eq!(no_file.code, Some(2));
    assert!(no_file.err.contains("`count` is not a pipeline file"), "{}", no_file.err);
}

#[test]
fn an_input_that_is_a_pipe_is_named_and_does_not_block() {
    let project = chain();
    std::fs::remove_file(project.path().join("src.txt")).unwrap();
    let made = std::process::Command::new("mkfifo").arg(project.path().join("src.txt")).status().unwrap();
    assert!(made.success());
    let done = project.call(&["check"]);
    assert_eq!(done.code, Some(2));
    assert!(done.err.contains("the input `./src.txt` of stage `count` cannot be read"), "{}", done.err);
}

#[test]
fn without_a_pipeline_file_the_way_out_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let done = crate::support::text(crate::support::trestle(dir.path()).arg("check").output().unwrap());
    assert_eq!(done.code, Some(2));
    assert!(done.err.contains("has no `trestle.yaml`"), "{}", done.err);
}
