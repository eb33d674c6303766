//! What a command stage may say: words, shells, folders, standard output, variables, files by patterns.

use crate::support::{Project, text, trestle};

#[test]
fn a_command_of_words_needs_no_shell() {
    let project = Project::new(
        "stages:
  make: { run: [sh, -c, 'printf \"%s|\" \"$@\" > \"$0\"', '{out.x}', 'a b', '$HOME', 3], out: { x: x } }
  copy: { in: { x: make }, run: [cp, '{in.x}', '{out.x}'], out: { x: x } }
  many: { in: { x: [make, copy] }, run: [sh, -c, 'echo $# > many', zero, '{in.x}'], out: { n: many } }
",
    );
    project.run().did(&["make", "copy", "many"]);
    assert_eq!(project.output("copy", "x"), "a b|$HOME|3|");
    assert_eq!(project.output("many", "n"), "2\n", "one word a value");
}

#[test]
fn the_shell_can_be_another_program() {
    let project = Project::new("stages:\n  a: { shell: awk, run: 'BEGIN { print 6 * 7 > \"{out.x}\" }', out: { x: x } }\n");
    project.run().did(&["a"]);
    assert_eq!(project.output("a", "x"), "42\n");
    let project = Project::new("stages:\n  a:\n    shell: sh -c\n    run: |\n      false\n      echo on > {out.x}\n    out: { x: x }\n");
    project.run().did(&["a"]);
    assert_eq!(project.output("a", "x"), "on\n", "this shell goes on after a failing command");
}

#[test]
fn a_command_starts_in_its_workdir_and_finds_its_paths() {
    let project = Project::new(
        "stages:
  a: { in: { d: ./data/d.txt }, workdir: deep/er, run: 'cat {in.d} > {out.x}; pwd > {out.p}', out: { x: x, p: deep/p } }
",
    );
    project.write("data/d.txt", "d\n");
    project.run().did(&["a"]);
    assert_eq!(project.output("a", "x"), "d\n");
    assert!(project.output("a", "p").ends_with("/deep/er\n"));
    project.edit("trestle.yaml", "deep/er", "deep");
    project.run().did(&["a"]);
}

#[test]
fn what_a_command_prints_can_be_an_output() {
    let project = Project::new("stages:\n  a: { run: 'echo printed; echo heard >&2', stdout: text, out: { text: a.txt } }\n");
    project.run().did(&["a"]);
    assert_eq!(project.output("a", "text"), "printed\n");
}

#[test]
fn a_variable_of_the_caller_is_an_ingredient_where_it_is_declared() {
    let project = Project::new(
        "stages:
  a: { run: 'echo \"$GREETING ${WHO-nobody}\" > {out.x}', shell: sh -c, out: { x: x }, env: { GREETING: { from: HELLO, default: hi } } }
",
    );
    project.edit("trestle.yaml", "${WHO", "$${WHO");
    project.run().did(&["a"]);
    assert_eq!(project.output("a", "x"), "hi nobody\n");
    let run = |hello: &str| {
        let done = text(trestle(project.path()).args(["run", "--format", "json"]).env("HELLO", hello).env("WHO", "me").output().unwrap());
        assert_eq!(done.code, Some(0), "{}", done.err);
        done.out.lines().filter(|line| line.contains("\"event\":\"done\"")).count()
    };
    assert_eq!(run("ho"), 1, "another value of a declared variable");
    assert_eq!(run("ho"), 0);
    assert_eq!(run("hi"), 0, "back to what was seen before");
}
