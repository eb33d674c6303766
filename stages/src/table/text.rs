//! The table as Markdown and as CSV.

use trestle_engine::stage::StageError;

use super::grid::{Grid, Row};
use super::stats::Summary;
use super::{TableParams, Unit};

/// The table as Markdown, with a line below it that says what the numbers are.
pub(super) fn markdown(params: &TableParams, grid: &Grid) -> String {
    let mut lines = Vec::new();
    if !params.title.is_empty() {
        lines.extend([format!("**{}**", escape(&params.title)), String::new()]);
    }
    let mut head = vec![escape(&params.rows), escape(&params.metric_name())];
    if params.over.is_some() {
        head.extend(["n", "min", "max"].map(str::to_owned));
    }
    head.extend(params.baseline.iter().map(|name| format!("Δ to {}", escape(name))));
    lines.push(cells(&head));
    lines.push(format!("|:--{}|", "|--:".repeat(head.len() - 1)));
    lines.extend(grid.rows.iter().map(|row| cells(&row_cells(params, row))));
    lines.push(String::new());
    lines.push(caption(params, grid).iter().map(|sentence| escape(sentence)).collect::<Vec<_>>().join(" "));
    lines.join("\n") + "\n"
}

fn row_cells(params: &TableParams, row: &Row) -> Vec<String> {
    let mut line = vec![escape(&row.name), mean_std(params, &row.summary, false)];
    if params.over.is_some() {
        let Summary { n, min, max, .. } = row.summary;
        line.extend([n.to_string(), number(params, min, false), number(params, max, false)]);
    }
    if params.baseline.is_some() {
        line.push(row.difference.map_or("–".to_owned(), |difference| mean_std(params, &difference, true)));
    }
    line
}

/// What the numbers are, as sentences.
fn caption(params: &TableParams, grid: &Grid) -> Vec<String> {
    let over = params.over.as_ref().map(|over| match grid.columns.len() {
        1 => single(over),
        n => format!("Mean ± sample standard deviation (n − 1) over {n} {}.", plural(over)),
    });
    let baseline = params.baseline.as_ref().map(|baseline| {
        let unit = if params.unit == Unit::Percent { " in percentage points" } else { "" };
        let over = params.over.as_ref().filter(|_| grid.columns.len() > 1);
        let paired = over.map_or(String::new(), |over| format!(", paired by {over}"));
        format!("Δ: difference to {baseline}{unit}{paired}.")
    });
    [over, baseline, images(grid)].into_iter().flatten().collect()
}

/// Why no deviation is shown.
pub(super) fn single(over: &str) -> String {
    format!("One {over} only: no deviation is known.")
}

/// How many images a score is over, if that is known.
pub(super) fn images(grid: &Grid) -> Option<String> {
    let (least, most) = grid.count?;
    Some(match least == most {
        true => format!("Each score is over {} images.", thousands(least)),
        false => format!("Scores are over {} to {} images.", thousands(least), thousands(most)),
    })
}

/// `85.2 ± 0.4`, or the mean alone if no deviation is known.
pub(super) fn mean_std(params: &TableParams, summary: &Summary, sign: bool) -> String {
    let mean = number(params, summary.mean, sign);
    summary.std.map_or(mean.clone(), |std| format!("{mean} ± {}", number(params, std, false)))
}

/// A value in the unit of the table, rounded, with a true minus sign and, on request, a plus sign.
fn number(params: &TableParams, value: f64, sign: bool) -> String {
    let text = format!("{:.*}", usize::from(params.decimals), (value * params.scale()).abs());
    let zero = text.bytes().all(|b| matches!(b, b'0' | b'.'));
    match (zero, value < 0.0, sign) {
        (false, true, _) => format!("−{text}"),
        (false, false, true) => format!("+{text}"),
        _ => text,
    }
}

/// A label's name for several of its values.
pub(super) fn plural(name: &str) -> String {
    if name.ends_with('s') { name.to_owned() } else { format!("{name}s") }
}

/// 1797 as 1,797.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn cells(cells: &[String]) -> String {
    format!("| {} |", cells.join(" | "))
}

/// Text without any meaning to Markdown.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' | '|' | '*' | '_' | '`' | '<' | '>' | '[' | ']' | '~' | '#' | '$' | '&' => out.extend(['\\', c]),
            '\n' | '\r' | '\t' => out.push(' '),
            _ => out.push(c),
        }
    }
    out
}

/// The table as CSV: values as they are in scores.json, neither scaled nor rounded, and a column for every single score.
pub(super) fn csv(params: &TableParams, grid: &Grid) -> Result<Vec<u8>, StageError> {
    let failed = |e: &dyn std::fmt::Display| StageError::new(format!("cannot write the table as CSV: {e}"));
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::Any(b'\n')).from_writer(Vec::new());
    let mut head: Vec<String> = [params.rows.as_str(), "metric", "n", "mean", "std", "min", "max"].map(str::to_owned).to_vec();
    if params.baseline.is_some() {
        head.extend(["difference", "difference_std"].map(str::to_owned));
    }
    if let Some(over) = &params.over {
        head.extend(grid.columns.iter().map(|column| format!("{over}={column}")));
    }
    writer.write_record(&head).map_err(|e| failed(&e))?;
    for row in &grid.rows {
        writer.write_record(csv_row(params, row)).map_err(|e| failed(&e))?;
    }
    writer.into_inner().map_err(|e| failed(&e))
}

fn csv_row(params: &TableParams, row: &Row) -> Vec<String> {
    let Summary { n, mean, std, min, max } = row.summary;
    let optional = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    let mut line =
        vec![row.name.clone(), params.metric.clone(), n.to_string(), mean.to_string(), optional(std), min.to_string(), max.to_string()];
    if params.baseline.is_some() {
        line.extend([optional(row.difference.map(|d| d.mean)), optional(row.difference.and_then(|d| d.std))]);
    }
    if params.over.is_some() {
        line.extend(row.values.iter().map(f64::to_string));
    }
    line
}
