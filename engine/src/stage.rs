//! What a native stage is to the engine: a kind, typed parameters, declared inputs and outputs, and a function.
//!
//! A stage never sees the store, the pipeline file or the environment. It gets a [`Context`] with paths to read, paths to write
//! and a sink for progress, and everything that can change its outputs comes through its parameters and inputs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use schemars::{JsonSchema, Schema};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The format of what flows along an edge of the graph, such as `image-set`; the engine only compares names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Format(pub &'static str);

impl Format {
    /// Any file or folder: what a command writes and what a project file is.
    pub const ANY: Self = Self("any");

    /// A table for people: what the last stages of a pipeline give of it is shown at the end of a run.
    pub const TABLE: Self = Self("table");

    /// Whether an output of this format may be connected to an input of format `wanted`.
    pub fn fits(self, wanted: Self) -> bool {
        self == wanted || self == Self::ANY || wanted == Self::ANY
    }
}

impl<'de> Deserialize<'de> for Format {
    /// Names of formats are few and live as long as the program: each is kept once.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
        let name = String::deserialize(deserializer)?;
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        let known = names.get(name.as_str()).copied();
        Ok(Self(known.unwrap_or_else(|| {
            let kept: &'static str = Box::leak(name.into_boxed_str());
            names.insert(kept);
            kept
        })))
    }
}

/// How many values an input takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Arity {
    /// Exactly one.
    One,
    /// One or none.
    Optional,
    /// One or more: a gathering reference or a list.
    Many,
}

/// A named input of a stage kind.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct InPort {
    /// Name under `in:`.
    pub name: &'static str,
    /// Format that it takes.
    pub format: Format,
    /// How many.
    pub arity: Arity,
    /// One line for the reference documentation.
    pub doc: &'static str,
}

/// A named output of a stage kind: one file or one folder, as the stage writes it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct OutPort {
    /// Name after the dot in a reference.
    pub name: &'static str,
    /// Format that it gives.
    pub format: Format,
    /// Path below the stage's output folder, for example `model.safetensors` or `images`.
    pub path: &'static str,
    /// One line for the reference documentation.
    pub doc: &'static str,
}

/// How many threads a stage can use; never part of the key, since a stage must give the same bytes with any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Threads {
    /// Fewest that make sense.
    pub min: usize,
    /// Most that still help.
    pub max: usize,
}

impl Threads {
    /// A light stage.
    pub const ONE: Self = Self { min: 1, max: 1 };
    /// A stage that scales with the machine.
    pub const MANY: Self = Self { min: 1, max: usize::MAX };
}

/// A parameter that is well typed but makes no sense, found before anything runs.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ParamError {
    /// Dotted path below `with`, for example `schedule.steps`.
    pub path: String,
    /// What is wrong, in one sentence.
    pub message: String,
}

impl ParamError {
    /// A complaint about the parameter at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

/// Why a stage failed, in the words that a person sees.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct StageError {
    /// What happened, and where.
    pub message: String,
    /// The way out, if one is known.
    pub help: Option<String>,
}

impl StageError {
    /// An error without advice.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), help: None }
    }

    /// The same error with advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same error for people, who know nothing of the folder in which a stage works and which is gone with it: files there are named from it on, as
    /// the pipeline's inputs are (`in/data/…`).
    #[must_use]
    pub fn seen_from(mut self, folder: &Path) -> Self {
        let folder = format!("{}/", folder.display());
        for text in std::iter::once(&mut self.message).chain(&mut self.help) {
            *text = text.replace(&folder, "");
        }
        self
    }
}

/// A native stage kind.
///
/// # Contract
/// The outputs are a pure function of `VERSION`, the params and the contents (and labels) of the inputs, bit for bit, whatever
/// the number of threads. Whoever changes what a stage writes for the same params and inputs raises `VERSION`.
pub trait Stage: 'static {
    /// What `uses:` names.
    const KIND: &'static str;
    /// Raised whenever the same params and inputs would give other bytes; part of the key.
    const VERSION: u32;
    /// One line of help.
    const ABOUT: &'static str;
    /// What `with:` holds. Written back with every default made explicit before it enters the key.
    type Params: DeserializeOwned + Serialize + JsonSchema;

    /// The inputs, in the order of the documentation.
    fn inputs() -> Vec<InPort>;
    /// The outputs. All are written by every run.
    fn outputs() -> Vec<OutPort>;
    /// Complaints about values that have the right type.
    fn check(_params: &Self::Params) -> Vec<ParamError> {
        Vec::new()
    }
    /// Params that say how the work is done and cannot change what comes out of it, such as how often a checkpoint is written. They
    /// reach the stage and stay out of the key.
    fn unkeyed() -> &'static [&'static str] {
        &[]
    }
    /// How many threads the stage can use.
    fn threads(_params: &Self::Params) -> Threads {
        Threads::ONE
    }
    /// How many GPUs the stage needs; `resources: {gpus: N}` can ask for more. It sees those that it was granted, and no others.
    fn gpus(_params: &Self::Params) -> u32 {
        0
    }
    /// Does the work.
    ///
    /// # Errors
    /// Whatever keeps it from writing every output.
    fn run(params: &Self::Params, cx: &mut Context<'_>) -> Result<(), StageError>;
}

