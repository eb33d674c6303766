//! A pipeline ready to be planned: params filled in, matrices expanded, references resolved, stages in topological order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use litemap::LiteMap;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::compiled::Dependency;
use crate::stage::{Format, Threads};
use crate::template::plain;

/// Matrix coordinates of an expanded stage. Stages are many and their maps small: a node of a `BTreeMap` has room for eleven entries.
pub type Labels = LiteMap<String, Value>;

/// Outputs of a stage, by name.
pub type Outputs = LiteMap<String, Output>;

/// Place of a stage in [`Pipeline::stages`].
pub type StageId = usize;

/// The resolved pipeline.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// Its name: `name:`, else the file's.
    pub name: String,
    /// The folder of the file; paths in it are relative to this.
    pub root: PathBuf,
    /// Params after overrides.
    pub params: Map<String, Value>,
    /// Units of every named pool.
    pub pools: BTreeMap<String, u32>,
    /// Expanded stages; each comes after all that it reads from.
    pub stages: Vec<Stage>,
    /// Stages of the file that cannot be expanded yet, each after those that it reads from.
    pub later: Vec<Later>,
    /// What it was made from, besides its own file and what the caller chose.
    pub dependencies: Vec<Dependency>,
}

/// A stage of the file whose `foreach` takes a list that is not made yet, or that reads from such a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Later {
    /// Its name in the file.
    pub name: String,
    /// The stage that makes the list.
    pub stage: StageId,
    /// The output that is the list.
    pub output: String,
    /// The name by which the list is asked for when the pipeline is resolved again.
    pub asked: String,
}

/// One expanded stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// `adapt[seed=1]`: readable, stable and unique.
    pub name: String,
    /// `{seed: 1}`.
    pub labels: Labels,
    /// What it does.
    pub action: Action,
    /// Inputs, by name.
    pub inputs: Vec<Slot>,
    /// What it gives. Many stages call their outputs the same, and share them.
    pub outputs: Arc<Outputs>,
    /// Threads that it can use.
    pub threads: Threads,
    /// How it is to be run. Nothing here enters the key. Most stages say nothing and share one.
    pub settings: Arc<Settings>,
}

/// How a stage is to be run, whatever it does. Never part of its key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Bytes of memory that it is to be granted; 0 if it did not say.
    pub memory: u64,
    /// GPUs that it needs.
    pub gpus: u32,
    /// Units of named pools that it holds while it runs.
    pub pools: BTreeMap<String, u32>,
    /// After this long it is ended, and has failed.
    pub timeout: Option<Duration>,
    /// What follows a failure.
    pub retries: Retries,
    /// Among ready stages those of higher priority start first; 0 if it did not say.
    pub priority: i32,
    /// False for a stage that is run every time, such as one that asks a server what is new.
    pub cache: bool,
    /// False for a stage whose outputs are not decided by its inputs: what it gave once stands, and nobody expects the same bytes again.
    pub pure: bool,
    /// Whether a command may use the network.
    pub network: bool,
    /// Words by which stages can be chosen.
    pub tags: Vec<String>,
}

impl Settings {
    /// Those of a stage that says nothing.
    pub fn shared() -> Arc<Self> {
        static SHARED: LazyLock<Arc<Settings>> = LazyLock::new(Arc::default);
        Arc::clone(&SHARED)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            memory: 0,
            gpus: 0,
            pools: BTreeMap::new(),
            timeout: None,
            retries: Retries::default(),
            priority: 0,
            cache: true,
            pure: true,
            network: true,
            tags: Vec::new(),
        }
    }
}

/// How often a failed stage is tried again, and after which pause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Retries {
    /// Most tries after the first.
    pub times: u32,
    /// Pause before the second try; it doubles with each further one.
    pub delay: Duration,
}

/// What a stage does. There are many, so what few of them have takes little room.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// A native stage.
    Native {
        /// Name of the kind.
        kind: String,
        /// Version of the kind.
        version: u32,
        /// Params with every default explicit: those that enter the key.
        params: Box<Value>,
        /// Params that only say how the work is done.
        #[serde(default, skip_serializing_if = "is_empty")]
        aside: Box<Map<String, Value>>,
    },
    /// A command.
    Command {
        /// What the shell gets, paths filled in.
        script: Box<str>,
        /// The words before the script.
        shell: Arc<[String]>,
        /// Declared variables.
        env: BTreeMap<String, String>,
        /// Where the shell starts, relative to the work folder; empty for the work folder itself.
        workdir: Arc<str>,
        /// The output that takes what the command prints to standard output.
        stdout: Option<Arc<str>>,
    },
}

