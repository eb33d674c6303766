//! Optimisers that update the parameters in place, and the moving average of weights.

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, Var, bail};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Mutex;

use super::Params;
use super::raw::{BLOCK, slice, with};

/// AdamW's settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the denominator.
    pub eps: f32,
    /// Decoupled weight decay; not applied to parameters of one dimension (biases and normalisations).
    pub weight_decay: f32,
    /// The gradient's norm is scaled down to this, if it is larger.
    pub clip: Option<f32>,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, clip: None }
    }
}

/// AdamW (Loshchilov and Hutter 2019, algorithm 2).
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    step: i32,
    moments: BTreeMap<String, Vec<f32>>,
}

impl AdamW {
    /// At step 0.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, step: 0, moments: BTreeMap::new() }
    }

    /// Updates every trainable parameter, at learning rate `lr`.
    ///
    /// # Errors
    /// If a trainable parameter has no gradient: it is not part of the loss, or an operation severed it.
    pub fn step(&mut self, params: &Params, grads: &GradStore, lr: f32) -> Result<()> {
        self.step += 1;
        let c = self.config;
        let scale = clip_scale(params, grads, c.clip)?;
        let (fix1, fix2) = (1.0 / (1.0 - c.beta1.powi(self.step)), 1.0 / (1.0 - c.beta2.powi(self.step)));
        for (name, var) in params.trainable() {
            let moments = self.moments.entry(name.to_owned()).or_insert_with(|| vec![0.0; 2 * var.elem_count()]);
            let decay = if var.rank() > 1 { 1.0 - lr * c.weight_decay } else { 1.0 };
            update(var, grads, name, moments, move |w, m, g| {
                let g = g * scale;
                m[0] = c.beta1 * m[0] + (1.0 - c.beta1) * g;
                m[1] = c.beta2 * m[1] + (1.0 - c.beta2) * g * g;
                *w = *w * decay - lr * (m[0] * fix1) / ((m[1] * fix2).sqrt() + c.eps);
            })?;
        }
        Ok(())
    }
}

/// The settings of stochastic gradient descent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdConfig {
    /// Momentum, as PyTorch defines it: `v ← momentum · v + g`, `w ← w − lr · v`.
    pub momentum: f32,
    /// Looks ahead by one step of momentum.
    pub nesterov: bool,
    /// L2 penalty, added to the gradient; not applied to parameters of one dimension.
    pub weight_decay: f32,
    /// The gradient's norm is scaled down to this, if it is larger.
    pub clip: Option<f32>,
}

/// Stochastic gradient descent with momentum.
#[derive(Debug)]
pub struct Sgd {
    config: SgdConfig,
    velocity: BTreeMap<String, Vec<f32>>,
}

impl Sgd {
    /// At rest.
    pub fn new(config: SgdConfig) -> Self {
        Self { config, velocity: BTreeMap::new() }
    }

    /// Updates every trainable parameter, at learning rate `lr`.
    ///
    /// # Errors
    /// If a trainable parameter has no gradient.
    pub fn step(&mut self, params: &Params, grads: &GradStore, lr: f32) -> Result<()> {
        let c = self.config;
        let scale = clip_scale(params, grads, c.clip)?;
        for (name, var) in params.trainable() {
            let velocity = self.velocity.entry(name.to_owned()).or_insert_with(|| vec![0.0; var.elem_count()]);
            let decay = if var.rank() > 1 { c.weight_decay } else { 0.0 };
            update(var, grads, name, velocity, move |w, v, g| {
                let g = g * scale + decay * *w;
                v[0] = c.momentum * v[0] + g;
                *w -= lr * if c.nesterov { g + c.momentum * v[0] } else { v[0] };
            })?;
        }
        Ok(())
    }
}

fn gradient<'a>(grads: &'a GradStore, name: &str, var: &Var) -> Result<&'a candle_core::Tensor> {
    match grads.get(var) {
        Some(grad) => Ok(grad),
        None => bail!("parameter `{name}` received no gradient; freeze it if the loss does not depend on it"),
    }
}

