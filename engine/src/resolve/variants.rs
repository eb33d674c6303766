//! `matrix:` and `foreach:`: the variants of a stage, by their own coordinates.
//!
//! A matrix gives every combination of its axes; then `exclude` takes away and `include` adds, by the rules of GitHub Actions:
//! an entry of `exclude` removes the combinations that have all its values; an entry of `include` adds its values to every combination
//! whose axes it does not contradict, and is a variant of its own if there is none.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::MAX_STAGES;
use super::program::{Program, Unit};
use crate::pipeline::{Labels, expanded_name};
use crate::problem::{Problem, Problems, Span};
use crate::reference::{self, Reference, Wanted};
use crate::source::{Data, Files, Node};
use crate::spec::StageSpec;
use crate::template::{Scope, plain};

/// What an output of an earlier stage holds, by the names of the expanded stage and of the output: `None` if that is not known yet, and
/// the reason if it cannot be read as a text.
pub type Known<'a> = &'a dyn Fn(&str, &str) -> Option<Result<String, String>>;

/// One variant.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Variant {
    /// Its coordinates.
    pub labels: Labels,
    /// The item of `foreach`, if that is a map: more than the name that stands among the coordinates.
    pub items: Vec<(String, Value)>,
}

/// The variants, or what they wait for.
#[derive(Debug)]
pub enum Variants {
    /// All of them.
    Known(Vec<Variant>),
    /// The output of an earlier stage says how many there are.
    Later(Reference, Span),
}

/// The variants of a stage.
///
/// # Errors
/// Values that cannot be coordinates, and more variants than `left`.
pub fn variants(stage: &StageSpec, program: &Program, files: &Files, known: Known<'_>, left: usize) -> Result<Variants, Problems> {
    let unit = program.unit(stage);
    let no_labels = Labels::new();
    let scope = Scope { params: &unit.params, items: &[], matrix: &no_labels, files };
    let mut problems = Problems::new();
    let axes = axes(stage, &scope, &mut problems);
    let items = match stage.foreach.as_deref() {
        None => None,
        Some((key, node)) => match items(&key.name, node, stage, program, &scope, known, &mut problems) {
            Items::Known(items) => Some(items),
            Items::Later(reference, span) => return problems.or(Variants::Later(reference, span)),
        },
    };
    let Some(axes) = axes.filter(|_| problems.is_empty()) else { return Err(problems) };
    let each = items.as_ref().map_or(1, Vec::len);
    let count = axes.iter().fold(each, |n, (_, values)| n.saturating_mul(values.len()));
    if count > left {
        return Err(too_many(stage).into());
    }
    let mut variants = matrix(stage, &axes, &scope, &mut problems);
    if let (Some(items), Some((key, _))) = (items, stage.foreach.as_deref()) {
        variants = spread(&variants, &key.name, &items);
    }
    if variants.len() > left {
        return Err(too_many(stage).into());
    }
    problems.or(Variants::Known(variants))
}

/// Whether the items of a stage come from an output.
pub fn takes_output(stage: &StageSpec, program: &Program) -> bool {
    stage.foreach.as_deref().is_some_and(|(_, node)| output(node, program.unit(stage), program).is_some())
}

/// The complaint about a pipeline that grows over the budget.
pub fn too_many(stage: &StageSpec) -> Problem {
    Problem::new("matrix::too-large", format!("the pipeline expands to more than {MAX_STAGES} stages"))
        .at(stage.name.span, "with this stage")
        .help("make the matrix smaller, or split the pipeline")
}

type Axis = (String, Vec<Value>);

/// `None` if an axis was no list, which was complained about when the shape was read.
fn axes(stage: &StageSpec, scope: &Scope<'_>, problems: &mut Problems) -> Option<Vec<Axis>> {
    let mut axes = Vec::new();
    for (key, node) in &stage.matrix().axes {
        match scope.fill(node) {
            Ok(Value::Array(values)) if !values.is_empty() => {
                check_values(&key.name, node, &values, problems);
                axes.push((key.name.to_string(), values));
            }
            // What is written out and is no list was complained about when the shape was read.
            Ok(_) if node.as_str().is_none() => return None,
            Ok(_) => problems.push(
                Problem::new("spec::matrix-axis", format!("the axis `{}` needs a list of values", key.name))
                    .at(node.span, "this does not stand for a list with values in it"),
            ),
            Err(found) => problems.extend(found),
        }
    }
    Some(axes)
}

fn check_values(axis: &str, node: &Node, values: &[Value], problems: &mut Problems) {
    let place = |i: usize| if let Data::List(items) = &node.data { items.get(i).map_or(node.span, |item| item.span) } else { node.span };
    let mut seen: HashMap<String, usize> = HashMap::with_capacity(values.len());
    for (i, value) in values.iter().enumerate() {
        check_value(axis, value, place(i), problems);
        if let Some(first) = seen.insert(plain(value), i) {
            let mut problem = Problem::new("matrix::repeated", format!("the axis `{axis}` has the value `{}` twice", plain(value)))
                .at(place(i), "again here");
            if place(first) != place(i) {
                problem = problem.at(place(first), "first here");
            }
            problems.push(problem);
        }
    }
}

