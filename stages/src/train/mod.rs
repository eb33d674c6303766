//! The training loop of the classifiers.

mod augment;
mod batches;
mod params;

use std::path::Path;

use candle_core::{Device, Tensor};
use trestle_engine::stage::{Context, ParamError, Progress, StageError, Threads};

pub use augment::Augment;
pub use batches::Source;
pub(crate) use params::training_params;

use crate::error::{Error, Result};
use crate::metrics::Metrics;
use crate::model::Model;
use crate::nn::ops::cross_entropy;
use crate::nn::optim::{AdamW, cosine};
use crate::nn::tape;
use crate::rng::Stream;
use batches::Batches;

/// How long to train.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// Passes over the data (without what is mixed in).
    Epochs(f64),
    /// Updates of the weights.
    Steps(usize),
}

impl Length {
    /// `steps` if given, else `epochs`, else 10 epochs.
    pub fn of(epochs: Option<f64>, steps: Option<usize>) -> Self {
        steps.map_or(Self::Epochs(epochs.unwrap_or(10.0)), Self::Steps)
    }

    /// Steps for `images` in batches of `batch`; at least one.
    pub fn steps(self, images: usize, batch: usize) -> usize {
        match self {
            Self::Steps(steps) => steps.max(1),
            Self::Epochs(epochs) => (epochs * images as f64 / batch.max(1) as f64).ceil().max(1.0) as usize,
        }
    }
}

/// How to train: AdamW under a cosine schedule with a short warm-up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recipe {
    /// Epochs or steps.
    pub length: Length,
    /// Images of one step.
    pub batch: usize,
    /// Largest learning rate.
    pub lr: f64,
    /// Share of the steps over which the learning rate rises.
    pub warmup: f64,
    /// AdamW's decay of weights.
    pub weight_decay: f64,
    /// α of mixup's Beta(α, α) (Zhang et al. 2018); 0 is off.
    pub mixup: f64,
    /// Share of the target that is spread over all classes.
    pub label_smoothing: f64,
    /// Random changes of the images.
    pub augment: Augment,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            length: Length::Epochs(10.0),
            batch: 64,
            lr: 2e-3,
            warmup: 0.05,
            weight_decay: 0.01,
            mixup: 0.0,
            label_smoothing: 0.0,
            augment: Augment::default(),
        }
    }
}

impl Recipe {
    /// Complaints about values that make no sense.
    pub fn check(&self) -> Vec<ParamError> {
        let mut errors = Vec::new();
        let mut want = |ok: bool, path: &str, message: String| {
            if !ok {
                errors.push(ParamError::new(path, message));
            }
        };
        match self.length {
            Length::Epochs(epochs) => want(epochs.is_finite() && epochs > 0.0, "epochs", format!("{epochs} epochs are not above 0")),
            Length::Steps(steps) => want(steps > 0, "steps", "training takes at least one step".into()),
        }
        want(self.batch > 0, "batch", "a batch has at least one image".into());
        want(self.lr.is_finite() && self.lr > 0.0, "lr", format!("the learning rate {} is not above 0", self.lr));
        want((0.0..=1.0).contains(&self.warmup), "warmup", format!("{} is not a share from 0 to 1", self.warmup));
        let decay = self.weight_decay.is_finite() && self.weight_decay >= 0.0;
        want(decay, "weight_decay", format!("the weight decay {} is below 0", self.weight_decay));
        want(self.mixup.is_finite() && self.mixup >= 0.0, "mixup", format!("α is {}, it starts at 0 (off)", self.mixup));
        let smoothing = (0.0..1.0).contains(&self.label_smoothing);
        want(smoothing, "label_smoothing", format!("{} is not a share from 0 to below 1", self.label_smoothing));
        self.augment.check(&mut want);
        errors
    }
}

/// Share by which running statistics move towards a batch's.
const MOMENTUM: f32 = 0.1;

/// One step, as metrics.csv has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Row {
    /// From 1.
    pub step: usize,
    /// Mean cross-entropy of the batch.
    pub loss: f32,
    /// Share of the batch whose likeliest class is that of its target, before the step.
    pub accuracy: f64,
    /// Learning rate.
    pub lr: f64,
}

