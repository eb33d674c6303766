//! The build systems: how each gets the graph, is called, and says what it did.

mod make;
mod ninja;
mod python;
mod trestle;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::dag::{Dag, output};

/// What is done with a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Everything runs.
    Full,
    /// Nothing changed.
    Noop,
    /// Nothing changed; what would run is asked for.
    Plan,
    /// A source of the last stage alone changed.
    Leaf,
    /// A source of a stage in the middle changed.
    Mid,
    /// Sources are hashed for the first time.
    Hash,
    /// Unchanged sources are looked at, beside `git status`.
    GitStatus,
}

/// A build system as it is called here.
pub struct Tool {
    /// Its name in tables.
    pub name: String,
    /// What it says its version is.
    pub version: String,
    /// Its program.
    pub program: String,
    kind: Kind,
    /// Further arguments of a full run.
    extra: Vec<String>,
    /// Stages at a time, where not what the tool takes by itself.
    jobs: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Trestle,
    Ninja,
    N2,
    Make,
    Snakemake,
    Dvc,
}

/// Peers by name.
pub const PEERS: [&str; 5] = ["ninja", "n2", "make", "snakemake", "dvc"];
/// The yardstick.
pub const YARDSTICK: &str = "ninja";
/// Largest graph that the peers written in Python are given: beyond it a full run takes hours.
const PYTHON_MOST: usize = 1000;

impl Tool {
    /// A peer, at this path or in `PATH`; says why it cannot be called.
    pub fn peer(name: &str, path: Option<&Path>, jobs: Option<usize>) -> Result<Self, String> {
        let kind = match name {
            "ninja" => Kind::Ninja,
            "n2" => Kind::N2,
            "make" => Kind::Make,
            "snakemake" => Kind::Snakemake,
            "dvc" => Kind::Dvc,
            _ => return Err(format!("`{name}` is no peer; there are {}", PEERS.join(", "))),
        };
        let program = path.map_or_else(|| name.to_owned(), |path| path.display().to_string());
        Ok(Self { name: name.to_owned(), version: version(&program)?, program, kind, extra: Vec::new(), jobs })
    }

    /// Trestle; a variant has a name and further arguments of `trestle run`.
    pub fn trestle(path: &Path, variant: Option<&str>, extra: Vec<String>, jobs: Option<usize>) -> Result<Self, String> {
        let program = path.display().to_string();
        let name = variant.map_or_else(|| "trestle".to_owned(), |variant| format!("trestle {variant}"));
        Ok(Self { name, version: version(&program)?, program, kind: Kind::Trestle, extra, jobs })
    }

    /// Whether it takes part in a phase on a graph of `n` stages.
    pub fn takes_part(&self, phase: Phase, n: usize) -> bool {
        let plans = self.kind != Kind::N2;
        let small = !matches!(self.kind, Kind::Snakemake | Kind::Dvc) || n <= PYTHON_MOST;
        // A variant differs in how stages run, and in nothing else.
        let variant = self.kind == Kind::Trestle && self.name != "trestle";
        small && (plans || phase != Phase::Plan) && (!variant || phase == Phase::Full)
    }

    /// Writes its file into a project that has the sources.
    pub fn write(&self, project: &Path, dag: &Dag) -> Result<(), String> {
        let written = match self.kind {
            Kind::Trestle => trestle::write(project, dag),
            Kind::Ninja | Kind::N2 => ninja::write(project, dag),
            Kind::Make => make::write(project, dag),
            Kind::Snakemake => python::write_snakefile(project, dag),
            Kind::Dvc => python::write_dvc(project, dag, &self.program),
        };
        written.map_err(|e| format!("{}: {e}", project.display()))
    }

    /// Puts aside all that it made, so that the next run is a full one. What is removed would be charged to that run: for a minute ext4 passes
    /// over every inode that was given back, one by one, whoever asks for a new one.
    pub fn forget(&self, project: &Path) -> Result<(), String> {
        let state: &[&str] = match self.kind {
            Kind::Trestle => &[".trestle"],
            Kind::Ninja => &[".ninja_log", ".ninja_deps"],
            Kind::N2 => &[".n2_db"],
            Kind::Make => &[],
            Kind::Snakemake => &[".snakemake"],
            Kind::Dvc => &["dvc.lock", ".dvc/cache", ".dvc/tmp"],
        };
        let forgotten = state.iter().chain(["out"].iter()).try_for_each(|name| put_aside(project, name));
        let made = || if self.kind == Kind::Trestle { Ok(()) } else { fs::create_dir(project.join("out")) };
        forgotten.and_then(|()| made()).map_err(|e| format!("{}: {e}", project.display()))
    }