fn is_empty(aside: &Map<String, Value>) -> bool {
    aside.is_empty()
}

/// The params of a native stage, with those that do not enter the key.
pub fn with_all(params: &Value, aside: &serde_json::Map<String, Value>) -> Value {
    let mut all = params.clone();
    if let Value::Object(map) = &mut all {
        map.extend(aside.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    all
}

/// An output of a stage.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Output {
    /// Where the stage writes it, relative to its work folder.
    pub path: String,
    /// What it is.
    pub format: Format,
}

/// A connected input. Its names are those of many others, which share them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    /// Name under `in:`.
    pub name: Arc<str>,
    /// Whether it takes many values, whose labels reach the stage and so enter the key.
    pub many: bool,
    /// Its values, in an order that does not depend on the order of the file for gathered ones.
    pub values: Vec<Bound>,
}

/// One value of an input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// Where it comes from.
    pub origin: Origin,
    /// Where the stage finds it, relative to its work folder.
    pub place: Arc<str>,
    /// Coordinates of the stage that made it; empty for a single value.
    pub labels: Labels,
}

/// Where the value of an input comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// A file or folder of the project.
    File {
        /// Absolute path.
        path: Arc<Path>,
        /// As written.
        written: Arc<str>,
    },
    /// An output of an earlier stage.
    Output {
        /// The stage.
        stage: StageId,
        /// Name of the output.
        output: Arc<str>,
    },
}

/// The words before the script of a command that names no shell: it ends at the first error, and at a variable that is not set.
pub const DEFAULT_SHELL: [&str; 4] = ["/bin/sh", "-e", "-u", "-c"];

/// [`DEFAULT_SHELL`], which most commands share.
pub fn default_shell() -> Arc<[String]> {
    static SHARED: LazyLock<Arc<[String]>> = LazyLock::new(|| DEFAULT_SHELL.map(str::to_owned).into());
    Arc::clone(&SHARED)
}

impl Stage {
    /// `adapt`: its name in the file.
    pub fn base(&self) -> &str {
        base_of(&self.name)
    }

    /// Stages that this one reads from, without repeats.
    pub fn upstream(&self) -> Vec<StageId> {
        let origins = self.inputs.iter().flat_map(|slot| &slot.values).map(|bound| &bound.origin);
        let mut ids: Vec<StageId> =
            origins.filter_map(|origin| if let Origin::Output { stage, .. } = origin { Some(*stage) } else { None }).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

impl Pipeline {
    /// The stage called `name`.
    pub fn find(&self, name: &str) -> Option<StageId> {
        self.stages.iter().position(|stage| stage.name == name)
    }

    /// What a bound value is called in messages: a path or `stage.output`.
    pub fn describe(&self, origin: &Origin) -> String {
        match origin {
            Origin::File { written, .. } => written.to_string(),
            Origin::Output { stage, output } => format!("{}.{output}", self.stages[*stage].name),
        }
    }

    /// For every stage, those that read from it.
    pub fn downstream(&self) -> Vec<Vec<StageId>> {
        let mut readers = vec![Vec::new(); self.stages.len()];
        for (id, stage) in self.stages.iter().enumerate() {
            for up in stage.upstream() {
                readers[up].push(id);
            }
        }
        readers
    }
}

/// `adapt[seed=1]` to `adapt`.
pub fn base_of(name: &str) -> &str {
    name.split('[').next().unwrap_or(name)
}

/// `adapt` and `{seed: 1}` to `adapt[seed=1]`.
pub fn expanded_name(base: &str, labels: &Labels) -> String {
    if labels.is_empty() {
        return base.to_owned();
    }
    let coordinates: Vec<String> = labels.iter().map(|(axis, value)| format!("{axis}={}", plain(value))).collect();
    format!("{base}[{}]", coordinates.join(","))
}

/// An order of labels that people expect: numbers by value, everything else as text.
pub fn compare_labels(a: &Labels, b: &Labels) -> std::cmp::Ordering {
    let pairs = a.iter().zip(b.iter()).map(|((ka, va), (kb, vb))| {
        ka.cmp(kb).then_with(|| match (va.as_f64(), vb.as_f64()) {
            (Some(x), Some(y)) => x.total_cmp(&y),
            _ => plain(va).cmp(&plain(vb)),
        })
    });
    pairs.fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then).then(a.len().cmp(&b.len()))
}
