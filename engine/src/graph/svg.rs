//! The graph as SVG.

use std::fmt::Write as _;

use super::layout::{DETAIL, LABEL, Layout, PAD, Place, fit, text_width};
use super::view::{GraphView, NodeState, NodeView};
use crate::xml::escape;

const MARGIN: f64 = 20.0;
const LEGEND: f64 = 34.0;
/// A person can restyle the classes; colours are told apart with every colour vision, and the borders differ too.
const STYLE: &str = "\
text { font-family: Inter, 'Helvetica Neue', Helvetica, Arial, sans-serif; fill: #1a1a1a }
.detail, .legend { font-size: 10.5px; fill: #5a5a5a }
.label { font-size: 13px }
.edge { fill: none; stroke: #9aa3ad; stroke-width: 1.2 }
.head { fill: #7d8791 }
.node rect { fill: #ffffff; stroke: #555555; stroke-width: 1.2 }
.cached rect { fill: #eceff2; stroke: #8a94a0 }
.run rect { fill: #d9eaf7; stroke: #0072b2; stroke-width: 1.8 }
.later rect { fill: #ffffff; stroke: #0072b2; stroke-dasharray: 5 3 }
.done rect { fill: #dff2ea; stroke: #00805c }
.failed rect { fill: #fbe3d6; stroke: #c44e00; stroke-width: 2.6 }
.skipped rect { fill: #ffffff; stroke: #8a94a0; stroke-dasharray: 1.5 3 }
.skipped .label { fill: #6b6b6b }
";

/// The graph as an SVG document: edges go from left to right, and a legend names the states that occur.
pub fn svg(view: &GraphView) -> String {
    let layout = Layout::of(view);
    let states: Vec<NodeState> = NodeState::ALL
        .into_iter()
        .filter(|state| *state != NodeState::Plain && view.nodes().iter().any(|node| node.state == *state))
        .collect();
    let legend = states.iter().map(|state| legend_width(*state)).sum::<f64>();
    let width = layout.width.max(legend) + 2.0 * MARGIN;
    let height = layout.height + 2.0 * MARGIN + if states.is_empty() { 0.0 } else { LEGEND };
    let (width, height) = (num(width.ceil()), num(height.ceil()));
    let mut out =
        format!("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n");
    let _ = writeln!(out, "<style>\n{STYLE}</style>\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>");
    let _ = writeln!(out, "<g transform=\"translate({MARGIN} {MARGIN})\">");
    for &(from, to) in &layout.lines {
        edge(&mut out, layout.places[from], layout.places[to], to < view.nodes().len());
    }
    for place in layout.places.iter().skip(view.nodes().len()) {
        bend(&mut out, *place);
    }
    for (node, place) in view.nodes().iter().zip(&layout.places) {
        draw_node(&mut out, node, *place);
    }
    draw_legend(&mut out, &states, layout.height + LEGEND);
    out + "</g>\n</svg>\n"
}

/// A line from the right of one slot to the left of another, with a head if it ends there.
fn edge(out: &mut String, from: Place, to: Place, head: bool) {
    let (x1, x2) = (from.x + from.width, if head { to.x - 5.0 } else { to.x });
    let bow = (x2 - x1) * 0.5;
    let (y1, y2) = (num(from.y), num(to.y));
    let _ = writeln!(out, "<path class=\"edge\" d=\"M{} {y1}C{} {y1} {} {y2} {} {y2}\"/>", num(x1), num(x1 + bow), num(x2 - bow), num(x2));
    if head {
        let _ = writeln!(out, "<path class=\"head\" d=\"M{} {y2}l-7 -3.5v7z\"/>", num(to.x));
    }
}

/// The straight piece of an edge through a layer.
fn bend(out: &mut String, place: Place) {
    let _ = writeln!(out, "<path class=\"edge\" d=\"M{} {}h{}\"/>", num(place.x), num(place.y), num(place.width));
}

fn draw_node(out: &mut String, node: &NodeView, place: Place) {
    let Place { x, width, y, height } = place;
    let room = width - 2.0 * PAD;
    let _ = writeln!(out, "<g class=\"node {}\"><title>{}</title>", node.state.name(), escape(&node.id));
    let _ = writeln!(
        out,
        "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"5\"/>",
        num(x),
        num(y - height / 2.0),
        num(width),
        num(height)
    );
    let label = if node.detail.is_empty() { y + 4.6 } else { y - 2.8 };
    let _ = writeln!(
        out,
        "<text class=\"label\" x=\"{}\" y=\"{}\">{}</text>",
        num(x + PAD),
        num(label),
        escape(&fit(&node.label, LABEL, room))
    );
    if !node.detail.is_empty() {
        let detail = escape(&fit(&node.detail, DETAIL, room));
        let _ = writeln!(out, "<text class=\"detail\" x=\"{}\" y=\"{}\">{detail}</text>", num(x + PAD), num(y + 12.4));
    }
    out.push_str("</g>\n");
}

fn legend_width(state: NodeState) -> f64 {
    text_width(state.name(), DETAIL) + 40.0
}

fn draw_legend(out: &mut String, states: &[NodeState], y: f64) {
    let mut x = 0.0;
    for state in states {
        let (name, left, text) = (state.name(), num(x), num(x + 22.0));
        let _ = write!(out, "<g class=\"node {name}\"><rect x=\"{left}\" y=\"{}\" width=\"16\" height=\"11\" rx=\"2\"/>", num(y - 9.5));
        let _ = writeln!(out, "<text class=\"legend\" x=\"{text}\" y=\"{}\">{name}</text></g>", num(y));
        x += legend_width(*state);
    }
}

/// At most one decimal, no minus zero.
fn num(value: f64) -> String {
    let text = format!("{value:.1}");
    let short = text.strip_suffix(".0").unwrap_or(&text);
    if short == "-0" { "0".to_owned() } else { short.to_owned() }
}
