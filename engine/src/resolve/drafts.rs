//! Stages with their own matrix expanded and the text of their inputs filled in, and the order in which to resolve them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::LazyLock;

use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use serde_json::Value;

use super::MAX_STAGES;
use super::program::{Program, Unit};
use super::variants::{Known, Variant, Variants, variants};
use crate::problem::{Problem, Problems, Span, suggest};
use crate::reference::{self, Reference, Wanted};
use crate::source::{Data, Files, Node};
use crate::spec::StageSpec;
use crate::template::Scope;

/// One variant of a stage.
pub struct Draft {
    spec: u32,
    /// What its own `matrix:` and `foreach:` give it; most stages have neither.
    own: Option<Box<Variant>>,
}

impl Draft {
    fn new(spec: usize, own: Variant) -> Self {
        Self { spec: index(spec), own: (own != Variant::default()).then(|| Box::new(own)) }
    }

    /// Index into [`Program::stages`].
    pub fn spec(&self) -> usize {
        self.spec as usize
    }

    /// Coordinates from its own `matrix:` and `foreach:`.
    pub fn own(&self) -> &Variant {
        static NONE: LazyLock<Variant> = LazyLock::new(Variant::default);
        self.own.as_deref().unwrap_or(&NONE)
    }
}

/// That the stage `to` of the file reads from `from`, by their indices into [`Program::stages`], and where it says so.
struct Edge {
    from: u32,
    to: u32,
    span: Span,
}

impl Edge {
    fn new(from: usize, to: usize, span: Span) -> Self {
        Self { from: index(from), to: index(to), span }
    }
}

/// A pipeline file has room for fewer stages than fit.
fn index(stage: usize) -> u32 {
    u32::try_from(stage).unwrap_or_else(|_| unreachable!("more than 2^32 stages in a file"))
}

/// An input as written, filled in.
pub struct DraftInput {
    /// Place among [`StageSpec::inputs`].
    pub key: usize,
    /// Whether it was written as a list.
    pub list: bool,
    /// What it wants, with places.
    pub wants: Vec<(Wanted, Span)>,
}

/// What could be drafted, and what could not.
#[derive(Default)]
pub struct Drafted {
    /// In the order of the file. Those of a stage lie side by side.
    pub drafts: Vec<Draft>,
    /// By the stage that reads, without repeats.
    edges: Vec<Edge>,
    /// Indices of [`Program::stages`] with a mistake.
    pub broken: HashSet<usize>,
    /// Stages whose number of variants an output says that is not known yet.
    pub later: HashMap<usize, (Reference, Span)>,
}

/// Drafts all stages.
pub fn draft(program: &Program, files: &Files, known: Known<'_>, problems: &mut Problems) -> Drafted {
    let mut drafted = Drafted::default();
    for (index, stage) in program.stages.iter().enumerate() {
        let left = MAX_STAGES - drafted.drafts.len();
        let variants = match variants(stage, program, files, known, left) {
            Ok(Variants::Known(variants)) => variants,
            Ok(Variants::Later(reference, span)) => {
                let sound = trial(stage, program, files, problems).unwrap_or_default();
                drafted.note(index, &sound, program, problems);
                drafted.edges.extend(program.index.get(reference.stage.as_str()).map(|&from| Edge::new(from, index, span)));
                drafted.later.insert(index, (reference, span));
                continue;
            }
            Err(found) => {
                let is_full = found.iter().any(|problem| problem.code == "matrix::too-large");
                problems.extend(found);
                drafted.broken.insert(index);
                if is_full {
                    drafted.broken.extend(index..program.stages.len());
                    break;
                }
                continue;
            }
        };
        for own in variants {
            match inputs(stage, program.unit(stage), files, &own) {
                Ok(inputs) => {
                    drafted.note(index, &inputs, program, problems);
                    drafted.drafts.push(Draft::new(index, own));
                }
                Err(found) => {
                    problems.extend(found);
                    drafted.broken.insert(index);
                }
            }
        }
    }
    drafted.edges.sort_by_key(|edge| (edge.to, edge.from, edge.span));
    drafted.edges.dedup_by_key(|edge| (edge.to, edge.from));
    drafted
}

