//! Templates, included files, files by patterns.

use crate::support::Project;

#[test]
fn a_template_is_a_stage_with_holes() {
    let project = Project::new(
        "\
params: { greeting: hello }
templates:
  say:
    args: { who:, times: 1, mark: '!' }
    run: 'for i in $(seq ${times}); do echo \"${greeting} ${who}${mark}\"; done > {out.t}'
    out: { t: t.txt }
    resources: { cpus: 1 }
  unused: { run: 'exit 1', out: { t: t } }
stages:
  world: { template: say, args: { who: world } }
  seeds: { template: say, args: { who: 'seed ${seed}', mark: '.' }, matrix: { seed: [1, 2] } }
  other: { template: say, args: { who: all, times: 2 }, run: 'echo none of it > {out.t}; echo > {out.more}', out: { more: m } }
",
    );
    project.run().did(&["world", "seeds[seed=1]", "seeds[seed=2]", "other"]);
    assert_eq!(project.output("world", "t"), "hello world!\n");
    assert_eq!(project.output("seeds[seed=2]", "t"), "hello seed 2.\n");
    assert_eq!(project.output("other", "t"), "none of it\n");
    // What a template makes has the key of the same stage written out.
    project.write(
        "trestle.yaml",
        "stages:\n  world: { run: 'for i in $(seq 1); do echo \"hello world!\"; done > {out.t}', out: { t: t.txt } }\n",
    );
    project.run().did(&[]);
}

#[test]
fn stages_of_another_file_have_its_name_before_theirs() {
    let project = Project::new(
        "\
params: { n: 3 }
include:
  - { file: data/data.yaml, as: data, params: { n: '${n}' } }
  - { file: data/data.yaml, as: more, params: { say: more } }
stages:
  count: { in: { x: 'data::lines[k=1].x', y: more::lines }, run: 'cat {in.x} {in.y} | wc -l > {out.n}', out: { n: n } }
",
    );
    project.write(
        "data/data.yaml",
        "\
params: { n: 1, say: d }
include: [{ file: ../deep.yaml, as: deep, params: { say: '${say}' } }]
stages:
  lines: { matrix: { k: [1, 2] }, in: { s: ./seed.txt, d: deep::d }, run: 'for i in $(seq ${n}); do cat {in.s}; done > {out.x} # ${k} ${say}', out: { x: x } }
",
    );
    project.write("deep.yaml", "params: { say: }\nstages:\n  d: { run: 'echo ${say} > {out.x}', out: { x: x } }\n");
    project.write("data/seed.txt", "seed\n");
    let run = project.run();
    assert_eq!(run.code, Some(0), "{:?}", run.events);
    assert_eq!(project.output("count[k=1]", "n").trim(), "4");
    assert_eq!(project.output("data::lines[k=2]", "x"), "seed\nseed\nseed\n");
    assert_eq!(project.output("data::deep::d", "x"), "d\n");
    project.run_with(&["more::*", "--set", "n=2"]).did(&[]);
    project.run_with(&["data::lines[k=1]", "--set", "n=2"]).did(&["data::lines[k=1]"]);
}

#[test]
fn a_pattern_is_all_files_that_fit() {
    let project = Project::new(
        "\
stages:
  flat: { in: { f: ./data/*.csv }, run: 'for f in {in.f}; do echo $f; cat $f; done > {out.l}', out: { l: l } }
  deep: { in: { f: './data/**/*.csv' }, run: 'echo {in.f} > {out.l}', out: { l: l } }
",
    );
    project.write("data/b.csv", "b\n");
    project.write("data/a b.csv", "ab\n");
    project.write("data/deep/er/c.csv", "c\n");
    project.write("data/.hidden.csv", "h\n");
    project.write(".gitignore", "*.csv\n");
    project.edit("trestle.yaml", "for f in {in.f}; do echo $f; cat $f; done", "cat {in.f}");
    project.run().did(&["flat", "deep"]);
    assert_eq!(project.output("flat", "l"), "ab\nb\n");
    assert_eq!(project.output("deep", "l"), "data/a b.csv data/b.csv data/deep/er/c.csv\n");
    project.run().did(&[]);
    project.write("data/deep/d.csv", "d\n");
    project.run().did(&["deep"]);
    project.write("data/b.csv", "c\n");
    project.run().did(&["flat", "deep"]);
    std::fs::remove_file(project.path().join("data/deep/d.csv")).unwrap();
    project.write("data/b.csv", "b\n");
    project.run().did(&[]);
}
