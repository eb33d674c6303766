//! Places of boxes and bends: layers are columns from left to right.

use super::order::{Layered, Slot};
use super::view::GraphView;

/// Height of a box with two lines and with one, in pixels.
const TALL: f64 = 42.0;
const SHORT: f64 = 28.0;
/// Room below a box and below a bend.
const BOX_GAP: f64 = 12.0;
const BEND_GAP: f64 = 10.0;
/// Least and greatest width of a box.
const WIDTH: (f64, f64) = (64.0, 210.0);
/// Room between two columns: least, greatest, and how much each edge adds, so that many edges are not too steep.
const GUTTER: (f64, f64) = (46.0, 130.0);
const GUTTER_PER_EDGE: f64 = 2.0;
/// Rounds of moving slots towards their neighbours.
const ROUNDS: usize = 24;
/// How much a bend wants its place compared to a box: long edges should be straight.
const BEND_WEIGHT: f64 = 6.0;

pub(super) const LABEL: f64 = 13.0;
pub(super) const DETAIL: f64 = 10.5;
/// Room between the border of a box and its text.
pub(super) const PAD: f64 = 10.0;

/// A slot's place: left edge, width, and the middle of its height.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Place {
    pub x: f64,
    pub width: f64,
    pub y: f64,
    pub height: f64,
}

/// Where everything lies, with the top left corner at (0, 0).
#[derive(Debug)]
pub(super) struct Layout {
    /// Of each slot; the first ones are the nodes.
    pub places: Vec<Place>,
    /// Pairs of slots to join by a line.
    pub lines: Vec<(usize, usize)>,
    pub width: f64,
    pub height: f64,
}

impl Layout {
    /// The layout of a graph.
    pub(super) fn of(view: &GraphView) -> Self {
        let layered = Layered::of(view);
        let heights: Vec<f64> = layered.slots.iter().map(|slot| height(view, *slot)).collect();
        let middles = middles(&layered, &heights);
        let top = middles.iter().zip(&heights).map(|(y, h)| y - h / 2.0).fold(f64::INFINITY, f64::min);
        let mut places = vec![Place { x: 0.0, width: 0.0, y: 0.0, height: 0.0 }; middles.len()];
        let mut x = 0.0;
        for (i, layer) in layered.layers.iter().enumerate() {
            if i > 0 {
                let edges: usize = layered.layers[i - 1].iter().map(|&slot| layered.next[slot].len()).sum();
                x += (GUTTER.0 + GUTTER_PER_EDGE * edges as f64).min(GUTTER.1);
            }
            let width = layer.iter().map(|&slot| box_width(view, layered.slots[slot])).fold(0.0, f64::max);
            for &slot in layer {
                places[slot] = Place { x, width, y: middles[slot] - top, height: heights[slot] };
            }
            x += width;
        }
        let height = places.iter().map(|place| place.y + place.height / 2.0).fold(0.0, f64::max);
        let lines = layered.next.iter().enumerate().flat_map(|(from, next)| next.iter().map(move |&to| (from, to))).collect();
        Self { places, lines, width: x, height }
    }
}

fn height(view: &GraphView, slot: Slot) -> f64 {
    match slot {
        Slot::Node(node) if view.nodes()[node].detail.is_empty() => SHORT,
        Slot::Node(_) => TALL,
        Slot::Bend => 0.0,
    }
}

fn box_width(view: &GraphView, slot: Slot) -> f64 {
    let Slot::Node(node) = slot else { return 0.0 };
    let node = &view.nodes()[node];
    let text = text_width(&node.label, LABEL).max(text_width(&node.detail, DETAIL));
    // Rounded up, or the widest text of a column might not fit its own box.
    (text + 2.0 * PAD).ceil().clamp(WIDTH.0, WIDTH.1)
}

/// The middle of every slot's height: each layer in turn moves as near to its neighbours as its order allows.
fn middles(layered: &Layered, heights: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; heights.len()];
    for layer in &layered.layers {
        let offsets = offsets(layered, layer, heights);
        let middle = offsets.last().copied().unwrap_or(0.0) / 2.0;
        layer.iter().zip(&offsets).for_each(|(&slot, offset)| y[slot] = offset - middle);
    }
    let last = layered.layers.len().saturating_sub(1);
    for round in 0..ROUNDS {
        // Towards the layer before, towards the next, and at the end towards both.
        let (use_before, use_next) = if round + 4 >= ROUNDS { (true, true) } else { (round % 2 == 0, round % 2 == 1) };
        for i in 0..=last {
            let i = if use_next && !use_before { last - i } else { i };
            if let Some(layer) = layered.layers.get(i) {
                settle(layered, layer, heights, &mut y, use_before, use_next);
            }
        }
    }
    y
}

