//! How a stage is to be run: time, tries, pools and the like, checked against what the pipeline declares.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::pipeline::{Retries, Settings};
use crate::problem::{Problem, Problems, Span};
use crate::source::{Data, Key, Node, value_type_name};
use crate::spec::is_name;
use crate::template::Scope;
use crate::units;

/// Resources that are no pools.
const BUILT_IN: [&str; 3] = ["cpus", "memory", "gpus"];
/// Keys of `retries`.
const RETRY_KEYS: [&str; 2] = ["times", "delay"];
/// Pause before the second try, if none is given.
const DELAY: Duration = Duration::from_secs(1);

/// `pools:`, units by name.
pub fn pools(written: &[(Key, Node)], scope: &Scope<'_>, problems: &mut Problems) -> BTreeMap<String, u32> {
    let mut pools = BTreeMap::new();
    for (key, node) in written {
        if BUILT_IN.contains(&key.name.as_str()) {
            problems.push(
                Problem::new("spec::bad-name", format!("`{}` cannot be the name of a pool", key.name))
                    .at(key.span, "this name")
                    .help("`cpus`, `memory` and `gpus` belong to the machine; `--jobs` says how many threads may be used"),
            );
            continue;
        }
        let mut reading = Reading { scope, problems };
        if let Some(units) = reading.fill(node).and_then(|value| reading.count(&value, &key.name, 1, node.span)) {
            pools.insert(key.name.to_string(), units);
        }
    }
    pools
}

/// The settings of one stage, and its `cpus` if it has any.
pub fn settings(
    written: &[(Key, Node)],
    pools: &BTreeMap<String, u32>,
    scope: &Scope<'_>,
    problems: &mut Problems,
) -> (Arc<Settings>, Option<usize>) {
    if written.is_empty() {
        return (Settings::shared(), None);
    }
    let mut settings = Settings::default();
    let mut cpus = None;
    let mut reading = Reading { scope, problems };
    for (key, node) in written {
        if key.name == "resources" {
            cpus = reading.resources(node, pools, &mut settings);
            continue;
        }
        let Some(value) = reading.fill(node) else { continue };
        match key.name.as_str() {
            "timeout" => settings.timeout = reading.duration(&value, "timeout", node.span),
            "retries" => settings.retries = reading.retries(node, &value),
            "priority" => settings.priority = reading.priority(&value, node.span),
            "cache" => settings.cache = reading.truth(&value, "cache", node.span).unwrap_or(true),
            "pure" => settings.pure = reading.truth(&value, "pure", node.span).unwrap_or(true),
            "network" => settings.network = reading.truth(&value, "network", node.span).unwrap_or(true),
            _ => settings.tags = reading.tags(node, &value),
        }
    }
    (Arc::new(settings), cpus)
}

struct Reading<'a, 's> {
    scope: &'a Scope<'s>,
    problems: &'a mut Problems,
}

impl Reading<'_, '_> {
    fn fill(&mut self, node: &Node) -> Option<Value> {
        self.scope.fill(node).map_err(|found| self.problems.extend(found)).ok()
    }

    fn resources(&mut self, node: &Node, pools: &BTreeMap<String, u32>, settings: &mut Settings) -> Option<usize> {
        let Data::Map(entries) = &node.data else {
            self.wrong("`resources`", "a map", &node.to_value(), node.span);
            return None;
        };
        let mut cpus = None;
        for (key, node) in entries {
            let Some(value) = self.fill(node) else { continue };
            match key.name.as_str() {
                "cpus" => cpus = self.count(&value, "cpus", 1, node.span).map(|n| n as usize),
                "memory" => settings.memory = self.memory(&value, node.span),
                "gpus" => settings.gpus = self.count(&value, "gpus", 0, node.span).unwrap_or_default(),
                name => {
                    let units = self.count(&value, name, 0, node.span);
                    if let (Some(units), Some(_)) = (units, self.pool(key, node, units, pools)) {
                        settings.pools.insert(name.to_owned(), units);
                    }
                }
            }
        }
        cpus
    }

