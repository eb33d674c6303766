//! Normalisation by groups of channels (Wu and He 2018) and by rows (Ba et al. 2016): a row is a group norm with one group and one pixel.

#![allow(unsafe_code, reason = "results that are written whole need not be filled with zeros first")]

use std::sync::OnceLock;

use crate::nn::parallel::Parallel;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::activation::{Scalar, Silu};
use super::norm_rows as rows;
use crate::nn::composed;
use crate::nn::kernel::{add, add_up};
use crate::nn::simd::vectorised;
use crate::nn::storage::{gradient, output, slice, unwritten, with};
use crate::nn::tape::apply3;

/// Normalises each of `groups` groups of the `c` channels of each sample over its `pixels`.
#[derive(Clone, Copy)]
struct Norm {
    pixels: usize,
    c: usize,
    groups: usize,
    eps: f32,
    /// SiLU at the end, in the same pass.
    silu: bool,
}

/// A normalisation, and what its forward pass keeps.
struct Op {
    norm: Norm,
    /// Of samples, for the way back.
    samples: OnceLock<Vec<Moments>>,
    /// Of rows.
    rows: OnceLock<rows::Moments>,
}

/// What a sample was normalised with, by channel.
struct Moments {
    mean: Vec<f32>,
    rstd: Vec<f32>,
}

impl Norm {
    fn sample(&self) -> usize {
        self.pixels * self.c
    }

    /// Sums by group, given to every channel of the group.
    #[inline(always)]
    fn by_group(&self, sums: &[f32]) -> Vec<f32> {
        let width = self.c / self.groups;
        sums.chunks_exact(width)
            .flat_map(|group| std::iter::repeat_n(group.iter().map(|v| f64::from(*v)).sum::<f64>() as f32, width))
            .collect()
    }

    /// Mean first, then the squares of what is left: no cancellation.
    #[inline(always)]
    fn moments(&self, x: &[f32]) -> Moments {
        let count = (self.pixels * (self.c / self.groups)) as f32;
        let mut sums = vec![0.0; self.c];
        for row in x.chunks_exact(self.c) {
            add(&mut sums, row);
        }
        let mean: Vec<f32> = self.by_group(&sums).iter().map(|s| s / count).collect();
        let mut squares = vec![0.0; self.c];
        for row in x.chunks_exact(self.c) {
            for ((s, x), m) in squares.iter_mut().zip(row).zip(&mean) {
                *s += (x - m) * (x - m);
            }
        }
        let rstd = self.by_group(&squares).iter().map(|s| 1.0 / (s / count + self.eps).sqrt()).collect();
        Moments { mean, rstd }
    }

    /// Scale and shift of every channel of a sample.
    #[inline(always)]
    fn affine(&self, Moments { mean, rstd }: &Moments, gamma: &[f32], beta: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let scale: Vec<f32> = gamma.iter().zip(rstd).map(|(g, r)| g * r).collect();
        let shift = beta.iter().zip(mean).zip(&scale).map(|((b, m), s)| b - m * s).collect();
        (scale, shift)
    }

    fn forward(&self, x: &[f32], gamma: &[f32], beta: &[f32]) -> (Vec<f32>, Vec<Moments>) {
        // SAFETY: the chunks below are whole samples, all of y, and each is written whole.
        let mut y = unsafe { unwritten(x.len()) };
        let samples = y.par_chunks_mut(self.sample()).zip(x.par_chunks(self.sample())).with_min_len(self.samples_a_task());
        let moments = samples.gather(|(y, x)| {
            let moments = vectorised!(self.moments(x));
            let (scale, shift) = self.affine(&moments, gamma, beta);
            match self.silu {
                false => vectorised!(rows_affine(y, x, &scale, &shift, |v| v)),
                true => vectorised!(rows_affine(y, x, &scale, &shift, Silu::value)),
            }
            moments
        });
        (y, moments)
    }

    /// Small samples are taken several at a time; it changes no sum.
    fn samples_a_task(&self) -> usize {
        (4096 / self.sample()).max(1)
    }

    /// Samples whose gradients of gamma and beta are one sum.
    fn together(&self) -> usize {
        (65_536 / self.sample()).clamp(1, 4096)
    }

    /// Whether this is a layer norm.
    fn is_rows(&self) -> bool {
        self.pixels == 1 && self.groups == 1 && !self.silu
    }

