#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;
use trestle_engine::stage::{Context, Input, Registry, Silent, StageError};

use super::Table;

/// A folder of scores, a run of the stage on them, and what it wrote.
struct Bench {
    dir: TempDir,
    inputs: Vec<Input>,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), inputs: Vec::new() }
    }

    /// Two methods with three seeds each, the seeds not in order.
    fn small() -> Self {
        let mut bench = Self::new();
        for (seed, vanilla, bridged) in [(10, 0.79, 0.84), (1, 0.80, 0.86), (2, 0.81, 0.85)] {
            bench.score(json!({"method": "vanilla", "seed": seed}), json!({"top1": vanilla, "count": 1747}));
            bench.score(json!({"method": "bridged++ S*", "seed": seed}), json!({"top1": bridged, "count": 1747}));
        }
        bench
    }

    fn score(&mut self, labels: Value, scores: Value) {
        let path = self.dir.path().join(format!("score-{}", self.inputs.len()));
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("scores.json"), scores.to_string()).unwrap();
        let labels = labels.as_object().unwrap().iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        self.inputs.push(Input { path, labels });
    }

    fn run(&self, with: Value) -> Result<Written, StageError> {
        let out = tempfile::tempdir_in(self.dir.path()).unwrap();
        let names = [("table", "table.md"), ("csv", "table.csv"), ("figure", "figure.svg"), ("png", "figure.png")];
        let outputs: BTreeMap<String, PathBuf> = names.iter().map(|(name, file)| ((*name).to_owned(), out.path().join(file))).collect();
        let mut sink = Silent;
        let inputs = BTreeMap::from([("scores".to_owned(), self.inputs.clone())]);
        let mut cx = Context::new(inputs, outputs.clone(), 1, &mut sink);
        let registry = Registry::default().with::<Table>();
        let kind = registry.get("table").unwrap();
        kind.run(&kind.check(&with).unwrap().params, &mut cx)?;
        let text = |name: &str| std::fs::read_to_string(&outputs[name]).unwrap();
        Ok(Written { table: text("table"), csv: text("csv"), figure: text("figure"), png: std::fs::read(&outputs["png"]).unwrap() })
    }

    fn error(&self, with: Value) -> (String, String) {
        let error = self.run(with).unwrap_err();
        (error.message, error.help.unwrap_or_default())
    }
}

#[derive(Debug, PartialEq)]
struct Written {
    table: String,
    csv: String,
    figure: String,
    png: Vec<u8>,
}

#[test]
fn the_table_is_exactly_this() {
    let written = Bench::small().run(json!({"title": "Digits", "baseline": "vanilla"})).unwrap();
    let expected = "\
**Digits**

| method | top-1 (%) | n | min | max | Δ to vanilla |
|:--|--:|--:|--:|--:|--:|
| vanilla | 80.0 ± 1.0 | 3 | 79.0 | 81.0 | – |
| bridged++ S\\* | 85.0 ± 1.0 | 3 | 84.0 | 86.0 | +5.0 ± 1.0 |

Mean ± sample standard deviation (n − 1) over 3 seeds. Δ: difference to vanilla in percentage points, paired by seed. Each score is over 1,747 images.
";
    assert_eq!(written.table, expected);
}

#[test]
fn the_csv_has_every_score_unrounded() {
    let mut bench = Bench::new();
    for (method, seed, loss) in [("a", 0, 0.25), ("a", 1, 0.75), ("b, c", 0, 1.0), ("b, c", 1, 1.5)] {
        bench.score(json!({"method": method, "seed": seed}), json!({"loss": {"test": loss}}));
    }
    let written = bench.run(json!({"metric": "loss.test", "unit": "plain", "baseline": "a", "decimals": 2})).unwrap();
    let expected = "\
method,metric,n,mean,std,min,max,difference,difference_std,seed=0,seed=1
a,loss.test,2,0.5,0.3535533905932738,0.25,0.75,,,0.25,0.75
\"b, c\",loss.test,2,1.25,0.3535533905932738,1,1.5,0.75,0,1,1.5
";
    assert_eq!(written.csv, expected);
    assert!(written.table.contains("| a | 0.50 ± 0.35 | 2 | 0.25 | 0.75 | – |"), "{}", written.table);
}

#[test]
fn the_figure_is_this_snapshot() {
    let written = Bench::small().run(json!({"title": "Digits", "baseline": "vanilla"})).unwrap();
    // After a wanted change, look at the figure and copy what this test leaves in the message.
    assert_eq!(written.figure, include_str!("snapshot.svg"), "\n{}", written.figure);
    assert_eq!(&written.png[..8], b"\x89PNG\r\n\x1a\n");
}