    /// The size of a declared pool that has enough units.
    fn pool(&mut self, key: &Key, node: &Node, units: Option<u32>, pools: &BTreeMap<String, u32>) -> Option<u32> {
        let Some(&size) = pools.get(key.name.as_str()) else {
            let problem = Problem::new("resources::unknown-pool", format!("there is no resource and no pool `{}`", key.name))
                .at(key.span, "unknown resource");
            let known = BUILT_IN.iter().copied().chain(pools.keys().map(String::as_str)).collect::<Vec<_>>();
            self.problems.push(match crate::problem::suggest(&key.name, &known) {
                Some(name) => problem.help(format!("did you mean `{name}`?")),
                None => problem.help(format!("declare it at the top of the file: `pools: {{ {}: 1 }}`", key.name)),
            });
            return None;
        };
        if units.is_some_and(|units| units > size) {
            self.problems.push(
                Problem::new("resources::too-much", format!("the pool `{}` has {size} units in all", key.name))
                    .at(node.span, "more than there is")
                    .help("the stage could never start: ask for less, or make the pool larger"),
            );
            return None;
        }
        Some(size)
    }

    fn retries(&mut self, node: &Node, value: &Value) -> Retries {
        let Value::Object(map) = value else {
            let times = self.count(value, "retries", 0, node.span).unwrap_or_default();
            return Retries { times, delay: DELAY };
        };
        let mut retries = Retries { times: 1, delay: DELAY };
        for (name, value) in map {
            let span = node.descend(name).span;
            match name.as_str() {
                "times" => retries.times = self.count(value, "times", 0, span).unwrap_or_default(),
                "delay" => retries.delay = self.duration(value, "delay", span).unwrap_or_default(),
                _ => self.problems.push(
                    Problem::new("spec::unknown-key", format!("`retries` has no key `{name}`"))
                        .at(node.key_span(name).unwrap_or(node.span), "unknown key")
                        .nearest(name, RETRY_KEYS),
                ),
            }
        }
        retries
    }

    fn priority(&mut self, value: &Value, span: Span) -> i32 {
        let number = value.as_i64().and_then(|n| i32::try_from(n).ok());
        if number.is_none() {
            self.wrong("`priority`", "a whole number", value, span);
        }
        number.unwrap_or_default()
    }

    fn tags(&mut self, node: &Node, value: &Value) -> Vec<String> {
        let items = if let Value::Array(items) = value { items.as_slice() } else { std::slice::from_ref(value) };
        let mut tags: Vec<String> = Vec::new();
        for (i, item) in items.iter().enumerate() {
            match item.as_str().filter(|text| is_name(text)) {
                Some(tag) => tags.push(tag.to_owned()),
                None => {
                    let span = if let Data::List(nodes) = &node.data { nodes.get(i).map_or(node.span, |n| n.span) } else { node.span };
                    self.wrong("a tag", "a word of letters, digits, `_` and `-`", item, span);
                }
            }
        }
        tags.sort();
        tags.dedup();
        tags
    }

    fn truth(&mut self, value: &Value, what: &str, span: Span) -> Option<bool> {
        if !value.is_boolean() {
            self.wrong(&format!("`{what}`"), "true or false", value, span);
        }
        value.as_bool()
    }

    fn count(&mut self, value: &Value, what: &str, least: u32, span: Span) -> Option<u32> {
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|&n| n >= least);
        if number.is_none() {
            let wanted = if least == 0 { "a whole number of at least 0" } else { "a whole number above 0" };
            self.wrong(&format!("`{what}`"), wanted, value, span);
        }
        number
    }

    fn memory(&mut self, value: &Value, span: Span) -> u64 {
        let bytes = value.as_str().and_then(units::bytes).filter(|&bytes| bytes > 0);
        if bytes.is_none() {
            self.wrong("`memory`", "a size with its unit, such as `512MiB` or `2GiB`", value, span);
        }
        bytes.unwrap_or_default()
    }

    fn duration(&mut self, value: &Value, what: &str, span: Span) -> Option<Duration> {
        let duration = value.as_str().and_then(units::duration);
        if duration.is_none() {
            self.wrong(&format!("`{what}`"), "a time with its unit, such as `30s`, `5m` or `2h`", value, span);
        }
        duration
    }

    fn wrong(&mut self, what: &str, wanted: &str, value: &Value, span: Span) {
        let label = match value {
            Value::String(text) => format!("this is the text `{text}`"),
            Value::Number(number) => format!("this is the number {number}"),
            other => format!("this is {}", value_type_name(other)),
        };
        self.problems.push(Problem::new("spec::wrong-type", format!("{what} must be {wanted}")).at(span, label));
    }
}
