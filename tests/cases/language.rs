//! Params, matrices, references, targets.

use crate::support::Project;

const MATRIX: &str = "\
params: { seeds: [2, 10], base: 1 }
stages:
  draw: { matrix: { seed: '${seeds}' }, run: 'echo ${seed} > {out.v}', out: { v: v } }
  plus: { in: { v: draw }, run: 'echo $(( $(cat {in.v}) + ${base} )) > {out.v}', out: { v: v } }
  scale: { matrix: { by: [1, 3] }, in: { v: plus }, run: 'echo $(( $(cat {in.v}) * ${by} )) > {out.v}', out: { v: v } }
  one: { in: { v: 'scale[by=3,seed=2]' }, run: 'cp {in.v} {out.v}', out: { v: v } }
  some: { in: { v: 'scale[by=3,*]' }, run: 'cat {in.v} > {out.v}', out: { v: v } }
  all: { in: { v: 'scale[*]' }, run: 'cat {in.v} > {out.v}', out: { v: v } }
";

#[test]
fn axes_are_inherited_joined_fixed_and_gathered() {
    let project = Project::new(MATRIX);
    let run = project.run();
    assert_eq!(run.executed.len(), 2 + 2 + 4 + 3);
    assert_eq!(project.output("one", "v"), "9\n");
    assert_eq!(project.output("some", "v"), "9\n33\n", "in the order of the numbers");
    assert_eq!(project.output("all", "v"), "3\n11\n9\n33\n");
    assert_eq!(project.output("scale[by=1,seed=10]", "v"), "11\n");
}

#[test]
fn values_added_to_a_matrix_run_alone() {
    let project = Project::new(MATRIX);
    project.run();
    project.edit("trestle.yaml", "seeds: [2, 10]", "seeds: [5, 2, 10]");
    project.run().did(&["draw[seed=5]", "plus[seed=5]", "scale[by=1,seed=5]", "scale[by=3,seed=5]", "some", "all"]);
    // The order in which values are written means nothing.
    project.edit("trestle.yaml", "seeds: [5, 2, 10]", "seeds: [10, 5, 2]");
    project.run().did(&[]);
}

#[test]
fn targets_choose_stages_with_what_they_need() {
    let project = Project::new(MATRIX);
    assert_eq!(project.run_with(&["one"]).executed.len(), 4);
    project.run_with(&["plus"]).did(&["draw[seed=10]", "plus[seed=10]"]);
    project.run_with(&["scale[by=1*"]).did(&["scale[by=1,seed=2]", "scale[by=1,seed=10]"]);
    let wrong = project.call(&["run", "scael"]);
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.err.contains("did you mean `scale`?"), "{}", wrong.err);
}

#[test]
fn set_overrides_declared_params_only() {
    let project = Project::new(MATRIX);
    project.run();
    let run = project.run_with(&["one", "--set", "base=2"]);
    assert!(run.executed.contains(&"plus[seed=2]".to_owned()));
    assert_eq!(project.call(&["plan", "--set", "bass=2"]).code, Some(2));
    let run = project.run_with(&["--set", "seeds=[2]", "--set", "base=1", "all"]);
    run.did(&["all"]);
}

#[test]
fn a_mistake_in_a_set_is_not_shown_in_the_file() {
    let project = Project::new(MATRIX);
    for value in ["base=\"2\"x", "base=[1,", "base={a: 1, a: 2}", "base=!t 1"] {
        let done = project.call(&["plan", "--set", value]);
        assert_eq!(done.code, Some(2), "{value}");
        assert!(done.err.contains("--set base") && !done.err.contains("trestle.yaml"), "{}", done.err);
    }
}

#[test]
fn two_stages_that_do_the_same_run_once() {
    let same = |name: &str| format!("  {name}: {{ in: {{ x: a }}, run: 'sleep 0.3; cp {{in.x}} {{out.y}}', out: {{ y: y }} }}\n");
    let project = Project::new(&format!("stages:\n  a: {{ run: 'echo 1 > {{out.x}}', out: {{ x: x }} }}\n{}{}", same("b"), same("c")));
    let run = project.run_with(&["-j", "2"]);
    assert_eq!((run.count("executed"), run.count("cached")), (2, 1));
    assert_eq!(project.output("c", "y"), "1\n");
}

#[test]
fn folders_are_inputs_and_outputs() {
    let project = Project::new(
        "stages:
  make: { in: { d: ./data }, run: 'mkdir -p {out.d}/deep/empty; cp -r {in.d}/. {out.d}; echo x > {out.d}/deep/x; chmod +x {out.d}/deep/x', out: { d: d } }
  list: { in: { d: make }, run: '(cd {in.d}; test -x deep/x; find .) | LC_ALL=C sort > {out.l}', out: { l: l } }
",
    );
    project.write("data/a.txt", "a");
    project.run().did(&["make", "list"]);
    assert_eq!(project.output("list", "l"), ".\n./a.txt\n./deep\n./deep/empty\n./deep/x\n");
    project.write("data/b.txt", "b");
    project.run().did(&["make", "list"]);
    std::fs::remove_file(project.path().join("data/b.txt")).unwrap();
    project.run().did(&[]);
}
