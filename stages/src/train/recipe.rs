//! How to train: all figures of a training, and what makes no sense among them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trestle_engine::stage::ParamError;

use super::augment::Augment;
use super::schedule::{Schedule, Shape};
use crate::nn::optim;

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

    /// Steps for `images` when each takes `batch`; at least one.
    pub fn steps(self, images: usize, batch: usize) -> usize {
        match self {
            Self::Steps(steps) => steps.max(1),
            Self::Epochs(epochs) => (epochs * images as f64 / batch.max(1) as f64).ceil().max(1.0) as usize,
        }
    }
}

/// What moves the weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Optimiser {
    /// Adam with the decay of weights apart from the gradient (Loshchilov and Hutter 2019).
    #[default]
    Adamw,
    /// Gradient descent with `momentum` (Sutskever et al. 2013).
    Sgd,
    /// Adam with steps as long as the tensors, for large batches (You et al. 2020).
    Lamb,
}

/// What the batch normalisations of frozen units do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Norms {
    /// They use the running statistics that they came with.
    #[default]
    Frozen,
    /// They use each batch's statistics, and the running ones move towards these.
    Adapting,
}

/// When to stop before the end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EarlyStopping {
    /// Share of the images of `data` that is not trained on, the same share of every class.
    pub holdout: f64,
    /// Epochs without a lower loss on those after which training ends.
    pub patience: usize,
}

impl Default for EarlyStopping {
    fn default() -> Self {
        Self { holdout: 0.1, patience: 5 }
    }
}

/// How to train.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// Epochs or steps.
    pub length: Length,
    /// Images of one forward pass.
    pub batch: usize,
    /// Batches whose gradients are averaged for one step.
    pub accumulate: usize,
    /// What moves the weights.
    pub optimiser: Optimiser,
    /// Of SGD: 0.9 if not given.
    pub momentum: Option<f64>,
    /// Of SGD: looks ahead by one step of momentum.
    pub nesterov: bool,
    /// Largest learning rate.
    pub lr: f64,
    /// Share of the steps over which the learning rate rises.
    pub warmup: f64,
    /// What it does after that.
    pub schedule: Shape,
    /// Of the schedule `step`.
    pub milestones: Vec<f64>,
    /// Of the schedule `step`.
    pub gamma: f64,
    /// Of the schedule `one-cycle`: least and largest momentum (β₁ of AdamW and LAMB), which goes against the learning rate.
    pub cycle_momentum: Option<[f64; 2]>,
    /// Factors of the learning rate, by unit.
    pub lr_scale: BTreeMap<String, f64>,
    /// Decay of weights.
    pub weight_decay: f64,
    /// Largest norm of all gradients together.
    pub clip: Option<f64>,
    /// Decay of the moving average of the weights, which then is the result.
    pub ema: Option<f64>,
    /// Units whose weights stay.
    pub freeze: Vec<String>,
    /// What their batch normalisations do.
    pub frozen_norms: Norms,
    /// α of mixup's Beta(α, α) (Zhang et al. 2018); 0 is off.
    pub mixup: f64,
    /// α of CutMix's Beta(α, α) (Yun et al. 2019); 0 is off. With mixup too, each batch gets one of the two.
    pub cutmix: f64,
    /// Share of the target that is spread over all classes.
    pub label_smoothing: f64,
    /// Random changes of the images.
    pub augment: Augment,
    /// Every class as often as every other.
    pub balanced: bool,
    /// Whether training may end before its end.
    pub early_stopping: Option<EarlyStopping>,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            length: Length::Epochs(10.0),
            batch: 64,
            accumulate: 1,
            optimiser: Optimiser::Adamw,
            momentum: None,
            nesterov: false,
            lr: 2e-3,
            warmup: 0.05,
            schedule: Shape::Cosine,
            milestones: vec![0.5, 0.75],
            gamma: 0.1,
            cycle_momentum: None,
            lr_scale: BTreeMap::new(),
            weight_decay: 0.01,
            clip: None,
            ema: None,
            freeze: Vec::new(),
            frozen_norms: Norms::Frozen,
            mixup: 0.0,
            cutmix: 0.0,
            label_smoothing: 0.0,
            augment: Augment::default(),
            balanced: false,
            early_stopping: None,
        }
    }
}

/// Momentum of SGD if none is given.
const MOMENTUM: f64 = 0.9;

