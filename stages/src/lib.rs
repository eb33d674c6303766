//! Native stages of trestle.
