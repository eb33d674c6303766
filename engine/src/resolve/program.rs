//! The stages of a pipeline file and of all that it includes, laid together.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use compact_str::CompactString;

use serde_json::{Map, Value};

use crate::compiled::Dependency;
use crate::spec::{StageSpec, StageSpecs};

/// What the stages of one file share.
#[derive(Debug)]
pub struct Unit {
    /// Stands before the names of its stages: empty, or such as `data::`.
    pub prefix: String,
    /// The folder of the file.
    pub root: PathBuf,
    /// Its params, after everything that changes them.
    pub params: Map<String, Value>,
}

/// All stages as written, by their full names.
#[derive(Debug, Default)]
pub struct Program {
    /// The files, the pipeline file itself first.
    pub units: Vec<Unit>,
    /// The stages of all files.
    pub stages: StageSpecs,
    /// Place of each name in `stages`.
    pub index: HashMap<CompactString, usize>,
    /// Names of stages whose shape is wrong; what refers to them is not complained about.
    pub broken: Vec<String>,
    /// Units of every named pool.
    pub pools: BTreeMap<String, u32>,
    /// Included files.
    pub dependencies: Vec<Dependency>,
}

impl Program {
    /// The file that a stage stands in.
    pub fn unit(&self, stage: &StageSpec) -> &Unit {
        &self.units[stage.unit as usize]
    }
}
