//! A pipeline in the form in which it is planned and kept between runs: flat arrays for the graph, and stages decoded one by one.
//!
//! A pipeline of 100,000 stages takes a second to read and resolve, and hundreds of megabytes as a tree of values. What a run that
//! changes nothing has to look at is far less: which files and outputs each stage reads. So the graph is kept apart from the stages, and
//! both are written to a file beside the cache ([`Compiled::save`]) under a stamp of all that they were made from. As long as the stamp
//! holds, the YAML is hashed and not parsed.
//!
//! Outputs are numbered through: those of stage `s` are the slots `first_output(s)..first_output(s + 1)`, in the order of their names.

mod dependency;
mod file;
mod names;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use trestle_cache::Digest;

use crate::pipeline::{Origin, Pipeline, Stage, StageId};
use crate::stage::Format;

pub use dependency::Dependency;
pub use file::{LoadError, Stages};
pub(crate) use file::{take, take_numbers, take_u32};
pub use names::Names;

/// Place of an output in the numbering through all stages.
pub type OutputId = usize;

/// Where a value that a stage reads comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    /// A file or folder of the project, by its place in [`Compiled::sources`].
    Source(usize),
    /// An output of an earlier stage.
    Output(OutputId),
}

/// Set in the number of an edge that is an output.
const OUTPUT: u32 = 1 << 31;

/// The graph of a pipeline, and its stages.
#[derive(Debug)]
pub struct Compiled {
    /// The pipeline's name.
    pub name: String,
    /// Of all that it was made from.
    pub stamp: Digest,
    /// What it was made from besides the pipeline file.
    pub dependencies: Vec<Dependency>,
    /// Params after overrides.
    pub params: serde_json::Map<String, serde_json::Value>,
    /// Stages by their tags.
    pub tags: BTreeMap<String, Vec<StageId>>,
    /// Units of every named pool.
    pub pools: BTreeMap<String, u32>,
    /// Absolute paths of the files and folders of the project that stages read, without repeats.
    pub sources: Vec<Arc<Path>>,
    /// Edges of all stages one after the other, and where each stage's begin.
    edges: Vec<u32>,
    edge_starts: Vec<u32>,
    output_starts: Vec<u32>,
    /// Stage of every output.
    owners: Vec<u32>,
    /// Stages that must be run every time.
    always: Vec<StageId>,
    /// Stages that nobody reads and that give a table.
    shown: Vec<StageId>,
    stages: Stages,
}

impl Compiled {
    /// The compiled form of a pipeline.
    pub fn of(pipeline: Arc<Pipeline>, stamp: Digest, dependencies: Vec<Dependency>) -> Self {
        let mut compiled = Self {
            name: pipeline.name.clone(),
            stamp,
            dependencies,
            params: pipeline.params.clone(),
            tags: BTreeMap::new(),
            pools: pipeline.pools.clone(),
            sources: Vec::new(),
            edges: Vec::new(),
            edge_starts: vec![0],
            output_starts: vec![0],
            owners: Vec::new(),
            always: Vec::new(),
            shown: Vec::new(),
            stages: Stages::Memory(Arc::clone(&pipeline)),
        };
        let mut known: HashMap<Arc<Path>, u32> = HashMap::new();
        let mut is_read = vec![false; pipeline.stages.len()];
        for (id, stage) in pipeline.stages.iter().enumerate() {
            for bound in stage.inputs.iter().flat_map(|slot| &slot.values) {
                let edge = match &bound.origin {
                    Origin::File { path, .. } => *known.entry(Arc::clone(path)).or_insert_with(|| {
                        compiled.sources.push(Arc::clone(path));
                        number(compiled.sources.len() - 1)
                    }),
                    Origin::Output { stage: from, output } => {
                        is_read[*from] = true;
                        let place = pipeline.stages[*from].outputs.keys().position(|name| **name == **output).unwrap_or_default();
                        OUTPUT | (compiled.output_starts[*from] + number(place))
                    }
                };
                compiled.edges.push(edge);
            }
            compiled.owners.extend(stage.outputs.keys().map(|_| number(id)));
            compiled.edge_starts.push(number(compiled.edges.len()));
            compiled.output_starts.push(number(compiled.owners.len()));
            for tag in &stage.settings.tags {
                compiled.tags.entry(tag.clone()).or_default().push(id);
            }
            if !stage.settings.cache {
                compiled.always.push(id);
            }
        }
        let gives_table = |id: &StageId| pipeline.stages[*id].outputs.values().any(|output| output.format == Format::TABLE);
        compiled.shown = (0..pipeline.stages.len()).filter(|&id| !is_read[id]).filter(gives_table).collect();
        compiled
    }

    /// Stages that nobody reads and that give a table: what the pipeline is for.
    pub fn shown(&self) -> &[StageId] {
        &self.shown
    }

    /// How many stages there are.
    pub fn len(&self) -> usize {
        self.edge_starts.len() - 1
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many outputs all stages have.
    pub fn outputs(&self) -> usize {
        self.owners.len()
    }

    /// The outputs of a stage.
    pub fn outputs_of(&self, id: StageId) -> std::ops::Range<OutputId> {
        self.output_starts[id] as usize..self.output_starts[id + 1] as usize
    }

    /// What a stage reads, in the order of its inputs and their values.
    pub fn edges_of(&self, id: StageId) -> impl Iterator<Item = Edge> {
        self.edges[self.edge_starts[id] as usize..self.edge_starts[id + 1] as usize]
            .iter()
            .map(|&edge| if edge & OUTPUT == 0 { Edge::Source(edge as usize) } else { Edge::Output((edge & !OUTPUT) as usize) })
    }

    /// The stage that makes an output.
    pub fn owner(&self, output: OutputId) -> StageId {
        self.owners[output] as usize
    }

    /// Stages that a stage reads from, sorted, without repeats.
    pub fn upstream(&self, id: StageId) -> Vec<StageId> {
        let mut ids: Vec<StageId> =
            self.edges_of(id).filter_map(|edge| if let Edge::Output(output) = edge { Some(self.owner(output)) } else { None }).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Whether a stage must be run every time.
    pub fn runs_always(&self, id: StageId) -> bool {
        self.always.binary_search(&id).is_ok()
    }

    /// A stage.
    ///
    /// # Errors
    /// If it lies in a file that is damaged or gone.
    pub fn stage(&self, id: StageId) -> Result<Cow<'_, Stage>, LoadError> {
        self.stages.get(id)
    }

    /// Names of all stages.
    ///
    /// # Errors
    /// As [`Compiled::stage`].
    pub fn names(&self) -> Result<Names, LoadError> {
        self.stages.names()
    }
}

/// Numbers are kept in 31 bits: a pipeline has at most a million stages.
fn number(count: usize) -> u32 {
    u32::try_from(count).ok().filter(|number| number & OUTPUT == 0).unwrap_or_else(|| unreachable!("more than 2^31 inputs"))
}
