//! Figures by step, as CSV.

use std::path::Path;

use crate::error::{Error, Result};

/// Rows of figures under fixed names; the first column is the step.
pub struct Metrics {
    names: Vec<&'static str>,
    rows: Vec<(usize, Vec<f64>)>,
}

impl Metrics {
    /// No rows yet.
    pub fn new(names: &[&'static str]) -> Self {
        Self { names: names.to_vec(), rows: Vec::new() }
    }

    /// Adds the figures of a step.
    pub fn push(&mut self, step: usize, figures: &[f64]) {
        debug_assert_eq!(figures.len(), self.names.len(), "a row has a figure for each name");
        self.rows.push((step, figures.to_vec()));
    }

    /// Writes all rows.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = format!("step,{}\n", self.names.join(","));
        for (step, figures) in &self.rows {
            let cells: Vec<String> = figures.iter().map(|f| format!("{f:.6}")).collect();
            text.push_str(&format!("{step},{}\n", cells.join(",")));
        }
        std::fs::write(path, text).map_err(Error::io(path))
    }
}
