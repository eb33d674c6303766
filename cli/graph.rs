//! `trestle graph`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use trestle_engine::graph::{self, GraphView, NodeState, NodeView};
use trestle_engine::pipeline::{Action, Pipeline, StageId};
use trestle_engine::plan::{Fate, plan};

use crate::args::{Graph, GraphFormat};
use crate::fail::Fail;
use crate::project::Project;

/// Draws the stages, each with its fate.
pub fn graph(args: &Graph) -> Result<ExitCode, Fail> {
    let (project, targets) = Project::open(&args.words, &args.source, &trestle_stages::registry())?;
    let wanted = project.wanted(&targets)?;
    let fates = plan(&project.pipeline, &wanted, &project.cache, &project.history)?;
    project.cache.flush()?;
    let (nodes, edges) = if args.collapse { collapsed(&project.pipeline, &fates) } else { expanded(&project.pipeline, &fates) };
    let view = GraphView::new(nodes, edges).map_err(|e| Fail::message(format!("this graph cannot be drawn: {e}")))?;
    crate::print(&match args.format {
        GraphFormat::Dot => graph::dot(&view),
        GraphFormat::Mermaid => graph::mermaid(&view),
        GraphFormat::Svg => graph::svg(&view),
    })
}

type Parts = (Vec<NodeView>, Vec<(usize, usize)>);

fn state(fate: &Fate) -> NodeState {
    match fate {
        Fate::Hit(_) => NodeState::Cached,
        Fate::Run(_) => NodeState::Run,
        Fate::Later(_) => NodeState::Later,
    }
}

fn kind(pipeline: &Pipeline, id: StageId) -> String {
    match &pipeline.stages[id].action {
        Action::Native { kind, .. } => kind.clone(),
        Action::Command { .. } => "command".to_owned(),
    }
}

fn expanded(pipeline: &Pipeline, fates: &[(StageId, Fate)]) -> Parts {
    let place: BTreeMap<StageId, usize> = fates.iter().enumerate().map(|(i, (id, _))| (*id, i)).collect();
    let node = |(id, fate): &(StageId, Fate)| {
        let name = pipeline.stages[*id].name.clone();
        NodeView { id: name.clone(), label: name, detail: kind(pipeline, *id), state: state(fate) }
    };
    let edges = place.iter().flat_map(|(id, &to)| {
        pipeline.stages[*id].upstream().into_iter().filter_map(|up| Some((*place.get(&up)?, to))).collect::<Vec<_>>()
    });
    (fates.iter().map(node).collect(), edges.collect())
}

/// One box for all expansions of a stage: it runs if any of them does.
fn collapsed(pipeline: &Pipeline, fates: &[(StageId, Fate)]) -> Parts {
    let mut bases: Vec<&str> = Vec::new();
    let mut members: BTreeMap<&str, Vec<&(StageId, Fate)>> = BTreeMap::new();
    for entry in fates {
        let base = pipeline.stages[entry.0].base();
        if !members.contains_key(base) {
            bases.push(base);
        }
        members.entry(base).or_default().push(entry);
    }
    let place: BTreeMap<&str, usize> = bases.iter().enumerate().map(|(i, base)| (*base, i)).collect();
    let nodes = bases.iter().map(|base| {
        let all = &members[base];
        let states: Vec<NodeState> = all.iter().map(|(_, fate)| state(fate)).collect();
        let state = [NodeState::Run, NodeState::Later].into_iter().find(|s| states.contains(s)).unwrap_or(NodeState::Cached);
        let kind = kind(pipeline, all[0].0);
        let detail = if all.len() > 1 { format!("{kind} × {}", all.len()) } else { kind };
        NodeView { id: (*base).to_owned(), label: (*base).to_owned(), detail, state }
    });
    let mut edges: Vec<(usize, usize)> = Vec::new();
    for (id, _) in fates {
        let to = place[pipeline.stages[*id].base()];
        edges.extend(pipeline.stages[*id].upstream().into_iter().filter_map(|up| Some((*place.get(pipeline.stages[up].base())?, to))));
    }
    edges.sort_unstable();
    edges.dedup();
    (nodes.collect(), edges)
}
