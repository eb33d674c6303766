//! How the learning rate, and with one cycle the momentum, go over the steps.

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
    /// Least and largest momentum of one cycle, which goes against the learning rate; without, momentum stays.
    pub momentum: Option<[f64; 2]>,
}

impl Schedule {
    /// The learning rate of the step `step` (from 0) of `total`.
    pub fn at(&self, step: usize, total: usize) -> f64 {
        /// Share of the peak that the first step has.
        const FIRST: f64 = 1.0 / 25.0;
        /// Share of the first step's that the last one has.
        const LAST: f64 = 1e-4;
        if self.shape == Shape::OneCycle {
            return self.one_cycle(step, total, [self.peak * FIRST, self.peak, self.peak * FIRST * LAST]);
        }
        let warmup = (self.warmup * total as f64).round() as usize;
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

    /// The momentum of the step `step` (from 0) of `total`, if it goes with the learning rate.
    pub fn momentum_at(&self, step: usize, total: usize) -> Option<f64> {
        let [least, largest] = self.momentum.filter(|_| self.shape == Shape::OneCycle)?;
        Some(self.one_cycle(step, total, [largest, least, largest]))
    }

    /// From the first of three values to the second over the warm-up, and on to the third, as PyTorch's `OneCycleLR` has it: the warm-up ends
    /// between steps where its share of the steps is no whole number.
    fn one_cycle(&self, step: usize, total: usize, [first, top, last]: [f64; 3]) -> f64 {
        let between = |from: f64, to: f64, share: f64| to + (from - to) * 0.5 * (1.0 + (PI * share).cos());
        let (step, end) = (step as f64, total.saturating_sub(1) as f64);
        let turn = self.warmup * total as f64 - 1.0;
        if turn > 0.0 && step <= turn {
            return between(first, top, step / turn);
        }
        between(top, last, if end > turn { (step - turn) / (end - turn) } else { 0.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(shape: Shape, warmup: f64) -> Vec<f64> {
        let schedule = Schedule { shape, peak: 1.0, warmup, milestones: vec![0.5, 0.75], gamma: 0.1, momentum: None };
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

    /// Values of `torch.optim.lr_scheduler.OneCycleLR`, made by `tests/fixtures/one_cycle.py` with PyTorch 2.15.0: steps, `pct_start`, the least and the
    /// largest momentum, and what comes out. In the second the warm-up ends between two steps, in the third before the first.
    #[test]
    fn one_cycle_is_that_of_pytorch() {
        type Case<'a> = (usize, f64, [f64; 2], &'a [f64], &'a [f64]);
        let cases: [Case<'_>; 3] = [
            (
                10,
                0.3,
                [0.85, 0.95],
                &[0.04, 0.52, 1.0, 0.950484632, 0.811745654, 0.611262022, 0.388741978, 0.188258346, 0.049519368, 0.000004],
                &[0.95, 0.9, 0.85, 0.854951557, 0.868825510, 0.888873953, 0.911126047, 0.931174490, 0.945048443, 0.95],
            ),
            (
                13,
                0.25,
                [0.8, 0.9],
                &[
                    0.04,
                    0.436648875,
                    0.971052458,
                    0.985470967,
                    0.922595352,
                    0.816223423,
                    0.677303734,
                    0.520134890,
                    0.360893824,
                    0.215970763,
                    0.100282217,
                    0.025735676,
                    0.000004,
                ],
                &[
                    0.9,
                    0.858682409,
                    0.803015369,
                    0.801452909,
                    0.807740496,
                    0.818377731,
                    0.832269756,
                    0.847986703,
                    0.863910873,
                    0.878403237,
                    0.889972138,
                    0.897426822,
                    0.9,
                ],
            ),
            (
                5,
                0.1,
                [0.85, 0.95],
                &[0.969846431, 0.750001, 0.413178258, 0.116981311, 0.000004],
                &[0.853015369, 0.875, 0.908682409, 0.938302222, 0.95],
            ),
        ];
        for (total, warmup, momentum, rates, momenta) in cases {
            let schedule =
                Schedule { shape: Shape::OneCycle, peak: 1.0, warmup, milestones: Vec::new(), gamma: 0.1, momentum: Some(momentum) };
            close(&(0..total).map(|step| schedule.at(step, total)).collect::<Vec<_>>(), rates);
            close(&(0..total).filter_map(|step| schedule.momentum_at(step, total)).collect::<Vec<_>>(), momenta);
            assert_eq!(Schedule { momentum: None, ..schedule.clone() }.momentum_at(0, total), None);
            assert_eq!(Schedule { shape: Shape::Cosine, ..schedule }.momentum_at(0, total), None);
        }
        let one =
            Schedule { shape: Shape::OneCycle, peak: 1.0, warmup: 1.0, milestones: Vec::new(), gamma: 0.1, momentum: Some([0.8, 0.9]) };
        assert_eq!((one.at(0, 1), one.momentum_at(0, 1)), (1.0, Some(0.8)));
    }
}
