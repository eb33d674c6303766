//! Batch normalisation (Ioffe and Szegedy 2015), with the addition of a shortcut and a ReLU in the same pass.

#![allow(unsafe_code, reason = "results that are written whole need not be filled with zeros first")]

use std::sync::{Arc, OnceLock};

use crate::nn::parallel::Parallel;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::nn::composed::{self, Statistics};
use crate::nn::kernel::add;
use crate::nn::simd::vectorised;
use crate::nn::storage::{gradient, output, slice, unwritten, with};
use crate::nn::tape::{apply2, apply3, join};

/// Mean and variance of every channel.
#[derive(Debug, Clone, PartialEq)]
struct Channels {
    /// Means.
    mean: Vec<f32>,
    /// Mean squared distances from them (the biased variance).
    variance: Vec<f32>,
    /// Values of one channel.
    count: usize,
}

/// Mean and variance of every channel of a batch, where its images lie.
#[derive(Debug, Clone)]
pub struct Moments {
    /// Means and biased variances.
    of: Statistics,
    /// Values of one channel.
    count: usize,
}

impl Moments {
    /// What running statistics are moved towards, `[c]` each: the means, and the unbiased variances, as PyTorch has it.
    ///
    /// # Errors
    /// Those of candle.
    pub fn towards(&self) -> Result<[Tensor; 2]> {
        let factor = self.count as f32 / (self.count.max(2) - 1) as f32;
        Ok([self.of.mean.clone(), self.of.variance.affine(f64::from(factor), 0.0)?])
    }
}

/// Rows of `c` values that one task takes: what stays in the second-level cache.
fn chunk(c: usize) -> usize {
    (65_536 / c).clamp(16, 1024)
}

impl Channels {
    /// Of each chunk of rows the mean and the squares around it; the chunks are put together in their order, in double precision
    /// (Chan, Golub and LeVeque 1983).
    fn of(x: &[f32], c: usize) -> Self {
        let parts: Vec<(Vec<f32>, Vec<f32>)> = x.par_chunks(chunk(c) * c).gather(|x| {
            let (mut mean, mut squares) = (vec![0.0; c], vec![0.0; c]);
            vectorised!({
                for row in x.chunks_exact(c) {
                    add(&mut mean, row);
                }
                let share = 1.0 / (x.len() / c) as f32;
                mean.iter_mut().for_each(|m| *m *= share);
                for row in x.chunks_exact(c) {
                    for ((s, v), m) in squares.iter_mut().zip(row).zip(&mean) {
                        *s += (v - m) * (v - m);
                    }
                }
            });
            (mean, squares)
        });
        let (mut count, mut mean, mut squares) = (0.0, vec![0.0f64; c], vec![0.0f64; c]);
        for (i, (part_mean, part_squares)) in parts.iter().enumerate() {
            let rows = (x.len() / c - i * chunk(c)).min(chunk(c)) as f64;
            let total = count + rows;
            for j in 0..c {
                let gap = f64::from(part_mean[j]) - mean[j];
                mean[j] += gap * rows / total;
                squares[j] += f64::from(part_squares[j]) + gap * gap * count * rows / total;
            }
            count = total;
        }
        let single = |values: Vec<f64>, by: f64| values.into_iter().map(|v| (v / by) as f32).collect();
        Self { mean: single(mean, 1.0), variance: single(squares, count), count: x.len() / c }
    }

    /// Given ones.
    fn read(given: &Statistics, count: usize) -> Result<Self> {
        let read = |tensor: &Tensor| with(tensor, |values| Ok(values.to_vec()));
        Ok(Self { mean: read(&given.mean)?, variance: read(&given.variance)?, count })
    }

    fn rstd(&self, eps: f32) -> Vec<f32> {
        self.variance.iter().map(|v| 1.0 / (v + eps).sqrt()).collect()
    }
}

/// What is normalised with, and what follows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchNorm {
    /// Added to the variance.
    pub eps: f32,
    /// A ReLU at the end.
    pub relu: bool,
}

struct Op {
    norm: BatchNorm,
    /// Set beforehand: constants (evaluation). Empty: the batch's own, through which the gradient goes too.
    moments: Arc<OnceLock<Channels>>,
    train: bool,
}