/// The factor that brings the norm of all gradients down to `clip`.
fn clip_scale(params: &Params, grads: &GradStore, clip: Option<f32>) -> Result<f32> {
    let Some(clip) = clip else { return Ok(1.0) };
    let mut squares = 0f64;
    for (name, var) in params.trainable() {
        let grad = gradient(grads, name, var)?.contiguous()?;
        squares += with(&grad, |g| super::raw::sum(g.len(), |a, b| g[a..b].iter().map(|v| f64::from(*v).powi(2)).sum()))?;
    }
    let norm = squares.sqrt() as f32;
    Ok(if norm > clip { clip / norm } else { 1.0 })
}

/// Calls `f(weight, its state, its gradient)` for every value; `state` holds the same number of values for each weight.
fn update(var: &Var, grads: &GradStore, name: &str, state: &mut [f32], f: impl Fn(&mut f32, &mut [f32], f32) + Sync) -> Result<()> {
    let grad = gradient(grads, name, var)?.contiguous()?;
    var.inplace_op2(&grad, &Update { state: Mutex::new(state), f })
}

struct Update<'a, F> {
    state: Mutex<&'a mut [f32]>,
    f: F,
}

impl<F: Fn(&mut f32, &mut [f32], f32) + Sync> InplaceOp2 for Update<'_, F> {
    fn name(&self) -> &'static str {
        "optimiser step"
    }

    fn cpu_fwd(&self, w: &mut CpuStorage, lw: &Layout, g: &CpuStorage, lg: &Layout) -> Result<()> {
        let (Some((start, end)), CpuStorage::F32(w)) = (lw.contiguous_offsets(), w) else { bail!("parameters are contiguous f32") };
        let (w, g) = (&mut w[start..end], slice(g, lg)?);
        let Ok(mut state) = self.state.lock() else { bail!("an earlier optimiser step panicked") };
        let each = state.len() / w.len().max(1);
        let blocks = w.par_chunks_mut(BLOCK).zip(state.par_chunks_mut(BLOCK * each)).zip(g.par_chunks(BLOCK));
        blocks.for_each(|((w, state), g)| {
            for ((w, state), g) in w.iter_mut().zip(state.chunks_exact_mut(each)).zip(g) {
                (self.f)(w, state, *g);
            }
        });
        Ok(())
    }
}

/// An exponential moving average of the parameters, with the warm-up `min(decay, (1 + t) / (10 + t))`.
#[derive(Debug, Clone)]
pub struct Ema {
    decay: f32,
    step: u64,
    values: BTreeMap<String, Vec<f32>>,
}

impl Ema {
    /// Starts at the present values.
    ///
    /// # Errors
    /// If a parameter is not f32.
    pub fn new(params: &Params, decay: f32) -> Result<Self> {
        Ok(Self { decay, step: 0, values: params.values()? })
    }

    /// Moves towards the present values.
    ///
    /// # Errors
    /// If a parameter is not f32.
    pub fn update(&mut self, params: &Params) -> Result<()> {
        self.step += 1;
        let t = self.step as f32;
        let decay = self.decay.min((1.0 + t) / (10.0 + t));
        for (name, var) in params.trainable() {
            let Some(mean) = self.values.get_mut(name) else { bail!("the average knows no parameter `{name}`") };
            with(var, |w| {
                super::raw::chunks(mean, BLOCK, |i, mean| {
                    for (m, w) in mean.iter_mut().zip(&w[i * BLOCK..]) {
                        *m += (1.0 - decay) * (*w - *m);
                    }
                });
            })?;
        }
        Ok(())
    }

    /// Replaces the parameters by their averages.
    ///
    /// # Errors
    /// If the parameters are not those of the average.
    pub fn copy_to(&self, params: &mut Params) -> Result<()> {
        self.values.iter().try_for_each(|(name, values)| params.set(name, values))
    }
}
