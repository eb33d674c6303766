//! `trestle diff`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};
use trestle_cache::{ActionRecord, Cache, Change};
use trestle_engine::runs::{Known, Outcome, Run, Runs as Past};

use crate::args::Format;
use crate::fail::Fail;
use crate::project;
use crate::render::colour::{Colour, Colours};
use crate::render::words::{self, bytes, date, duration};
use crate::runs::value as run_value;

/// What `diff --help` ends with.
pub const EXAMPLES: &str = "Examples:
  trestle diff last~1 last        the last two runs of a pipeline
  trestle diff 3fa9 77aa          by the beginnings of their ids, as `trestle runs` lists them
  trestle diff last               the last run and the one before it
  trestle diff last~1 last --format json | jq '.stages[] | {stage, changes}'";

/// `diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// Two runs, the earlier one first: `last`, `last~1`, or the beginning of an id; one alone is compared with the run before it
    #[arg(value_name = "RUN", required = true, num_args = 1..=2)]
    pub runs: Vec<String>,
    /// Folder of the cache [default: .trestle at the root of the project]
    #[arg(long, value_name = "DIR", env = "TRESTLE_CACHE")]
    pub cache: Option<PathBuf>,
    /// How to print
    #[arg(long, value_enum, default_value = "human")]
    pub format: Format,
}

/// Compares params, keys, metrics and durations of two runs.
pub fn diff(args: &Diff) -> Result<ExitCode, Fail> {
    let folder = project::folder(args.cache.as_deref())?;
    let history = Past::read(&folder.join(project::RUNS))?;
    let (a, b) = match args.runs.as_slice() {
        [run] => (history.before(history.find(run)?)?, history.find(run)?),
        [a, b, ..] => (history.find(a)?, history.find(b)?),
        [] => unreachable!("the command line asks for one"),
    };
    let cache = Cache::open(&folder)?;
    let comparison = Comparison::new(a, b, &cache)?;
    crate::print(&match args.format {
        Format::Human => comparison.human(Colours::stdout()),
        Format::Json => format!("{}\n", comparison.value()),
    })
}

/// A stage in one of the two runs.
struct Side {
    known: Known,
    seconds: Option<f64>,
    peak_rss_kib: Option<u64>,
    metrics: Map<String, Value>,
}

/// A stage that is not the same in both runs.
struct Difference {
    stage: String,
    a: Side,
    b: Side,
    /// What differs in the manifests; none if one of the records is gone, or one of the runs has none.
    changes: Option<Vec<Change>>,
}

struct Comparison<'r> {
    a: &'r Run,
    b: &'r Run,
    params: Vec<(String, Option<Value>, Option<Value>)>,
    differences: Vec<Difference>,
    same: usize,
    only_a: Vec<String>,
    only_b: Vec<String>,
}

impl<'r> Comparison<'r> {
    fn new(a: &'r Run, b: &'r Run, cache: &Cache) -> Result<Self, Fail> {
        let (in_a, mut in_b) = (a.snapshot()?, b.snapshot()?);
        let only_b = in_b.keys().filter(|name| !in_a.contains_key(*name)).cloned().collect();
        let (mut differences, mut same, mut only_a) = (Vec::new(), 0, Vec::new());
        for (stage, a) in in_a {
            match in_b.remove(&stage) {
                None => only_a.push(stage),
                Some(b) if is_same(&a, &b) => same += 1,
                Some(b) => differences.push(difference(stage, a, b, cache)?),
            }
        }
        Ok(Self { a, b, params: params(&a.header.params, &b.header.params), differences, same, only_a, only_b })
    }

    fn human(&self, colours: Colours) -> String {
        let mut text = String::new();
        for (letter, run) in [("a", self.a), ("b", self.b)] {
            let took = run.summary.map_or_else(|| "did not end".to_owned(), |summary| words::summary(&summary));
            let header = &run.header;
            text.push_str(&format!("{letter}  {}  {}  {took}  {}\n", header.id, date(header.started_unix_ms), header.command.join(" ")));
        }
        if !self.params.is_empty() {
            text.push_str("\nparams\n");
        }
        let shown = |value: &Option<Value>| value.as_ref().map_or_else(|| "–".to_owned(), Value::to_string);
        for (name, a, b) in &self.params {
            text.push_str(&format!("  {name} {} → {}\n", shown(a), shown(b)));
        }
        text.push_str(&format!("\nstages: {} differ, {} the same\n", self.differences.len(), self.same));
        for difference in &self.differences {
            text.push_str(&format!("  {}\n", colours.paint(Colour::Open, &difference.stage)));
            difference.lines().iter().for_each(|line| text.push_str(&format!("    {line}\n")));
        }
        for (letter, names) in [("a", &self.only_a), ("b", &self.only_b)] {
            if !names.is_empty() {
                // Writing into a String cannot fail.
                let _ = writeln!(text, "only in {letter}: {}", names.join(", "));
            }
        }
        text
    }

    fn value(&self) -> Value {
        let params: Vec<Value> = self.params.iter().map(|(name, a, b)| json!({"name": name, "old": a, "new": b})).collect();
        let stages: Vec<Value> =
            self.differences.iter().map(|d| json!({"stage": d.stage, "a": d.a.value(), "b": d.b.value(), "changes": d.changes})).collect();
        json!({
            "a": run_value(self.a), "b": run_value(self.b), "params": params, "stages": stages, "same": self.same,
            "only_a": self.only_a, "only_b": self.only_b,
        })
    }
}

