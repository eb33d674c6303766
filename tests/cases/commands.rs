//! The commands besides `run` and `plan`.

use super::changes::chain;
use crate::support::Project;

#[test]
fn explain_names_the_ingredient_with_old_and_new() {
    let project = chain();
    assert!(project.say(&["explain", "count"]).contains("it has not been run in this project"));
    project.run();
    assert!(project.say(&["explain", "count"]).contains("count is cached"));
    project.write("src.txt", "a\nb\nc\n");
    let said = project.say(&["explain", "count"]);
    assert!(said.contains("input src blob:") && said.contains("→ blob:"), "{said}");
    let said = project.say(&["explain", "words"]);
    assert!(said.contains("words may have to run") && said.contains("count has to run"), "{said}");
    let json: serde_json::Value = serde_json::from_str(&project.say(&["explain", "count", "--format", "json"])).unwrap();
    assert_eq!(json["reasons"][0]["reason"], "changed");
    assert_eq!(json["reasons"][0]["changes"][0]["name"], "src");
}

#[test]
fn graphs_have_all_stages() {
    let project = chain();
    for (format, begins) in [("dot", "digraph"), ("mermaid", "flowchart"), ("svg", "<svg")] {
        let said = project.say(&["graph", "--format", format]);
        assert!(said.trim_start().starts_with(begins), "{said}");
        assert!(["count", "times", "words"].iter().all(|stage| said.contains(stage)));
    }
}

#[test]
fn out_gives_paths_and_copies() {
    let project = chain();
    let early = project.call(&["out", "words"]);
    assert_eq!(early.code, Some(2));
    assert!(early.err.contains("no outputs for the pipeline as it is now"), "{}", early.err);
    project.run();
    assert_eq!(project.say(&["out", "words", "--to", "here"]), "here/t.txt\n");
    assert_eq!(std::fs::read_to_string(project.path().join("here/t.txt")).unwrap(), "result: 4\n");
    // A copy is the user's: changing it changes nothing else.
    project.write("here/t.txt", "mine");
    assert_eq!(project.output("words", "t"), "result: 4\n");
    let wrong = project.call(&["out", "words", "x"]);
    assert!(wrong.err.contains("its outputs are: t"), "{}", wrong.err);
}

#[test]
fn the_schema_is_json_and_names_every_kind() {
    let project = chain();
    let schema: serde_json::Value = serde_json::from_str(&project.say(&["schema"])).unwrap();
    let forms = schema["properties"]["stages"]["additionalProperties"]["oneOf"].as_array().unwrap();
    let kinds: Vec<&str> = forms.iter().filter_map(|form| form["properties"]["uses"]["const"].as_str()).collect();
    let wanted = [
        "dataset",
        "evaluation",
        "features",
        "generation",
        "generator-pretrain",
        "hub-file",
        "model-import",
        "prompting",
        "real-adaptation",
        "style-inversion",
        "synthetic-pretrain",
        "table",
    ];
    assert_eq!(kinds, wanted);
}

#[test]
fn help_has_examples_and_completions_exist() {
    let project = chain();
    for args in [&["--help"][..], &["run", "--help"], &["out", "--help"]] {
        assert!(project.say(args).contains("Examples:"), "{args:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(project.say(&["completions", shell]).contains("explain"));
    }
}

#[test]
fn wrong_calls_say_what_to_do() {
    let empty = tempfile::tempdir().unwrap();
    let call = |args: &[&str]| crate::support::text(crate::support::trestle(empty.path()).args(args).output().unwrap());
    for (args, says) in [
        (&["run"][..], "this folder has no `trestle.yaml`"),
        (&["run", "nothing.yaml"], "cannot read the pipeline file nothing.yaml"),
        (&["run", "--file", "."], "cannot read the pipeline file"),
        (&["explain"], "required"),
    ] {
        let done = call(args);
        assert_eq!(done.code, Some(2), "{args:?}");
        assert!(done.err.contains(says), "{args:?}: {}", done.err);
    }
    let project = Project::new("stages:\n  a: { matrix: { x: [1, 2] }, run: 'echo ${x} > {out.o}', out: { o: o } }\n");
    let several = project.call(&["explain", "a"]);
    assert!(several.err.contains("`a` stands for 2 stages") && several.err.contains("'a[x=1]'"), "{}", several.err);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let project = chain();
    let line = format!("{} plan | head -n 1; {} schema | head -n 1", env!("CARGO_BIN_EXE_trestle"), env!("CARGO_BIN_EXE_trestle"));
    let output = std::process::Command::new("sh").args(["-c", &line]).current_dir(project.path()).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}