impl Op {
    /// `affine` holds the scale of every channel, then the shift.
    fn forward(&self, x: &[f32], affine: &[f32], shortcut: Option<&[f32]>) -> Vec<f32> {
        let c = affine.len() / 2;
        let (gamma, beta) = affine.split_at(c);
        let moments = self.moments.get_or_init(|| Channels::of(x, c));
        let scale: Vec<f32> = moments.rstd(self.norm.eps).iter().zip(gamma).map(|(r, g)| r * g).collect();
        let shift: Vec<f32> = beta.iter().zip(&moments.mean).zip(&scale).map(|((b, m), s)| b - m * s).collect();
        // With a floor of −∞ nothing is cut off. A comparison that lets what is not a number through.
        let floor = if self.norm.relu { 0.0 } else { f32::NEG_INFINITY };
        let size = chunk(c) * c;
        assert!(shortcut.is_none_or(|r| r.len() == x.len()), "`apply` has compared the shapes");
        // SAFETY: the chunks below are all of y, and each is written whole.
        let mut y = unsafe { unwritten(x.len()) };
        y.par_chunks_mut(size).zip(x.par_chunks(size)).enumerate().run(|(i, (y, x))| match shortcut {
            None => vectorised!(for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                for (((y, x), s), t) in y.iter_mut().zip(x).zip(&scale).zip(&shift) {
                    let v = x * s + t;
                    *y = if v < floor { floor } else { v };
                }
            }),
            Some(shortcut) => vectorised!({
                for ((y, x), r) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(shortcut[i * size..].chunks_exact(c)) {
                    for ((((y, x), r), s), t) in y.iter_mut().zip(x).zip(r).zip(&scale).zip(&shift) {
                        let v = x * s + t + r;
                        *y = if v < floor { floor } else { v };
                    }
                }
            }),
        });
        y
    }

    /// Gradients of x and of scale and shift: dx = γ·rstd·(g − mean(g) − x̂·mean(g·x̂)), with g = dy where the result is above 0; of
    /// constant statistics only the first term is left.
    fn backward(&self, x: &[f32], affine: &[f32], y: &[f32], dy: &[f32]) -> Result<(Vec<f32>, Vec<f32>)> {
        let Some(moments) = self.moments.get() else { bail!("batch_norm: backward before forward") };
        let c = affine.len() / 2;
        let (mean, rstd) = (&moments.mean, moments.rstd(self.norm.eps));
        let floor = if self.norm.relu { 0.0 } else { f32::NEG_INFINITY };
        let size = chunk(c) * c;
        let parts: Vec<Vec<f32>> = (x.par_chunks(size).zip(y.par_chunks(size)).zip(dy.par_chunks(size))).gather(|((x, y), dy)| {
            let mut sums = vec![0.0; 2 * c];
            let (by_x, plain) = sums.split_at_mut(c);
            vectorised!(for ((x, y), dy) in x.chunks_exact(c).zip(y.chunks_exact(c)).zip(dy.chunks_exact(c)) {
                for (((((a, b), x), y), dy), m) in by_x.iter_mut().zip(plain.iter_mut()).zip(x).zip(y).zip(dy).zip(mean) {
                    let g = if *y > floor { *dy } else { 0.0 };
                    *a += g * (x - m);
                    *b += g;
                }
            });
            sums
        });
        let mut sums = vec![0.0f64; 2 * c];
        parts.iter().for_each(|part| sums.iter_mut().zip(part).for_each(|(s, p)| *s += f64::from(*p)));
        let daffine: Vec<f32> = (0..2 * c).map(|i| (sums[i] * if i < c { f64::from(rstd[i]) } else { 1.0 }) as f32).collect();
        // dx = g·a + x·b + e, by channel.
        let share = if self.train { 1.0 / moments.count as f64 } else { 0.0 };
        let a: Vec<f32> = (0..c).map(|i| affine[i] * rstd[i]).collect();
        let b: Vec<f32> = (0..c).map(|i| (-f64::from(a[i]) * f64::from(rstd[i]).powi(2) * sums[i] * share) as f32).collect();
        let e: Vec<f32> = (0..c).map(|i| (-f64::from(a[i]) * sums[c + i] * share - f64::from(mean[i]) * f64::from(b[i])) as f32).collect();
        if y.len() != x.len() || dy.len() != x.len() {
            bail!("batch_norm: {} gradients of {} values", dy.len(), x.len());
        }
        // SAFETY: the chunks below are all of dx, and each is written whole.
        let mut dx = unsafe { unwritten(x.len()) };
        (dx.par_chunks_mut(size).zip(x.par_chunks(size)).zip(y.par_chunks(size)).zip(dy.par_chunks(size))).run(|(((dx, x), y), dy)| {
            let rows = dx.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(y.chunks_exact(c)).zip(dy.chunks_exact(c));
            vectorised!(for (((dx, x), y), dy) in rows {
                for ((((((dx, x), y), dy), a), b), e) in dx.iter_mut().zip(x).zip(y).zip(dy).zip(&a).zip(&b).zip(&e) {
                    let g = if *y > floor { *dy } else { 0.0 };
                    *dx = g * a + x * b + e;
                }
            });
        });
        Ok((dx, daffine))
    }

    fn gradients(&self, x: &Tensor, affine: &Tensor, y: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
        let (dx, daffine) = with(x, |x| with(affine, |a| with(y, |y| with(dy, |dy| self.backward(x, a, y, dy)))))?;
        Ok((gradient(dx, x)?, gradient(daffine, affine)?))
    }
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        "batch_norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, a: &CpuStorage, la: &Layout) -> Result<(CpuStorage, Shape)> {
        output(self.forward(slice(x, lx)?, slice(a, la)?, None), lx.shape().clone())
    }

    fn bwd(&self, x: &Tensor, affine: &Tensor, y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, daffine) = self.gradients(x, affine, y, dy)?;
        Ok((Some(dx), Some(daffine)))
    }
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        "batch_norm with shortcut"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        a: &CpuStorage,
        la: &Layout,
        r: &CpuStorage,
        lr: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        output(self.forward(slice(x, lx)?, slice(a, la)?, Some(slice(r, lr)?)), lx.shape().clone())
    }

    fn bwd(
        &self,
        x: &Tensor,
        affine: &Tensor,
        shortcut: &Tensor,
        y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, daffine) = self.gradients(x, affine, y, dy)?;
        let back = || match self.norm.relu {
            false => Ok(dy.clone()),
            true => {
                gradient(with(y, |y| with(dy, |dy| Ok(crate::nn::math::map2(y, dy, |y, dy| if y > 0.0 { dy } else { 0.0 }))))?, shortcut)
            }
        };
        Ok((Some(dx), Some(daffine), shortcut.track_op().then(back).transpose()?))
    }
}

