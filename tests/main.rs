//! The real binary in scratch projects.
// What a long test did, and what was skipped, is printed.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

mod cases;
mod support;
