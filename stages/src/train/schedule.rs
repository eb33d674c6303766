//! How the learning rate goes over the steps.

use std::f64::consts::PI;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::nn::optim::cosine;

/// What the learning rate does after its warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Falls along a half cosine to 0 (Loshchilov and Hutter 2017).
    #[default]
    Cosine,
    /// Stays.
    Constant,
    /// Times `gamma` at each of `milestones`.
    Step,
    /// Rises along a cosine from lr/25 over the warm-up, and falls along one to lr/250,000 (Smith and Topin 2018, in PyTorch's form).
    OneCycle,
}

/// A shape with its figures.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// What follows the warm-up.
    pub shape: Shape,
    /// Largest learning rate.
    pub peak: f64,
    /// Share of the steps over which the learning rate rises.
    pub warmup: f64,
    /// Shares of the steps after which a stepped learning rate falls.
    pub milestones: Vec<f64>,
    /// What it is multiplied with then.
    pub gamma: f64,
}

impl Schedule {
    /// The learning rate of the step `step` (from 0) of `total`.
    pub fn at(&self, step: usize, total: usize) -> f64 {
        let warmup = (self.warmup * total as f64).round() as usize;
        if self.shape == Shape::OneCycle {
            return self.one_cycle(step, total, warmup);
        }
        if step < warmup {
            return self.peak * (step + 1) as f64 / warmup as f64;
        }
        match self.shape {
            Shape::Constant => self.peak,
            Shape::Step => {
                let passed = self.milestones.iter().filter(|share| step >= (**share * total as f64).round() as usize).count();
                self.peak * self.gamma.powi(i32::try_from(passed).unwrap_or(i32::MAX))
            }
            Shape::Cosine | Shape::OneCycle => cosine(self.peak, step, total, warmup),
        }
    }

    fn one_cycle(&self, step: usize, total: usize, warmup: usize) -> f64 {
        /// Share of the peak that the first step has.
        const FIRST: f64 = 1.0 / 25.0;
        /// Share of the first step's that the last one has.
        const LAST: f64 = 1e-4;
        let between = |from: f64, to: f64, share: f64| to + (from - to) * 0.5 * (1.0 + (PI * share).cos());
        let top = warmup.saturating_sub(1);
        if step < top {
            return between(self.peak * FIRST, self.peak, step as f64 / top as f64);
        }
        let fall = (total.saturating_sub(1).saturating_sub(top)).max(1) as f64;
        between(self.peak, self.peak * FIRST * LAST, (step - top) as f64 / fall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(shape: Shape, warmup: f64) -> Vec<f64> {
        let schedule = Schedule { shape, peak: 1.0, warmup, milestones: vec![0.5, 0.75], gamma: 0.1 };
        (0..10).map(|step| schedule.at(step, 10)).collect()
    }

    fn close(found: &[f64], wanted: &[f64]) {
        assert!(found.len() == wanted.len() && found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
    }

    #[test]
    fn every_shape_warms_up_and_then_goes_its_way() {
        close(&rates(Shape::Constant, 0.2), &[0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        close(&rates(Shape::Step, 0.2), &[0.5, 1.0, 1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.01, 0.01]);
        let cosine = rates(Shape::Cosine, 0.2);
        close(&cosine[..3], &[0.5, 1.0, 1.0]);
        close(&cosine[6..7], &[0.5]);
        assert!(cosine[2..].windows(2).all(|pair| pair[0] > pair[1]));
    }

    /// The formula of `torch.optim.lr_scheduler.OneCycleLR(max_lr=1.0, total_steps=10, pct_start=0.3)`, worked out in Python.
    #[test]
    fn one_cycle_is_that_of_pytorch() {
        let wanted = [0.04, 0.52, 1.0, 0.950_484_6, 0.811_745_7, 0.611_262_0, 0.388_742_0, 0.188_258_3, 0.049_519_4, 0.000_004];
        close(&rates(Shape::OneCycle, 0.3), &wanted);
    }
}
