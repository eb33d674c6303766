//! What we want to reach, and whether we do: a miss is called a miss.

use std::fmt::Write;

use crate::report::grouped;
use crate::results::{Results, Row};
use crate::tools::{Phase, YARDSTICK};

/// A figure of ours is at most so many times a figure of another's.
struct Goal {
    what: &'static str,
    /// Ours: phase and tool.
    ours: (Phase, &'static str),
    /// Theirs.
    theirs: (Phase, &'static str),
    value: fn(&Row) -> f64,
    at_most: f64,
    /// Sizes it holds for; all where empty.
    counts: &'static [usize],
}

const LARGE: &[usize] = &[10_000, 100_000];

fn wall(row: &Row) -> f64 {
    row.wall
}

fn memory(row: &Row) -> f64 {
    row.largest_kib as f64
}

const fn goal(
    what: &'static str,
    ours: (Phase, &'static str),
    theirs: (Phase, &'static str),
    at_most: f64,
    counts: &'static [usize],
) -> Goal {
    Goal { what, ours, theirs, value: wall, at_most, counts }
}

const fn memory_goal(what: &'static str, phase: Phase) -> Goal {
    Goal { what, ours: (phase, "trestle"), theirs: (phase, YARDSTICK), value: memory, at_most: 1.5, counts: &[100_000] }
}

const GOALS: [Goal; 9] = [
    goal("no-op", (Phase::Noop, "trestle"), (Phase::Noop, YARDSTICK), 0.8, LARGE),
    goal("plan, beside ninja's no-op", (Phase::Plan, "trestle"), (Phase::Noop, YARDSTICK), 0.8, LARGE),
    goal("one leaf changed", (Phase::Leaf, "trestle"), (Phase::Leaf, YARDSTICK), 1.0, LARGE),
    goal("full run", (Phase::Full, "trestle"), (Phase::Full, YARDSTICK), 1.3, &[10_000]),
    goal("full run, sandbox off", (Phase::Full, "trestle sandbox-off"), (Phase::Full, YARDSTICK), 1.0, &[10_000]),
    memory_goal("memory of a full run", Phase::Full),
    memory_goal("memory of a no-op", Phase::Noop),
    // 0.9 of the throughput.
    goal("first hashing", (Phase::Hash, "trestle"), (Phase::Hash, "b3sum"), 1.0 / 0.9, &[]),
    goal("unchanged files", (Phase::GitStatus, "trestle"), (Phase::GitStatus, "git"), 1.3, &[]),
];

/// A table of all goals that these figures can judge.
pub fn write(text: &mut String, results: &Results) {
    let mut lines = String::new();
    for goal in &GOALS {
        for row in results.rows.iter().filter(|row| (row.phase, row.tool.as_str()) == goal.ours && goal.holds_for(row.count)) {
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "| {} | {} {} | {} |", goal.what, row.subject, grouped(row.count), goal.verdict(results, row));
        }
    }
    if !lines.is_empty() {
        let _ = write!(text, "\n### Goals\n\n| goal | of | at most | measured | |\n|---|---|---:|---:|---|\n{lines}");
    }
}

impl Goal {
    fn holds_for(&self, count: usize) -> bool {
        self.counts.is_empty() || self.counts.contains(&count)
    }

    /// Bound, ratio and verdict, as cells.
    fn verdict(&self, results: &Results, ours: &Row) -> String {
        let bound = format!("{:.2} × {}", self.at_most, self.theirs.1);
        if ours.invalid.is_some() {
            return format!("{bound} | – | **miss**: not valid");
        }
        let Some(theirs) = results.valid(&ours.subject, ours.count, self.theirs.0, self.theirs.1) else {
            return format!("{bound} | – | no figure of {} to compare with", self.theirs.1);
        };
        let ratio = (self.value)(ours) / (self.value)(theirs);
        let verdict = if ratio <= self.at_most { "hit" } else { "**miss**" };
        format!("{bound} | {ratio:.2} | {verdict}")
    }
}