#[test]
fn the_same_scores_give_the_same_bytes() {
    let with = json!({"baseline": "vanilla", "plot": "dots", "order": ["vanilla", "bridged++ S*"]});
    let mut bench = Bench::small();
    let first = bench.run(with.clone()).unwrap();
    assert_eq!(first, bench.run(with.clone()).unwrap());
    // With an order, the order of the inputs does not matter either.
    bench.inputs.reverse();
    assert_eq!(first, bench.run(with).unwrap());
}

#[test]
fn one_score_a_row_has_no_deviation() {
    let mut bench = Bench::new();
    bench.score(json!({"shots": 5}), json!({"top1": 0.5}));
    bench.score(json!({"shots": 10}), json!({"top1": 0.25}));
    let written = bench.run(json!({"rows": "shots", "over": null, "baseline": "5"})).unwrap();
    let expected = "\
| shots | top-1 (%) | Δ to 5 |
|:--|--:|--:|
| 5 | 50.0 | – |
| 10 | 25.0 | −25.0 |

Δ: difference to 5 in percentage points.
";
    assert_eq!(written.table, expected);
}

#[test]
fn a_gap_is_named() {
    let mut bench = Bench::small();
    bench.inputs.remove(5);
    bench.inputs.remove(2);
    let (message, help) = bench.error(json!({}));
    assert_eq!(message, "no score for method = vanilla, seed = 1; method = bridged++ S*, seed = 2");
    assert!(help.contains("same repetitions"), "{help}");
}

#[test]
fn two_scores_in_one_place_are_refused() {
    let mut bench = Bench::small();
    bench.score(json!({"method": "vanilla", "seed": 1, "shots": 5}), json!({"top1": 0.5}));
    let (message, help) = bench.error(json!({}));
    assert_eq!(message, "2 scores for method = vanilla, seed = 1");
    assert!(help.contains("neither `rows` nor `over`"), "{help}");
    let (message, help) = Bench::small().error(json!({"over": null}));
    assert_eq!(message, "3 scores for method = vanilla");
    assert!(help.contains("set `over`"), "{help}");
}

#[test]
fn a_missing_label_is_named_with_those_there_are() {
    let (message, help) = Bench::small().error(json!({"rows": "model"}));
    assert!(message.starts_with("a score has no label `model`, only `method`, `seed`: "), "{message}");
    assert!(help.contains("a matrix with `model`") && help.contains("set `rows`"), "{help}");
    let mut bench = Bench::new();
    bench.score(json!({}), json!({"top1": 0.5}));
    assert!(bench.error(json!({})).0.starts_with("a score has no label `seed`, no labels: "));
}

#[test]
fn names_that_fit_no_score_are_refused_together() {
    let (message, help) = Bench::small().error(json!({"order": ["vanilla", "briged"]}));
    assert_eq!(message, "`order` names `briged`, which no score has as `method`; `order` leaves out `bridged++ S*`");
    assert_eq!(help, "the rows are `vanilla`, `bridged++ S*`");
    assert_eq!(Bench::small().error(json!({"baseline": "real"})).0, "the baseline `real` is no row");
}

#[test]
fn a_bad_metric_is_refused() {
    let (message, help) = Bench::small().error(json!({"metric": "top5"}));
    assert!(message.ends_with("scores.json has no number `top5`"), "{message}");
    assert_eq!(help, "its numbers are `top1`, `count`");
    let (message, help) = Bench::small().error(json!({"metric": "count"}));
    assert!(message.starts_with("`count` is 1747 in "), "{message}");
    assert_eq!(help, "set `unit: plain` to show it as it is");
    let (message, _) = Bench::new().error(json!({}));
    assert_eq!(message, "the input `scores` has no value");
}

#[test]
fn params_that_make_no_sense_are_found_before_a_run() {
    let registry = Registry::default().with::<Table>();
    let with = json!({"rows": "seed", "decimals": 12, "order": ["a", "b", "a"], "baseline": "c"});
    let errors = registry.get("table").unwrap().check(&with).unwrap_err();
    assert_eq!(errors.iter().map(|e| e.path.as_str()).collect::<Vec<_>>(), ["decimals", "over", "order.2", "baseline"]);
    let unknown = registry.get("table").unwrap().check(&json!({"baselin": "a"})).unwrap_err();
    assert!(unknown[0].message.contains("unknown field `baselin`"), "{}", unknown[0].message);
}