impl Drafted {
    /// What a stage reads from.
    pub fn reads(&self, to: usize) -> impl Iterator<Item = usize> {
        let to = index(to);
        let first = self.edges.partition_point(|edge| edge.to < to);
        self.edges[first..].iter().take_while(move |edge| edge.to == to).map(|edge| edge.from as usize)
    }

    /// Takes in what a stage reads from.
    fn note(&mut self, to: usize, inputs: &[DraftInput], program: &Program, problems: &mut Problems) {
        for (wanted, span) in inputs.iter().flat_map(|input| &input.wants) {
            let Wanted::Output(reference) = wanted else { continue };
            match program.index.get(reference.stage.as_str()) {
                Some(&from) => self.edges.push(Edge::new(from, to, *span)),
                None if program.broken.contains(&reference.stage) => {}
                None => problems.push(unknown_stage(program, to, reference, *span)),
            }
        }
    }
}

/// The inputs of a stage whose variants are not known yet, as far as they do not depend on the item: for cycles and unknown names.
fn trial(stage: &StageSpec, program: &Program, files: &Files, problems: &mut Problems) -> Option<Vec<DraftInput>> {
    let item = stage.foreach.as_deref().map(|(key, _)| format!("${{{}", key.name)).unwrap_or_default();
    let axes: Vec<String> = stage.matrix().axes.iter().map(|(key, _)| format!("${{{}", key.name)).collect();
    let depends = |node: &Node| files.text(node.span).contains(&item) || axes.iter().any(|axis| files.text(node.span).contains(axis));
    let mut stage = stage.clone();
    stage.inputs = stage.inputs.into_iter().filter(|(_, node)| !depends(node)).collect();
    inputs(&stage, program.unit(&stage), files, &Variant::default()).map_err(|found| problems.extend(found)).ok()
}

/// What a variant wants.
///
/// # Errors
/// Values that are no references, and names in them that mean nothing.
pub fn inputs(stage: &StageSpec, unit: &Unit, files: &Files, own: &Variant) -> Result<Vec<DraftInput>, Problems> {
    let scope = Scope { params: &unit.params, items: &own.items, matrix: &own.labels, files };
    let mut problems = Problems::new();
    let mut inputs = Vec::with_capacity(stage.inputs.len());
    for (key, (_, node)) in stage.inputs.iter().enumerate() {
        if node.is_null() {
            continue;
        }
        let (list, items) = if let Data::List(items) = &node.data { (true, &**items) } else { (false, std::slice::from_ref(node)) };
        let mut wants = Vec::with_capacity(items.len());
        for item in items {
            match want(&scope, &unit.prefix, item) {
                Ok(Some(wanted)) => wants.push((wanted, item.span)),
                Ok(None) => {}
                Err(found) => problems.extend(found),
            }
        }
        inputs.push(DraftInput { key, list, wants });
    }
    problems.or(inputs)
}

/// `None` for a value that filled in to nothing: an optional input that this variant leaves open.
fn want(scope: &Scope<'_>, prefix: &str, node: &Node) -> Result<Option<Wanted>, Problems> {
    match scope.fill(node)? {
        Value::String(text) => match reference::parse(&text) {
            Ok(Wanted::Output(mut reference)) => {
                reference.stage.insert_str(0, prefix);
                Ok(Some(Wanted::Output(reference)))
            }
            Ok(file) => Ok(Some(file)),
            Err(problem) => Err(problem.at(node.span, "in this input").into()),
        },
        Value::Null => Ok(None),
        other => Err(Problem::new("spec::wrong-type", "an input is a reference or a path")
            .at(node.span, format!("this is {}", crate::source::value_type_name(&other)))
            .help("write `stage.output` or `./path`")
            .into()),
    }
}