fn has_outputs(known: &Known) -> bool {
    matches!(known.outcome, Outcome::Executed | Outcome::Cached)
}

/// Whether a stage gave the same in both runs, as far as its key and its fate tell.
fn is_same(a: &Known, b: &Known) -> bool {
    if has_outputs(a) && has_outputs(b) { a.key == b.key } else { (a.outcome, &a.key) == (b.outcome, &b.key) }
}

fn difference(stage: String, a: Known, b: Known, cache: &Cache) -> Result<Difference, Fail> {
    let (record_a, record_b) = (record(&a, cache)?, record(&b, cache)?);
    let changes = match (&record_a, &record_b) {
        (Some(a), Some(b)) => Some(a.manifest.diff(&b.manifest)),
        _ => None,
    };
    Ok(Difference { stage, a: Side::new(a, record_a.as_ref()), b: Side::new(b, record_b.as_ref()), changes })
}

fn record(known: &Known, cache: &Cache) -> Result<Option<ActionRecord>, Fail> {
    let key = known.key.as_ref().filter(|_| has_outputs(known)).and_then(|key| key.parse().ok());
    Ok(match key {
        Some(key) => cache.record(&key)?,
        None => None,
    })
}

impl Side {
    /// What the run's journal says of the stage; what is not in it is taken from the cache's record.
    fn new(known: Known, record: Option<&ActionRecord>) -> Self {
        match (&known.execution, record) {
            (Some(line), _) => {
                Self { seconds: line.seconds, peak_rss_kib: line.peak_rss_kib, metrics: line.metrics.clone(), known: known.clone() }
            }
            (None, Some(record)) => Self {
                seconds: Some(record.provenance.duration_ms as f64 / 1000.0),
                peak_rss_kib: record.provenance.peak_rss_kib,
                metrics: record.metrics.iter().map(|(name, value)| (name.clone(), Value::from(*value))).collect(),
                known,
            },
            (None, None) => Self { seconds: None, peak_rss_kib: None, metrics: Map::new(), known },
        }
    }

    fn value(&self) -> Value {
        json!({
            "outcome": self.known.outcome, "key": self.known.key, "seconds": self.seconds, "peak_rss_kib": self.peak_rss_kib,
            "metrics": self.metrics,
        })
    }
}

impl Difference {
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if !(has_outputs(&self.a.known) && has_outputs(&self.b.known)) {
            lines.push(format!("{} → {}", outcome(self.a.known.outcome), outcome(self.b.known.outcome)));
        }
        match &self.changes {
            Some(changes) => lines.extend(changes.iter().map(words::change)),
            None if self.a.known.key != self.b.known.key && lines.is_empty() => {
                lines.push("its key differs; a record is gone, so what differs cannot be told".to_owned());
            }
            None => {}
        }
        let time = |seconds: f64| duration(Duration::from_secs_f64(seconds));
        let memory = |kib: u64| bytes(kib.saturating_mul(1024));
        let both = |a: Option<String>, b: Option<String>, what: &str| Some(format!("{what} {} → {}", a?, b?));
        lines.extend(both(self.a.seconds.map(time), self.b.seconds.map(time), "time"));
        lines.extend(both(self.a.peak_rss_kib.map(memory), self.b.peak_rss_kib.map(memory), "memory"));
        lines.extend(metrics(&self.a.metrics, &self.b.metrics));
        lines
    }
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Executed => "executed",
        Outcome::Cached => "cached",
        Outcome::Failed => "failed",
        Outcome::Skipped => "skipped",
        Outcome::Cancelled => "cancelled",
    }
}

/// Metrics that are not the same, with the relative change.
fn metrics(a: &Map<String, Value>, b: &Map<String, Value>) -> Vec<String> {
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let line = |name: &String| match (a.get(name), b.get(name)) {
        (Some(old), Some(new)) if old == new => None,
        (Some(old), Some(new)) => {
            let by = match (old.as_f64(), new.as_f64()) {
                (Some(old), Some(new)) if old != 0.0 => format!(" ({:+.2} %)", (new - old) / old.abs() * 100.0),
                _ => String::new(),
            };
            Some(format!("metric {name} {old} → {new}{by}"))
        }
        (None, Some(new)) => Some(format!("metric {name} is new: {new}")),
        (Some(old), None) => Some(format!("metric {name} is gone; it was {old}")),
        (None, None) => None,
    };
    names.into_iter().filter_map(line).collect()
}

/// Leaves that are not the same, by dotted path.
fn params(a: &Map<String, Value>, b: &Map<String, Value>) -> Vec<(String, Option<Value>, Option<Value>)> {
    let (a, mut b) = (leaves(a), leaves(b));
    let mut all: BTreeMap<String, (Option<Value>, Option<Value>)> =
        a.into_iter().map(|(name, value)| (name.clone(), (Some(value), b.remove(&name)))).collect();
    all.extend(b.into_iter().map(|(name, value)| (name, (None, Some(value)))));
    all.into_iter().filter(|(_, (a, b))| a != b).map(|(name, (a, b))| (name, a, b)).collect()
}

fn leaves(map: &Map<String, Value>) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let mut open: Vec<(String, &Value)> = map.iter().map(|(name, value)| (name.clone(), value)).collect();
    while let Some((path, value)) = open.pop() {
        match value {
            Value::Object(map) if !map.is_empty() => open.extend(map.iter().map(|(name, value)| (format!("{path}.{name}"), value))),
            leaf => drop(found.insert(path, leaf.clone())),
        }
    }
    found
}