fn check_value(axis: &str, value: &Value, place: Span, problems: &mut Problems) {
    let text = plain(value);
    let has_reserved = text.is_empty() || text.contains(['[', ']', ',', '=', '*']) || text.contains(char::is_control);
    if value.is_array() || value.is_object() || value.is_null() || has_reserved {
        problems.push(
            Problem::new("matrix::value", format!("a value of the axis `{axis}` cannot be part of a name"))
                .at(place, "this value")
                .help("axis values are numbers, truth values or words without `[ ] , = *`"),
        );
    }
}

/// All combinations, without the excluded and with the included ones.
fn matrix(stage: &StageSpec, axes: &[Axis], scope: &Scope<'_>, problems: &mut Problems) -> Vec<Variant> {
    let mut combinations: Vec<Labels> = if axes.is_empty() && stage.matrix().include.is_some() { Vec::new() } else { product(axes) };
    if let Some(node) = &stage.matrix().exclude {
        for (entry, _) in entries(node, "exclude", scope, problems) {
            check_axes(&entry, node, axes, problems);
            combinations.retain(|labels| !entry.iter().all(|(axis, value)| labels.get(axis) == Some(value)));
        }
    }
    let mut sets = combinations.clone();
    if let Some(node) = &stage.matrix().include {
        include(&combinations, &mut sets, node, scope, problems);
    }
    if sets.is_empty() && problems.is_empty() {
        problems.push(
            Problem::new("matrix::empty", format!("nothing is left of the matrix of `{}`", stage.name.value))
                .at(stage.name.span, "this stage")
                .help("`exclude` takes every combination away; to leave a stage out use `when`"),
        );
    }
    sets.into_iter().map(|labels| Variant { labels, items: Vec::new() }).collect()
}

fn product(axes: &[Axis]) -> Vec<Labels> {
    axes.iter().fold(vec![Labels::new()], |sets, (axis, values)| {
        sets.iter()
            .flat_map(|set| {
                values.iter().map(|value| {
                    let mut set = set.clone();
                    set.insert(axis.clone(), value.clone());
                    set
                })
            })
            .collect()
    })
}

fn include(combinations: &[Labels], sets: &mut Vec<Labels>, node: &Node, scope: &Scope<'_>, problems: &mut Problems) {
    for (entry, span) in entries(node, "include", scope, problems) {
        entry.iter().for_each(|(axis, value)| check_value(axis, value, span, problems));
        let mut taken = false;
        for (original, set) in combinations.iter().zip(sets.iter_mut()) {
            if entry.iter().all(|(axis, value)| original.get(axis).is_none_or(|own| own == value)) {
                set.extend(entry.iter().map(|(axis, value)| (axis.clone(), value.clone())));
                taken = true;
            }
        }
        if !taken {
            sets.push(entry.into_iter().collect());
        }
    }
    let mut names = HashSet::new();
    if let Some(twice) = sets.iter().map(|labels| expanded_name("", labels)).find(|name| !names.insert(name.clone())) {
        problems.push(Problem::new("matrix::repeated", format!("the matrix has {twice} twice")).at(node.span, "after this is included"));
    }
}

/// The maps of `include` or `exclude`, with their places.
fn entries(node: &Node, what: &str, scope: &Scope<'_>, problems: &mut Problems) -> Vec<(Map<String, Value>, Span)> {
    let filled = match scope.fill(node) {
        Ok(filled) => filled,
        Err(found) => {
            problems.extend(found);
            return Vec::new();
        }
    };
    let place = |i: usize| if let Data::List(items) = &node.data { items.get(i).map_or(node.span, |item| item.span) } else { node.span };
    let Value::Array(items) = filled else {
        problems.push(not_maps(what, node.span));
        return Vec::new();
    };
    let mut maps = Vec::new();
    for (i, item) in items.into_iter().enumerate() {
        match item {
            Value::Object(map) if !map.is_empty() && map.keys().all(|key| crate::spec::is_name(key)) => maps.push((map, place(i))),
            _ => problems.push(not_maps(what, place(i))),
        }
    }
    maps
}

fn not_maps(what: &str, span: Span) -> Problem {
    Problem::new("spec::wrong-type", format!("`{what}` must be a list of maps"))
        .at(span, "this is none")
        .help(format!("write `{what}: [{{ axis: value }}]`"))
}

fn check_axes(entry: &Map<String, Value>, node: &Node, axes: &[Axis], problems: &mut Problems) {
    for name in entry.keys().filter(|name| !axes.iter().any(|(axis, _)| axis == *name)) {
        let nodes = if let Data::List(items) = &node.data { &**items } else { &[] };
        let place = nodes.iter().find_map(|item| item.key_span(name)).unwrap_or(node.span);
        let problem = Problem::new("matrix::unknown-axis", format!("the matrix has no axis `{name}`")).at(place, "unknown axis");
        problems.push(problem.nearest(name, axes.iter().map(|(axis, _)| axis.as_str())));
    }
}

