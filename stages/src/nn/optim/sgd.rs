//! Stochastic gradient descent with momentum.

use std::borrow::Cow;

use candle_core::backprop::GradStore;

use super::{Memory, Optimiser, Place, Trained, Values, all_of, in_place, lent, of_all, owned, place, set, state_of};
use crate::error::Result;
use crate::nn::kept::weighted;
use crate::nn::params::Params;

/// `m ← momentum·m + g + decay·w`, `w ← w − lr·m` (Sutskever et al. 2013, in PyTorch's form); Nesterov's variant steps along
/// `g + decay·w + momentum·m`. Tensors of one dimension do not decay.
#[derive(Debug, Clone)]
pub struct Sgd {
    /// Share of the last step's direction that is kept.
    pub momentum: f32,
    /// Whether the step looks ahead by one step of momentum.
    pub nesterov: bool,
    /// Share of the weights that is added to the gradient; only of tensors with two or more dimensions.
    pub weight_decay: f32,
    state: Values<1>,
}

impl Sgd {
    /// An optimiser at rest.
    pub fn new(momentum: f64, nesterov: bool, weight_decay: f64) -> Self {
        Self { momentum: momentum as f32, nesterov, weight_decay: weight_decay as f32, state: Values::new() }
    }

    /// One step on all tensors of `params` that `trains` lets through.
    ///
    /// # Errors
    /// If one of them has no gradient: it was cut on the way, or it should not be trained.
    pub fn step(&mut self, params: &Params, grads: &GradStore, lr: f64, trains: impl Fn(&str) -> bool) -> Result<()> {
        self.step_scaled(params, grads, lr, &all_of(trains))
    }
}

impl Optimiser for Sgd {
    fn step_scaled(&mut self, params: &Params, grads: &GradStore, lr: f64, scale: &dyn Fn(&str) -> f64) -> Result<()> {
        let (momentum, nesterov) = (self.momentum, self.nesterov);
        for Trained { name, var, grad, scale } in of_all(params, grads, scale)? {
            let lr = (lr * scale) as f32;
            let decay = if var.dims().len() > 1 { self.weight_decay } else { 0.0 };
            match place(state_of(&mut self.state, name, var)?)? {
                Place::Host(state) => in_place("sgd", var, grad, state, |w, g, [m]| {
                    let g = g + decay * *w;
                    *m = momentum * *m + g;
                    *w -= lr * if nesterov { g + momentum * *m } else { *m };
                })?,
                Place::There([m]) => {
                    let w = var.as_detached_tensor();
                    let g = weighted((1.0, grad), (decay, &w))?;
                    *m = weighted((momentum, m), (1.0, &g))?;
                    let along = if nesterov { weighted((1.0, &g), (momentum, m))? } else { m.clone() };
                    set(var, &weighted((1.0, &w), (-lr, &along))?)?;
                }
            }
        }
        Ok(())
    }

    fn set_momentum(&mut self, momentum: f64) {
        self.momentum = momentum as f32;
    }

    fn memory(&self) -> Result<Memory<Cow<'_, [f32]>>> {
        lent(0, &self.state)
    }

    fn remember(&mut self, memory: Memory<Vec<f32>>, params: &Params) -> Result<()> {
        self.state = owned(memory, params)?.1;
        Ok(())
    }
}