    /// Gradients of x, gamma and beta. With x̂ the normalised x and g = dy·gamma: dx = (g − mean(g) − x̂·mean(g·x̂))·rstd, means over the group.
    fn backward(&self, x: &[f32], affine: [&[f32]; 2], dy: &[f32], moments: &[Moments]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let [gamma, beta] = affine;
        let count = (self.pixels * (self.c / self.groups)) as f32;
        // SAFETY: as in the forward pass.
        let mut dx = unsafe { unwritten(x.len()) };
        // A fixed number of samples shares one sum: their number depends on shapes alone.
        let together = self.together();
        let sums: Vec<(Vec<f32>, Vec<f32>)> = dx
            .par_chunks_mut(self.sample() * together)
            .zip(x.par_chunks(self.sample() * together))
            .zip(dy.par_chunks(self.sample() * together))
            .zip(moments.par_chunks(together))
            .gather(|(((dx, x), dy), moments)| {
                let (mut dgamma, mut dbeta) = (vec![0.0; self.c], vec![0.0; self.c]);
                let (mut own_gamma, mut own_beta) = (vec![0.0; self.c], vec![0.0; self.c]);
                let mut slopes = vec![0.0; if self.silu { self.sample() } else { 0 }];
                let samples = dx.chunks_exact_mut(self.sample()).zip(x.chunks_exact(self.sample())).zip(dy.chunks_exact(self.sample()));
                for (((dx, x), mut dy), moments) in samples.zip(moments) {
                    let Moments { mean, rstd } = moments;
                    if self.silu {
                        let (scale, shift) = self.affine(moments, gamma, beta);
                        vectorised!(silu_back(&mut slopes, x, dy, &scale, &shift));
                        dy = &slopes;
                    }
                    own_gamma.fill(0.0);
                    own_beta.fill(0.0);
                    vectorised!(for (x, dy) in x.chunks_exact(self.c).zip(dy.chunks_exact(self.c)) {
                        for ((((g, b), x), d), m) in own_gamma.iter_mut().zip(own_beta.iter_mut()).zip(x).zip(dy).zip(mean) {
                            *g += d * (x - m);
                            *b += d;
                        }
                    });
                    own_gamma.iter_mut().zip(rstd).for_each(|(g, r)| *g *= r);
                    let weigh = |own: &[f32]| self.by_group(&own.iter().zip(gamma).map(|(o, g)| o * g).collect::<Vec<_>>());
                    let (mean_gx, mean_g) = (weigh(&own_gamma), weigh(&own_beta));
                    // dx = dy·a + x·b + e, by channel.
                    let a: Vec<f32> = gamma.iter().zip(rstd).map(|(g, r)| g * r).collect();
                    let b: Vec<f32> = mean_gx.iter().zip(rstd).map(|(m, r)| -m / count * r * r).collect();
                    let e: Vec<f32> =
                        mean_g.iter().zip(rstd).zip(mean.iter().zip(&b)).map(|((g, r), (m, b))| -g / count * r - m * b).collect();
                    vectorised!(
                        for ((dx, x), dy) in dx.chunks_exact_mut(self.c).zip(x.chunks_exact(self.c)).zip(dy.chunks_exact(self.c)) {
                            for (((((o, x), d), a), b), e) in dx.iter_mut().zip(x).zip(dy).zip(&a).zip(&b).zip(&e) {
                                *o = d * a + x * b + e;
                            }
                        }
                    );
                    dgamma.iter_mut().zip(&own_gamma).for_each(|(t, o)| *t += o);
                    dbeta.iter_mut().zip(&own_beta).for_each(|(t, o)| *t += o);
                }
                (dgamma, dbeta)
            });
        let (dgamma, dbeta) = sums.into_iter().unzip();
        (dx, add_up(dgamma), add_up(dbeta))
    }
}

/// `f(x·scale + shift)` by channel.
#[inline(always)]
fn rows_affine(y: &mut [f32], x: &[f32], scale: &[f32], shift: &[f32], f: impl Fn(f32) -> f32) {
    for (y, x) in y.chunks_exact_mut(scale.len()).zip(x.chunks_exact(scale.len())) {
        for (((y, x), s), t) in y.iter_mut().zip(x).zip(scale).zip(shift) {
            *y = f(x * s + t);
        }
    }
}

