//! The figures as Markdown.

use std::fmt::Write;

use crate::goals;
use crate::results::{Results, Row};
use crate::tools::{Phase, YARDSTICK};

/// Everything that a reader gets.
pub fn markdown(results: &Results) -> String {
    let mut text = head(results);
    let on_graphs = [
        (Phase::Full, "Full run"),
        (Phase::Noop, "No-op"),
        (Phase::Plan, "Plan, nothing changed"),
        (Phase::Leaf, "One leaf changed"),
        (Phase::Mid, "A middle input changed"),
    ];
    for (phase, title) in on_graphs {
        let cell = |row: &Row| format!("{}{}", seconds(row.wall), ratio(results, row, YARDSTICK, |row| row.wall));
        table(&mut text, results, phase, &format!("{title}: wall seconds (× ninja)"), &cell);
    }
    for (phase, title) in [(Phase::Full, "Full run"), (Phase::Noop, "No-op")] {
        let cpu = |row: &Row| format!("{}{}", seconds(row.cpu_seconds()), ratio(results, row, YARDSTICK, Row::cpu_seconds));
        table(&mut text, results, phase, &format!("{title}: CPU seconds, all processes (× ninja)"), &cpu);
        let memory = |row: &Row| format!("{}{}", memory(row), ratio(results, row, YARDSTICK, |row| row.largest_kib as f64));
        table(&mut text, results, phase, &format!("{title}: peak MiB of the largest process [of the first] (× ninja)"), &memory);
    }
    let rate = |row: &Row| match row.bytes {
        Some(bytes) => {
            format!("{} s, {:.2} GB/s{}", seconds(row.wall), bytes as f64 / row.wall / 1e9, ratio(results, row, "b3sum", |row| row.wall))
        }
        None => seconds(row.wall),
    };
    table(&mut text, results, Phase::Hash, "Sources hashed for the first time (time × b3sum)", &rate);
    let status = |row: &Row| format!("{}{}", seconds(row.wall), ratio(results, row, "git", |row| row.wall));
    table(&mut text, results, Phase::GitStatus, "Unchanged sources: wall seconds (× git status)", &status);
    notes(&mut text, results);
    goals::write(&mut text, results);
    text
}

fn head(results: &Results) -> String {
    let machine = &results.machine;
    let mut text = format!(
        "Measured {} on {} ({} processors, {} GiB, {}, {}); checkout {}; load {:.1} before, {:.1} after.\n",
        machine.date,
        machine.processor,
        machine.cores,
        machine.memory_gib,
        machine.system,
        machine.file_system,
        machine.commit,
        machine.load_before,
        machine.load_after
    );
    if machine.was_busy() {
        text.push_str("**The machine was busy with other work: only the ratios mean something, and not much.**\n");
    }
    let tools: Vec<String> = results.tools.iter().map(|(name, version)| format!("{name}: {version}")).collect();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "\nTools: {}.", tools.join("; "));
    text
}

fn table(text: &mut String, results: &Results, phase: Phase, title: &str, cell: &dyn Fn(&Row) -> String) {
    let rows: Vec<&Row> = results.rows.iter().filter(|row| row.phase == phase).collect();
    if rows.is_empty() {
        return;
    }
    let (mut tools, mut subjects) = (Vec::new(), Vec::new());
    for row in &rows {
        if !tools.contains(&row.tool.as_str()) {
            tools.push(row.tool.as_str());
        }
        if !subjects.contains(&(row.subject.as_str(), row.count)) {
            subjects.push((row.subject.as_str(), row.count));
        }
    }
    let _ = writeln!(text, "\n### {title}\n\n| | n | {} |\n|---|---:|{}", tools.join(" | "), "---:|".repeat(tools.len()));
    for (subject, count) in subjects {
        let of = |tool: &&str| rows.iter().find(|row| row.tool == *tool && row.subject == subject && row.count == count);
        let cells = tools.iter().map(|tool| match of(tool) {
            None => String::new(),
            Some(row) if row.invalid.is_some() => "✗".to_owned(),
            Some(row) => cell(row),
        });
        let cells: Vec<String> = cells.collect();
        let _ = writeln!(text, "| {subject} | {} | {} |", grouped(count), cells.join(" | "));
    }
}

/// ` (0.62×)`, or nothing where there is nothing to compare with.
fn ratio(results: &Results, row: &Row, yardstick: &str, value: impl Fn(&Row) -> f64) -> String {
    match results.valid(&row.subject, row.count, row.phase, yardstick) {
        Some(other) if row.tool != yardstick => format!(" ({:.2}×)", value(row) / value(other)),
        _ => String::new(),
    }
}

fn memory(row: &Row) -> String {
    let mib = |kib: u64| kib as f64 / 1024.0;
    let first = row.main_kib.map(|kib| format!(" [{:.0}]", mib(kib))).unwrap_or_default();
    format!("{:.0}{first}", mib(row.largest_kib))
}

/// Three digits that mean something.
pub fn seconds(value: f64) -> String {
    match value {
        v if v < 1.0 => format!("{v:.4}"),
        v if v < 10.0 => format!("{v:.3}"),
        v => format!("{v:.1}"),
    }
}

/// `10,000`.
pub fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or_default()).collect();
    groups.join(",")
}

fn notes(text: &mut String, results: &Results) {
    if results.absent.is_empty() && results.rows.iter().all(|row| row.invalid.is_none()) {
        return;
    }
    text.push_str("\n### Not measured, or not valid\n\n");
    for absent in &results.absent {
        let _ = writeln!(text, "- {absent}");
    }
    for row in &results.rows {
        if let Some(why) = &row.invalid {
            let _ = writeln!(text, "- ✗ {}, {} {}, {:?}: {why}", row.tool, row.subject, grouped(row.count), row.phase);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(grouped(100_000), "100,000");
        assert_eq!(grouped(100), "100");
        assert_eq!(seconds(0.03712), "0.0371");
        assert_eq!(seconds(12.34), "12.3");
    }
}
