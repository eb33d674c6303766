//! What a plan says of time, and what CI gets to see.

use serde_json::Value;

use super::changes::chain;
use crate::support::Project;

fn summary(project: &Project, args: &[&str]) -> Value {
    let out = project.say(&[&["plan", "--format", "json"], args].concat());
    serde_json::from_str(out.lines().last().unwrap()).unwrap()
}

#[test]
fn a_plan_reckons_with_the_times_of_earlier_runs() {
    let project = Project::new(
        "params: { more: '' }
stages:
  a: { run: 'sleep 0.3; echo ${more} > {out.o}', out: { o: o } }
  b: { run: 'sleep 0.2; cat {in.i} > {out.o}', in: { i: a }, out: { o: o } }
  c: { run: 'sleep 0.4; echo ${more} > {out.o}', out: { o: o } }
",
    );
    let first = project.say(&["plan"]);
    assert!(first.ends_with("2 to run, 1 later, 0 cached\n"), "nothing is known of the time: {first}");
    project.run();
    assert!(project.say(&["plan"]).ends_with("0 to run, 0 later, 3 cached\n"));
    let expected = |jobs: &str| {
        let expected = &summary(&project, &["--set", "more=x", "-j", jobs])["expected"];
        ["wall_seconds", "work_seconds", "path_seconds"].map(|what| expected[what].as_f64().unwrap())
    };
    let [wall, work, path] = expected("1");
    assert!((0.9..5.0).contains(&work) && (wall - work).abs() < 1e-9 && path < work, "{wall} {work} {path}");
    let [wall, same_work, _] = expected("2");
    assert!(wall < work && same_work == work && wall >= path, "{wall} {work}");
    let said = project.say(&["plan", "--set", "more=x"]);
    assert!(said.contains("2 to run, 1 later, 0 cached\nat most about ") && said.contains(" of work; the longest chain takes "), "{said}");
    // A new stage has no time.
    project.edit("trestle.yaml", "  b:", "  new: { run: 'echo > {out.o}', out: { o: o } }\n  b:");
    let said = project.say(&["plan", "--set", "more=x"]);
    assert!(said.ends_with(", and what 1 stage that has not run before will take\n"), "{said}");
}

#[test]
fn annotations_say_why_a_stage_runs() {
    let project = chain();
    project.run();
    project.write("src.txt", "a\n");
    let said = project.say(&["plan", "--format", "github"]);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].starts_with("::notice title=count has to run::stage count runs because%0A  input src blob:"), "{said}");
    assert!(
        lines.len() == 2 && lines[1].starts_with("::notice title=plan of trestle::1 to run, 2 later, 0 cached%0Aat most about "),
        "{said}"
    );
    let said = project.say(&["run", "--ci"]);
    assert!(said.contains("run     count: input src") && said.contains("::notice title=times has to run::stage times runs"), "{said}");
    assert!(said.contains("::notice title=trestle run::3 executed, 0 cached in "), "{said}");
}

#[test]
fn no_more_annotations_than_are_shown() {
    let many = "stages: { s: { run: 'echo ${n} > {out.o}', out: { o: o }, matrix: { n: [1,2,3,4,5,6,7,8,9,10,11,12] } } }\n";
    let project = Project::new(many);
    let said = project.say(&["plan", "--format", "github"]);
    assert_eq!(said.lines().count(), 10);
    assert!(said.contains("12 to run, 0 later, 0 cached%0A3 stages to run are not listed here"), "{said}");
    let said = project.say(&["run", "--ci"]);
    assert_eq!(said.matches("::notice ").count(), 10);
}

#[test]
fn a_failure_is_an_annotation_with_the_end_of_its_log() {
    let project = Project::new("stages: { bad: { run: 'echo oh no; exit 3', out: { a: a } } }\n");
    let done = project.call(&["run", "--ci"]);
    assert_eq!(done.code, Some(1));
    let line = done.out.lines().find(|line| line.starts_with("::error ")).unwrap();
    assert!(line.starts_with("::error title=bad failed::failed  bad: ") && line.contains("%0A        | oh no%0A"), "{line}");
    assert_eq!(project.call(&["run", "--ci", "--format", "json"]).code, Some(2));
}
