//! The engine of trestle: from a pipeline file to a plan to a run.
//!
//! It knows the cache below it and the [`stage::Stage`] trait above it, never a concrete stage.

pub mod graph;
pub mod stage;
