//! Figures by step, as CSV.

use std::path::Path;

use crate::error::{Error, Result};

/// Rows of figures under fixed names; the first column is the step, or what else rows are counted by.
pub struct Metrics {
    by: &'static str,
    names: Vec<&'static str>,
    rows: Vec<(usize, Vec<f64>)>,
}

impl Metrics {
    /// No rows yet.
    pub fn new(names: &[&'static str]) -> Self {
        Self::by("step", names)
    }

    /// No rows yet; they are counted by something else than steps.
    pub fn by(by: &'static str, names: &[&'static str]) -> Self {
        Self { by, names: names.to_vec(), rows: Vec::new() }
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
        let mut text = format!("{},{}\n", self.by, self.names.join(","));
        for (step, figures) in &self.rows {
            let cells: Vec<String> = figures.iter().zip(&self.names).map(|(f, name)| cell(name, *f)).collect();
            text.push_str(&format!("{step},{}\n", cells.join(",")));
        }
        std::fs::write(path, text).map_err(Error::io(path))
    }
}

/// Six digits behind the point, but for steps, which are whole.
fn cell(name: &str, figure: f64) -> String {
    if name == "step" { format!("{figure:.0}") } else { format!("{figure:.6}") }
}
