//! Optimisers: one fused pass over weights, gradient and state, in place; on other devices than the CPU the same formulas in candle's ops, with
//! the state beside the weights.

mod lamb;
mod sgd;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::nn::parallel::Parallel;
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor, Var};
use rayon::prelude::*;

use crate::error::{Error, Result};

use crate::nn::composed;
use crate::nn::kept::{Kept, weighted};
use crate::nn::math::CHUNK;
use crate::nn::params::Params;
use crate::nn::simd::vectorised;
use crate::nn::storage::{slice, with};

pub use lamb::Lamb;
pub use sgd::Sgd;

/// What an optimiser remembers of the steps so far.
#[derive(Debug, Default)]
pub struct Memory<T> {
    /// Steps so far.
    pub steps: i32,
    /// One or more values for every value of a tensor, by the tensor's name.
    pub values: BTreeMap<String, Vec<T>>,
}

/// Something that moves weights along their gradients.
pub trait Optimiser: Send {
    /// One step on all tensors of `params` whose `scale` is above 0, each at `lr` times its scale.
    ///
    /// # Errors
    /// If one of them has no gradient: it was cut on the way, or it should not be trained.
    fn step_scaled(&mut self, params: &Params, grads: &GradStore, lr: f64, scale: &dyn Fn(&str) -> f64) -> Result<()>;

    /// From the next step on, the share of the last steps' direction that is kept: momentum, or β₁.
    fn set_momentum(&mut self, momentum: f64);

    /// All that it remembers: with the weights enough to go on as if it had never stopped.
    ///
    /// # Errors
    /// If it cannot be read from its device.
    fn memory(&self) -> Result<Memory<Cow<'_, [f32]>>>;

    /// Goes on from what another one remembered.
    ///
    /// # Errors
    /// If that is not the memory of such an optimiser for these tensors.
    fn remember(&mut self, memory: Memory<Vec<f32>>, params: &Params) -> Result<()>;
}

fn lent<const N: usize>(steps: i32, state: &Values<N>) -> Result<Memory<Cow<'_, [f32]>>> {
    let values = state.iter().map(|(name, values)| Ok((name.clone(), values.iter().map(Kept::values).collect::<Result<_, _>>()?)));
    Ok(Memory { steps, values: values.collect::<Result<_>>()? })
}

/// `N` values for every value of a tensor, by the tensor's name.
type Values<const N: usize> = BTreeMap<String, [Kept; N]>;

/// The state of a tensor; at first zeros, where the tensor lies.
fn state_of<'s, const N: usize>(state: &'s mut Values<N>, name: &str, var: &Var) -> Result<&'s mut [Kept; N]> {
    if !state.contains_key(name) {
        let zeros = (0..N).map(|_| Kept::zeros(var)).collect::<Result<Vec<_>, _>>()?;
        let zeros = zeros.try_into().map_err(|_| Error::argument("an optimiser's memory of another size"))?;
        state.insert(name.to_owned(), zeros);
    }
    state.get_mut(name).ok_or_else(|| Error::argument(format!("no memory of `{name}`")))
}

/// Where a tensor's state lies, all of it.
enum Place<'s, const N: usize> {
    Host([&'s mut Vec<f32>; N]),
    There([&'s mut Tensor; N]),
}

/// Where the state of a tensor lies.
fn place<const N: usize>(state: &mut [Kept; N]) -> Result<Place<'_, N>> {
    let (mut host, mut there) = (Vec::new(), Vec::new());
    for kept in state {
        match kept {
            Kept::Host(values) => host.push(values),
            Kept::There(tensor) => there.push(tensor),
        }
    }
    match (host.try_into(), there.try_into()) {
        (Ok(host), _) => Ok(Place::Host(host)),
        (_, Ok(there)) => Ok(Place::There(there)),
        _ => Err(Error::argument("an optimiser's memory in two places")),
    }
}

/// Replaces the values of a variable by `w`.
fn set(var: &Var, w: &Tensor) -> Result<()> {
    Ok(var.set(w)?)
}

fn owned<const N: usize>(memory: Memory<Vec<f32>>, params: &Params) -> Result<(i32, Values<N>)> {
    let state = memory.values.into_iter().map(|(name, values)| {
        let var = params.var(&name)?;
        let fits = values.iter().all(|values| values.len() == var.elem_count());
        let kept = || values.into_iter().map(|values| Kept::of_values(values, var)).collect::<Result<Vec<_>, _>>();
        let values = if fits { <[Kept; N]>::try_from(kept()?).ok() } else { None };
        Ok((name.clone(), values.ok_or_else(|| Error::argument(format!("the optimiser's memory does not fit `{name}`")))?))
    });
    Ok((memory.steps, state.collect::<Result<_>>()?))
}

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
    state: Values<2>,
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
        self.step_scaled(params, grads, lr, &all_of(trains))
    }
}