    /// The command of a phase.
    pub fn command(&self, phase: Phase) -> Vec<String> {
        let plan = phase == Phase::Plan;
        let jobs = self.jobs.map(|jobs| format!("-j{jobs}"));
        let cores = || jobs.clone().unwrap_or_else(|| format!("-j{}", cores()));
        let mut words: Vec<String> = match (self.kind, plan) {
            (Kind::Trestle, true) => vec!["plan".into()],
            (Kind::Trestle, false) => ["run".to_owned()].into_iter().chain(jobs).chain(self.extra.clone()).collect(),
            (Kind::Ninja, true) => vec!["-n".into()],
            (Kind::Ninja | Kind::N2, _) => jobs.map(|jobs| vec!["-j".to_owned(), jobs[2..].to_owned()]).unwrap_or_default(),
            (Kind::Make, true) => vec!["-n".into()],
            // By itself, make runs one command at a time; the others as many as there are processors.
            (Kind::Make, false) => vec![cores()],
            (Kind::Snakemake, true) => vec!["-n".into()],
            (Kind::Snakemake, false) => vec!["--cores".into(), cores()[2..].to_owned()],
            (Kind::Dvc, true) => vec!["repro".into(), "--dry".into()],
            (Kind::Dvc, false) => vec!["repro".into()],
        };
        words.insert(0, self.program.clone());
        words
    }

    /// How many stages a command ran, from what it printed and from the outputs before and after it.
    pub fn ran(&self, phase: Phase, log: &Path, project: &Path, before: &Stamps) -> Result<usize, String> {
        if self.kind == Kind::Trestle {
            return trestle::ran(phase, log);
        }
        Ok(before.changed(&Stamps::of(project)?))
    }

    /// The bytes of a stage's output.
    pub fn output(&self, project: &Path, stage: usize) -> Result<Vec<u8>, String> {
        if self.kind == Kind::Trestle {
            return trestle::output(&self.program, project, stage);
        }
        let path = project.join(output(stage));
        fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))
    }
}

/// Times and inodes of all outputs in a project.
#[derive(Debug, Default)]
pub struct Stamps(HashMap<PathBuf, (i64, i64, u64)>);

impl Stamps {
    /// Those of a project now; none where there are no outputs.
    pub fn of(project: &Path) -> Result<Self, String> {
        let folder = project.join("out");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(format!("{}: {e}", folder.display())),
        };
        let stamp = |entry: io::Result<fs::DirEntry>| {
            let path = entry?.path();
            let meta = fs::metadata(&path)?;
            Ok((path, (meta.mtime(), meta.mtime_nsec(), meta.ino())))
        };
        let text = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "txt");
        let all: io::Result<HashMap<_, _>> =
            entries.map(stamp).filter(|entry| entry.as_ref().map_or(true, |(path, _)| text(path))).collect();
        all.map(Self).map_err(|e| format!("{}: {e}", folder.display()))
    }

    /// How many of the later ones are new or other than here.
    fn changed(&self, later: &Self) -> usize {
        later.0.iter().filter(|(path, stamp)| self.0.get(*path) != Some(stamp)).count()
    }
}

/// Processors of this machine that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

/// The first line with a digit of `program --version`.
pub fn version(program: &str) -> Result<String, String> {
    let output = Command::new(program).arg("--version").output().map_err(|e| format!("`{program}` does not start: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.contains(|c: char| c.is_ascii_digit()));
    line.map(|line| line.trim().to_owned()).ok_or_else(|| format!("`{program} --version` says nothing"))
}

/// Moves what is called `name` in a project out of it, into the folder beside it that goes with the projects.
fn put_aside(project: &Path, name: &str) -> io::Result<()> {
    let (path, aside) = (project.join(name), project.with_file_name("aside"));
    if !path.exists() {
        return Ok(());
    }
    fs::create_dir_all(&aside)?;
    let number = fs::read_dir(&aside)?.count();
    fs::rename(path, aside.join(number.to_string()))
}

/// Removes a file or a folder, if it is there.
pub fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub use python::call;

/// Inputs of a stage as paths in the project.
fn paths(inputs: &[crate::dag::Input]) -> Vec<String> {
    inputs.iter().map(crate::dag::Input::path).collect()
}
