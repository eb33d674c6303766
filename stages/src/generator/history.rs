//! The losses of a training run.

use std::fmt::Write as _;
use std::path::Path;

use crate::error::{Error, Result};

/// Steps and losses, in order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    rows: Vec<(usize, f64)>,
}

impl History {
    /// Adds a step.
    pub fn push(&mut self, step: usize, loss: f64) {
        self.rows.push((step, loss));
    }

    /// The mean loss of the last `n` steps; 0 if there was none.
    pub fn last(&self, n: usize) -> f64 {
        let rows = &self.rows[self.rows.len().saturating_sub(n)..];
        rows.iter().map(|(_, loss)| loss).sum::<f64>() / rows.len().max(1) as f64
    }

    /// Writes `metrics.csv` with the columns `step` and `loss`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = String::from("step,loss\n");
        for (step, loss) in &self.rows {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{step},{loss:.6}");
        }
        std::fs::write(path, text).map_err(Error::io(path))
    }
}
