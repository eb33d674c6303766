//! The graph as a Mermaid flowchart, which code hosts draw in Markdown.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::view::{GraphView, NodeState};

/// The graph as a Mermaid flowchart; nodes are `n0`, `n1` and so on, since Mermaid's names cannot hold every character.
pub fn mermaid(view: &GraphView) -> String {
    let mut out = "flowchart LR\n".to_owned();
    for (i, node) in view.nodes().iter().enumerate() {
        let detail = if node.detail.is_empty() { String::new() } else { format!("<br/><small>{}</small>", escape(&node.detail)) };
        let class = if node.state == NodeState::Plain { String::new() } else { format!(":::{}", node.state.name()) };
        let _ = writeln!(out, "  n{i}[\"{}{detail}\"]{class}", escape(&node.label));
    }
    for (from, to) in view.edges() {
        let _ = writeln!(out, "  n{from} --> n{to}");
    }
    let states: BTreeSet<NodeState> = view.nodes().iter().map(|node| node.state).collect();
    for state in states {
        if let Some(style) = style(state) {
            let _ = writeln!(out, "  classDef {} {style}", state.name());
        }
    }
    out
}

fn style(state: NodeState) -> Option<&'static str> {
    Some(match state {
        NodeState::Plain => return None,
        NodeState::Cached => "fill:#eceff2,stroke:#8a94a0,color:#1a1a1a",
        NodeState::Run => "fill:#d9eaf7,stroke:#0072b2,stroke-width:2px,color:#1a1a1a",
        NodeState::Later => "fill:#ffffff,stroke:#0072b2,stroke-dasharray:5 3,color:#1a1a1a",
        NodeState::Done => "fill:#dff2ea,stroke:#00805c,color:#1a1a1a",
        NodeState::Failed => "fill:#fbe3d6,stroke:#c44e00,stroke-width:3px,color:#1a1a1a",
        NodeState::Skipped => "fill:#ffffff,stroke:#8a94a0,stroke-dasharray:2 3,color:#6b6b6b",
    })
}

/// Text inside a quoted Mermaid label, where entities are written with `#` for `&`.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // Backticks would make it a Markdown string, and brackets of a tag would vanish.
            '#' | '"' | '&' | '<' | '>' | '`' | '\\' => {
                let _ = write!(out, "#{};", u32::from(c));
            }
            '\n' | '\r' | '\t' => out.push(' '),
            _ => out.push(c),
        }
    }
    out
}
