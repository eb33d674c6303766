#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::layout::Layout;
use super::order::Layered;
use super::*;

fn node(id: &str, label: &str, detail: &str, state: NodeState) -> NodeView {
    NodeView { id: id.to_owned(), label: label.to_owned(), detail: detail.to_owned(), state }
}

/// Names to edges between them, in the order of first mention.
fn graph(edges: &[(&str, &str)]) -> GraphView {
    let mut names: Vec<&str> = Vec::new();
    let mut index = |name| {
        names.iter().position(|n| *n == name).unwrap_or_else(|| {
            names.push(name);
            names.len() - 1
        })
    };
    let edges = edges.iter().map(|&(from, to)| (index(from), index(to))).collect();
    GraphView::new(names.iter().map(|name| node(name, name, "", NodeState::Plain)).collect(), edges).unwrap()
}

/// The pipeline of a paper: six methods, three seeds each.
fn matrix() -> GraphView {
    let mut nodes: Vec<NodeView> = ["source", "generator", "prompts", "target", "style", "plain images", "styled images"]
        .iter()
        .map(|name| node(name, name, "", NodeState::Cached))
        .collect();
    let mut edges = vec![(0, 1), (0, 2), (1, 4), (3, 4), (1, 5), (2, 5), (1, 6), (2, 6), (4, 6)];
    let table = nodes.len();
    nodes.push(node("table", "table", "mean over seeds", NodeState::Later));
    for method in ["vanilla", "mixed", "bridged", "bridged + reinit", "bridged++", "bridged++ DSI"] {
        for seed in 0..3 {
            let detail = format!("method={method} seed={seed}");
            let mut stage = |name: &str, state| {
                nodes.push(node(&format!("{name}[{detail}]"), name, &detail, state));
                nodes.len() - 1
            };
            let state = if seed == 2 { NodeState::Run } else { NodeState::Cached };
            let (adapt, score) = (stage("adapt", state), stage("score", NodeState::Later));
            let images = if method.ends_with("DSI") { 6 } else { 5 };
            match method {
                "vanilla" => {}
                "mixed" => edges.push((images, adapt)),
                _ => {
                    let pretrain = stage("pretrain", state);
                    edges.extend([(images, pretrain), (pretrain, adapt)]);
                }
            }
            edges.extend([(3, adapt), (adapt, score), (3, score), (score, table)]);
        }
    }
    GraphView::new(nodes, edges).unwrap()
}

#[test]
fn what_is_no_graph_is_refused() {
    let plain = |id: &str| node(id, id, "", NodeState::Plain);
    assert_eq!(GraphView::new(vec![plain("a"), plain("a")], vec![]), Err(GraphError::Duplicate("a".to_owned())));
    assert_eq!(GraphView::new(vec![plain("a")], vec![(0, 1)]), Err(GraphError::Edge { from: 0, to: 1, nodes: 1 }));
    let cycle = GraphView::new(vec![plain("a"), plain("b"), plain("c")], vec![(0, 1), (1, 2), (2, 1)]);
    assert_eq!(cycle, Err(GraphError::Cycle("b".to_owned())));
    assert_eq!(GraphView::new(vec![plain("a")], vec![(0, 0)]), Err(GraphError::Cycle("a".to_owned())));
}

#[test]
fn crossings_that_need_not_be_are_gone() {
    let view = graph(&[("a", "y"), ("b", "x"), ("x", "m"), ("y", "n"), ("a", "n"), ("b", "m")]);
    assert_eq!(Layered::of(&view).crossings(), 0);
}

#[test]
fn a_source_stands_next_to_its_first_use() {
    let view = graph(&[("a", "b"), ("b", "c"), ("data", "c")]);
    let layout = Layout::of(&view);
    let at = |name: &str| layout.places[view.nodes().iter().position(|n| n.id == name).unwrap()].x;
    assert_eq!(at("data"), at("b"));
    assert!(at("a") < at("b") && at("b") < at("c"));
}

#[test]
fn special_characters_are_escaped_everywhere() {
    let odd = node("a\"b\\c", "x < y & \"z\"", "S* #1 `q`", NodeState::Failed);
    let view = GraphView::new(vec![odd, node("d", "d", "", NodeState::Plain)], vec![(0, 1), (0, 1)]).unwrap();
    let svg = svg(&view);
    assert!(svg.contains("<title>a&quot;b\\c</title>") && svg.contains(">x &lt; y &amp; &quot;z&quot;</text>"), "{svg}");
    assert!(svg.contains("class=\"node failed\"") && svg.matches("class=\"head\"").count() == 1, "{svg}");
    let expected = "\
digraph pipeline {
  rankdir=LR
  node [shape=box fontname=\"Helvetica\" fontsize=11 style=\"rounded,filled\" fillcolor=\"#ffffff\"]
  edge [color=\"#7d8791\" arrowsize=0.7]
  \"a\\\"b\\\\c\" [label=\"x < y & \\\"z\\\"\\nS* #1 `q`\" class=\"failed\" fillcolor=\"#fbe3d6\" color=\"#c44e00\" penwidth=2.6]
  \"d\" [label=\"d\"]
  \"a\\\"b\\\\c\" -> \"d\"
}
";
    assert_eq!(dot(&view), expected);
    let expected = "\
flowchart LR
  n0[\"x #60; y #38; #34;z#34;<br/><small>S* #35;1 #96;q#96;</small>\"]:::failed
  n1[\"d\"]
  n0 --> n1
  classDef failed fill:#fbe3d6,stroke:#c44e00,stroke-width:3px,color:#1a1a1a
";
    assert_eq!(mermaid(&view), expected);
}

#[test]
fn an_empty_graph_is_an_empty_picture() {
    let view = GraphView::new(Vec::new(), Vec::new()).unwrap();
    assert!(svg(&view).contains("width=\"40\" height=\"40\""), "{}", svg(&view));
}

#[test]
fn a_pipeline_with_a_matrix_is_legible() {
    let view = matrix();
    let layout = Layout::of(&view);
    assert_eq!(view.nodes().len(), 56);
    check_layout(&view, &layout);
    assert!(layout.width < 1600.0 && layout.height < 1600.0, "{} × {}", layout.width, layout.height);
    assert_eq!(svg(&view), svg(&matrix()));
}

/// Edges go to the right, and no two boxes of a column overlap.
fn check_layout(view: &GraphView, layout: &Layout) {
    let n = view.nodes().len();
    for &(from, to) in view.edges() {
        assert!(layout.places[from].x + layout.places[from].width < layout.places[to].x);
    }
    for a in 0..n {
        for b in a + 1..n {
            let (a, b) = (layout.places[a], layout.places[b]);
            assert!(a.x != b.x || (a.y - b.y).abs() >= (a.height + b.height) / 2.0 + 11.9, "{a:?} {b:?}");
        }
    }
}

proptest! {
    #[test]
    fn every_graph_has_a_layout(n in 1usize..30, picks in proptest::collection::vec((0usize..30, 0usize..30), 0..90)) {
        let nodes = (0..n).map(|i| node(&i.to_string(), &"x".repeat(i % 9), if i % 2 == 0 { "" } else { "d" }, NodeState::Run)).collect();
        // Every edge goes to a later node, so there is no cycle.
        let edges = picks.into_iter().map(|(a, b)| (a % n, b % n)).filter(|(a, b)| a != b).map(|(a, b)| (a.min(b), a.max(b))).collect();
        let view = GraphView::new(nodes, edges).unwrap();
        check_layout(&view, &Layout::of(&view));
        prop_assert!(!svg(&view).contains("NaN"));
    }
}