/// One value of an input: where it lies, and which expanded stage it came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// A file or a folder, read-only.
    pub path: PathBuf,
    /// The matrix coordinates of the stage that made it (`{"method": "bridged", "seed": 1}`); part of the key for gathered inputs, empty otherwise.
    pub labels: BTreeMap<String, Value>,
}

/// One report of progress.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub total: u64,
    /// Loss at this step, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    /// A word on what is being done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Where a running stage reports to.
pub trait Sink {
    /// Progress, at any rate; the sink thins it out.
    fn progress(&mut self, progress: Progress);
    /// A named figure that belongs to the record of the run (the last value of a name stands).
    fn metric(&mut self, name: &str, value: f64);
    /// A line for people, now and in the stage's log.
    fn note(&mut self, text: &str);
}

/// A sink that forgets, for tests.
#[derive(Debug, Default, Clone, Copy)]
pub struct Silent;

impl Sink for Silent {
    fn progress(&mut self, _: Progress) {}
    fn metric(&mut self, _: &str, _: f64) {}
    fn note(&mut self, _: &str) {}
}

/// All that a running stage sees of the world.
pub struct Context<'a> {
    inputs: BTreeMap<String, Vec<Input>>,
    outputs: BTreeMap<String, PathBuf>,
    threads: usize,
    kept: Option<PathBuf>,
    sink: &'a mut dyn Sink,
}

impl<'a> Context<'a> {
    /// A context over paths that exist (inputs) and whose parents exist (outputs).
    pub fn new(inputs: BTreeMap<String, Vec<Input>>, outputs: BTreeMap<String, PathBuf>, threads: usize, sink: &'a mut dyn Sink) -> Self {
        Self { inputs, outputs, threads, kept: None, sink }
    }

    /// The same with a folder for what a later try goes on from.
    #[must_use]
    pub fn keeping(self, kept: Option<PathBuf>) -> Self {
        Self { kept, ..self }
    }

    /// A folder, which need not exist yet, for what a later try can go on from when this one is killed. Whoever next runs a stage of the same
    /// kind, params and inputs finds it, and once the outputs are stored it goes. Nothing in it may change what comes out.
    pub fn kept(&self) -> Option<&Path> {
        self.kept.as_deref()
    }

    /// The path of an input of arity one.
    ///
    /// # Errors
    /// If the pipeline does not connect it, which the engine rules out beforehand for declared inputs.
    pub fn input(&self, name: &str) -> Result<&Path, StageError> {
        self.optional(name).ok_or_else(|| StageError::new(format!("input `{name}` is not connected")))
    }

    /// The path of an optional input.
    pub fn optional(&self, name: &str) -> Option<&Path> {
        self.inputs(name).first().map(|input| input.path.as_path())
    }

    /// All values of an input, in a fixed order.
    pub fn inputs(&self, name: &str) -> &[Input] {
        self.inputs.get(name).map_or(&[], Vec::as_slice)
    }

    /// Where to write an output; its parent folder exists, it does not.
    ///
    /// # Errors
    /// If the stage kind does not declare it.
    pub fn output(&self, name: &str) -> Result<&Path, StageError> {
        self.outputs
            .get(name)
            .map(PathBuf::as_path)
            .ok_or_else(|| StageError::new(format!("output `{name}` is not declared by this stage kind")))
    }

    /// Threads granted; rayon's global pool has this size already.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Reports progress.
    pub fn progress(&mut self, progress: Progress) {
        self.sink.progress(progress);
    }

    /// Reports a named figure for the record of the run.
    pub fn metric(&mut self, name: &str, value: f64) {
        self.sink.metric(name, value);
    }

    /// Says a line to people: something that they should know, and that is no error.
    pub fn note(&mut self, text: &str) {
        self.sink.note(text);
    }
}

