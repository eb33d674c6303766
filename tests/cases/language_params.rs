//! Where values of params come from, and which one stands.

use crate::support::Project;

const LAYERS: &str = "\
params: { a: file, b: file, c: file, d: file, deep: { x: file, y: file, z: [1, 2] } }
profiles:
  ci: { b: profile, c: profile, d: profile, deep: { y: profile } }
  paper: { a: paper }
stages:
  say: { run: 'echo ${a} ${b} ${c} ${d} ${deep.x} ${deep.y} > {out.t}', out: { t: t } }
";

#[test]
fn each_layer_goes_over_the_one_before() {
    let project = Project::new(LAYERS);
    project.write("over.yaml", "c: over\nd: over\ndeep: { z: [] }\n");
    let said = |args: &[&str]| {
        project.run_with(args);
        let out = [&["out", "say", "t"], args].concat();
        std::fs::read_to_string(project.path().join(project.say(&out).trim())).unwrap()
    };
    assert_eq!(said(&[]), "file file file file file file\n");
    assert_eq!(said(&["--profile", "ci"]), "file profile profile profile file profile\n");
    assert_eq!(said(&["--set", "d=set", "--params", "over.yaml", "--profile", "ci"]), "file profile over set file profile\n");
    assert_eq!(said(&["--profile", "paper", "--set", "deep.x=set"]), "paper file file file set file\n");
    project.run_with(&["--profile", "ci"]).did(&[]);
}

#[test]
fn a_file_of_params_that_cannot_be_read_is_named() {
    let project = Project::new(LAYERS);
    let done = project.call(&["plan", "--params", "nowhere.yaml"]);
    assert_eq!(done.code, Some(2));
    assert!(done.err.contains("cannot read the params nowhere.yaml"), "{}", done.err);
}
