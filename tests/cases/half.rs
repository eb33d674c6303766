//! Runs that do only a part of a pipeline, and what the next run makes of the rest.

use crate::support::Project;

/// `first` fails when there is an `e` in the source; both read it.
const TWO: &str = "\
stages:
  first: { run: 'if grep -q e {in.f}; then exit 1; fi; cat {in.f} > {out.o}', in: { f: ./f }, out: { o: o } }
  beside: { run: 'cat {in.f} {in.f} > {out.o}', in: { f: ./f }, out: { o: o } }
  last: { run: 'cat {in.a} {in.b} > {out.o}; echo end >> {out.o}', in: { a: first, b: beside }, out: { o: o } }
";

fn two() -> Project {
    let project = Project::new(TWO);
    project.write("f", "a\n");
    project.run().did(&["first", "beside", "last"]);
    project
}

#[test]
fn what_a_target_left_out_is_not_taken_for_done() {
    for targets in [&["first"][..], &["beside"], &["first", "beside"]] {
        let project = two();
        project.write("f", "b\n");
        assert_eq!(project.run_with(targets).executed.len(), targets.len());
        let rest = project.run();
        assert_eq!(rest.executed.len(), 3 - targets.len(), "{targets:?}: {:?}", rest.executed);
        assert_eq!(project.output("last", "o"), "b\nb\nb\nend\n");
    }
}

#[test]
fn what_failed_is_not_taken_for_done() {
    for arguments in [&[][..], &["--keep-going"], &["-j", "1"]] {
        let project = two();
        project.write("f", "e\n");
        for _ in 0..3 {
            let run = project.run_with(arguments);
            assert_eq!((run.code, run.count("failed")), (Some(1), 1), "{:#?}", run.events);
        }
        project.write("f", "b\n");
        assert_eq!(project.run().code, Some(0));
        assert_eq!(project.output("last", "o"), "b\nb\nb\nend\n");
    }
}

#[test]
fn what_was_interrupted_is_not_taken_for_done() {
    let project = Project::new("stages:\n  a: { run: 'cat {in.f} > {out.o}; sleep 1', in: { f: ./f }, out: { o: o } }\n");
    project.write("f", "a\n");
    project.run().did(&["a"]);
    project.write("f", "b\n");
    let running = crate::support::trestle(project.path()).arg("run").stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(400));
    crate::support::processes::signal("INT", &running.id().to_string());
    running.wait_with_output().unwrap();
    project.run().did(&["a"]);
    assert_eq!(project.output("a", "o"), "b\n");
}

/// What only looks may learn what a source is now; that alone makes nothing done.
#[test]
fn what_was_only_looked_at_is_not_taken_for_done() {
    for look in [&["plan"][..], &["explain", "first"], &["graph"], &["out", "first"], &["log", "first"]] {
        let project = two();
        project.write("f", "b\n");
        project.call(look);
        project.call(look);
        project.run_with(&[]).did(&["first", "beside", "last"]);
        assert_eq!(project.output("last", "o"), "b\nb\nb\nend\n");
    }
}
