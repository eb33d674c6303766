//! The pipelines of the README are what they say.

use crate::support::Project;

fn block(after: &str) -> String {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let rest = &readme[readme.find(after).unwrap_or_else(|| panic!("the README has no {after:?}"))..];
    let begin = rest.find("```yaml\n").unwrap() + 8;
    rest[begin..begin + rest[begin..].find("```").unwrap()].to_owned()
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