impl BatchNorm {
    fn apply(self, x: &Tensor, affine: [&Tensor; 2], shortcut: Option<&Tensor>, given: Option<Statistics>) -> Result<(Tensor, Moments)> {
        let c = x.dim(candle_core::D::Minus1)?;
        let given_fits = given.as_ref().is_none_or(|m| m.mean.dims() == [c] && m.variance.dims() == [c]);
        if x.elem_count() == 0 || affine.iter().any(|a| a.dims() != [c]) || !given_fits || shortcut.is_some_and(|r| r.dims() != x.dims()) {
            bail!(
                "batch_norm: scale {:?}, shift {:?}, statistics and shortcut {:?} do not fit {:?}",
                affine[0].dims(),
                affine[1].dims(),
                shortcut.map(Tensor::dims),
                x.dims()
            );
        }
        let count = x.elem_count() / c;
        if composed::wanted(x) {
            let (y, of) = composed::batch_norm(x, &join(&affine, false)?, shortcut, given, (self.eps, self.relu))?;
            return Ok((y, Moments { of, count }));
        }
        let train = given.is_none();
        let given = given.map(|of| Channels::read(&of, count)).transpose()?;
        let moments = Arc::new(given.map_or_else(OnceLock::new, OnceLock::from));
        let op = Op { norm: self, moments: moments.clone(), train };
        // Of three tensors at most an op can be made: scale and shift go as one.
        let affine = join(&affine, false)?;
        let y = match shortcut {
            None => apply2(x, &affine, op)?,
            Some(shortcut) => apply3(x, &affine, shortcut, op)?,
        };
        let Some(moments) = moments.get() else { bail!("batch_norm: the forward pass left no statistics") };
        let single = |values: &[f32]| Tensor::from_vec(values.to_vec(), c, x.device());
        Ok((y, Moments { of: Statistics { mean: single(&moments.mean)?, variance: single(&moments.variance)? }, count }))
    }

    /// Normalises every channel of `x` `[…, c]` over the whole batch, scales it by `gamma` `[c]`, shifts it by `beta` `[c]` and adds the
    /// `shortcut` (of `x`'s shape); gives the batch's statistics too, towards which running ones can be moved.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn train(self, x: &Tensor, gamma: &Tensor, beta: &Tensor, shortcut: Option<&Tensor>) -> Result<(Tensor, Moments)> {
        self.apply(x, [gamma, beta], shortcut, None)
    }

    /// The same with given (running) statistics, which get no gradient.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn eval(self, x: &Tensor, affine: [&Tensor; 2], running: [&Tensor; 2], shortcut: Option<&Tensor>) -> Result<Tensor> {
        let [mean, variance] = running.map(Tensor::detach);
        Ok(self.apply(x, affine, shortcut, Some(Statistics { mean, variance }))?.0)
    }
}
