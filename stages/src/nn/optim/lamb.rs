//! LAMB: Adam with a step for every tensor that is as long as the tensor, for large batches.

use std::borrow::Cow;

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

use super::{Memory, Optimiser, Place, Trained, Values, adam, all_of, in_place, lent, of_all, owned, place, set, state_of};
use crate::error::Result;
use crate::nn::kept::weighted;
use crate::nn::params::Params;
use crate::nn::storage::with;

/// LAMB (You et al. 2020, algorithm 2, with Adam's corrections of the start): `r = m̂ / (√v̂ + ε) + decay·w`, `w ← w − lr·(‖w‖ / ‖r‖)·r`.
/// Tensors of one dimension neither decay nor adapt, as in timm.
#[derive(Debug, Clone)]
pub struct Lamb {
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of squared gradients.
    pub beta2: f32,
    /// Keeps the division finite.
    pub eps: f32,
    /// Share of the weights that joins the direction; only of tensors with two or more dimensions.
    pub weight_decay: f32,
    step: i32,
    /// Mean of gradients, of squared gradients, and the direction of the step.
    state: Values<3>,
}

/// The Euclidean norm: fixed runs in single precision, their sums in double.
fn norm(values: &[f32]) -> f64 {
    values.chunks(256).map(|run| f64::from(run.iter().map(|v| v * v).sum::<f32>())).sum::<f64>().sqrt()
}

impl Lamb {
    /// β₁ 0.9, β₂ 0.999, ε 1e-6.
    pub fn new(weight_decay: f64) -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-6, weight_decay: weight_decay as f32, step: 0, state: Values::new() }
    }

    /// One step on all tensors of `params` that `trains` lets through.
    ///
    /// # Errors
    /// If one of them has no gradient: it was cut on the way, or it should not be trained.
    pub fn step(&mut self, params: &Params, grads: &GradStore, lr: f64, trains: impl Fn(&str) -> bool) -> Result<()> {
        self.step_scaled(params, grads, lr, &all_of(trains))
    }
}

/// On a device: `r`, made as long as the weights if neither has the length 0. Nothing is read from the device for that.
fn trusted(var: &Var, r: &Tensor) -> Result<Tensor> {
    let length = |x: &Tensor| x.sqr()?.sum_all()?.sqrt();
    let (ours, theirs) = (length(&var.as_detached_tensor())?, length(r)?);
    let both = (ours.gt(0.0)? * theirs.gt(0.0)?)?;
    Ok(r.broadcast_mul(&both.where_cond(&(&ours / &theirs)?, &ours.ones_like()?)?)?)
}

impl Optimiser for Lamb {
    fn step_scaled(&mut self, params: &Params, grads: &GradStore, lr: f64, scale: &dyn Fn(&str) -> f64) -> Result<()> {
        self.step += 1;
        let (b1, b2, eps) = (self.beta1, self.beta2, self.eps);
        let (c1, c2) = (1.0 / (1.0 - b1.powi(self.step)), 1.0 / (1.0 - b2.powi(self.step)));
        for Trained { name, var, grad, scale } in of_all(params, grads, scale)? {
            let adapts = var.dims().len() > 1;
            let decay = if adapts { self.weight_decay } else { 0.0 };
            match place(state_of(&mut self.state, name, var)?)? {
                Place::Host([m, v, r]) => {
                    in_place("lamb", var, grad, [m, v, &mut *r], |w, g, [m, v, r]| {
                        *m = b1 * *m + (1.0 - b1) * g;
                        *v = b2 * *v + (1.0 - b2) * g * g;
                        *r = (*m * c1) / ((*v * c2).sqrt() + eps) + decay * *w;
                    })?;
                    let lengths = (with(var, |w| Ok(norm(w)))?, norm(r));
                    let trust = if adapts && lengths.0 > 0.0 && lengths.1 > 0.0 { lengths.0 / lengths.1 } else { 1.0 };
                    let step = (lr * scale * trust) as f32;
                    in_place("lamb", var, grad, [r], |w, _, [r]| *w -= step * *r)?;
                }
                Place::There([m, v, r]) => {
                    *m = weighted((b1, m), (1.0 - b1, grad))?;
                    *v = weighted((b2, v), (1.0 - b2, &grad.sqr()?))?;
                    *r = weighted((1.0, &adam(m, v, [c1, c2, eps])?), (decay, &var.as_detached_tensor()))?;
                    let length = if adapts { trusted(var, r)? } else { r.clone() };
                    set(var, &weighted((1.0, &var.as_detached_tensor()), (-(lr * scale) as f32, &length))?)?;
                }
            }
        }
        Ok(())
    }

    fn set_momentum(&mut self, momentum: f64) {
        self.beta1 = momentum as f32;
    }

    fn memory(&self) -> Result<Memory<Cow<'_, [f32]>>> {
        lent(self.step, &self.state)
    }

    fn remember(&mut self, memory: Memory<Vec<f32>>, params: &Params) -> Result<()> {
        (self.step, self.state) = owned(memory, params)?;
        Ok(())
    }
}
