//! The stage `evaluation`: how often a classifier is right.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trestle_engine::stage::{Arity, Context, InPort, OutPort, ParamError, Progress, Stage, StageError, Threads};

use crate::data::{Images, Stored, write_json};
use crate::error::{Error, Result};
use crate::formats;
use crate::model::Model;
use crate::nn::compute::{Compute, DeviceKind, Place, Precision, rows};

/// Counts the right answers of a classifier.
pub struct Evaluation;

/// Parameters of `evaluation`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// Images at a time; the answers do not depend on it.
    pub batch: usize,
    /// An answer also counts for `top_k` if the class is among that many likeliest ones.
    pub top_k: usize,
    /// Where the answers are computed: `cpu` or `cuda`.
    #[serde(skip_serializing_if = "crate::nn::compute::is_usual")]
    pub device: DeviceKind,
    /// What they are computed in: `f32`, or with `device: cuda` also `bf16`.
    #[serde(skip_serializing_if = "crate::nn::compute::is_usual")]
    pub precision: Precision,
}

impl Default for Params {
    fn default() -> Self {
        Self { batch: 256, top_k: 3, device: DeviceKind::default(), precision: Precision::default() }
    }
}

impl Params {
    fn compute(&self) -> Compute {
        Compute { device: self.device, precision: self.precision }
    }
}

/// One class in scores.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassScore {
    /// Name of the class.
    pub class: String,
    /// Images of it.
    pub count: usize,
    /// Right answers.
    pub correct: usize,
    /// Their share; none without images.
    pub accuracy: Option<f64>,
}

/// scores.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Share of images whose likeliest class is right.
    pub top1: f64,
    /// Share of images whose class is among the `k` likeliest.
    pub top_k: f64,
    /// That k.
    pub k: usize,
    /// Mean of the classes' accuracies, over the classes with images.
    pub mean_class: f64,
    /// Images.
    pub count: usize,
    /// Right answers.
    pub correct: usize,
    /// One entry a class, in the order of the labels.
    pub per_class: Vec<ClassScore>,
}

/// The rank (from 0) of `label` among the values of a row; of equal values the lower label is the likelier.
fn rank(row: &[f32], label: usize) -> usize {
    let own = row[label];
    row.iter().enumerate().filter(|(i, v)| **v > own || (**v == own && *i < label)).count()
}

/// Counts `[true class][answer]`, and how many images have their class among the `k` likeliest.
fn count(
    model: &Model,
    place: &Place,
    set: &dyn Images,
    params: &Params,
    mut report: impl FnMut(usize),
) -> Result<(Vec<Vec<usize>>, usize)> {
    let classes = model.config.classes.len();
    let (mut confusion, mut among) = (vec![vec![0; classes]; classes], 0);
    let weights = model.params.frozen_on(&place.device)?;
    let indices: Vec<usize> = (0..set.len()).collect();
    for chunk in indices.chunks(params.batch) {
        let logits = rows(&model.logits(&weights, &place.bring(&set.to_f32(chunk, model.config.normalisation)?)?)?)?;
        for (i, row) in chunk.iter().zip(&logits) {
            if row.iter().any(|v| !v.is_finite()) {
                return Err(Error::argument(format!("the answer to image {i} is not finite: the model is damaged")));
            }
            let label = set.labels()[*i] as usize;
            confusion[label][crate::train::argmax(row)] += 1;
            among += usize::from(rank(row, label) < params.top_k);
        }
        report(chunk.len());
    }
    Ok((confusion, among))
}

fn share(part: usize, whole: usize) -> f64 {
    part as f64 / whole as f64
}

fn score(confusion: &[Vec<usize>], among: usize, k: usize, names: &[String]) -> Scores {
    let per_class: Vec<ClassScore> = confusion
        .iter()
        .zip(names)
        .enumerate()
        .map(|(i, (row, name))| {
            let count: usize = row.iter().sum();
            let accuracy = (count > 0).then(|| share(row[i], count));
            ClassScore { class: name.clone(), count, correct: row[i], accuracy }
        })
        .collect();
    let count = per_class.iter().map(|class| class.count).sum();
    let correct = per_class.iter().map(|class| class.correct).sum();
    let present: Vec<f64> = per_class.iter().filter_map(|class| class.accuracy).collect();
    let mean_class = present.iter().sum::<f64>() / present.len() as f64;
    Scores { top1: share(correct, count), top_k: share(among, count), k, mean_class, count, correct, per_class }
}

