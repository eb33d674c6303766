//! What was measured: rows of medians with their single runs, kept as JSON.

use std::path::Path;

use serde::Serialize;

use crate::machine::Machine;
use crate::measure::Taken;
use crate::tools::Phase;

/// Everything of one call of this program.
#[derive(Debug, Serialize)]
pub struct Results {
    /// The words of the command line.
    pub arguments: Vec<String>,
    /// Where it was measured.
    pub machine: Machine,
    /// Each tool's name and version.
    pub tools: Vec<(String, String)>,
    /// Tools that were not measured at all or not with some graph, and why.
    pub absent: Vec<String>,
    /// The figures.
    pub rows: Vec<Row>,
}

/// One tool in one phase on one graph.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Shape of the graph, or what was hashed.
    pub subject: String,
    /// Stages of the graph, or files.
    pub count: usize,
    /// What was done.
    pub phase: Phase,
    /// The tool.
    pub tool: String,
    /// How many stages had to run.
    pub expected: usize,
    /// Bytes of what was hashed.
    pub bytes: Option<u64>,
    /// Median wall seconds.
    pub wall: f64,
    /// Least and most wall seconds.
    pub range: (f64, f64),
    /// Median CPU seconds outside and inside the kernel.
    pub cpu: (f64, f64),
    /// Most memory that one process had, KiB.
    pub largest_kib: u64,
    /// Most memory that the first process had, KiB.
    pub main_kib: Option<u64>,
    /// Why the figure does not count, if it does not.
    pub invalid: Option<String>,
    /// The single runs, in their order.
    pub runs: Vec<Taken>,
}

impl Row {
    /// A row of runs that all did what they had to, or of what came before one that did not.
    pub fn new(subject: &str, count: usize, phase: Phase, tool: &str, expected: usize, runs: Vec<Taken>, invalid: Option<String>) -> Self {
        let all = |value: fn(&Taken) -> f64| runs.iter().map(value).collect::<Vec<f64>>();
        let walls = all(|run| run.wall);
        Self {
            subject: subject.to_owned(),
            count,
            phase,
            tool: tool.to_owned(),
            expected,
            bytes: None,
            wall: median(&walls),
            range: (walls.iter().copied().fold(f64::INFINITY, f64::min), walls.iter().copied().fold(0.0, f64::max)),
            cpu: (median(&all(|run| run.user)), median(&all(|run| run.system))),
            largest_kib: runs.iter().map(|run| run.largest_kib).max().unwrap_or(0),
            main_kib: runs.iter().filter_map(|run| run.main_kib).max(),
            invalid,
            runs,
        }
    }

    /// Median CPU seconds, inside and outside the kernel.
    pub fn cpu_seconds(&self) -> f64 {
        self.cpu.0 + self.cpu.1
    }
}

impl Results {
    /// The figure of a tool that counts.
    pub fn valid(&self, subject: &str, count: usize, phase: Phase, tool: &str) -> Option<&Row> {
        let same = |row: &&Row| row.subject == subject && row.count == count && row.phase == phase && row.tool == tool;
        self.rows.iter().find(same).filter(|row| row.invalid.is_none())
    }

    /// Writes them as JSON.
    pub fn write(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map_err(|e| e.to_string())?;
        std::fs::write(path, text + "\n").map_err(|e| format!("{}: {e}", path.display()))
    }
}

/// The middle value, or the mean of the two in the middle; not a number for none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
