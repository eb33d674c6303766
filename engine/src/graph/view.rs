//! What is drawn: nodes with texts and a state, and edges between them.

use std::collections::BTreeSet;

/// How a node looks, and the word for it in the legend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeState {
    /// Nothing is said about the node.
    Plain,
    /// Its outputs are in the cache.
    Cached,
    /// It would run, or is running.
    Run,
    /// Whether it runs depends on outputs that are not there yet.
    Later,
    /// It ran and is done.
    Done,
    /// It failed.
    Failed,
    /// It was not tried, because something before it failed or the run was stopped.
    Skipped,
}

impl NodeState {
    /// Every state, in the order of the legend.
    pub(super) const ALL: [Self; 7] = [Self::Plain, Self::Cached, Self::Run, Self::Later, Self::Done, Self::Failed, Self::Skipped];

    /// The word for it, which is also its class in every format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Cached => "cached",
            Self::Run => "run",
            Self::Later => "later",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// A box of the picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// Its unique name, such as `adapt[seed=1]`; shown when the pointer rests on the box.
    pub id: String,
    /// First line.
    pub label: String,
    /// Smaller second line; may be empty.
    pub detail: String,
    /// How it looks.
    pub state: NodeState,
}

/// A directed graph without cycles that can be drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GraphView {
    nodes: Vec<NodeView>,
    edges: Vec<(usize, usize)>,
}

/// Why something cannot be drawn as a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// Two nodes of one name.
    #[error("two nodes are called `{0}`")]
    Duplicate(String),
    /// An edge to or from a node that is not there.
    #[error("edge {from} → {to} leads outside the {nodes} nodes")]
    Edge {
        /// Index that it leaves.
        from: usize,
        /// Index that it reaches.
        to: usize,
        /// How many nodes there are.
        nodes: usize,
    },
    /// A cycle.
    #[error("a cycle goes through `{0}`")]
    Cycle(String),
}

impl GraphView {
    /// A graph of `nodes` and of `edges` between their indices (from, to). Repeated edges are drawn once.
    ///
    /// # Errors
    /// If two nodes share an id, an edge leaves the nodes, or the edges form a cycle.
    pub fn new(nodes: Vec<NodeView>, mut edges: Vec<(usize, usize)>) -> Result<Self, GraphError> {
        let mut ids = BTreeSet::new();
        if let Some(twice) = nodes.iter().find(|node| !ids.insert(&node.id)) {
            return Err(GraphError::Duplicate(twice.id.clone()));
        }
        if let Some(&(from, to)) = edges.iter().find(|(from, to)| *from.max(to) >= nodes.len()) {
            return Err(GraphError::Edge { from, to, nodes: nodes.len() });
        }
        let mut seen = BTreeSet::new();
        edges.retain(|edge| seen.insert(*edge));
        let view = Self { nodes, edges };
        let sorted: BTreeSet<usize> = view.topological().into_iter().collect();
        match view.nodes.iter().enumerate().find(|(i, _)| !sorted.contains(i)) {
            Some((_, node)) => Err(GraphError::Cycle(node.id.clone())),
            None => Ok(view),
        }
    }

    /// The nodes, in the order given.
    pub fn nodes(&self) -> &[NodeView] {
        &self.nodes
    }

    /// The edges, each once, in the order given.
    pub fn edges(&self) -> &[(usize, usize)] {
        &self.edges
    }

    /// Indices with every node after those it depends on; nodes on or behind a cycle are left out.
    pub(super) fn topological(&self) -> Vec<usize> {
        let mut open = vec![0usize; self.nodes.len()];
        self.edges.iter().for_each(|&(_, to)| open[to] += 1);
        let next = self.successors();
        let mut order: Vec<usize> = (0..self.nodes.len()).filter(|&node| open[node] == 0).collect();
        let mut done = 0;
        while let Some(&node) = order.get(done) {
            done += 1;
            for &to in &next[node] {
                open[to] -= 1;
                if open[to] == 0 {
                    order.push(to);
                }
            }
        }
        order
    }

    pub(super) fn successors(&self) -> Vec<Vec<usize>> {
        let mut next = vec![Vec::new(); self.nodes.len()];
        self.edges.iter().for_each(|&(from, to)| next[from].push(to));
        next
    }

    pub(super) fn predecessors(&self) -> Vec<Vec<usize>> {
        let mut before = vec![Vec::new(); self.nodes.len()];
        self.edges.iter().for_each(|&(from, to)| before[to].push(from));
        before
    }
}