/// Indices of [`Program::stages`] such that every stage comes after those that it reads from; otherwise in the order of the file. Stages of a cycle, and what
/// is below one, are left out.
pub fn order(program: &Program, drafted: &Drafted, problems: &mut Problems) -> Vec<usize> {
    let graph = base_graph(program, drafted);
    let mut waiting: Vec<usize> = graph.node_indices().map(|node| graph.neighbors_directed(node, petgraph::Incoming).count()).collect();
    let mut ready: BinaryHeap<Reverse<usize>> = (0..waiting.len()).filter(|&i| waiting[i] == 0).map(Reverse).collect();
    let mut order = Vec::with_capacity(waiting.len());
    while let Some(Reverse(stage)) = ready.pop() {
        order.push(stage);
        for next in graph.neighbors(NodeIndex::new(stage)) {
            waiting[next.index()] -= 1;
            if waiting[next.index()] == 0 {
                ready.push(Reverse(next.index()));
            }
        }
    }
    if order.len() < waiting.len() {
        problems.extend(cycles(program, &graph));
    }
    order
}

/// An edge from each stage to those that read from it, with the place of the first reference.
fn base_graph(program: &Program, drafted: &Drafted) -> DiGraph<(), Span> {
    let mut graph = DiGraph::with_capacity(program.stages.len(), drafted.edges.len());
    for _ in &program.stages {
        graph.add_node(());
    }
    for Edge { from, to, span } in &drafted.edges {
        graph.add_edge(NodeIndex::new(*from as usize), NodeIndex::new(*to as usize), *span);
    }
    graph
}

fn unknown_stage(program: &Program, reader: usize, reference: &reference::Reference, span: Span) -> Problem {
    let prefix = program.unit(&program.stages[reader]).prefix.as_str();
    let written = reference.stage.strip_prefix(prefix).unwrap_or(&reference.stage);
    let problem = Problem::new("reference::unknown-stage", format!("there is no stage `{written}`")).at(span, "in this reference");
    // The names that may be written in this file.
    let names = program.stages.iter().map(|stage| stage.name.value.as_str()).chain(program.broken.iter().map(String::as_str));
    let names: Vec<&str> = names.filter_map(|name| name.strip_prefix(prefix)).collect();
    let may_be_a_file = reference.output.is_some() && !reference.gather && reference.fixed.is_empty();
    match (suggest(written, &names), &reference.output) {
        (None, Some(output)) if may_be_a_file => {
            problem.help(format!("for a file of the project write `./{written}.{output}`; stages are: {}", names.join(", ")))
        }
        _ => problem.nearest(written, names),
    }
}

fn cycles(program: &Program, graph: &DiGraph<(), Span>) -> Problems {
    let mut problems = Problems::new();
    for component in petgraph::algo::tarjan_scc(graph) {
        let first = component.iter().min().copied().unwrap_or_default();
        let is_cycle = component.len() > 1 || graph.find_edge(first, first).is_some();
        if is_cycle {
            problems.push(describe_cycle(program, graph, first, &component));
        }
    }
    problems
}

/// Walks from `first` along edges inside its component until it comes back, by a shortest way.
fn describe_cycle(program: &Program, graph: &DiGraph<(), Span>, first: NodeIndex, component: &[NodeIndex]) -> Problem {
    let mut came: HashMap<NodeIndex, (NodeIndex, Span)> = HashMap::new();
    let mut queue = std::collections::VecDeque::from([first]);
    while let Some(node) = queue.pop_front() {
        let mut edges: Vec<_> = graph.edges(node).filter(|edge| component.contains(&edge.target())).collect();
        edges.sort_by_key(|edge| edge.target());
        for edge in edges {
            came.entry(edge.target()).or_insert_with(|| {
                queue.push_back(edge.target());
                (node, *edge.weight())
            });
        }
        if came.contains_key(&first) {
            break;
        }
    }
    let name = |node: NodeIndex| program.stages[node.index()].name.value.as_str();
    let mut way = vec![name(first)];
    let mut labels = Vec::new();
    let mut node = first;
    while let Some(&(from, span)) = came.get(&node) {
        labels.push((span, format!("`{}` reads from `{}`", name(node), name(from))));
        way.push(name(from));
        node = from;
        if node == first {
            break;
        }
    }
    way.reverse();
    let mut problem = Problem::new("graph::cycle", format!("the stages form a cycle: {}", way.join(" → "))).help(
        "a stage cannot read, even indirectly, what it makes itself; a file of the project is written with a `/`, such as `./data.csv`",
    );
    problem.labels = labels;
    problem
}
