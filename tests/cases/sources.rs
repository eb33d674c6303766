//! Files of the project as inputs.

use crate::support::Project;

#[test]
fn a_file_may_be_read_under_two_names() {
    let project = Project::new("stages:\n  a: { run: 'cat {in.x} {in.y} > {out.o}', in: { x: ./f, y: ./f }, out: { o: o } }\n");
    project.write("f", "f\n");
    project.run().did(&["a"]);
    assert_eq!(project.output("a", "o"), "f\nf\n");
}

#[test]
fn a_file_may_be_read_beside_its_folder() {
    for inputs in ["x: ./d, y: ./d/f", "y: ./d, x: ./d/f"] {
        let project = Project::new(&format!("stages:\n  a: {{ run: 'cat d/f > {{out.o}}', in: {{ {inputs} }}, out: {{ o: o }} }}\n"));
        project.write("d/f", "f\n");
        project.write("d/g", "g\n");
        project.run().did(&["a"]);
        assert_eq!(project.output("a", "o"), "f\n");
    }
}