/// The gradient of what went into SiLU, `x·scale + shift`.
#[inline(always)]
fn silu_back(dv: &mut [f32], x: &[f32], dy: &[f32], scale: &[f32], shift: &[f32]) {
    let c = scale.len();
    for ((dv, x), dy) in dv.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(dy.chunks_exact(c)) {
        for ((((dv, x), dy), s), t) in dv.iter_mut().zip(x).zip(dy).zip(scale).zip(shift) {
            *dv = dy * Silu::slope(x * s + t);
        }
    }
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        if self.norm.silu { "norm with silu" } else { "norm" }
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        g: &CpuStorage,
        lg: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, g, b) = (slice(x, lx)?, slice(g, lg)?, slice(b, lb)?);
        // A second forward pass of one op does not happen: every call makes its own.
        let y = if self.norm.is_rows() {
            let (y, moments) = rows::forward(x, g, b, self.norm.eps);
            let _ = self.rows.set(moments);
            y
        } else {
            let (y, moments) = self.norm.forward(x, g, b);
            let _ = self.samples.set(moments);
            y
        };
        output(y, lx.shape().clone())
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let back = |x: &[f32], g: &[f32], b: &[f32], dy: &[f32]| match (self.rows.get(), self.samples.get()) {
            (Some(moments), _) => Ok(rows::backward(x, g, dy, moments, self.norm.together())),
            (None, Some(moments)) => Ok(self.norm.backward(x, [g, b], dy, moments)),
            (None, None) => bail!("norm: backward before forward"),
        };
        let (dx, dgamma, dbeta) = with(x, |x| with(gamma, |g| with(beta, |b| with(dy, |dy| back(x, g, b, dy)))))?;
        Ok((Some(gradient(dx, x)?), Some(gradient(dgamma, gamma)?), Some(gradient(dbeta, beta)?)))
    }
}

fn apply(x: &Tensor, gamma: &Tensor, beta: &Tensor, norm: Norm) -> Result<Tensor> {
    if gamma.dims() != [norm.c] || beta.dims() != [norm.c] || norm.groups == 0 || !norm.c.is_multiple_of(norm.groups) {
        bail!("norm: {} groups, scale {:?} and shift {:?} do not fit {:?}", norm.groups, gamma.shape(), beta.shape(), x.shape());
    }
    if composed::wanted(x) {
        let y = composed::group_norm(x, norm.pixels, norm.groups, [gamma, beta], norm.eps)?;
        return if norm.silu { super::silu(&y) } else { Ok(y) };
    }
    apply3(x, gamma, beta, Op { norm, samples: OnceLock::new(), rows: OnceLock::new() })
}

/// Group normalisation of `[n, h, w, c]`, scaled by `gamma` `[c]` and shifted by `beta` `[c]`.
///
/// # Errors
/// If `c` is no multiple of `groups`, or the shapes do not fit.
pub fn group_norm(x: &Tensor, groups: usize, gamma: &Tensor, beta: &Tensor, eps: f32) -> Result<Tensor> {
    let (_, h, w, c) = x.dims4()?;
    apply(x, gamma, beta, Norm { pixels: h * w, c, groups, eps, silu: false })
}

/// [`group_norm`] and then SiLU, in one pass: what is between them is not kept.
///
/// # Errors
/// As [`group_norm`].
pub fn group_norm_silu(x: &Tensor, groups: usize, gamma: &Tensor, beta: &Tensor, eps: f32) -> Result<Tensor> {
    let (_, h, w, c) = x.dims4()?;
    apply(x, gamma, beta, Norm { pixels: h * w, c, groups, eps, silu: true })
}

/// Layer normalisation over the last dimension.
///
/// # Errors
/// If the shapes do not fit.
pub fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f32) -> Result<Tensor> {
    let c = x.dim(candle_core::D::Minus1)?;
    apply(x, gamma, beta, Norm { pixels: 1, c, groups: 1, eps, silu: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn rows_are_a_group_norm_of_one_pixel() {
        for (count, c) in [(1, 5), (13, 24), (600, 192)] {
            let draw = |name: &str, n| Stream::new(1, name).normals(n);
            let (x, dy) = (draw("x", count * c), draw("dy", count * c));
            let (gamma, beta) = (draw("gamma", c), draw("beta", c));
            // A group norm of one pixel takes the general way.
            let norm = Norm { pixels: 1, c, groups: 1, eps: 1e-5, silu: false };
            let near = |ours: &[f32], theirs: &[f32], within: f32| {
                assert_eq!(ours.len(), theirs.len());
                ours.iter().zip(theirs).for_each(|(a, b)| assert!((a - b).abs() < within, "{a}, not {b}"));
            };
            let (y, moments) = rows::forward(&x, &gamma, &beta, 1e-5);
            let (general, samples) = norm.forward(&x, &gamma, &beta);
            near(&y, &general, 2e-6);
            let ours = rows::backward(&x, &gamma, &dy, &moments, norm.together());
            let theirs = norm.backward(&x, [&gamma, &beta], &dy, &samples);
            near(&ours.0, &theirs.0, 5e-6);
            near(&ours.1, &theirs.1, 1e-4);
            near(&ours.2, &theirs.2, 1e-4);
        }
    }
}
