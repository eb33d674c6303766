//! Pipelines of so many stages that they are read from a file while they are run.

use crate::support::{Project, files, store};

/// 21,000 stages, each of its own coordinates.
fn many(remark: &str) -> String {
    let axis = |count: u32| (0..count).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
    format!(
        "{remark}stages:\n  each:\n    matrix: {{ i: [{}], j: [{}] }}\n    run: 'echo ${{matrix.i}} ${{matrix.j}} > {{out.o}}; cat {{in.f}} >> {{out.o}}'\n    in: {{ f: ./f }}\n    out: {{ o: o }}\n",
        axis(150),
        axis(140)
    )
}

#[test]
fn many_stages_are_what_few_are() {
    let project = Project::new(&many(""));
    project.write("f", "a\n");
    let targets = ["each[i=3,j=4]", "each[i=149,j=139]"];
    project.run_with(&targets).did(&targets);
    assert_eq!(project.output("each[i=3,j=4]", "o"), "3 4\na\n");
    assert_eq!(project.output("each[i=149,j=139]", "o"), "149 139\na\n");
    project.run_with(&targets).did(&[]);

    // Read anew from the YAML, with a history; and one more target.
    project.write("trestle.yaml", &many("# a remark\n"));
    project.run_with(&["each[i=3,j=4]", "each[i=0,j=0]"]).did(&["each[i=0,j=0]"]);
    project.write("f", "b\n");
    project.run_with(&["each[i=3,j=4]"]).did(&["each[i=3,j=4]"]);
    assert_eq!(project.output("each[i=3,j=4]", "o"), "3 4\nb\n");

    // What was put beside is where the next run looks for it, and nowhere else.
    assert!(files(&store::plans(project.path())).iter().any(|path| path.extension().is_some_and(|end| end == "compiled")));
    assert_eq!(files(&project.path().join(".trestle/tmp")), Vec::<std::path::PathBuf>::new());
}