impl Optimiser for AdamW {
    fn step_scaled(&mut self, params: &Params, grads: &GradStore, lr: f64, scale: &dyn Fn(&str) -> f64) -> Result<()> {
        self.step += 1;
        let (b1, b2, eps) = (self.beta1, self.beta2, self.eps);
        let (c1, c2) = (1.0 / (1.0 - b1.powi(self.step)), 1.0 / (1.0 - b2.powi(self.step)));
        for Trained { name, var, grad, scale } in of_all(params, grads, scale)? {
            let lr = (lr * scale) as f32;
            let decay = if var.dims().len() > 1 { lr * self.weight_decay } else { 0.0 };
            match place(state_of(&mut self.state, name, var)?)? {
                Place::Host(state) => in_place("adamw", var, grad, state, |w, g, [m, v]| {
                    *m = b1 * *m + (1.0 - b1) * g;
                    *v = b2 * *v + (1.0 - b2) * g * g;
                    *w -= decay * *w + lr * (*m * c1) / ((*v * c2).sqrt() + eps);
                })?,
                Place::There([m, v]) => {
                    *m = weighted((b1, m), (1.0 - b1, grad))?;
                    *v = weighted((b2, v), (1.0 - b2, &grad.sqr()?))?;
                    let w = var.as_detached_tensor();
                    set(var, &weighted((1.0 - decay, &w), (-lr, &adam(m, v, [c1, c2, eps])?))?)?;
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

/// Adam's direction, `m̂ / (√v̂ + ε)`, on a device.
fn adam(m: &Tensor, v: &Tensor, [c1, c2, eps]: [f32; 3]) -> Result<Tensor> {
    Ok((m.affine(f64::from(c1), 0.0)? / v.affine(f64::from(c2), 0.0)?.sqrt()?.affine(1.0, f64::from(eps))?)?)
}

/// The scale 1 for the tensors that `trains` lets through.
fn all_of(trains: impl Fn(&str) -> bool) -> impl Fn(&str) -> f64 {
    move |name| if trains(name) { 1.0 } else { 0.0 }
}

/// A tensor with its name, its gradient and its share of the learning rate.
struct Trained<'a> {
    name: &'a String,
    var: &'a Var,
    grad: &'a Tensor,
    scale: f64,
}

/// Every tensor of `params` whose `scale` is above 0; running statistics are none of them.
fn of_all<'a>(params: &'a Params, grads: &'a GradStore, scale: &dyn Fn(&str) -> f64) -> Result<Vec<Trained<'a>>> {
    let wanted = params.trainable().map(|(name, var)| (name, var, scale(name))).filter(|(.., scale)| *scale > 0.0);
    wanted
        .map(|(name, var, scale)| match grads.get(var) {
            Some(grad) => Ok(Trained { name, var, grad, scale }),
            None => Err(Error::argument(format!("`{name}` has no gradient: the loss does not depend on it"))),
        })
        .collect()
}

/// Calls `f(weight, gradient, its state)` for every value of a tensor, in one pass over all of them.
fn in_place<const N: usize>(
    name: &'static str,
    var: &Var,
    grad: &Tensor,
    state: [&mut Vec<f32>; N],
    f: impl Fn(&mut f32, f32, [&mut f32; N]) + Sync,
) -> Result<()> {
    // The op wants `&self`; nobody else ever waits for this lock.
    let update = Update { name, state: Mutex::new(state), f };
    Ok(var.inplace_op2(&grad.contiguous()?, &update)?)
}

struct Update<'s, F, const N: usize> {
    name: &'static str,
    state: Mutex<[&'s mut Vec<f32>; N]>,
    f: F,
}

impl<F: Fn(&mut f32, f32, [&mut f32; N]) + Sync, const N: usize> Update<'_, F, N> {
    #[inline(always)]
    fn chunk(&self, w: &mut [f32], g: &[f32], mut state: [&mut [f32]; N]) {
        let n = w.len();
        assert!(g.len() == n && state.iter().all(|s| s.len() == n));
        for (i, (w, g)) in w.iter_mut().zip(g).enumerate() {
            (self.f)(w, *g, state.each_mut().map(|s| &mut s[i]));
        }
    }
}

impl<F: Fn(&mut f32, f32, [&mut f32; N]) + Sync, const N: usize> InplaceOp2 for Update<'_, F, N> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, w: &mut CpuStorage, lw: &Layout, g: &CpuStorage, lg: &Layout) -> candle_core::Result<()> {
        let g = slice(g, lg)?;
        let (CpuStorage::F32(w), Some((start, end))) = (w, lw.contiguous_offsets()) else {
            candle_core::bail!("{}: the weights are not contiguous f32", self.name);
        };
        let Ok(mut state) = self.state.lock() else { candle_core::bail!("{}: the state was lost to a panic", self.name) };
        let mut rest = state.each_mut().map(|s| s.as_mut_slice());
        let mut work = Vec::new();
        for (w, g) in w[start..end].chunks_mut(CHUNK).zip(g.chunks(CHUNK)) {
            let parts = rest.each_mut().map(|s| {
                let (part, behind) = std::mem::take(s).split_at_mut(w.len());
                *s = behind;
                part
            });
            work.push((w, g, parts));
        }
        work.into_par_iter().run(|(w, g, parts)| vectorised!(self.chunk(w, g, parts)));
        Ok(())
    }
}

/// The Euclidean norm of all gradients together, in double precision and the order of the names.
///
/// # Errors
/// If a gradient cannot be read.
pub fn grad_norm(params: &Params, grads: &GradStore) -> Result<f64> {
    let mut total = 0.0;
    // On a device the sum is read once, at the end.
    let mut there: Option<Tensor> = None;
    for grad in params.trainable().filter_map(|(_, var)| grads.get(var)) {
        if composed::wanted(grad) {
            let squares = grad.sqr()?.sum_all()?;
            there = Some(match there {
                None => squares,
                Some(sum) => (sum + squares)?,
            });
            continue;
        }
        total += with(grad, |g| Ok(g.chunks(1024).map(|c| f64::from(c.iter().map(|v| v * v).sum::<f32>())).sum::<f64>()))?;
    }
    total += there.map(|sum| sum.to_scalar::<f32>()).transpose()?.map_or(0.0, f64::from);
    Ok(total.sqrt())
}

/// Scales all gradients so that their norm is at most `limit`; gives the norm before.
///
/// # Errors
/// If a gradient cannot be scaled.
pub fn clip(params: &Params, grads: &mut GradStore, limit: f64) -> Result<f64> {
    let norm = grad_norm(params, grads)?;
    if norm > limit {
        for (_, var) in params.trainable() {
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
