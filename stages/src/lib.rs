//! Native stages of trestle.

pub mod draw;
