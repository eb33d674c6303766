//! From scores with labels to a full grid: one row a name, one column a repetition.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use trestle_engine::stage::{Input, StageError};

use super::stats::Summary;
use super::{TableParams, Unit};

/// The scores of a table, in its order and in the unit of scores.json.
#[derive(Debug)]
pub(super) struct Grid {
    /// From top to bottom.
    pub rows: Vec<Row>,
    /// Names of the repetitions, in the order of every row's values; one empty name if nothing is averaged.
    pub columns: Vec<String>,
    /// Fewest and most images that a score counts, if every scores.json says so.
    pub count: Option<(u64, u64)>,
}

/// One row.
#[derive(Debug)]
pub(super) struct Row {
    pub name: String,
    pub values: Vec<f64>,
    pub summary: Summary,
    /// Value minus the baseline's value of the same repetition; none for the baseline itself and without one.
    pub difference: Option<Summary>,
    pub baseline: bool,
}

/// One scores.json and its place in the grid.
struct Score {
    row: String,
    column: String,
    value: f64,
    count: Option<u64>,
}

impl Grid {
    /// Reads every score and puts it into its place.
    ///
    /// # Errors
    /// If a file cannot be read, a label or the metric is missing, the grid has a gap or two scores in one place, or a name of
    /// the parameters fits no score.
    pub(super) fn read(params: &TableParams, inputs: &[Input]) -> Result<Self, StageError> {
        let scores = inputs.iter().map(|input| read_score(params, input)).collect::<Result<Vec<_>, _>>()?;
        if scores.is_empty() {
            return Err(StageError::new("the input `scores` has no value").help("connect the scores of an `evaluation` stage"));
        }
        let found = distinct(scores.iter().map(|score| &score.row));
        let names = if params.order.is_empty() { found.clone() } else { params.order.clone() };
        check_names(params, &found)?;
        let mut columns = distinct(scores.iter().map(|score| &score.column));
        columns.sort_by(|a, b| number(a).total_cmp(&number(b)).then_with(|| a.cmp(b)));
        let mut grid = Self { rows: Vec::new(), columns, count: count(&scores) };
        let values = grid.fill(params, &names, &scores)?;
        let baseline = params.baseline.as_ref().and_then(|name| names.iter().position(|n| n == name));
        for (i, name) in names.into_iter().enumerate() {
            let difference = baseline.filter(|b| *b != i).map(|b| differences(&values[i], &values[b]));
            let (values, summary) = (values[i].clone(), Summary::of(&values[i]));
            grid.rows.push(Row { name, values, summary, difference, baseline: baseline == Some(i) });
        }
        Ok(grid)
    }

    /// The values of every row, each in the order of the columns.
    fn fill(&self, params: &TableParams, names: &[String], scores: &[Score]) -> Result<Vec<Vec<f64>>, StageError> {
        let mut missing = Vec::new();
        let mut rows = Vec::with_capacity(names.len());
        for name in names {
            let mut values = Vec::with_capacity(self.columns.len());
            for column in &self.columns {
                let here: Vec<&Score> = scores.iter().filter(|score| score.row == *name && score.column == *column).collect();
                match here[..] {
                    [score] => values.push(score.value),
                    [] => missing.push(place(params, name, column)),
                    _ => return Err(duplicate(params, &place(params, name, column), here.len())),
                }
            }
            rows.push(values);
        }
        if missing.is_empty() { Ok(rows) } else { Err(gap(&missing)) }
    }
}

fn differences(values: &[f64], baseline: &[f64]) -> Summary {
    Summary::of(&values.iter().zip(baseline).map(|(value, base)| value - base).collect::<Vec<_>>())
}

/// Each name once, in the order of first appearance.
fn distinct<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut seen = BTreeSet::new();
    names.filter(|name| seen.insert(*name)).cloned().collect()
}

/// Seeds sort as numbers, other names after them as text.
fn number(name: &str) -> f64 {
    name.parse().unwrap_or(f64::INFINITY)
}

/// Fewest and most images, if every score says how many.
fn count(scores: &[Score]) -> Option<(u64, u64)> {
    let counts = scores.iter().map(|score| score.count).collect::<Option<Vec<u64>>>()?;
    Some((*counts.iter().min()?, *counts.iter().max()?))
}

