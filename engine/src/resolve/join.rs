//! Which expanded stages a reference means, for a reader with given coordinates.
//!
//! An index by the coordinates that decide is made once for every form of question, so that a matrix of n that reads from a matrix of n
//! takes n steps and not n².

use std::collections::{BTreeSet, HashMap};

use crate::pipeline::{Labels, Stage, StageId, compare_labels, expanded_name};
use crate::reference::Reference;
use crate::template::plain;

/// Expanded stages that fit, with the coordinates that the reader inherits from them.
pub type Group = (Labels, Vec<StageId>);

/// The expanded stages of one stage of the file.
#[derive(Debug, Default)]
pub struct Instances {
    /// Their ids.
    pub ids: std::ops::Range<StageId>,
    /// Most stages have no coordinates, and then nothing to tell them apart by.
    coordinates: Option<Box<Coordinates>>,
}

/// By what the expanded stages of one stage of the file differ.
#[derive(Debug, Default)]
struct Coordinates {
    /// All axes that one of them has.
    axes: BTreeSet<String>,
    /// Whether all have the same axes.
    uniform: bool,
    /// Ids by their values on some axes, for every set of axes that was asked for.
    indices: HashMap<Vec<String>, HashMap<String, Vec<StageId>>>,
}

impl Instances {
    /// The instances `ids` of `stages`.
    pub fn new(stages: &[Stage], ids: std::ops::Range<StageId>) -> Self {
        let members = &stages[ids.clone()];
        let axes: BTreeSet<String> = members.first().map(|stage| stage.labels.keys().cloned().collect()).unwrap_or_default();
        let uniform = members.iter().all(|stage| stage.labels.len() == axes.len() && stage.labels.keys().eq(axes.iter()));
        let axes = if uniform { axes } else { members.iter().flat_map(|stage| stage.labels.keys().cloned()).collect() };
        let coordinates = Coordinates { axes, uniform, indices: HashMap::new() };
        Self { ids, coordinates: (!coordinates.axes.is_empty()).then(|| Box::new(coordinates)) }
    }

    /// All axes that one of them has, sorted.
    pub fn axes(&self) -> impl Iterator<Item = &str> {
        self.coordinates.iter().flat_map(|coordinates| &coordinates.axes).map(String::as_str)
    }

    /// Those that fit the reference and the reader's coordinates, grouped by what the reader inherits.
    pub fn matching(&mut self, stages: &[Stage], reference: &Reference, labels: &Labels) -> Vec<Group> {
        let ids = self.ids.clone();
        let Some(coordinates) = &mut self.coordinates else {
            return if ids.is_empty() { Vec::new() } else { vec![(Labels::new(), ids.collect())] };
        };
        let candidates: Vec<StageId> =
            if coordinates.uniform { coordinates.indexed(stages, ids, reference, labels) } else { ids.collect() };
        let mut groups: Vec<Group> = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new();
        for id in candidates {
            let theirs = &stages[id].labels;
            if !fits(theirs, reference, labels) {
                continue;
            }
            let inherits = |axis: &String| !reference.gather && !is_fixed(reference, axis) && !labels.contains_key(axis);
            let extra: Labels =
                theirs.iter().filter(|(axis, _)| inherits(axis)).map(|(axis, value)| (axis.clone(), value.clone())).collect();
            let group = *known.entry(expanded_name("", &extra)).or_insert_with(|| {
                groups.push((extra, Vec::new()));
                groups.len() - 1
            });
            groups[group].1.push(id);
        }
        for (_, members) in &mut groups {
            members.sort_by(|&a, &b| compare_labels(&stages[a].labels, &stages[b].labels));
        }
        groups
    }
}

impl Coordinates {
    /// Candidates by the index over the axes that are fixed or joined.
    fn indexed(&mut self, stages: &[Stage], ids: std::ops::Range<StageId>, reference: &Reference, labels: &Labels) -> Vec<StageId> {
        let decides = |axis: &&String| is_fixed(reference, axis) || (!reference.gather && labels.contains_key(*axis));
        let axes: Vec<String> = self.axes.iter().filter(decides).cloned().collect();
        let wanted: Vec<String> = axes
            .iter()
            .map(|axis| {
                let fixed = reference.fixed.iter().find(|(name, _)| name == axis).map(|(_, value)| value.clone());
                fixed.unwrap_or_else(|| labels.get(axis).map(plain).unwrap_or_default())
            })
            .collect();
        let index = self.indices.entry(axes).or_insert_with_key(|axes| {
            let mut index: HashMap<String, Vec<StageId>> = HashMap::new();
            for id in ids {
                let values: Vec<String> = axes.iter().map(|axis| stages[id].labels.get(axis).map(plain).unwrap_or_default()).collect();
                index.entry(values.join(",")).or_default().push(id);
            }
            index
        });
        index.get(&wanted.join(",")).cloned().unwrap_or_default()
    }
}

fn is_fixed(reference: &Reference, axis: &str) -> bool {
    reference.fixed.iter().any(|(fixed, _)| fixed == axis)
}

fn fits(theirs: &Labels, reference: &Reference, labels: &Labels) -> bool {
    let fixed = reference.fixed.iter().all(|(axis, value)| theirs.get(axis).is_some_and(|v| plain(v) == *value));
    let joins = reference.gather
        || theirs.iter().all(|(axis, value)| is_fixed(reference, axis) || labels.get(axis).is_none_or(|ours| ours == value));
    fixed && joins
}
