//! A scratch project and what a run of the real binary in it did.

pub mod model;
pub mod mount;
pub mod processes;
pub mod store;
pub mod terminal;
mod witness;

pub use witness::{Witness, await_that};

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A folder with a `trestle.yaml`; its cache is beside it.
pub struct Project {
    dir: TempDir,
}

/// What one command printed and how it ended.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// What a run did, from its JSON events.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    /// Stages that were executed and are done, in order.
    pub executed: Vec<String>,
    pub events: Vec<Value>,
    pub summary: Value,
}

impl Run {
    pub fn count(&self, what: &str) -> u64 {
        self.summary[what].as_u64().unwrap()
    }

    /// Asserts that all went well and exactly these stages were executed.
    #[track_caller]
    pub fn did(&self, stages: &[&str]) {
        let executed: BTreeSet<&str> = self.executed.iter().map(String::as_str).collect();
        assert_eq!(executed, stages.iter().copied().collect(), "{:#?}", self.events);
        assert_eq!(self.executed.len(), stages.len(), "a stage ran twice");
        assert_eq!(self.code, Some(0));
    }
}

/// The real binary with a clean environment.
pub fn trestle(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trestle"));
    let path = std::env::var_os("PATH").unwrap();
    command.current_dir(dir).env_clear().env("PATH", path).env("NO_COLOR", "1").env("COLUMNS", "100").stdin(Stdio::null());
    command
}

/// The real binary as the leader of a session of its own, so that all that it starts can be found.
pub fn trestle_in_session(dir: &Path) -> Command {
    let plain = trestle(dir);
    let mut command = Command::new("setsid");
    command.arg(plain.get_program()).current_dir(dir).env_clear().stdin(Stdio::null());
    command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

pub fn text(output: Output) -> Done {
    let utf8 = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Done { code: output.status.code(), out: utf8(output.stdout), err: utf8(output.stderr) }
}

impl Project {
    /// A project with this pipeline.
    pub fn new(pipeline: &str) -> Self {
        let project = Self { dir: tempfile::tempdir().unwrap() };
        project.write("trestle.yaml", pipeline);
        project
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub fn edit(&self, name: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path().join(name)).unwrap();
        assert!(text.contains(from), "{name} has no {from:?}");
        self.write(name, &text.replace(from, to));
    }

    /// Runs a command to its end.
    pub fn call(&self, args: &[&str]) -> Done {
        text(trestle(self.path()).args(args).output().unwrap())
    }

    /// Runs a command that must end well; gives what it printed.
    #[track_caller]
    pub fn say(&self, args: &[&str]) -> String {
        let done = self.call(args);
        assert_eq!(done.code, Some(0), "{args:?}: {}{}", done.out, done.err);
        done.out
    }

    /// `trestle run --format json` with more arguments.
    pub fn run_with(&self, args: &[&str]) -> Run {
        let output = trestle(self.path()).args(["run", "--format", "json"]).args(args).output().unwrap();
        parse(output)
    }

    /// Plans, runs, and holds the two to each other: what runs was planned as "run" or "later", and all that was planned as "run" runs.
    #[track_caller]
    pub fn run(&self) -> Run {
        let planned = self.plan();
        let run = self.run_with(&[]);
        for (stage, fate) in &planned {
            let ran = run.executed.contains(stage);
            match fate.as_str() {
                "run" => assert!(ran || run.code != Some(0), "{stage} was planned and did not run"),
                "cached" => assert!(!ran, "{stage} ran although it was planned as cached"),
                _ => {}
            }
        }
        if run.code == Some(0) {
            assert!(self.plan().values().all(|fate| fate == "cached"), "something is left to do after a good run");
        }
        run
    }

    /// Fates by stage.
    pub fn plan(&self) -> BTreeMap<String, String> {
        let out = self.say(&["plan", "--format", "json"]);
        let lines = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines
            .filter(|line| line["event"] == "plan")
            .map(|line| (line["stage"].as_str().unwrap().to_owned(), line["fate"].as_str().unwrap().to_owned()))
            .collect()
    }

    /// The text of an output that is one file.
    #[track_caller]
    pub fn output(&self, stage: &str, name: &str) -> String {
        let path = self.say(&["out", stage, name]);
        std::fs::read_to_string(self.path().join(path.trim())).unwrap()
    }

    /// The blobs of the cache.
    pub fn blobs(&self) -> Vec<PathBuf> {
        files(&self.path().join(".trestle/blobs"))
    }
}

fn parse(output: Output) -> Run {
    let done = text(output);
    let events: Vec<Value> = done.out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line}: {e}"))).collect();
    let summary = events.last().cloned().unwrap_or_else(|| panic!("no events; {}", done.err));
    assert_eq!(summary["event"], "summary", "{}", done.err);
    let executed =
        events.iter().filter(|event| event["event"] == "done").map(|event| event["stage"].as_str().unwrap().to_owned()).collect();
    Run { code: done.code, executed, events, summary }
}

/// All files below a folder, sorted.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// A number from the environment, by which the long tests are made longer.
pub fn number(name: &str, default: u32) -> u32 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}
