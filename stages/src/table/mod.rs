//! `table`: from many scores to a table, a CSV file and a plot.

mod figure;
mod grid;
mod stats;
mod text;

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trestle_engine::stage::{Arity, Context, Format, InPort, OutPort, ParamError, Stage, StageError};

use crate::draw;
use grid::Grid;

/// Gathers scores into a table of means and standard deviations.
///
/// Every value of the input `scores` has labels, the matrix coordinates of the stage that made it. One label (`rows`) names the row,
/// one (`over`) tells the repetitions apart, such as seeds; the scores must fill that grid without gaps or duplicates.
/// The standard deviation is the sample's (n − 1), and a difference to the baseline is taken seed by seed, since methods with the
/// same seed share the same draw of the data.
pub struct Table;

/// What a number means, and so how it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// A share from 0 to 1, written in percent; differences are in percentage points.
    Percent,
    /// Any number, written as it is.
    Plain,
}

/// How the plot shows the scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Plot {
    /// Bars from zero with a dot for each repetition.
    Bars,
    /// Dots on an axis that is cut to the values, and says so.
    Dots,
}

/// Parameters of [`Table`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TableParams {
    /// Heading of the table and the plot; none if empty.
    pub title: String,
    /// The label that names a row.
    pub rows: String,
    /// The label to average over; null if each row has one score.
    pub over: Option<String>,
    /// Names of all rows from top to bottom; if empty, the order in which the scores come.
    pub order: Vec<String>,
    /// The row that the others are compared to.
    pub baseline: Option<String>,
    /// The field of scores.json to show, with dots for nested fields.
    pub metric: String,
    /// The unit of that field.
    pub unit: Unit,
    /// Digits after the decimal point in the table.
    #[schemars(range(max = 9))]
    pub decimals: u8,
    /// Bars from zero, or dots on a cut axis.
    pub plot: Plot,
}

impl Default for TableParams {
    fn default() -> Self {
        Self {
            title: String::new(),
            rows: "method".to_owned(),
            over: Some("seed".to_owned()),
            order: Vec::new(),
            baseline: None,
            metric: "top1".to_owned(),
            unit: Unit::Percent,
            decimals: 1,
            plot: Plot::Bars,
        }
    }
}

impl TableParams {
    /// Name of the metric as a person writes it.
    fn metric_name(&self) -> String {
        let name = if self.metric == "top1" { "top-1" } else { &self.metric };
        match self.unit {
            Unit::Percent => format!("{name} (%)"),
            Unit::Plain => name.to_owned(),
        }
    }

    /// What a stored value is multiplied by before it is written.
    fn scale(&self) -> f64 {
        match self.unit {
            Unit::Percent => 100.0,
            Unit::Plain => 1.0,
        }
    }
}

impl Stage for Table {
    const KIND: &'static str = "table";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Gathers scores into a table and a plot: mean ± sample standard deviation over seeds";
    type Params = TableParams;

    fn inputs() -> Vec<InPort> {
        let doc = "Scores with labels, usually a gathering reference such as `evaluate[*]`";
        vec![InPort { name: "scores", format: Format("scores"), arity: Arity::Many, doc }]
    }

    fn outputs() -> Vec<OutPort> {
        vec![
            OutPort { name: "table", format: Format("table"), path: "table.md", doc: "Markdown table" },
            OutPort {
                name: "csv",
                format: Format("csv"),
                path: "table.csv",
                doc: "The same unrounded and unscaled, with every single score",
            },
            OutPort { name: "figure", format: Format("figure"), path: "figure.svg", doc: "Plot of the scores" },
            OutPort { name: "png", format: Format("png"), path: "figure.png", doc: "The same plot as pixels" },
        ]
    }

    fn check(params: &TableParams) -> Vec<ParamError> {
        let mut errors = Vec::new();
        if params.decimals > 9 {
            errors.push(ParamError::new(
                "decimals",
                format!("{} digits after the point are more than the 9 that make sense", params.decimals),
            ));
        }
        if params.over.as_ref() == Some(&params.rows) {
            errors.push(ParamError::new("over", format!("`rows` and `over` are both `{}`; a table needs one label for each", params.rows)));
        }
        for (i, name) in params.order.iter().enumerate() {
            if params.order[..i].contains(name) {
                errors.push(ParamError::new(format!("order.{i}"), format!("`{name}` is in `order` twice")));
            }
        }
        match &params.baseline {
            Some(name) if !params.order.is_empty() && !params.order.contains(name) => {
                errors.push(ParamError::new("baseline", format!("the baseline `{name}` is not in `order`")));
            }
            _ => {}
        }
        errors
    }

    fn run(params: &TableParams, cx: &mut Context<'_>) -> Result<(), StageError> {
        let grid = Grid::read(params, cx.inputs("scores"))?;
        let svg = figure::chart(params, &grid).svg().map_err(|e| StageError::new(e.to_string()))?;
        let png = draw::png(&svg, 2.0).map_err(|e| StageError::new(e.to_string()))?;
        write(cx.output("table")?, text::markdown(params, &grid).as_bytes())?;
        write(cx.output("csv")?, &text::csv(params, &grid)?)?;
        write(cx.output("figure")?, svg.as_bytes())?;
        write(cx.output("png")?, &png)?;
        for row in &grid.rows {
            cx.metric(&format!("{}/{}", row.name, params.metric), row.summary.mean);
        }
        Ok(())
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), StageError> {
    std::fs::write(path, bytes).map_err(|e| StageError::new(format!("cannot write {}: {e}", path.display())))
}

#[cfg(test)]
mod tests;