/// Distance of each slot's middle from that of the first one if all of the layer touch.
fn offsets(layered: &Layered, layer: &[usize], heights: &[f64]) -> Vec<f64> {
    let mut at = 0.0;
    let mut offsets = Vec::with_capacity(layer.len());
    for (i, &slot) in layer.iter().enumerate() {
        if i > 0 {
            let above = layer[i - 1];
            let bends = [above, slot].iter().any(|&slot| layered.slots[slot] == Slot::Bend);
            at += heights[above] / 2.0 + if bends { BEND_GAP } else { BOX_GAP } + heights[slot] / 2.0;
        }
        offsets.push(at);
    }
    offsets
}

fn settle(layered: &Layered, layer: &[usize], heights: &[f64], y: &mut [f64], use_before: bool, use_next: bool) {
    let offsets = offsets(layered, layer, heights);
    let wishes: Vec<(f64, f64)> = layer
        .iter()
        .zip(&offsets)
        .map(|(&slot, offset)| {
            let before = layered.before[slot].iter().filter(|_| use_before);
            let next = layered.next[slot].iter().filter(|_| use_next);
            let at: Vec<f64> = before.chain(next).map(|&neighbour| y[neighbour]).collect();
            let (wish, weight) = if at.is_empty() { (y[slot], 0.2) } else { (at.iter().sum::<f64>() / at.len() as f64, 1.0) };
            (wish - offset, if layered.slots[slot] == Slot::Bend { weight * BEND_WEIGHT } else { weight })
        })
        .collect();
    for ((&slot, offset), place) in layer.iter().zip(&offsets).zip(rising(&wishes)) {
        y[slot] = place + offset;
    }
}

/// The rising sequence nearest to the wishes (value, weight) by weighted squares: isotonic regression, pooling adjacent violators.
fn rising(wishes: &[(f64, f64)]) -> Vec<f64> {
    let mut blocks: Vec<(f64, f64, usize)> = Vec::new();
    for &(value, weight) in wishes {
        let mut block = (value, weight, 1);
        while let Some(&(above, heavy, count)) = blocks.last().filter(|above| above.0 > block.0) {
            blocks.pop();
            let weight = heavy + block.1;
            block = ((above * heavy + block.0 * block.1) / weight, weight, count + block.2);
        }
        blocks.push(block);
    }
    blocks.into_iter().flat_map(|(value, _, count)| std::iter::repeat_n(value, count)).collect()
}

/// About how wide a text is in a common sans-serif font, rather too wide than too narrow: the reader's font is not known.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    let em = |c: char| match c {
        'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | ';' | '|' | '\'' | '!' => 0.3,
        'f' | 't' | 'r' | '(' | ')' | '[' | ']' | '-' | '/' | ' ' => 0.4,
        'm' | 'w' | 'M' | 'W' | '@' | '%' => 0.92,
        'A'..='Z' | '+' | '=' | '~' | '<' | '>' => 0.7,
        '\u{2e80}'.. => 1.0,
        _ => 0.61,
    };
    text.chars().map(em).sum::<f64>() * size
}

/// `text`, cut with an ellipsis so that it fits `most` pixels.
pub(super) fn fit(text: &str, size: f64, most: f64) -> String {
    if text_width(text, size) <= most {
        return text.to_owned();
    }
    let room = most - text_width("…", size);
    let mut cut = String::new();
    for c in text.chars() {
        cut.push(c);
        if text_width(&cut, size) > room {
            cut.pop();
            break;
        }
    }
    cut.trim_end().to_owned() + "…"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_rising_sequence() {
        assert_eq!(rising(&[(1.0, 1.0), (2.0, 1.0)]), [1.0, 2.0]);
        assert_eq!(rising(&[(3.0, 1.0), (1.0, 1.0), (5.0, 1.0)]), [2.0, 2.0, 5.0]);
        assert_eq!(rising(&[(4.0, 3.0), (0.0, 1.0)]), [3.0, 3.0]);
    }

    #[test]
    fn long_text_is_cut() {
        let cut = fit("a stage with a name that goes on", 13.0, 90.0);
        assert!(cut.ends_with('…') && text_width(&cut, 13.0) <= 90.0, "{cut}");
        assert_eq!(fit("adapt", 13.0, 90.0), "adapt");
    }
}
