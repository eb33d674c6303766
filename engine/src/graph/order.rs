//! Layers and the order within them, after Sugiyama, Tagawa and Toda (1981): longest-path layers, bends where an edge crosses a
//! layer, and barycentre sweeps against crossings.

use std::collections::BTreeMap;

use super::view::GraphView;

/// Sweeps through all layers; the best order seen stays.
const SWEEPS: usize = 12;

/// A node of the graph, or the place where an edge passes through a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// Index of the node.
    Node(usize),
    /// All long edges of one node share one bend in each layer, so that a fan stays one line for as long as it can.
    Bend,
}

/// The layered graph: every edge joins neighbouring layers.
#[derive(Debug)]
pub(super) struct Layered {
    /// The slots; the first ones are the nodes in their order.
    pub slots: Vec<Slot>,
    /// Slot indices of each layer, in their order.
    pub layers: Vec<Vec<usize>>,
    /// Slot indices that each slot has an edge to, in the next layer.
    pub next: Vec<Vec<usize>>,
    /// Slot indices that each slot has an edge from, in the layer before.
    pub before: Vec<Vec<usize>>,
}

impl Layered {
    /// The layers of a graph, ordered.
    pub(super) fn of(view: &GraphView) -> Self {
        let mut layered = Self::bent(view, &layers(view));
        layered.reduce_crossings();
        layered
    }

    /// Puts nodes into their layers and bends into long edges.
    fn bent(view: &GraphView, layer_of: &[usize]) -> Self {
        let count = layer_of.iter().max().map_or(0, |last| last + 1);
        let n = view.nodes().len();
        let mut new = Self {
            slots: (0..n).map(Slot::Node).collect(),
            layers: vec![Vec::new(); count],
            next: vec![Vec::new(); n],
            before: vec![Vec::new(); n],
        };
        for (node, &layer) in layer_of.iter().enumerate() {
            new.layers[layer].push(node);
        }
        let mut bends = BTreeMap::new();
        for &(from, to) in view.edges() {
            let mut last = from;
            for layer in layer_of[from] + 1..layer_of[to] {
                let bend = *bends.entry((from, layer)).or_insert_with(|| new.bend(layer));
                new.join(last, bend);
                last = bend;
            }
            new.join(last, to);
        }
        new
    }

    fn bend(&mut self, layer: usize) -> usize {
        let slot = self.slots.len();
        self.slots.push(Slot::Bend);
        self.next.push(Vec::new());
        self.before.push(Vec::new());
        self.layers[layer].push(slot);
        slot
    }

    fn join(&mut self, from: usize, to: usize) {
        if !self.next[from].contains(&to) {
            self.next[from].push(to);
            self.before[to].push(from);
        }
    }

    fn reduce_crossings(&mut self) {
        let mut best = (self.crossings(), self.layers.clone());
        for sweep in 0..SWEEPS {
            if best.0 == 0 {
                break;
            }
            let last = self.layers.len() - 1;
            match sweep % 2 {
                0 => (1..=last).for_each(|layer| self.sort_layer(layer, layer - 1)),
                _ => (0..last).rev().for_each(|layer| self.sort_layer(layer, layer + 1)),
            }
            let crossings = self.crossings();
            if crossings < best.0 {
                best = (crossings, self.layers.clone());
            }
        }
        self.layers = best.1;
    }

    /// Sorts a layer by the mean position of each slot's neighbours in the layer `fixed`; slots without any keep their place.
    fn sort_layer(&mut self, layer: usize, fixed: usize) {
        let position = self.positions(fixed);
        let neighbours = if fixed < layer { &self.before } else { &self.next };
        let mut keyed: Vec<(f64, usize)> = Vec::with_capacity(self.layers[layer].len());
        for (i, &slot) in self.layers[layer].iter().enumerate() {
            let at: Vec<f64> = neighbours[slot].iter().filter_map(|n| position.get(n)).map(|&p| p as f64).collect();
            let key = if at.is_empty() { i as f64 } else { at.iter().sum::<f64>() / at.len() as f64 };
            keyed.push((key, slot));
        }
        // The sort is stable: siblings keep the order in which the pipeline names them.
        keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
        self.layers[layer] = keyed.into_iter().map(|(_, slot)| slot).collect();
    }

    fn positions(&self, layer: usize) -> BTreeMap<usize, usize> {
        self.layers[layer].iter().enumerate().map(|(i, &slot)| (slot, i)).collect()
    }

    /// Pairs of edges that cross.
    pub(super) fn crossings(&self) -> usize {
        (1..self.layers.len()).map(|layer| self.crossings_before(layer)).sum()
    }

    fn crossings_before(&self, layer: usize) -> usize {
        let position = self.positions(layer);
        let mut ends = Vec::new();
        for slot in &self.layers[layer - 1] {
            let mut of_slot: Vec<usize> = self.next[*slot].iter().filter_map(|to| position.get(to)).copied().collect();
            of_slot.sort_unstable();
            ends.extend(of_slot);
        }
        inversions(&ends, self.layers[layer].len())
    }
}

/// Pairs that stand in falling order, counted with a Fenwick tree over the values `0..bound`.
fn inversions(values: &[usize], bound: usize) -> usize {
    let mut tree = vec![0usize; bound + 1];
    let mut count = 0;
    for (seen, &value) in values.iter().enumerate() {
        let mut at_most = 0;
        let mut i = value + 1;
        while i > 0 {
            at_most += tree[i];
            i &= i - 1;
        }
        count += seen - at_most;
        let mut i = value + 1;
        while i <= bound {
            tree[i] += 1;
            i += i & i.wrapping_neg();
        }
    }
    count
}

/// The layer of each node: just before the first node that needs it, or as early as it can be if none does.
///
/// Late layers suit pipelines: stages of one matrix end up in one column, since they feed the same table, and many edges from one
/// data set share their bends while the edges into a table cannot.
fn layers(view: &GraphView) -> Vec<usize> {
    let (before, next, order) = (view.predecessors(), view.successors(), view.topological());
    let mut layer = vec![0; view.nodes().len()];
    for &node in &order {
        layer[node] = before[node].iter().map(|&from| layer[from] + 1).max().unwrap_or(0);
    }
    for &node in order.iter().rev() {
        layer[node] = next[node].iter().map(|&to| layer[to] - 1).min().unwrap_or(layer[node]);
    }
    layer
}

#[cfg(test)]
mod tests {
    use super::inversions;

    #[test]
    fn inversions_are_counted() {
        assert_eq!([inversions(&[], 0), inversions(&[0, 1, 1, 2], 3), inversions(&[2, 1, 0], 3), inversions(&[1, 0, 1], 2)], [0, 0, 3, 1]);
    }
}
