//! The graph in the DOT language of Graphviz.

use std::fmt::Write as _;

use super::view::{GraphView, NodeState};

/// The graph as DOT; nodes carry their state as `class`, and as a colour and a border.
pub fn dot(view: &GraphView) -> String {
    let mut out = "digraph pipeline {\n  rankdir=LR\n  node [shape=box fontname=\"Helvetica\" fontsize=11 style=\"rounded,filled\" fillcolor=\"#ffffff\"]\n".to_owned();
    out.push_str("  edge [color=\"#7d8791\" arrowsize=0.7]\n");
    for node in view.nodes() {
        let label = match node.detail.is_empty() {
            true => quote(&node.label),
            // Two lines: DOT wants the break as backslash and n inside the string.
            false => format!("{}\\n{}", quote(&node.label), quote(&node.detail)),
        };
        let _ = writeln!(out, "  \"{}\" [label=\"{label}\"{}]", quote(&node.id), look(node.state));
    }
    for &(from, to) in view.edges() {
        let _ = writeln!(out, "  \"{}\" -> \"{}\"", quote(&view.nodes()[from].id), quote(&view.nodes()[to].id));
    }
    out + "}\n"
}

fn look(state: NodeState) -> String {
    let style = match state {
        NodeState::Plain => return String::new(),
        NodeState::Cached => "fillcolor=\"#eceff2\" color=\"#8a94a0\"",
        NodeState::Run => "fillcolor=\"#d9eaf7\" color=\"#0072b2\" penwidth=1.8",
        NodeState::Later => "style=\"rounded,dashed\" color=\"#0072b2\"",
        NodeState::Done => "fillcolor=\"#dff2ea\" color=\"#00805c\"",
        NodeState::Failed => "fillcolor=\"#fbe3d6\" color=\"#c44e00\" penwidth=2.6",
        NodeState::Skipped => "style=\"rounded,dotted\" color=\"#8a94a0\" fontcolor=\"#6b6b6b\"",
    };
    format!(" class=\"{}\" {style}", state.name())
}

/// The inside of a quoted DOT string.
fn quote(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r', '\t'], " ")
}