fn write(dir: &Path, scores: &Scores, confusion: &[Vec<usize>], names: &[String]) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
    write_json(&dir.join("scores.json"), scores)?;
    let mut rows = vec![std::iter::once("true \\ answer".to_owned()).chain(names.iter().cloned()).collect::<Vec<_>>()];
    for (name, row) in names.iter().zip(confusion) {
        rows.push(std::iter::once(name.clone()).chain(row.iter().map(ToString::to_string)).collect());
    }
    write_csv(&dir.join("confusion.csv"), &rows)?;
    let mut rows = vec![["class", "count", "correct", "accuracy"].map(str::to_owned).to_vec()];
    for c in &scores.per_class {
        let accuracy = c.accuracy.map_or(String::new(), |a| a.to_string());
        rows.push(vec![c.class.clone(), c.count.to_string(), c.correct.to_string(), accuracy]);
    }
    write_csv(&dir.join("per_class.csv"), &rows)
}

fn write_csv(path: &Path, rows: &[Vec<String>]) -> Result<()> {
    let mut writer = csv::Writer::from_path(path).map_err(|e| Error::data(path, e))?;
    rows.iter().try_for_each(|row| writer.write_record(row)).map_err(|e| Error::data(path, e))?;
    writer.flush().map_err(Error::io(path))
}

impl Stage for Evaluation {
    const KIND: &'static str = "evaluation";
    const VERSION: u32 = 4;
    const ABOUT: &'static str = "Top-1 accuracy, accuracy of each class and confusion matrix of a classifier";
    type Params = Params;

    fn inputs() -> Vec<InPort> {
        vec![
            InPort { name: "model", format: formats::MODEL, arity: Arity::One, doc: "The classifier" },
            InPort { name: "data", format: formats::IMAGE_SET, arity: Arity::One, doc: "Images that it has not seen" },
        ]
    }

    fn outputs() -> Vec<OutPort> {
        let doc = "scores.json, per_class.csv and confusion.csv (a row a true class, a column an answer)";
        vec![OutPort { name: "scores", format: formats::SCORES, path: "scores", doc }]
    }

    fn check(params: &Params) -> Vec<ParamError> {
        let zero = [("batch", params.batch), ("top_k", params.top_k)].into_iter().filter(|(_, value)| *value == 0);
        zero.map(|(path, _)| ParamError::new(path, "0 makes no sense here: it starts at 1")).chain(params.compute().complaints()).collect()
    }

    fn threads(_: &Params) -> Threads {
        crate::train::THREADS
    }

    fn gpus(params: &Params) -> u32 {
        params.compute().gpus()
    }

    fn run(params: &Params, cx: &mut Context<'_>) -> Result<(), StageError> {
        let model = Model::read(cx.input("model")?)?;
        let path = cx.input("data")?.to_path_buf();
        let set = Stored::open(&path)?;
        model.config.expect_size(&set, &path)?;
        model.config.expect_classes(&set, &path)?;
        if set.is_empty() {
            return Err(StageError::new(format!("{}: there is no image to judge by", path.display())));
        }
        let (mut step, total) = (0, set.len() as u64);
        let (confusion, among) = count(&model, &params.compute().open()?, &set, params, |images| {
            step += images as u64;
            cx.progress(Progress { step, total, loss: None, note: None });
        })?;
        let scores = score(&confusion, among, params.top_k, &model.config.classes);
        write(cx.output("scores")?, &scores, &confusion, &model.config.classes)?;
        cx.metric("top1", scores.top1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_count_the_diagonal() {
        let names: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        let scores = score(&[vec![3, 1, 0], vec![0, 2, 0], vec![0, 0, 0]], 6, 2, &names);
        assert_eq!((scores.top1, scores.top_k, scores.count, scores.correct), (5.0 / 6.0, 1.0, 6, 5));
        assert_eq!(scores.mean_class, (0.75 + 1.0) / 2.0);
        assert_eq!(scores.per_class[2].accuracy, None);
    }

    #[test]
    fn ranks_agree_with_the_largest_value() {
        let row = [1.0, 3.0, 3.0, 2.0];
        assert_eq!([0, 1, 2, 3].map(|label| rank(&row, label)), [3, 0, 1, 2]);
        assert_eq!(crate::train::argmax(&row), 1);
    }
}
