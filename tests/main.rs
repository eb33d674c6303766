//! The real binary in scratch projects.
#![allow(clippy::unwrap_used, missing_docs)]

mod cases;
mod support;
