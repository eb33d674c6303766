//! The table as a plot.

use super::grid::Grid;
use super::text::{images, mean_std, plural, single};
use super::{Plot, TableParams, Unit};
use crate::draw::{Axis, Chart, Row};

/// One row a row of the table, one dot a score.
pub(super) fn chart(params: &TableParams, grid: &Grid) -> Chart {
    let scale = params.scale();
    let rows = grid.rows.iter().map(|row| Row {
        name: row.name.clone(),
        values: row.values.iter().map(|value| value * scale).collect(),
        mean: row.summary.mean * scale,
        spread: row.summary.std.map(|std| std * scale),
        label: mean_std(params, &row.summary, false),
        baseline: row.baseline,
    });
    Chart {
        title: params.title.clone(),
        measure: measure(params),
        notes: notes(params, grid),
        rows: rows.collect(),
        axis: axis(params.plot),
    }
}

fn axis(plot: Plot) -> Axis {
    match plot {
        Plot::Bars => Axis::Zero,
        Plot::Dots => Axis::Cut,
    }
}

fn measure(params: &TableParams) -> String {
    match (params.metric.as_str(), params.unit) {
        ("top1", Unit::Percent) => "top-1 accuracy (%)".to_owned(),
        _ => params.metric_name(),
    }
}

fn notes(params: &TableParams, grid: &Grid) -> Vec<String> {
    let marks = params.over.as_ref().map(|over| match grid.columns.len() {
        1 => single(over),
        n => {
            let mean = if params.plot == Plot::Bars { "Bars" } else { "Ticks" };
            format!("Dots: one {over} each. {mean}: mean of {n} {}. Whiskers: ± 1 sample standard deviation.", plural(over))
        }
    });
    let baseline = params.baseline.as_ref().map(|name| format!("Dashed line: mean of {name}."));
    let last: Vec<String> = [baseline, images(grid)].into_iter().flatten().collect();
    marks.into_iter().chain((!last.is_empty()).then(|| last.join(" "))).collect()
}
