//! Several runs at once: each stage runs once, whoever comes first.

use std::path::Path;
use std::process::{Child, Stdio};

use crate::support::{Done, Project, Witness, text, trestle};

/// Eight stages that take a moment, two of them the same action.
fn pipeline(witness: &Witness) -> String {
    let mut yaml = String::from("stages:\n");
    for i in 0..6 {
        let input = if i == 0 { "./src.txt".to_owned() } else { format!("s{}", (i - 1) / 2) };
        let says = witness.says(&format!("s{i}"));
        yaml += &format!(
            "  s{i}: {{ run: '{says}; sleep 0.05; cat {{in.x}} > {{out.o}}; echo {i} >> {{out.o}}', in: {{ x: {input} }}, out: {{ o: o }} }}\n"
        );
    }
    let says = witness.says("twin");
    for name in ["left", "right"] {
        yaml += &format!("  {name}: {{ run: '{says}; sleep 0.1; cat {{in.x}} > {{out.o}}', in: {{ x: s5 }}, out: {{ o: o }} }}\n");
    }
    yaml
}

fn start(dir: &Path, args: &[&str]) -> Child {
    trestle(dir).args(["run", "--format", "json"]).args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn end(child: Child) -> Done {
    let done = text(child.wait_with_output().unwrap());
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    done
}

fn each_once(witness: &Witness) {
    let mut heard = witness.heard();
    heard.sort();
    assert_eq!(heard, ["s0", "s1", "s2", "s3", "s4", "s5", "twin"]);
}

fn at_once(count: usize) {
    let witness = Witness::new();
    let project = Project::new(&pipeline(&witness));
    project.write("src.txt", "x\n");
    for round in 0..2 {
        project.write("src.txt", &format!("{round}\n"));
        witness.clear();
        let children: Vec<Child> = (0..count).map(|_| start(project.path(), &["-j", "4"])).collect();
        let done: Vec<Done> = children.into_iter().map(end).collect();
        each_once(&witness);
        let executed: u64 = done
            .iter()
            .map(|done| serde_json::from_str::<serde_json::Value>(done.out.lines().last().unwrap()).unwrap())
            .map(|summary| summary["executed"].as_u64().unwrap())
            .sum();
        assert_eq!(executed, 7);
        assert_eq!(project.output("right", "o"), format!("{round}\n0\n2\n5\n"));
    }
}

#[test]
fn two_runs_at_once() {
    at_once(2);
}

#[test]
fn sixteen_runs_at_once() {
    at_once(16);
}

#[test]
fn two_projects_with_one_cache_at_once() {
    let (witness, cache) = (Witness::new(), tempfile::tempdir().unwrap());
    let projects = [(); 4].map(|()| Project::new(&pipeline(&witness)));
    let children = projects.each_ref().map(|project| {
        project.write("src.txt", "x\n");
        start(project.path(), &["--cache", cache.path().to_str().unwrap()])
    });
    children.into_iter().for_each(|child| drop(end(child)));
    each_once(&witness);
}

/// A new cache is made by whoever is first, and readers come at any moment.
#[test]
fn plans_while_a_run_goes_on() {
    let witness = Witness::new();
    let project = Project::new(&pipeline(&witness));
    project.write("src.txt", "x\n");
    let running = start(project.path(), &[]);
    let plans: Vec<Child> = (0..12)
        .map(|i| {
            std::thread::sleep(std::time::Duration::from_millis(i * 5));
            trestle(project.path()).args(["plan"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    plans.into_iter().for_each(|plan| drop(end(plan)));
    end(running);
    each_once(&witness);
    project.run().did(&[]);
}

#[test]
fn a_target_and_the_whole_at_once() {
    let witness = Witness::new();
    let project = Project::new(&pipeline(&witness));
    project.write("src.txt", "x\n");
    let children = [start(project.path(), &["s4"]), start(project.path(), &[]), start(project.path(), &["right"])];
    children.into_iter().for_each(|child| drop(end(child)));
    each_once(&witness);
}
