//! What runs after a change, and what does not. Every `run` also holds `plan` to what happened.

use crate::support::Project;

/// Three stages in a row; the first gives a number, so that some edits change nothing below it.
pub const CHAIN: &str = "\
params: { factor: 2 }
stages:
  count: { run: \"wc -l < {in.src} | tr -d ' ' > {out.n}\", in: { src: ./src.txt }, out: { n: n.txt } }
  times: { run: \"echo $(( $(cat {in.n}) * ${factor} )) > {out.m}\", in: { n: count }, out: { m: m.txt } }
  words: { run: \"sed 's/^/result: /' {in.m} > {out.t}\", in: { m: times }, out: { t: t.txt } }
";

pub fn chain() -> Project {
    let project = Project::new(CHAIN);
    project.write("src.txt", "a\nb\n");
    project
}

const ALL: [&str; 3] = ["count", "times", "words"];

#[test]
fn the_second_run_executes_nothing() {
    let project = chain();
    project.run().did(&ALL);
    assert_eq!(project.output("words", "t"), "result: 4\n");
    let second = project.run();
    second.did(&[]);
    assert_eq!(second.count("cached"), 3);
}

#[test]
fn a_param_runs_its_stage_and_what_really_changed_below() {
    let project = chain();
    project.run();
    project.edit("trestle.yaml", "factor: 2", "factor: 3");
    project.run().did(&["times", "words"]);
    assert_eq!(project.output("words", "t"), "result: 6\n");
    let explained = project.call(&["explain", "times", "--set", "factor=4"]);
    assert!(
        explained.out.contains("command script") && explained.out.contains("* 3") && explained.out.contains("* 4"),
        "{}",
        explained.out
    );
    // Back again: the earlier records are found.
    project.edit("trestle.yaml", "factor: 3", "factor: 2");
    project.run().did(&[]);
    assert_eq!(project.output("words", "t"), "result: 4\n");
}

#[test]
fn layout_comments_key_order_and_names_run_nothing() {
    let project = chain();
    project.run();
    project.write(
        "trestle.yaml",
        "\
# The same in other clothes.
stages:
    text:
        out:
            t: t.txt
        in:
            m: product   # renamed
        run: >-
            sed 's/^/result: /' {in.m} > {out.t}
    product: { out: { m: m.txt }, in: { n: lines.n }, run: 'echo $(( $(cat {in.n}) * ${params.factor} )) > {out.m}' }
    lines: { in: { src: src.txt/../src.txt }, out: { n: n.txt }, run: \"wc -l < {in.src} | tr -d ' ' > {out.n}\" }
params:
    factor: 2
",
    );
    // A path that means the same file but reads otherwise changes where the file stands, so write it as it was.
    project.edit("trestle.yaml", "src.txt/../src.txt", "./src.txt");
    project.run().did(&[]);
}

#[test]
fn a_moved_project_runs_nothing() {
    let project = chain();
    project.run();
    let elsewhere = tempfile::tempdir().unwrap();
    let copied =
        std::process::Command::new("cp").arg("-r").arg(format!("{}/.", project.path().display())).arg(elsewhere.path()).status().unwrap();
    assert!(copied.success());
    let out = crate::support::text(crate::support::trestle(elsewhere.path()).args(["run"]).output().unwrap()).out;
    assert!(out.contains("0 executed, 3 cached"), "{out}");
}

#[test]
fn an_edit_that_changes_no_output_stops_there() {
    let project = chain();
    project.run();
    project.write("src.txt", "c\nd\n");
    project.run().did(&["count"]);
    project.write("src.txt", "c\nd\ne\n");
    project.run().did(&ALL);
    project.write("src.txt", "a\nb\n");
    project.run().did(&[]);
}

#[test]
fn a_touched_source_runs_nothing() {
    let project = chain();
    project.run();
    let file = std::fs::File::options().write(true).open(project.path().join("src.txt")).unwrap();
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(5)).unwrap();
    project.run().did(&[]);
}

#[test]
fn another_command_with_the_same_output_runs_alone() {
    let project = chain();
    project.run();
    project.edit("trestle.yaml", "echo $(( $(cat {in.n}) *", "echo  $(( $(cat {in.n}) *");
    project.run().did(&["times"]);
}

#[test]
fn a_source_that_changes_while_its_stage_runs_never_ends_in_a_stale_hit() {
    let project =
        Project::new("stages:\n  slow: { run: 'cat {in.src} > {out.copy}; sleep 0.6', in: { src: ./src.txt }, out: { copy: copy } }\n");
    project.write("src.txt", "old");
    let running = crate::support::trestle(project.path()).args(["run"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(350));
    project.write("src.txt", "new");
    running.wait_with_output().unwrap();
    project.run().did(&["slow"]);
    assert_eq!(project.output("slow", "copy"), "new");
    project.write("src.txt", "old");
    project.run();
    assert_eq!(project.output("slow", "copy"), "old");
}
