//! Optimisers: one fused pass over weights, gradient and state, in place.

use std::collections::BTreeMap;
use std::sync::Mutex;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor, Var};
use rayon::prelude::*;

use crate::error::{Error, Result};

use super::math::CHUNK;
use super::params::Params;
use super::simd::vectorised;
use super::storage::{slice, with};

/// AdamW (Loshchilov and Hutter 2019): Adam with the decay of weights apart from the gradient.
#[derive(Debug, Clone)]
pub struct AdamW {
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of squared gradients.
    pub beta2: f32,
    /// Keeps the division finite.
    pub eps: f32,
    /// Share of the weights that is taken away in each step, times the learning rate; only of tensors with two or more dimensions.
    pub weight_decay: f32,
    step: i32,
    state: BTreeMap<String, (Vec<f32>, Vec<f32>)>,
}

impl AdamW {
    /// β₁ 0.9, β₂ 0.999, ε 1e-8.
    pub fn new(weight_decay: f64) -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: weight_decay as f32, step: 0, state: BTreeMap::new() }
    }

    /// One step on all tensors of `params` that `trains` lets through.
    ///
    /// # Errors
    /// If one of them has no gradient: it was cut on the way, or it should not be trained.
    pub fn step(&mut self, params: &Params, grads: &GradStore, lr: f64, trains: impl Fn(&str) -> bool) -> Result<()> {
        self.step += 1;
        for (name, var) in params.iter().filter(|(name, _)| trains(name)) {
            let grad =
                grads.get(var).ok_or_else(|| Error::argument(format!("`{name}` has no gradient: the loss does not depend on it")))?;
            let n = var.elem_count();
            let (mean, square) = self.state.remove(name).unwrap_or_else(|| (vec![0.0; n], vec![0.0; n]));
            let decay = if var.dims().len() > 1 { self.weight_decay } else { 0.0 };
            let update = Update {
                beta: (self.beta1, self.beta2),
                correction: (1.0 / (1.0 - self.beta1.powi(self.step)), 1.0 / (1.0 - self.beta2.powi(self.step))),
                eps: self.eps,
                lr: lr as f32,
                decay: lr as f32 * decay,
                state: Mutex::new((mean, square)),
            };
            var.inplace_op2(&grad.contiguous()?, &update)?;
            let state = update.state.into_inner().map_err(|_| Error::argument("the optimiser's state was lost to a panic"))?;
            self.state.insert(name.clone(), state);
        }
        Ok(())
    }
}

struct Update {
    beta: (f32, f32),
    correction: (f32, f32),
    eps: f32,
    lr: f32,
    decay: f32,
    state: Mutex<(Vec<f32>, Vec<f32>)>,
}

impl Update {
    #[inline(always)]
    fn chunk(&self, w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let ((b1, b2), (c1, c2)) = (self.beta, self.correction);
        for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
            *m = b1 * *m + (1.0 - b1) * g;
            *v = b2 * *v + (1.0 - b2) * g * g;
            *w -= self.decay * *w + self.lr * (*m * c1) / ((*v * c2).sqrt() + self.eps);
        }
    }
}

impl InplaceOp2 for Update {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, w: &mut CpuStorage, lw: &Layout, g: &CpuStorage, lg: &Layout) -> candle_core::Result<()> {
        let g = slice(g, lg)?;
        let (CpuStorage::F32(w), Some((start, end))) = (w, lw.contiguous_offsets()) else {
            candle_core::bail!("adamw: the weights are not contiguous f32");
        };
        let mut state = self.state.lock().map_err(|_| candle_core::Error::Msg("adamw: the state was lost to a panic".to_owned()))?;
        let (m, v) = &mut *state;
        w[start..end].par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).zip(m.par_chunks_mut(CHUNK)).zip(v.par_chunks_mut(CHUNK)).for_each(
            |(((w, g), m), v)| {
                vectorised!(self.chunk(w, g, m, v));
            },
        );
        Ok(())
    }
}

/// The Euclidean norm of all gradients together, in double precision and the order of the names.
///
/// # Errors
/// If a gradient cannot be read.
pub fn grad_norm(params: &Params, grads: &GradStore) -> Result<f64> {
    let mut total = 0.0;
    for grad in params.iter().filter_map(|(_, var)| grads.get(var)) {
        total += with(grad, |g| Ok(g.chunks(1024).map(|c| f64::from(c.iter().map(|v| v * v).sum::<f32>())).sum::<f64>()))?;
    }
    Ok(total.sqrt())
}

/// Scales all gradients so that their norm is at most `limit`; gives the norm before.
///
/// # Errors
/// If a gradient cannot be scaled.
pub fn clip(params: &Params, grads: &mut GradStore, limit: f64) -> Result<f64> {
    let norm = grad_norm(params, grads)?;
    if norm > limit {
        for (_, var) in params.iter() {
            let scaled = grads.get(var).map(|g: &Tensor| g.affine(limit / norm, 0.0)).transpose()?;
            if let Some(scaled) = scaled {
                grads.insert(var, scaled);
            }
        }
    }
    Ok(norm)
}

/// Learning rate at `step` of `total`: a linear warm-up over `warmup` steps, then a half cosine down to 0 (Loshchilov and Hutter 2017).
pub fn cosine(peak: f64, step: usize, total: usize, warmup: usize) -> f64 {
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let progress = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
    peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
}

/// The gradient of one variable, if it has one, as values.
///
/// # Errors
/// If it cannot be read.
pub fn gradient_values(grads: &GradStore, var: &Var) -> Result<Option<Vec<f32>>> {
    Ok(grads.get(var).map(|g| with(g, |g| Ok(g.to_vec()))).transpose()?)
}
