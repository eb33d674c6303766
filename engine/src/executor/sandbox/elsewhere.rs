//! In place of a Landlock domain, where the system has none.

use std::path::{Path, PathBuf};

use super::Sandbox;

/// There is none: only Linux has Landlock.
#[derive(Debug)]
pub enum Domain {}

impl Domain {
    /// Says that there is none.
    pub fn make(_: Sandbox, _: &[PathBuf], _: &Path, _: bool) -> Result<Self, String> {
        Err("only Linux has Landlock".to_owned())
    }

    /// Cannot be called.
    pub fn held(&self) -> String {
        match *self {}
    }
}