/// What `check` collects.
pub(super) type Want<'a> = dyn FnMut(bool, &str, String) + 'a;

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
        want(self.accumulate > 0, "accumulate", "a step takes at least one batch".into());
        self.check_optimiser(&mut want);
        self.check_rates(&mut want);
        for (name, alpha) in [("mixup", self.mixup), ("cutmix", self.cutmix)] {
            want(alpha.is_finite() && alpha >= 0.0, name, format!("α is {alpha}, it starts at 0 (off)"));
        }
        let smoothing = (0.0..1.0).contains(&self.label_smoothing);
        want(smoothing, "label_smoothing", format!("{} is not a share from 0 to below 1", self.label_smoothing));
        self.augment.check(&mut want);
        if let Some(stopping) = self.early_stopping {
            let holdout = stopping.holdout > 0.0 && stopping.holdout < 1.0;
            want(holdout, "early_stopping.holdout", format!("{} is not a share between 0 and 1", stopping.holdout));
            want(stopping.patience > 0, "early_stopping.patience", "training goes on for at least one epoch".into());
        }
        errors
    }

    fn check_optimiser(&self, want: &mut Want<'_>) {
        let is_sgd = self.optimiser == Optimiser::Sgd;
        if let Some(momentum) = self.momentum {
            want((0.0..1.0).contains(&momentum), "momentum", format!("{momentum} is not a share from 0 to below 1"));
        }
        want(is_sgd || self.momentum.is_none(), "momentum", "only the optimiser `sgd` has a momentum to set".into());
        if let Some([least, largest]) = self.cycle_momentum {
            let shares = least > 0.0 && least <= largest && largest < 1.0;
            want(shares, "cycle_momentum", format!("[{least}, {largest}] are not a least and a largest share between 0 and 1"));
            let is_cycle = self.schedule == Shape::OneCycle;
            want(is_cycle, "cycle_momentum", "only the schedule `one-cycle` has a momentum that changes".into());
            want(self.momentum.is_none(), "momentum", "`cycle_momentum` says what it is at each step; keep one".into());
        }
        want(is_sgd || !self.nesterov, "nesterov", "only the optimiser `sgd` has Nesterov's variant".into());
        want(!self.nesterov || self.momentum != Some(0.0), "nesterov", "without momentum there is nothing to look ahead by".into());
        let decay = self.weight_decay.is_finite() && self.weight_decay >= 0.0;
        want(decay, "weight_decay", format!("the weight decay {} is below 0", self.weight_decay));
        if let Some(limit) = self.clip {
            want(limit.is_finite() && limit > 0.0, "clip", format!("the largest norm {limit} is not above 0"));
        }
        if let Some(decay) = self.ema {
            want((0.0..1.0).contains(&decay), "ema", format!("the decay {decay} is not a share from 0 to below 1"));
        }
    }

    fn check_rates(&self, want: &mut Want<'_>) {
        want(self.lr.is_finite() && self.lr > 0.0, "lr", format!("the learning rate {} is not above 0", self.lr));
        want((0.0..=1.0).contains(&self.warmup), "warmup", format!("{} is not a share from 0 to 1", self.warmup));
        for (unit, scale) in &self.lr_scale {
            let message = format!("{scale} is not above 0; units that are not to be trained stand under `freeze`");
            want(scale.is_finite() && *scale > 0.0, &format!("lr_scale.{unit}"), message);
            want(!self.freeze.contains(unit), &format!("lr_scale.{unit}"), "this unit is frozen".into());
        }
        for (i, share) in self.milestones.iter().enumerate() {
            want(*share > 0.0 && *share < 1.0, &format!("milestones[{i}]"), format!("{share} is not a share of the steps between 0 and 1"));
        }
        want(self.milestones.is_sorted(), "milestones", "they are not in their order".into());
        let falls = self.gamma > 0.0 && self.gamma <= 1.0;
        want(falls, "gamma", format!("{} is not a factor above 0 up to 1", self.gamma));
        let given = Self::default();
        let is_step = self.schedule == Shape::Step;
        want(is_step || self.milestones == given.milestones, "milestones", "only the schedule `step` has milestones".into());
        want(is_step || self.gamma == given.gamma, "gamma", "only the schedule `step` has a gamma".into());
    }

    /// Images of one step.
    pub fn step_images(&self) -> usize {
        self.batch * self.accumulate
    }

    pub(super) fn schedule(&self) -> Schedule {
        let Self { schedule: shape, lr: peak, warmup, milestones, gamma, cycle_momentum: momentum, .. } = self;
        Schedule { shape: *shape, peak: *peak, warmup: *warmup, milestones: milestones.clone(), gamma: *gamma, momentum: *momentum }
    }

    pub(super) fn optimiser(&self) -> Box<dyn optim::Optimiser> {
        match self.optimiser {
            Optimiser::Adamw => Box::new(optim::AdamW::new(self.weight_decay)),
            Optimiser::Sgd => Box::new(optim::Sgd::new(self.momentum.unwrap_or(MOMENTUM), self.nesterov, self.weight_decay)),
            Optimiser::Lamb => Box::new(optim::Lamb::new(self.weight_decay)),
        }
    }
}
