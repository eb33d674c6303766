//! Native stages of trestle.

pub mod draw;
pub mod table;

use trestle_engine::stage::Registry;

/// Every stage kind of this build.
pub fn registry() -> Registry {
    Registry::default().with::<table::Table>()
}

/// The instructions that kernels use on this machine; another one may give other bits.
pub fn instruction_set() -> &'static str {
    "portable"
}
