//! The training loop.

use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};

use super::ahead::{Batches, with_batches};
use super::batch::{Batch, Maker};
use super::checkpoint::Checkpoints;
use super::draws::{Draws, Source};
use super::held_out::{Best, score};
use super::log::{Log, Row};
use super::recipe::{Norms, Recipe};
use super::schedule::Schedule;
use crate::data::Images;
use crate::error::{Error, Result};
use crate::features::Features;
use crate::model::{Model, Partly};
use crate::nn::compute::{self, Compute, Place};
use crate::nn::ema::Ema;
use crate::nn::ops::cross_entropy;
use crate::nn::optim::{Optimiser, clip};
use crate::nn::tape;

/// Share by which running statistics move towards a batch's.
const MOMENTUM: f32 = 0.1;

/// What is trained on, and how.
#[derive(Debug, Clone, Copy)]
pub struct Training<'a> {
    /// The images; the first set gives the length of an epoch.
    pub sources: &'a [Source<'a>],
    /// Images of which only the loss is of interest, after each epoch; for early stopping.
    pub held_out: Option<&'a dyn Images>,
    /// How.
    pub recipe: &'a Recipe,
    /// Of the order, mixing and augmentation.
    pub seed: u64,
    /// What the frozen beginning of the model makes of the images, in place of these; of one source alone.
    pub features: Option<Given<'a>>,
    /// Where to go on from, and to write what can be gone on from.
    pub checkpoints: Option<&'a Checkpoints>,
    /// On which device, and in which precision.
    pub compute: Compute,
}

/// Features of the images to train on, and of those held out.
#[derive(Debug, Clone, Copy)]
pub struct Given<'a> {
    /// Of the source's images.
    pub train: &'a Features,
    /// Of the images held out, if some are.
    pub held_out: Option<&'a Features>,
}

/// What a training says.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// A step is done, of so many.
    Step(Row, usize),
    /// Something that a person should know.
    Note(String),
}

impl<'a> Training<'a> {
    /// A training on images, without any held out, and without checkpoints.
    pub fn new(sources: &'a [Source<'a>], recipe: &'a Recipe, seed: u64) -> Self {
        Self { sources, held_out: None, recipe, seed, features: None, checkpoints: None, compute: Compute::default() }
    }

    /// Units whose output is given.
    fn units_given(&self) -> usize {
        self.features.map_or(0, |features| features.train.meta.units.len())
    }

    /// Trains `model`, and says how far it is after each step. A checkpoint that cannot be used or written costs time alone, and a note.
    ///
    /// # Errors
    /// If the loss is not finite, a unit is unknown, every unit is frozen, or a source is empty.
    pub fn run(&self, model: &mut Model, mut say: impl FnMut(Said)) -> Result<Log> {
        let config = model.config.clone();
        let (recipe, seed) = (self.recipe, self.seed);
        let mut draws = Draws::new(self.sources, recipe, seed)?;
        let mut trainer = Trainer::new(*self, model)?;
        if let Some(note) = trainer.resume() {
            say(Said::Note(note));
        }
        draws.skip_steps(trainer.log.steps.len());
        let maker = Maker::new(self.sources, self.features.map(|features| features.train), recipe, &config, seed);
        with_batches(&maker, draws, |mut batches| {
            while !trainer.is_done() {
                let row = trainer.step(&mut batches)?;
                if let Some(note) = trainer.keep() {
                    say(Said::Note(note));
                }
                say(Said::Step(row, trainer.steps));
            }
            Ok(())
        })?;
        trainer.finish()
    }
}

/// A training under way.
pub(super) struct Trainer<'a> {
    pub(super) model: &'a mut Model,
    pub(super) training: Training<'a>,
    /// Those of frozen units as constants.
    weights: Partly,
    /// Where it is computed.
    pub(super) place: Place,
    schedule: Schedule,
    pub(super) optimiser: Box<dyn Optimiser>,
    pub(super) ema: Option<Ema>,
    pub(super) log: Log,
    pub(super) best: Option<Best>,
    steps: usize,
    /// When the last checkpoint was written, or the training began.
    kept: Instant,
}

