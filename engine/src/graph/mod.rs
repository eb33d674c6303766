//! Pictures of a pipeline: as SVG, laid out here, and as DOT and Mermaid, laid out by others.
//!
//! A [`GraphView`] knows neither stages nor fates: whoever draws decides what a node says. The text that comes out is a function of
//! the view alone.

mod dot;
mod layout;
mod mermaid;
mod order;
mod svg;
mod view;

pub use dot::dot;
pub use mermaid::mermaid;
pub use svg::svg;
pub use view::{GraphError, GraphView, NodeState, NodeView};

#[cfg(test)]
mod tests;