type CheckFn = fn(&Value) -> Result<Checked, Complaints>;
type RunFn = fn(&Value, &mut Context<'_>) -> Result<(), StageError>;

/// Parameters that passed their type and the stage's own check.
#[derive(Debug, Clone)]
pub struct Checked {
    /// With every default made explicit: this is what enters the key.
    pub params: Value,
    /// Those that do not, as a map: see [`Stage::unkeyed`].
    pub aside: Map<String, Value>,
    /// Threads that the stage can use with these parameters.
    pub threads: Threads,
    /// GPUs that it needs with them.
    pub gpus: u32,
}

/// What is wrong with a `with:` value.
#[derive(Debug, Clone)]
pub enum Complaints {
    /// A value has the wrong type: the first one, since nothing behind it could be read.
    Type(ParamError),
    /// All types are right, but these values make no sense.
    Sense(Vec<ParamError>),
}

impl std::ops::Deref for Complaints {
    type Target = [ParamError];

    fn deref(&self) -> &[ParamError] {
        match self {
            Self::Type(complaint) => std::slice::from_ref(complaint),
            Self::Sense(complaints) => complaints,
        }
    }
}

/// A stage kind as a value, so that the engine can keep many in one registry.
pub struct Kind {
    /// [`Stage::KIND`].
    pub name: &'static str,
    /// [`Stage::VERSION`].
    pub version: u32,
    /// [`Stage::ABOUT`].
    pub about: &'static str,
    /// [`Stage::inputs`].
    pub inputs: Vec<InPort>,
    /// [`Stage::outputs`].
    pub outputs: Vec<OutPort>,
    /// JSON Schema of [`Stage::Params`].
    pub schema: Schema,
    check: CheckFn,
    run: RunFn,
}

impl Kind {
    /// The value of a stage type.
    pub fn of<S: Stage>() -> Self {
        Self {
            name: S::KIND,
            version: S::VERSION,
            about: S::ABOUT,
            inputs: S::inputs(),
            outputs: S::outputs(),
            schema: schemars::schema_for!(S::Params),
            check: check::<S>,
            run: run::<S>,
        }
    }

    /// Types and checks a `with:` value.
    ///
    /// # Errors
    /// What is wrong, each complaint with its path.
    pub fn check(&self, with: &Value) -> Result<Checked, Complaints> {
        (self.check)(with)
    }

    /// Runs the stage.
    ///
    /// # Errors
    /// The stage's own, or one about parameters that do not have their type.
    pub fn run(&self, params: &Value, cx: &mut Context<'_>) -> Result<(), StageError> {
        (self.run)(params, cx)
    }
}

fn decode<P: DeserializeOwned>(with: &Value) -> Result<P, ParamError> {
    serde_path_to_error::deserialize(with).map_err(|e| ParamError::new(e.path().to_string(), e.into_inner().to_string()))
}

fn check<S: Stage>(with: &Value) -> Result<Checked, Complaints> {
    let typed: S::Params = decode(with).map_err(Complaints::Type)?;
    let complaints = S::check(&typed);
    if !complaints.is_empty() {
        return Err(Complaints::Sense(complaints));
    }
    let mut params = serde_json::to_value(&typed).map_err(|e| Complaints::Type(ParamError::new("", e.to_string())))?;
    let mut aside = Map::new();
    if let Value::Object(map) = &mut params {
        aside.extend(S::unkeyed().iter().filter_map(|name| map.shift_remove_entry(*name)));
    }
    Ok(Checked { params, aside, threads: S::threads(&typed), gpus: S::gpus(&typed) })
}

fn run<S: Stage>(params: &Value, cx: &mut Context<'_>) -> Result<(), StageError> {
    let typed: S::Params = decode(params).map_err(|e| StageError::new(format!("with.{}: {}", e.path, e.message)))?;
    S::run(&typed, cx)
}

/// The stage kinds that a pipeline may use, by name.
#[derive(Default)]
pub struct Registry {
    kinds: BTreeMap<&'static str, Kind>,
}

impl Registry {
    /// The same registry with one kind more; a second kind of the same name replaces the first.
    #[must_use]
    pub fn with<S: Stage>(mut self) -> Self {
        self.kinds.insert(S::KIND, Kind::of::<S>());
        self
    }

    /// The kind called `name`.
    pub fn get(&self, name: &str) -> Option<&Kind> {
        self.kinds.get(name)
    }

    /// All kinds, by name.
    pub fn kinds(&self) -> impl Iterator<Item = &Kind> {
        self.kinds.values()
    }
}