impl<'a> Trainer<'a> {
    fn new(training: Training<'a>, model: &'a mut Model) -> Result<Self> {
        let recipe = training.recipe;
        let units = &model.config.units;
        if let Some(unit) = recipe.lr_scale.keys().find(|unit| !units.contains(unit)) {
            return Err(Error::argument(format!("`lr_scale`: the model has no unit `{unit}`; its units are {}", units.join(", "))));
        }
        let place = training.compute.open()?;
        if !place.device.is_cpu() {
            model.params = model.params.on(&place.device)?;
        }
        let units = &model.config.units;
        let weights = model.frozen(&recipe.freeze).map_err(|e| Error::argument(format!("`freeze`: {e}")))?;
        if units.iter().all(|unit| recipe.freeze.contains(unit)) {
            return Err(Error::argument("`freeze`: every unit is frozen, there is nothing to train"));
        }
        let ema = recipe.ema.map(|decay| Ema::new(&model.params, decay)).transpose()?;
        let images = training.sources.first().map_or(0, |source| source.set.len());
        Ok(Self {
            weights,
            place,
            schedule: recipe.schedule(),
            optimiser: recipe.optimiser(),
            ema,
            log: Log::default(),
            best: None,
            steps: recipe.length.steps(images, recipe.step_images()),
            kept: Instant::now(),
            model,
            training,
        })
    }

    /// All that says which training this is, but for the images and the weights at its beginning.
    pub(super) fn identity(&self) -> String {
        let sources: Vec<(usize, f64)> = self.training.sources.iter().map(|source| (source.set.len(), source.share)).collect();
        let Training { recipe, seed, compute, .. } = self.training;
        let place = if compute == Compute::default() { String::new() } else { format!(" {compute:?}") };
        format!("{recipe:?} seed {seed} sources {sources:?} {}{place}", crate::instruction_set())
    }

    /// Goes on from the last checkpoint, if there is one; gives what is to be said of it.
    fn resume(&mut self) -> Option<String> {
        match self.training.checkpoints?.resume(self) {
            Ok(true) => Some(format!("goes on after step {} of {}, from its checkpoint", self.log.steps.len(), self.steps)),
            Ok(false) => None,
            Err(e) => Some(format!("warning: a checkpoint is not used, training begins anew: {e}")),
        }
    }

    /// Writes a checkpoint if one is due; gives what is to be said of it.
    fn keep(&mut self) -> Option<String> {
        let step = self.log.steps.len();
        let checkpoints = self.training.checkpoints.filter(|checkpoints| checkpoints.is_due(step, self.kept))?;
        if self.is_done() {
            return None;
        }
        let written = checkpoints.write(self);
        self.kept = Instant::now();
        written.err().map(|e| format!("warning: no checkpoint was written after step {step}: {e}"))
    }

    fn is_done(&self) -> bool {
        let patience = self.training.recipe.early_stopping.map(|stopping| stopping.patience);
        let is_patient = self.best.as_ref().is_none_or(|best| patience.is_none_or(|patience| best.waited < patience));
        self.log.steps.len() >= self.steps || !is_patient
    }

    /// One update of the weights, with all that belongs to it.
    fn step(&mut self, batches: &mut Batches<'_>) -> Result<Row> {
        let (recipe, step) = (self.training.recipe, self.log.steps.len());
        let mut total: Option<GradStore> = None;
        let (mut loss, mut accuracy) = (0.0, 0.0);
        for _ in 0..recipe.accumulate {
            let (part, grads) = self.pass(batches.next()?)?;
            loss += part.0 / recipe.accumulate as f32;
            accuracy += part.1 / recipe.accumulate as f64;
            total = Some(match total {
                None => grads,
                Some(sum) => self.sum(sum, &grads)?,
            });
        }
        let Some(mut grads) = total else { return Err(Error::argument("a step takes at least one batch")) };
        if recipe.accumulate > 1 {
            self.average(&mut grads)?;
        }
        let grad_norm = recipe.clip.map(|limit| clip(&self.model.params, &mut grads, limit)).transpose()?;
        let lr = self.schedule.at(step, self.steps);
        let model = &*self.model;
        let scale = |name: &str| {
            let unit = model.unit_of(name);
            if recipe.freeze.iter().any(|frozen| frozen == unit) { 0.0 } else { recipe.lr_scale.get(unit).copied().unwrap_or(1.0) }
        };
        if let Some(momentum) = self.schedule.momentum_at(step, self.steps) {
            self.optimiser.set_momentum(momentum);
        }
        self.optimiser.step_scaled(&model.params, &grads, lr, &scale)?;
        if let Some(ema) = &mut self.ema {
            ema.update(&model.params)?;
        }
        let row = Row { step: step + 1, loss, accuracy, lr, grad_norm };
        self.log.steps.push(row);
        self.close_epoch()?;
        Ok(row)
    }

