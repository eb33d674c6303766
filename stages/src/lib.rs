//! Native stages of trestle.

pub mod draw;
pub mod table;