fn read_score(params: &TableParams, input: &Input) -> Result<Score, StageError> {
    let file = input.path.join("scores.json");
    let text = std::fs::read_to_string(&file).map_err(|e| StageError::new(format!("cannot read {}: {e}", file.display())))?;
    let scores: Value = serde_json::from_str(&text).map_err(|e| StageError::new(format!("{} is not JSON: {e}", file.display())))?;
    let column = match &params.over {
        Some(key) => label(input, key, "over")?,
        None => String::new(),
    };
    let value = metric(params, &scores, &file)?;
    Ok(Score { row: label(input, &params.rows, "rows")?, column, value, count: scores.get("count").and_then(Value::as_u64) })
}

/// The value of label `key`, which the parameter `param` asks for.
fn label(input: &Input, key: &str, param: &str) -> Result<String, StageError> {
    match input.labels.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
        Some(value) => Err(StageError::new(format!("the label `{key}` of a score is {value}, neither text nor a number"))),
        None => {
            let known: Vec<String> = input.labels.keys().map(|key| format!("`{key}`")).collect();
            let known = if known.is_empty() { "no labels".to_owned() } else { format!("only {}", known.join(", ")) };
            let error = StageError::new(format!("a score has no label `{key}`, {known}: {}", input.path.display()));
            let way_out = match param {
                "over" => "set `over` to another label, or to null if each row has one score",
                _ => "set `rows` to another label",
            };
            Err(error.help(format!(
                "labels are the matrix coordinates of the stage that made the score: give that stage a matrix with `{key}`, or {way_out}"
            )))
        }
    }
}

fn metric(params: &TableParams, scores: &Value, file: &Path) -> Result<f64, StageError> {
    let field = params.metric.split('.').try_fold(scores, |value, key| value.get(key));
    let Some(value) = field.and_then(Value::as_f64) else {
        let is = field.map_or("has no".to_owned(), |value| format!("has {value} as"));
        let known = numbers(scores).join("`, `");
        let error = StageError::new(format!("{} {is} number `{}`", file.display(), params.metric));
        return Err(if known.is_empty() { error } else { error.help(format!("its numbers are `{known}`")) });
    };
    if params.unit == Unit::Percent && !(0.0..=1.0).contains(&value) {
        let message = format!("`{}` is {value} in {}, which is no share from 0 to 1", params.metric, file.display());
        return Err(StageError::new(message).help("set `unit: plain` to show it as it is"));
    }
    Ok(value)
}

/// Names of the top-level fields that are numbers.
fn numbers(scores: &Value) -> Vec<String> {
    let fields = scores.as_object().into_iter().flatten();
    fields.filter(|(_, value)| value.is_number()).map(|(key, _)| key.clone()).collect()
}

/// Every name that the parameters and the scores do not share, in one error.
fn check_names(params: &TableParams, found: &[String]) -> Result<(), StageError> {
    let mut wrong = Vec::new();
    let unknown = |name: &&String| !found.contains(name);
    wrong
        .extend(params.order.iter().filter(unknown).map(|name| format!("`order` names `{name}`, which no score has as `{}`", params.rows)));
    wrong.extend(params.baseline.iter().filter(unknown).map(|name| format!("the baseline `{name}` is no row")));
    if !params.order.is_empty() {
        wrong.extend(found.iter().filter(|name| !params.order.contains(name)).map(|name| format!("`order` leaves out `{name}`")));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(StageError::new(wrong.join("; ")).help(format!("the rows are `{}`", found.join("`, `"))))
}

/// A place in the grid as a person reads it.
fn place(params: &TableParams, row: &str, column: &str) -> String {
    match &params.over {
        Some(over) => format!("{} = {row}, {over} = {column}", params.rows),
        None => format!("{} = {row}", params.rows),
    }
}

fn duplicate(params: &TableParams, place: &str, n: usize) -> StageError {
    let help = match &params.over {
        Some(_) => {
            "the scores differ in a label that is neither `rows` nor `over`: gather those of one value only, or make a table for each"
        }
        None => "set `over` to the label that tells them apart, and the table shows their mean",
    };
    StageError::new(format!("{n} scores for {place}")).help(help)
}

fn gap(missing: &[String]) -> StageError {
    let shown = missing.iter().take(8).cloned().collect::<Vec<_>>().join("; ");
    let more = missing.len().saturating_sub(8);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    StageError::new(format!("no score for {shown}{more}"))
        .help("every row needs the same repetitions, or its mean would not be comparable: gather the missing scores too")
}
