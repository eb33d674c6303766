//! A pipeline as written: the shape of the file with its places, before any value is filled in.

mod file;
mod reader;
mod stage;
mod template;

use crate::problem::{Problems, Spanned};
use crate::source::{Entries, Key, Node};

/// Keys at the top of the file.
pub const TOP_KEYS: [&str; 8] = ["name", "about", "params", "profiles", "include", "pools", "templates", "stages"];
/// Keys of an entry of `include`.
pub const INCLUDE_KEYS: [&str; 3] = ["file", "as", "params"];
/// Keys of a stage.
pub const STAGE_KEYS: [&str; 19] = [
    "about",
    "uses",
    "run",
    "in",
    "with",
    "out",
    "matrix",
    "env",
    "shell",
    "workdir",
    "stdout",
    "resources",
    "timeout",
    "retries",
    "priority",
    "cache",
    "pure",
    "network",
    "tags",
];
/// Those keys of a stage that say how it is run, not what it does.
pub const SETTING_KEYS: [&str; 8] = ["resources", "timeout", "retries", "priority", "cache", "pure", "network", "tags"];

/// The whole file.
#[derive(Debug, Clone, Default)]
pub struct Spec {
    /// `name:`, if it has one.
    pub name: Option<Spanned<String>>,
    /// `params:` in the order of the file.
    pub params: Entries,
    /// `profiles:`, maps of params by name.
    pub profiles: Entries,
    /// `include:`.
    pub includes: Vec<IncludeSpec>,
    /// `pools:`, units by name.
    pub pools: Entries,
    /// `stages:` in the order of the file, without those whose shape is wrong.
    pub stages: StageSpecs,
    /// Names of stages whose shape is wrong; what refers to them is not complained about.
    pub broken: Vec<String>,
}

/// One entry of `include:`.
#[derive(Debug, Clone)]
pub struct IncludeSpec {
    /// `file:`, relative to the file that includes.
    pub file: Spanned<String>,
    /// `as:`, which stands before the names of its stages.
    pub name: Spanned<String>,
    /// `params:`, a map.
    pub params: Option<Node>,
}

/// The entries of `stages:`. Each is let go when it is expanded, so each has memory of its own.
pub type StageSpecs = Vec<Box<StageSpec>>;

/// One entry of `stages:`. There can be very many, so what few of them have lies apart.
#[derive(Debug, Clone)]
pub struct StageSpec {
    /// Its key; with the names of the files that include it before it, once those are known.
    pub name: Spanned<String>,
    /// Which of the pipeline's files it stands in; 0 until that is known.
    pub unit: u32,
    /// `uses:` or `run:`.
    pub action: ActionSpec,
    /// `in:`.
    pub inputs: Entries,
    /// `matrix:`.
    pub matrix: Option<Box<MatrixSpec>>,
    /// `foreach:`, the name of the item and the list.
    pub foreach: Option<Box<(Key, Node)>>,
    /// `when:`, a condition.
    pub when: Option<Box<Node>>,
    /// The [`SETTING_KEYS`] that it has.
    pub settings: Entries,
}

impl StageSpec {
    /// `matrix:`, empty if left out.
    pub fn matrix(&self) -> &MatrixSpec {
        static NONE: MatrixSpec = MatrixSpec { axes: Vec::new(), include: None, exclude: None };
        self.matrix.as_deref().unwrap_or(&NONE)
    }
}

/// `matrix:`, as written.
#[derive(Debug, Clone, Default)]
pub struct MatrixSpec {
    /// Each axis is a list or an interpolation that gives one.
    pub axes: Vec<(Key, Node)>,
    /// `include:`, a list of maps.
    pub include: Option<Node>,
    /// `exclude:`, a list of maps.
    pub exclude: Option<Node>,
}

/// What a stage does, as written.
#[derive(Debug, Clone)]
pub enum ActionSpec {
    /// A native stage.
    Uses(Box<UsesSpec>),
    /// A command.
    Run(Box<RunSpec>),
}

/// A native stage kind with its params, as written.
#[derive(Debug, Clone)]
pub struct UsesSpec {
    /// `uses:`.
    pub kind: Spanned<String>,
    /// `with:`, a map; `None` if left out.
    pub with: Option<Node>,
}

/// A command, as written.
#[derive(Debug, Clone)]
pub struct RunSpec {
    /// `run:`, a text or a list of words.
    pub script: Node,
    /// `out:`, name to path.
    pub outputs: Entries,
    /// `env:`, name to value.
    pub env: Entries,
    /// `shell:`, the words before the script.
    pub shell: Option<Box<Node>>,
    /// `workdir:`, where the shell starts.
    pub workdir: Option<Box<Node>>,
    /// `stdout:`, the output that takes what is printed.
    pub stdout: Option<Box<Node>>,
}

/// Reads the shape of a parsed file: what could be read, and every mistake of shape.
pub fn read(root: Node) -> (Spec, Problems) {
    let mut reader = reader::Reader::default();
    let spec = reader.file(root);
    (spec, reader.problems)
}

/// Whether `name` can name a stage, a param, an axis, an input or an output.
pub fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_') && chars.all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}
