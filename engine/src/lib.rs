//! The engine of trestle: from a pipeline file to a plan to a run.
//!
//! It knows the cache below it and the [`stage::Stage`] trait above it, never a concrete stage.

pub mod action;
pub mod compiled;
pub mod error;
pub mod estimate;
pub mod event;
pub mod executor;
pub mod graph;
pub mod job;
pub mod lock;
pub mod memo;
pub mod pipeline;
pub mod plan;
pub mod problem;
pub mod reference;
pub mod resolve;
pub mod run;
pub mod runs;
pub mod schema;
pub mod source;
pub mod spec;
pub mod stage;
pub mod status;
pub mod target;
pub mod template;
pub mod units;
pub mod xml;
