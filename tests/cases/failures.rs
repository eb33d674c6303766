//! Stages that fail, and what the run makes of it.

use crate::support::Project;

const TWO_BRANCHES: &str = "\
stages:
  bad: { run: 'echo before; echo oh no >&2; exit 3', out: { a: a } }
  below: { run: 'cp {in.a} {out.b}', in: { a: bad }, out: { b: b } }
  good: { run: 'sleep 0.2; echo 1 > {out.c}', out: { c: c } }
  after: { run: 'cp {in.c} {out.d}', in: { c: good }, out: { d: d } }
";

#[test]
fn a_failure_skips_what_is_below_and_stops_the_rest() {
    let project = Project::new(TWO_BRANCHES);
    let run = project.run_with(&["-j", "1"]);
    assert_eq!(run.code, Some(1));
    assert_eq!((run.count("failed"), run.count("executed") + run.count("skipped")), (1, 3));
    let event = run.events.iter().find(|event| event["event"] == "failed").unwrap();
    assert_eq!(event["stage"], "bad");
    assert!(event["message"].as_str().unwrap().contains("ended with status 3"), "{event}");
    assert_eq!(event["log_tail"], "before\noh no");
    let said = project.call(&["run", "bad"]);
    assert_eq!(said.code, Some(1));
    assert!(said.out.contains("| oh no") && said.out.contains("all of it:"), "{}", said.out);
    assert_eq!(project.say(&["log", "bad"]), "before\noh no\n");
}

#[test]
fn a_file_that_is_wrong_is_named_as_an_input_and_not_by_the_folder_of_the_stage() {
    let project = Project::new("stages:\n  digits: { uses: dataset, in: { source: ./images } }\n");
    project.write("images/cat/0.png", "not a picture");
    let said = project.call(&["run", "-j", "1"]);
    assert_eq!(said.code, Some(1));
    assert!(said.out.contains("(in/source/images/cat/0.png)") && !said.out.contains("/work/"), "{}", said.out);
    assert!(said.out.starts_with("trestle: 1 stage, 1 thread\n"), "{}", said.out);
}

#[test]
fn keep_going_does_what_does_not_depend_on_it() {
    let project = Project::new(TWO_BRANCHES);
    let run = project.run_with(&["--keep-going"]);
    assert_eq!(run.code, Some(1));
    assert_eq!((run.count("executed"), run.count("failed"), run.count("skipped")), (2, 1, 1));
}

#[test]
fn a_missing_or_refused_output_fails_and_stores_nothing() {
    for (script, says) in [("true", "did not write its output `a`"), ("ln -s /etc/hostname {out.a}", "link"), ("mkfifo {out.a}", "pipe")] {
        let project = Project::new(&format!("stages:\n  s: {{ run: '{script}', out: {{ a: a }} }}\n"));
        let run = project.run_with(&[]);
        assert_eq!(run.code, Some(1), "{script}");
        let event = run.events.iter().find(|event| event["event"] == "failed").unwrap();
        assert!(event["message"].as_str().unwrap().contains(says), "{script}: {event}");
        assert_eq!(project.plan()["s"], "run");
    }
}

#[test]
fn a_command_sees_its_declared_inputs_and_variables_only() {
    let project = Project::new(
        "stages:
  s:
    run: 'ls -A > {out.list}; echo \"$GREETING ${SECRET-none}\" > {out.env}; ls sub >> {out.list}'
    in: { a: ./sub/a.txt }
    out: { list: list, env: env }
    env: { GREETING: hello }
",
    );
    project.edit("trestle.yaml", "${SECRET-none}", "$${SECRET-none}");
    project.write("sub/a.txt", "a");
    project.write("sub/b.txt", "b");
    project.write("other.txt", "c");
    project.run().did(&["s"]);
    assert_eq!(project.output("s", "list"), "list\nsub\na.txt\n");
    assert_eq!(project.output("s", "env"), "hello none\n");
}

#[test]
fn a_command_cannot_change_what_is_stored() {
    let project = Project::new(
        "stages:
  a: { run: 'echo good > {out.x}', out: { x: x } }
  b: { run: 'echo evil > {in.x}; cp {in.x} {out.y}', in: { x: a }, out: { y: y } }
",
    );
    project.run().did(&["a", "b"]);
    assert_eq!(project.output("a", "x"), "good\n");
}