    /// Loss, accuracy and gradients of one batch; running statistics move.
    fn pass(&self, mut batch: Batch) -> Result<((f32, f64), GradStore)> {
        let (config, recipe) = (&self.model.config, self.training.recipe);
        let shape = (batch.count, config.height, config.input_width, config.channels);
        let values = std::mem::take(&mut batch.pixels);
        let images = match self.training.features {
            None => Tensor::from_vec(values, shape, &Device::Cpu)?,
            Some(features) => features.train.tensor(values, batch.count)?,
        };
        let images = self.place.bring(&images)?;
        let given = self.training.units_given();
        let fixed: &[String] = if recipe.frozen_norms == Norms::Frozen { &recipe.freeze } else { &[] };
        let ((logits, statistics, loss), tape) = tape::record(|| {
            let (logits, statistics) = self.model.training_logits_from(given, &self.weights, &images, fixed)?;
            let loss = cross_entropy(&logits, &batch.targets)?;
            Ok::<_, Error>((logits, statistics, loss))
        })?;
        let (value, step) = (loss.to_scalar::<f32>()?, self.log.steps.len() + 1);
        if !value.is_finite() {
            let message = format!("the loss is {value} at step {step} of {}; a lower `lr` ({}) helps", self.steps, recipe.lr);
            return Err(Error::argument(message));
        }
        let accuracy = agreement(&logits, &batch.targets)?;
        let grads = tape.backward(&loss)?;
        self.model.move_statistics(&statistics, MOMENTUM)?;
        Ok(((value, accuracy), grads))
    }

    /// `a + b`, tensor by tensor.
    fn sum(&self, mut a: GradStore, b: &GradStore) -> Result<GradStore> {
        for (_, var) in self.model.params.trainable() {
            if let (Some(x), Some(y)) = (a.get(var), b.get(var)) {
                let sum = (x + y)?;
                a.insert(var, sum);
            }
        }
        Ok(a)
    }

    fn average(&self, grads: &mut GradStore) -> Result<()> {
        let share = 1.0 / self.training.recipe.accumulate as f64;
        for (_, var) in self.model.params.trainable() {
            if let Some(mean) = grads.get(var).map(|grad| grad.affine(share, 0.0)).transpose()? {
                grads.insert(var, mean);
            }
        }
        Ok(())
    }

    /// At the end of a pass over the data, and of the training: a row, and a look at the held-out images.
    fn close_epoch(&mut self) -> Result<()> {
        let (step, per_step) = (self.log.steps.len(), self.training.recipe.step_images());
        let images = self.training.sources.first().map_or(1, |source| source.set.len()).max(1);
        let passes = step * per_step / images;
        let is_whole = passes > (step - 1) * per_step / images;
        if !is_whole && step < self.steps {
            return Ok(());
        }
        let score = self.training.held_out.map(|set| self.look(set)).transpose()?;
        self.log.close(passes + usize::from(!is_whole), score);
        Ok(())
    }

    /// How the weights that would be given now do on the held-out images; the best ones are kept.
    fn look(&mut self, set: &dyn Images) -> Result<super::log::Score> {
        let params = match &self.ema {
            Some(ema) => ema.params(&self.model.params)?,
            None => self.model.params.copied()?,
        };
        let features = self.training.features.and_then(|features| features.held_out);
        let score = score(self.model, (&params.frozen()?, &self.place), set, features, self.training.recipe.batch)?;
        if !score.loss.is_finite() {
            let step = self.log.steps.len();
            return Err(Error::argument(format!("the loss on the held-out images is {} after step {step}", score.loss)));
        }
        match &mut self.best {
            Some(best) if score.loss >= best.loss => best.waited += 1,
            best => *best = Some(Best { params, loss: score.loss, waited: 0 }),
        }
        Ok(score)
    }

    /// The model gets the weights that the training gives.
    fn finish(self) -> Result<Log> {
        match (self.best, self.ema) {
            (Some(best), _) => self.model.params = best.params,
            (None, Some(ema)) => self.model.params = ema.params(&self.model.params)?,
            (None, None) => {}
        }
        if !self.place.device.is_cpu() {
            self.model.params = self.model.params.on(&Device::Cpu)?;
        }
        Ok(self.log)
    }
}

/// The index of the largest value; of equal ones the first.
pub fn argmax(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

fn agreement(logits: &Tensor, targets: &[f32]) -> Result<f64> {
    let logits = compute::rows(logits)?;
    let classes = targets.len() / logits.len();
    let hits = logits.iter().zip(targets.chunks_exact(classes)).filter(|(l, t)| argmax(l) == argmax(t)).count();
    Ok(hits as f64 / logits.len() as f64)
}
