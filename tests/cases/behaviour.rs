//! The probes that other tools were held to, each with its right answer: which stages ran, by their own account and by ours.
//!
//! A chain `zero → one → two`, and a second source that `two` reads. `zero` counts lines, so that some edits change nothing below it.

use std::path::Path;
use std::time::Duration;

use crate::support::{Project, Witness, store};

struct Chain {
    project: Project,
    witness: Witness,
}

impl Chain {
    /// The chain, run once.
    fn new() -> Self {
        let chain = Self::fresh(0.0);
        chain.ran(&["zero", "one", "two"]);
        chain.gives("1\np\n");
        chain
    }

    /// The chain, not run yet; `zero` takes `seconds` longer once it has read its source.
    fn fresh(seconds: f64) -> Self {
        let witness = Witness::new();
        let project = Project::new(&format!(
            "stages:
  zero: {{ run: '{zero}; grep -c x {{in.src}} > {{out.n}}; sleep {seconds}', in: {{ src: ./src/in.txt }}, out: {{ n: n.txt }} }}
  one: {{ run: '{one}; cat {{in.n}} > {{out.m}}', in: {{ n: zero }}, out: {{ m: m.txt }} }}
  two: {{ run: '{two}; cat {{in.m}} {{in.p}} > {{out.t}}', in: {{ m: one, p: ./src/p.txt }}, out: {{ t: t.txt }} }}
",
            zero = witness.says("zero"),
            one = witness.says("one"),
            two = witness.says("two"),
        ));
        let chain = Self { project, witness };
        chain.source("x\ny\n");
        chain.project.write("src/p.txt", "p\n");
        chain
    }

    fn source(&self, text: &str) {
        self.project.write("src/in.txt", text);
    }

    fn path(&self) -> &Path {
        self.project.path()
    }

    /// Runs; exactly these stages were executed, each once.
    #[track_caller]
    fn ran(&self, stages: &[&str]) {
        self.witness.clear();
        self.project.run().did(stages);
        let mut heard = self.witness.heard();
        heard.sort();
        let mut wanted = stages.to_vec();
        wanted.sort_unstable();
        assert_eq!(heard, wanted, "by the stages' own account");
    }

    #[track_caller]
    fn gives(&self, text: &str) {
        assert_eq!(self.project.output("two", "t"), text);
    }
}

#[test]
fn nothing_changed() {
    let chain = Chain::new();
    chain.ran(&[]);
    chain.ran(&[]);
    chain.gives("1\np\n");
}

#[test]
fn source_touched_with_the_same_bytes() {
    let chain = Chain::new();
    for seconds in [5, -500_000] {
        let time = std::time::SystemTime::now();
        let gap = Duration::from_secs(i64::unsigned_abs(seconds));
        let time = if seconds < 0 { time - gap } else { time + gap };
        std::fs::File::options().write(true).open(chain.path().join("src/in.txt")).unwrap().set_modified(time).unwrap();
        chain.ran(&[]);
    }
    // Another file of the same bytes in its place.
    std::fs::copy(chain.path().join("src/in.txt"), chain.path().join("src/new")).unwrap();
    std::fs::rename(chain.path().join("src/new"), chain.path().join("src/in.txt")).unwrap();
    chain.ran(&[]);
}

#[test]
fn source_edited_and_the_first_output_the_same() {
    let chain = Chain::new();
    chain.source("x\nz\nq\n");
    chain.ran(&["zero"]);
    chain.gives("1\np\n");
}

#[test]
fn source_edited_for_good() {
    let chain = Chain::new();
    chain.source("x\nx\n");
    chain.ran(&["zero", "one", "two"]);
    chain.gives("2\np\n");
}

#[test]
fn back_to_an_earlier_content() {
    let chain = Chain::new();
    chain.source("x\nx\n");
    chain.ran(&["zero", "one", "two"]);
    chain.source("x\ny\n");
    chain.ran(&[]);
    chain.gives("1\np\n");
}

/// An output that was copied out and deleted is given out again without a run.
#[test]
fn last_output_deleted_outside_the_store() {
    let chain = Chain::new();
    chain.project.say(&["out", "two", "--to", "here"]);
    std::fs::remove_dir_all(chain.path().join("here")).unwrap();
    chain.ran(&[]);
    chain.project.say(&["out", "two", "--to", "here"]);
    assert_eq!(std::fs::read_to_string(chain.path().join("here/t.txt")).unwrap(), "1\np\n");
}

/// Where even the store has lost it, its stage alone runs again.
#[test]
fn last_output_deleted_in_the_store() {
    let chain = Chain::new();
    std::fs::remove_file(store::blob(&chain.project, b"1\np\n")).unwrap();
    chain.ran(&["two"]);
    chain.gives("1\np\n");
}

