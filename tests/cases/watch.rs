//! `trestle watch`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::changes::chain;
use crate::support::{Project, trestle};

/// A watch under way; ended with this.
struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    fn begin(project: &Project, args: &[&str]) -> Self {
        let mut child = trestle(project.path()).arg("watch").args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        for stream in [Box::new(out) as Box<dyn std::io::Read + Send>, Box::new(err)] {
            let sender = sender.clone();
            std::thread::spawn(move || BufReader::new(stream).lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        }
        Self { child, lines }
    }

    /// All lines up to one that contains `text`.
    #[track_caller]
    fn until(&self, text: &str) -> String {
        let mut seen = String::new();
        loop {
            let line = self.lines.recv_timeout(Duration::from_secs(20)).unwrap_or_else(|_| panic!("no {text:?} after:\n{seen}"));
            seen.push_str(&line);
            seen.push('\n');
            if line.contains(text) {
                return seen;
            }
        }
    }

    fn signal(&self, signal: &str) {
        assert!(std::process::Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Interrupts it once nothing more is said: a change that is met by two runs is one that a run may still be at.
    fn end(mut self) -> Option<i32> {
        while self.lines.recv_timeout(Duration::from_secs(1)).is_ok() {}
        self.signal("-INT");
        self.child.wait().unwrap().code()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It has ended already, unless a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_change_of_a_source_or_of_the_pipeline_runs_again() {
    let project = chain();
    let watch = Watch::begin(&project, &[]);
    assert!(watch.until("watching 2 files").contains("3 executed"));
    project.write("src.txt", "a\nb\nc\n");
    let said = watch.until("watching");
    assert!(said.contains("changed: src.txt") && said.contains("3 executed"), "{said}");
    // Editors write another file and rename it.
    project.write("new", &std::fs::read_to_string(project.path().join("trestle.yaml")).unwrap().replace("factor: 2", "factor: 5"));
    std::fs::rename(project.path().join("new"), project.path().join("trestle.yaml")).unwrap();
    let said = watch.until("watching");
    assert!(said.contains("changed: trestle.yaml") && said.contains("2 executed, 1 cached"), "{said}");
    assert_eq!(project.output("words", "t"), "result: 15\n");
    assert_eq!(watch.end(), Some(0));
}

#[test]
fn a_broken_pipeline_is_shown_and_mended() {
    let project = chain();
    let watch = Watch::begin(&project, &[]);
    watch.until("watching");
    project.edit("trestle.yaml", "stages:", "stagesss:");
    // What is said about the mistake and that it watches come by two pipes, in any order.
    watch.until("stagesss");
    // A source that is known from before counts even now.
    project.edit("trestle.yaml", "stagesss:", "stages:");
    watch.until("0 executed, 3 cached");
    watch.until("watching");
    std::fs::remove_file(project.path().join("src.txt")).unwrap();
    watch.until("src.txt");
    project.write("src.txt", "1\n2\n3\n4\n");
    watch.until("3 executed");
    watch.until("watching");
    assert_eq!(watch.end(), Some(0));
}

#[test]
fn what_the_pipeline_does_not_read_runs_nothing() {
    let project = chain();
    let watch = Watch::begin(&project, &["times", "--format", "json"]);
    watch.until(r#""event":"watching""#);
    project.write("other.txt", "x");
    std::thread::sleep(Duration::from_millis(400));
    project.write("src.txt", "z\n");
    let said = watch.until(r#""event":"watching""#);
    assert!(said.starts_with(r#"{"event":"changed","sources":["src.txt"]}"#) && !said.contains("words"), "{said}");
    assert_eq!(watch.end(), Some(0));
}

#[test]
fn a_change_during_a_run_runs_again_and_an_interruption_ends_both() {
    let project = chain();
    project.edit("trestle.yaml", "run: \"sed", "run: \"sleep 0.5; sed");
    let watch = Watch::begin(&project, &["--poll", "0.1"]);
    watch.until("run     words");
    project.write("src.txt", "1\n");
    let said = watch.until("changed: src.txt");
    assert!(said.contains("3 executed"), "{said}");
    watch.until("watching");
    project.edit("trestle.yaml", "sleep 0.5", "sleep 20");
    watch.until("run     words");
    let start = std::time::Instant::now();
    assert_eq!(watch.end(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(10));
}