/// Every variant with every item.
fn spread(variants: &[Variant], name: &str, items: &[Value]) -> Vec<Variant> {
    let mut spread = Vec::with_capacity(variants.len() * items.len());
    for variant in variants {
        for item in items {
            let mut variant = variant.clone();
            match item {
                Value::Object(map) => {
                    variant.labels.insert(name.to_owned(), map.get("name").cloned().unwrap_or_default());
                    variant.items.push((name.to_owned(), item.clone()));
                }
                scalar => drop(variant.labels.insert(name.to_owned(), scalar.clone())),
            }
            spread.push(variant);
        }
    }
    spread
}

enum Items {
    Known(Vec<Value>),
    Later(Reference, Span),
}

fn items(
    name: &str,
    node: &Node,
    stage: &StageSpec,
    program: &Program,
    scope: &Scope<'_>,
    known: Known<'_>,
    problems: &mut Problems,
) -> Items {
    let unit = program.unit(stage);
    if let Some(found) = output(node, unit, program) {
        let listed = found.and_then(|reference| match listed(&reference, node.span, known) {
            None => Ok(Items::Later(reference, node.span)),
            Some(items) => items.map(Items::Known),
        });
        return match listed {
            Ok(Items::Known(items)) => Items::Known(checked(name, node, items, problems)),
            Ok(later) => later,
            Err(problem) => {
                problems.push(problem);
                Items::Known(Vec::new())
            }
        };
    }
    match scope.fill(node) {
        Ok(Value::Array(items)) if !items.is_empty() => Items::Known(checked(name, node, items, problems)),
        Ok(_) => {
            problems.push(
                Problem::new("spec::foreach", format!("`foreach` needs a list of values for `{name}`"))
                    .at(node.span, "this is no list with values in it")
                    .help(format!("write `foreach: {{ {name}: [a, b] }}`, or `\"${{stage.output}}\"` for the list that a stage makes")),
            );
            Items::Known(Vec::new())
        }
        Err(found) => {
            problems.extend(found);
            Items::Known(Vec::new())
        }
    }
}

/// The values, which are scalars, or maps with a `name` to be called by.
fn checked(name: &str, node: &Node, items: Vec<Value>, problems: &mut Problems) -> Vec<Value> {
    let names: Vec<Value> =
        items.iter().map(|item| item.as_object().map_or(item, |map| map.get("name").unwrap_or(&Value::Null)).clone()).collect();
    let nameless = items.iter().zip(&names).position(|(item, name)| item.is_object() && name.is_null());
    if let Some(i) = nameless {
        let place = if let Data::List(nodes) = &node.data { nodes.get(i).map_or(node.span, |node| node.span) } else { node.span };
        problems.push(
            Problem::new("foreach::no-name", "a map in `foreach` needs a `name`")
                .at(place, "has none")
                .help("the name tells the expanded stages apart, as in `stage[item=NAME]`"),
        );
        return Vec::new();
    }
    check_values(name, node, &names, problems);
    items
}

/// The output that `${stage.output}` names; `None` if that is no stage, or a param of the same name hides it.
fn output(node: &Node, unit: &Unit, program: &Program) -> Option<Result<Reference, Problem>> {
    let text = node.as_str()?.trim().strip_prefix("${")?.strip_suffix('}')?;
    let Ok(Wanted::Output(mut reference)) = reference::parse(text.trim()) else { return None };
    reference.stage.insert_str(0, &unit.prefix);
    let is_stage = program.index.contains_key(reference.stage.as_str()) || program.broken.contains(&reference.stage);
    let local = &reference.stage[unit.prefix.len()..];
    if !is_stage || unit.params.contains_key(local) {
        return None;
    }
    if reference.output.is_none() || reference.gather {
        let help = format!("write `${{{local}.output}}`, with the name of the output");
        return Some(Err(Problem::new("foreach::one-output", "`foreach` takes the list from one output of one stage")
            .at(node.span, "here")
            .help(help)));
    }
    Some(Ok(reference))
}

/// The items that an output lists: a JSON list, or one a line. `None` if it is not known yet.
fn listed(reference: &Reference, span: Span, known: Known<'_>) -> Option<Result<Vec<Value>, Problem>> {
    let output = reference.output.as_deref().unwrap_or_default();
    let labels: Labels = reference.fixed.iter().map(|(axis, value)| (axis.clone(), Value::from(value.as_str()))).collect();
    let stage = expanded_name(&reference.stage, &labels);
    let bad = |why: String| {
        Problem::new("foreach::not-a-list", format!("the output `{stage}.{output}` is no list: {why}")).at(span, "taken from here")
    };
    Some(known(&stage, output)?.map_err(bad).and_then(|text| read_list(&text).map_err(bad)))
}

fn read_list(text: &str) -> Result<Vec<Value>, String> {
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(text).map_err(|error| format!("its JSON cannot be read ({error})"));
    }
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(Value::from).collect())
}