#[test]
fn middle_output_deleted_in_the_store() {
    let chain = Chain::new();
    // `zero` and `one` give the same bytes, so this blob is the output of both.
    std::fs::remove_file(store::blob(&chain.project, b"1\n")).unwrap();
    chain.witness.clear();
    let run = chain.project.run();
    assert_eq!(run.code, Some(0));
    assert!(!run.executed.is_empty() && !run.executed.contains(&"two".to_owned()), "{:?}", run.executed);
    chain.gives("1\np\n");
    chain.ran(&[]);
}

#[test]
fn middle_output_tampered_with() {
    let chain = Chain::new();
    store::overwrite(&store::blob(&chain.project, b"1\n"), b"7\n");
    assert!(chain.project.plan().values().any(|fate| fate != "cached"), "the damage was not noticed");
    chain.project.write("src/p.txt", "another p\n");
    assert_eq!(chain.project.run().code, Some(0));
    chain.gives("1\nanother p\n");
    chain.ran(&[]);
}

/// Tampered with behind a restored time of change, after it was last hashed.
#[test]
fn middle_output_tampered_with_in_secret() {
    let chain = Chain::new();
    std::thread::sleep(Duration::from_millis(80));
    chain.ran(&[]);
    store::spoil(&store::blob(&chain.project, b"1\n"));
    chain.project.write("src/p.txt", "another p\n");
    assert_eq!(chain.project.run().code, Some(0));
    chain.gives("1\nanother p\n");
}

#[test]
fn command_changed_and_the_output_the_same() {
    let chain = Chain::new();
    chain.project.edit("trestle.yaml", "cat {in.n}", "cat  {in.n}");
    chain.ran(&["one"]);
    chain.project.edit("trestle.yaml", "cat  {in.n}", "cat {in.n}");
    chain.ran(&[]);
}

#[test]
fn only_the_second_source_changed() {
    let chain = Chain::new();
    chain.project.write("src/p.txt", "q\n");
    chain.ran(&["two"]);
    chain.gives("1\nq\n");
}

/// Whatever the first run made of it, the next one sees the new content in every stage, and never takes it for the old one.
#[test]
fn source_changed_while_its_stage_ran() {
    let chain = Chain::fresh(0.3);
    chain.source("x\nx\nx\n");
    chain.witness.clear();
    let running = crate::support::trestle(chain.path()).args(["run", "--format", "json"]).stdout(std::process::Stdio::null()).spawn();
    chain.witness.wait_for("zero");
    chain.source("x\nx\nx\nx\n");
    running.unwrap().wait_with_output().unwrap();
    chain.ran(&["zero", "one", "two"]);
    chain.gives("4\np\n");
    chain.ran(&[]);
    // What is found for the old content, if anything, belongs to the old content.
    chain.source("x\nx\nx\n");
    assert_eq!(chain.project.run().code, Some(0));
    chain.gives("3\np\n");
}

/// The same, with a source of the same length whose time of change is put back.
#[test]
fn source_changed_in_secret_while_its_stage_ran() {
    let chain = Chain::fresh(0.3);
    let path = chain.path().join("src/in.txt");
    chain.source("x\ny\nx\n");
    let time = std::fs::metadata(&path).unwrap().modified().unwrap();
    let running = crate::support::trestle(chain.path()).arg("run").stdout(std::process::Stdio::null()).spawn();
    chain.witness.wait_for("zero");
    std::fs::write(&path, "x\nx\nx\n").unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    running.unwrap().wait_with_output().unwrap();
    chain.ran(&["zero", "one", "two"]);
    chain.gives("3\np\n");
}

/// A stage may change the source that another reads later: what is recorded under a content was made from that content.
#[test]
fn source_changed_by_another_stage() {
    let project = Project::new("");
    let source = project.path().join("src.txt");
    project.write(
        "trestle.yaml",
        &format!(
            "stages:
  writer: {{ run: 'echo new > {}; echo done > {{out.o}}', out: {{ o: o }} }}
  reader: {{ run: 'cat {{in.src}} > {{out.o}}', in: {{ src: ./src.txt, after: writer }}, out: {{ o: o }} }}
",
            source.display()
        ),
    );
    project.write("src.txt", "old\n");
    // In its sandbox a stage cannot write to the project.
    assert_eq!(project.run_with(&[]).code, Some(1));
    assert_eq!(std::fs::read_to_string(&source).unwrap(), "old\n");
    project.run_with(&["--sandbox", "off"]);
    project.run();
    assert_eq!(project.output("reader", "o"), "new\n");
    project.write("src.txt", "old\n");
    assert_eq!(project.run().code, Some(0));
    assert_eq!(project.output("reader", "o"), "old\n");
}
