//! The pipelines of the README are what they say.

use crate::support::Project;

fn block(after: &str) -> String {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let rest = &readme[readme.find(after).unwrap_or_else(|| panic!("the README has no {after:?}"))..];
    let begin = rest.find("```yaml\n").unwrap() + 8;
    rest[begin..begin + rest[begin..].find("```").unwrap()].to_owned()
}

/// Every example of the reference that is a whole pipeline.
#[test]
fn the_examples_of_the_reference_are_pipelines() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/pipeline.md")).unwrap();
    let examples: Vec<&str> = text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    let whole: Vec<&&str> = examples.iter().filter(|example| example.contains("stages:\n")).collect();
    assert!(whole.len() >= 7, "{}", whole.len());
    for example in whole {
        let project = Project::new(example);
        for file in ["text.txt", "tool.py", "Makefile", "s.csv", "l.csv", "small.csv", "large.csv"] {
            project.write(file, "a b\n");
        }
        project.write("data/data.yaml", "params: { size: 1 }\nstages:\n  prepare: { run: 'echo ${size} > {out.set}', out: { set: s } }\n");
        project.say(&["plan"]);
        if example.contains("exclude:") {
            let names = ["test[note=fast,os=linux,v=1]", "test[note=fast,os=linux,v=2]", "test[os=bsd,v=3]", "test[os=mac,v=2]"];
            assert_eq!(project.plan().into_keys().collect::<Vec<_>>(), names);
        }
    }
}

#[test]
fn the_first_pipeline_runs() {
    let project = Project::new(&block("## A first pipeline"));
    project.write("README.md", "the cat and the dog and the bird\n");
    project.run().did(&["words", "best"]);
    let best = project.output("best", "best");
    assert_eq!(best.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).next().unwrap(), "3 the");
    project.run_with(&["--set", "top=5"]).did(&["best"]);
}

#[test]
fn the_language_by_example_is_a_pipeline() {
    let project = Project::new(&block("The rest of the language"));
    std::os::unix::fs::symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/data"), project.path().join("data")).unwrap();
    let plan = project.plan();
    assert_eq!(plan.len(), 3 + 3 + 3 + 1, "{plan:?}");
}
