//! Matrices with exceptions, `foreach`, and conditions.

use crate::support::Project;

fn stages(project: &Project) -> Vec<String> {
    project.plan().into_keys().collect()
}

#[test]
fn exclude_takes_away_and_include_adds() {
    let project = Project::new(
        "\
stages:
  a:
    matrix:
      os: [linux, mac]
      v: [1, 2]
      exclude: [{ os: mac, v: 1 }]
      include:
        - { os: linux, note: fast }
        - { os: linux, v: 2, note: slow }
        - { os: bsd, v: 3 }
    run: 'echo ${os}${v} > {out.x}'
    out: { x: x }
  all: { in: { x: 'a[*]' }, run: 'cat {in.x} > {out.x}', out: { x: x } }
  linux: { in: { x: 'a[os=linux,*]' }, run: 'cat {in.x} > {out.x}', out: { x: x } }
  only: { matrix: { include: [{ k: 1 }, { k: 2, l: 3 }] }, run: 'echo ${k} > {out.x}', out: { x: x } }
",
    );
    let a = ["a[note=fast,os=linux,v=1]", "a[note=slow,os=linux,v=2]", "a[os=bsd,v=3]", "a[os=mac,v=2]"];
    assert_eq!(stages(&project), [&a[..], &["all", "linux", "only[k=1]", "only[k=2,l=3]"]].concat());
    project.run();
    assert_eq!(project.output("all", "x"), "linux1\nlinux2\nbsd3\nmac2\n");
    assert_eq!(project.output("linux", "x"), "linux1\nlinux2\n");
}

#[test]
fn foreach_goes_over_scalars_and_maps() {
    let project = Project::new(
        "\
params: { sets: [{ name: small, file: s.txt }, { name: large, file: l.txt, more: { n: 2 } }] }
stages:
  read: { foreach: { set: '${sets}' }, in: { f: './${set.file}' }, run: 'cat {in.f} > {out.x}', out: { x: '${set.name}.txt' } }
  twice: { in: { x: read }, run: 'cat {in.x} {in.x} > {out.x}; echo ${set} >> {out.x}', out: { x: x } }
  n: { foreach: { n: [1, two] }, matrix: { k: [a] }, run: 'echo ${n}${k} > {out.x}', out: { x: x } }
",
    );
    project.write("s.txt", "s\n");
    project.write("l.txt", "l\n");
    assert_eq!(
        stages(&project),
        ["n[k=a,n=1]", "n[k=a,n=two]", "read[set=large]", "read[set=small]", "twice[set=large]", "twice[set=small]"]
    );
    project.run();
    assert_eq!(project.output("twice[set=large]", "x"), "l\nl\nlarge\n");
    // Another item is another stage, and the others stay.
    project.edit("trestle.yaml", "sets: [", "sets: [{ name: new, file: s.txt }, ");
    project.run_with(&["read"]).did(&["read[set=new]"]);
    project.run().did(&["twice[set=new]"]);
}

#[test]
fn a_stage_whose_condition_does_not_hold_is_left_out() {
    let project = Project::new(
        "\
params: { mode: ci, most: 2 }
stages:
  train: { matrix: { seed: [1, 2, 3] }, when: '${seed} <= ${most}', run: 'echo ${seed} > {out.x}', out: { x: x } }
  score: { in: { x: train }, when: '${seed} <= ${most} and ${mode} in [ci, full]', run: 'cat {in.x} > {out.x}', out: { x: x } }
  table: { in: { x: 'score[*]' }, run: 'cat {in.x} > {out.x}', out: { x: x } }
  full: { when: '${mode} == full', in: { f: ./only-in-full-mode.csv }, run: 'cat {in.f} > {out.x}', out: { x: x } }
  never: { when: false, run: 'false', out: { x: x } }
",
    );
    project.run().did(&["train[seed=1]", "train[seed=2]", "score[seed=1]", "score[seed=2]", "table"]);
    assert_eq!(project.output("table", "x"), "1\n2\n");
    project.run_with(&["--set", "most=3"]).did(&["train[seed=3]", "score[seed=3]", "table"]);
    let full = project.call(&["plan", "--set", "mode=full"]);
    assert_eq!(full.code, Some(2));
    assert!(full.err.contains("there is no file or folder `./only-in-full-mode.csv`"), "{}", full.err);
    let left_out = project.call(&["plan", "--set", "most=0"]);
    assert!(left_out.err.contains("is left out"), "{}", left_out.err);
}