/// Trains `model` on the sources (the first sets the length of an epoch), with the units `frozen` left as they are; calls
/// `report(row, steps)` after each step.
///
/// # Errors
/// If the loss is not finite, a unit is unknown, every unit is frozen, or a source is empty.
pub fn train(
    model: &mut Model,
    sources: &[Source<'_>],
    frozen: &[String],
    recipe: &Recipe,
    seed: u64,
    mut report: impl FnMut(Row, usize),
) -> Result<Vec<Row>> {
    let weights = model.frozen(frozen)?;
    if model.config.units.iter().all(|unit| frozen.contains(unit)) {
        return Err(Error::argument("every unit is frozen: there is nothing to train"));
    }
    let mut batches = Batches::new(sources, recipe.batch, seed)?;
    let steps = recipe.length.steps(sources.first().map_or(0, |source| source.set.len()), recipe.batch);
    let warmup = (recipe.warmup * steps as f64).round() as usize;
    let mut optimiser = AdamW::new(recipe.weight_decay);
    let mut mixing = Stream::new(seed, "train/mixup");
    let augmenting = Stream::new(seed, "train/augment");
    let trains = |model: &Model, name: &str| !frozen.iter().any(|unit| unit == model.unit_of(name));
    let mut rows = Vec::with_capacity(steps);
    for step in 0..steps {
        let mut batch = batches.next(&model.config, recipe.label_smoothing)?;
        recipe.augment.apply(&mut batch, &model.config, &augmenting.child(&step.to_string()));
        if recipe.mixup > 0.0 {
            batch.mix(mixing.beta(recipe.mixup) as f32, &mixing.permutation(batch.len()));
        }
        let shape = (batch.len(), model.config.height, model.config.input_width, model.config.channels);
        let images = Tensor::from_vec(std::mem::take(&mut batch.pixels), shape, &Device::Cpu)?;
        let ((logits, statistics, loss), tape) = tape::record(|| {
            let (logits, statistics) = model.training_logits(&weights, &images, frozen)?;
            let loss = cross_entropy(&logits, &batch.targets)?;
            Ok::<_, Error>((logits, statistics, loss))
        })?;
        let row = Row {
            step: step + 1,
            loss: loss.to_scalar::<f32>()?,
            accuracy: agreement(&logits, &batch.targets)?,
            lr: cosine(recipe.lr, step, steps, warmup),
        };
        if !row.loss.is_finite() {
            let message = format!("the loss is {} at step {} of {steps}; a lower `lr` ({}) helps", row.loss, row.step, recipe.lr);
            return Err(Error::argument(message));
        }
        optimiser.step(&model.params, &tape.backward(&loss)?, row.lr, |name| trains(model, name))?;
        model.move_statistics(&statistics, MOMENTUM)?;
        report(row, steps);
        rows.push(row);
    }
    Ok(rows)
}

/// The index of the largest value; of equal ones the first.
pub fn argmax(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

fn agreement(logits: &Tensor, targets: &[f32]) -> Result<f64> {
    let logits = logits.to_vec2::<f32>()?;
    let classes = targets.len() / logits.len();
    let hits = logits.iter().zip(targets.chunks_exact(classes)).filter(|(l, t)| argmax(l) == argmax(t)).count();
    Ok(hits as f64 / logits.len() as f64)
}

/// Writes metrics.csv: `step,loss,accuracy,lr`.
///
/// # Errors
/// If the file cannot be written.
pub fn write_metrics(path: &Path, rows: &[Row]) -> Result<()> {
    let mut metrics = Metrics::new(&["loss", "accuracy", "lr"]);
    rows.iter().for_each(|row| metrics.push(row.step, &[f64::from(row.loss), row.accuracy, row.lr]));
    metrics.write(path)
}

/// Threads that training a small model can use.
pub const THREADS: Threads = Threads { min: 1, max: 4 };

/// Trains, reports progress, and writes the outputs `model` and `metrics`.
///
/// # Errors
/// Those of [`train`], or if an output cannot be written.
pub fn run(
    mut model: Model,
    sources: &[Source<'_>],
    frozen: &[String],
    recipe: &Recipe,
    seed: u64,
    cx: &mut Context<'_>,
) -> Result<(), StageError> {
    let rows = train(&mut model, sources, frozen, recipe, seed, |row, steps| {
        cx.progress(Progress { step: row.step as u64, total: steps as u64, loss: Some(f64::from(row.loss)), note: None });
    })?;
    model.write(cx.output("model")?)?;
    write_metrics(cx.output("metrics")?, &rows)?;
    if let Some(row) = rows.last() {
        cx.metric("loss", f64::from(row.loss));
        cx.metric("accuracy", row.accuracy);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
