//! Native stages of trestle.

pub mod nn;
