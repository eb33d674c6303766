//! `trestle list` and `trestle status`: in a pipe, in a terminal, as JSON.

use serde_json::Value;

use super::changes::chain;
use crate::support::Project;
use crate::support::terminal::in_terminal;

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn list_names_stages_inputs_and_commands() {
    let project = chain();
    let said = project.say(&["list"]);
    assert_eq!(
        said,
        "count  ./src.txt  $ wc -l < in/src/src.txt | tr -d ' ' > n.txt
times  count.n    $ echo $(( $(cat in/n/n.txt) * 2 )) > m.txt
words  times.m    $ sed 's/^/result: /' in/m/m.txt > t.txt
"
        .replace("in/src/src.txt", "src.txt")
    );
    assert_eq!(project.say(&["list", "w*", "count", "--outputs"]), "count.n  n.txt  any\nwords.t  t.txt  any\n");
    let json = lines(&project.say(&["list", "times", "--format", "json"]));
    assert_eq!((&json[0]["stage"], &json[0]["inputs"]["n"][0]), (&"times".into(), &"count.n".into()));
    assert_eq!(json[0]["outputs"]["m"], "m.txt");
    let none = project.call(&["list", "word"]);
    assert!(none.code == Some(2) && none.err.contains("did you mean `words`?"), "{}", none.err);
    assert!(!project.path().join(".trestle").exists(), "a list needs no cache");
}

#[test]
fn a_gathering_stage_is_one_line() {
    let project = Project::new(
        "stages:
  one: { run: 'echo ${i} > {out.x}', out: { x: x }, matrix: { i: [1, 2, 3, 4] } }
  all: { run: 'cat {in.x} > {out.y}', in: { x: 'one[*]' }, out: { y: y } }
",
    );
    let said = project.say(&["list", "all"]);
    assert!(said.starts_with("all  one[i=1].x, one[i=2].x, and 2 more  $ cat "), "{said}");
    assert_eq!(project.say(&["list"]).lines().count(), 5);
}

#[test]
fn status_says_what_is_cached_what_runs_and_what_waits() {
    let project = chain();
    let fresh = project.say(&["status"]);
    assert!(fresh.contains("to run  count") && fresh.contains("it has not been run in this project"), "{fresh}");
    assert!(fresh.contains("later   words") && fresh.ends_with("0 cached (0 B), 1 to run, 2 later\n"), "{fresh}");
    project.run();
    let done = project.say(&["status"]);
    // `2\n`, `4\n` and `result: 4\n`.
    assert!(done.ends_with("3 cached (14 B), 0 to run, 0 later\n"), "{done}");
    let line = done.lines().find(|line| line.contains("words")).unwrap();
    assert!(line.starts_with("cached  words") && line.contains(" ago") && line.ends_with("10 B"), "{line}");
    let said = project.say(&["status", "times", "--set", "factor=3"]);
    assert!(said.contains("to run  times") && said.contains("* 2") && said.contains("* 3") && !said.contains("words"), "{said}");
    let json = lines(&project.say(&["status", "--format", "json"]));
    assert_eq!(json.len(), 4);
    assert_eq!((&json[2]["fate"], &json[2]["bytes"], &json[3]["cached"]), (&"cached".into(), &10.into(), &3.into()));
}

#[test]
fn a_terminal_gets_colours_and_lines_that_fit() {
    let project = chain();
    project.run();
    let said = in_terminal(project.path(), 60, &["list"]);
    assert!(said.contains("\x1b[2m$ ") && said.contains('…'), "{said:?}");
    for line in said.lines() {
        let shown = line.replace("\x1b[2m", "").replace("\x1b[0m", "");
        assert!(shown.trim_end().chars().count() <= 60, "{shown:?}");
    }
    let said = in_terminal(project.path(), 80, &["status"]);
    assert!(said.contains("\x1b[32mcached\x1b[0m"), "{said:?}");
}

#[test]
fn a_folder_as_output_has_the_size_of_its_files() {
    let project = Project::new(
        "stages: { d: { run: 'mkdir -p {out.d}/sub; printf 123 > {out.d}/a; printf 4567 > {out.d}/sub/b', out: { d: d/ } } }\n",
    );
    project.run();
    let json = lines(&project.say(&["status", "--format", "json"]));
    assert_eq!(json[0]["bytes"], 7);
}
