//! GroupNorm, LayerNorm and RMSNorm, with a SiLU fused behind where models want one.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, Layout, Result, Shape, Tensor, bail};
use std::sync::OnceLock;

use super::activation::silu_slope;
use super::math::sigmoid;
use super::raw::{add_parts, chunks, output, slice, tensor, with};

/// What follows a normalisation in the same pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Post {
    /// Nothing.
    None,
    /// SiLU.
    Silu,
}

/// GroupNorm (Wu and He 2018) of `x` `[n, .., c]`: mean and variance over all positions and the `c / groups` channels of a group,
/// then `γ · x̂ + β` for `γ`, `β` `[c]`, then `post`.
///
/// # Errors
/// If the shapes do not fit.
pub fn group_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, groups: usize, eps: f32, post: Post) -> Result<Tensor> {
    let c = x.dim(D::Minus1)?;
    if groups == 0 || c % groups != 0 || gamma.dims() != [c] || beta.dims() != [c] || x.rank() < 2 {
        bail!("group_norm: image {:?}, scale {:?} and shift {:?} do not fit {groups} groups", x.dims(), gamma.dims(), beta.dims());
    }
    let rows = x.elem_count() / x.dim(0)? / c;
    let op = Norm { c, rows, groups, eps, post, stats: OnceLock::new() };
    x.contiguous()?.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, op)
}

/// LayerNorm (Ba et al. 2016) over the last dimension of `x` `[.., d]`, with `γ`, `β` `[d]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f32) -> Result<Tensor> {
    let c = x.dim(D::Minus1)?;
    if gamma.dims() != [c] || beta.dims() != [c] {
        bail!("layer_norm: scale {:?} and shift {:?} do not fit input {:?}", gamma.dims(), beta.dims(), x.dims());
    }
    let op = Norm { c, rows: 1, groups: 1, eps, post: Post::None, stats: OnceLock::new() };
    x.contiguous()?.apply_op3(&gamma.contiguous()?, &beta.contiguous()?, op)
}

struct Norm {
    c: usize,
    /// Rows of `c` values in one sample.
    rows: usize,
    groups: usize,
    eps: f32,
    post: Post,
    /// Mean, then one over the deviation, of each group: `[samples, 2, groups]`.
    stats: OnceLock<Vec<f32>>,
}

impl Norm {
    fn sample(&self) -> usize {
        self.rows * self.c
    }

    /// Samples of one block.
    fn block(&self) -> usize {
        (4096 / self.sample()).max(1)
    }

    fn statistics(&self, x: &[f32]) -> Vec<f32> {
        let (groups, width) = (self.groups, self.c / self.groups);
        let mut stats = vec![0.0; x.len() / self.sample() * 2 * groups];
        let count = (self.rows * width) as f64;
        chunks(&mut stats, 2 * groups * self.block(), |i, stats| {
            let mut sums = vec![0f32; self.c];
            let mut centre = vec![0f32; self.c];
            let xs = x[i * self.block() * self.sample()..].chunks_exact(self.sample());
            for (stats, x) in stats.chunks_exact_mut(2 * groups).zip(xs) {
                sums.fill(0.0);
                for row in x.chunks_exact(self.c) {
                    for (s, v) in sums.iter_mut().zip(row) {
                        *s += *v;
                    }
                }
                for (group, s) in sums.chunks_exact(width).enumerate() {
                    let mean = (s.iter().map(|v| f64::from(*v)).sum::<f64>() / count) as f32;
                    stats[group] = mean;
                    centre[group * width..(group + 1) * width].fill(mean);
                }
                sums.fill(0.0);
                for row in x.chunks_exact(self.c) {
                    for ((s, v), m) in sums.iter_mut().zip(row).zip(&centre) {
                        *s += (*v - *m) * (*v - *m);
                    }
                }
                for (group, s) in sums.chunks_exact(width).enumerate() {
                    let variance = s.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
                    stats[groups + group] = (1.0 / (variance + f64::from(self.eps)).sqrt()) as f32;
                }
            }
        });
        stats
    }

    /// Writes, for each channel, the factor and the shift that make `x̂ = factor · x + shift`.
    fn coefficients(&self, stats: &[f32], factor: &mut [f32], shift: &mut [f32]) {
        let width = self.c / self.groups;
        for c in 0..self.c {
            let (mean, scale) = (stats[c / width], stats[self.groups + c / width]);
            factor[c] = scale;
            shift[c] = -mean * scale;
        }
    }

    fn forward(&self, x: &[f32], gamma: &[f32], beta: &[f32]) -> Vec<f32> {
        let stats = self.statistics(x);
        let mut y = vec![0.0; x.len()];
        chunks(&mut y, self.sample() * self.block(), |i, y| {
            let first = i * self.block();
            let (mut a, mut b) = (vec![0f32; self.c], vec![0f32; self.c]);
            for (j, y) in y.chunks_exact_mut(self.sample()).enumerate() {
                let sample = first + j;
                self.coefficients(&stats[sample * 2 * self.groups..], &mut a, &mut b);
                for c in 0..self.c {
                    a[c] *= gamma[c];
                    b[c] = b[c] * gamma[c] + beta[c];
                }
                let x = &x[sample * self.sample()..];
                for (y, x) in y.chunks_exact_mut(self.c).zip(x.chunks_exact(self.c)) {
                    for (((y, x), a), b) in y.iter_mut().zip(x).zip(&a).zip(&b) {
                        *y = *x * *a + *b;
                    }
                }
                if self.post == Post::Silu {
                    y.iter_mut().for_each(|y| *y *= sigmoid(*y));
                }
            }
        });
        let _ = self.stats.set(stats);
        y
    }

    /// Gradients with respect to the input, the scale and the shift.
    fn backward(&self, x: &[f32], gamma: &[f32], beta: &[f32], g: &[f32]) -> Result<(Vec<f32>, Vec<f32>, Vec<f32>)> {
        let Some(stats) = self.stats.get() else { bail!("norm: backward without a forward") };
        let (samples, size, c) = (x.len() / self.sample(), self.sample(), self.c);
        let blocks = samples.div_ceil(self.block());
        // Each block holds its part of dx, then of dγ and dβ, so that one parallel loop writes all three.
        let stride = self.block() * size + 2 * c;
        let mut all = vec![0.0; blocks * stride];
        chunks(&mut all, stride, |i, out| {
            let (dx, sums) = out.split_at_mut(self.block() * size);
            for j in 0..self.block().min(samples - i * self.block()) {
                let sample = i * self.block() + j;
                let at = sample * size..(sample + 1) * size;
                let stats = &stats[sample * 2 * self.groups..(sample + 1) * 2 * self.groups];
                self.backward_sample(&x[at.clone()], gamma, beta, &g[at], stats, &mut dx[j * size..(j + 1) * size], sums);
            }
        });
        let mut dx = vec![0.0; x.len()];
        let mut sums = Vec::with_capacity(blocks * 2 * c);
        for (i, part) in all.chunks_exact(stride).enumerate() {
            let at = i * self.block() * size;
            let len = (self.block() * size).min(dx.len() - at);
            dx[at..at + len].copy_from_slice(&part[..len]);
            sums.extend_from_slice(&part[self.block() * size..]);
        }
        let mut dgamma = add_parts(&sums, 2 * c);
        let dbeta = dgamma.split_off(c);
        Ok((dx, dgamma, dbeta))
    }

    fn backward_sample(&self, x: &[f32], gamma: &[f32], beta: &[f32], g: &[f32], stats: &[f32], dx: &mut [f32], sums: &mut [f32]) {
        let (c, width) = (self.c, self.c / self.groups);
        let (mut factor, mut shift) = (vec![0f32; c], vec![0f32; c]);
        self.coefficients(stats, &mut factor, &mut shift);
        // dx holds the gradient before the activation until the last pass.
        dx.copy_from_slice(g);
        if self.post == Post::Silu {
            for (d, x) in dx.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                for i in 0..c {
                    d[i] *= silu_slope((x[i] * factor[i] + shift[i]) * gamma[i] + beta[i]);
                }
            }
        }
        let (mut with_x, mut plain) = (vec![0f32; c], vec![0f32; c]);
        for (d, x) in dx.chunks_exact(c).zip(x.chunks_exact(c)) {
            for i in 0..c {
                with_x[i] += d[i] * (x[i] * factor[i] + shift[i]);
                plain[i] += d[i];
            }
        }
        for i in 0..c {
            sums[i] += with_x[i];
            sums[c + i] += plain[i];
        }
        // dx = rstd · (γ·d − mean(γ·d) − x̂ · mean(γ·d·x̂)), the means over the group; as a·d + b·x + e with one set a channel.
        let count = (self.rows * width) as f64;
        let (mut b, mut e) = (vec![0f32; c], vec![0f32; c]);
        for group in 0..self.groups {
            let channels = group * width..(group + 1) * width;
            let mean = |s: &[f32]| channels.clone().map(|i| f64::from(s[i]) * f64::from(gamma[i])).sum::<f64>() / count;
            let (m0, m1) = (mean(&plain), mean(&with_x));
            for i in channels.clone() {
                let (f, s) = (f64::from(factor[i]), f64::from(shift[i]));
                b[i] = (-f * f * m1) as f32;
                e[i] = (-f * (m0 + s * m1)) as f32;
            }
        }
        for i in 0..c {
            factor[i] *= gamma[i];
        }
        for (d, x) in dx.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
            for i in 0..c {
                d[i] = d[i] * factor[i] + (x[i] * b[i] + e[i]);
            }
        }
    }
}

impl CustomOp3 for Norm {
    fn name(&self) -> &'static str {
        "norm"
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
        output(self.forward(slice(x, lx)?, slice(g, lg)?, slice(b, lb)?), lx.shape())
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dx, dgamma, dbeta) = with(x, |x| with(gamma, |ga| with(beta, |be| with(&grad, |g| self.backward(x, ga, be, g)))))?????;
        Ok((Some(tensor(dx, x.shape())?), Some(tensor(dgamma, gamma.shape())?), Some(tensor(dbeta, beta.shape())?)))
    }
}

/// RMSNorm (Zhang and Sennrich 2019): `γ · x / sqrt(mean(x²) + ε)` over the last dimension of `x` `[.., d]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn rms_norm(x: &Tensor, gamma: &Tensor, eps: f32) -> Result<Tensor> {
    if gamma.dims() != [x.dim(D::Minus1)?] {
        bail!("rms_norm: scale {:?} does not fit input {:?}", gamma.dims(), x.dims());
    }
    x.contiguous()?.apply_op2(&gamma.contiguous()?, Rms { eps })
}

struct Rms {
    eps: f32,
}

/// Rows of one block.
const ROWS: usize = 64;

impl Rms {
    fn rstd(&self, row: &[f32]) -> f32 {
        let squares = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
        (1.0 / (squares / row.len() as f64 + f64::from(self.eps)).sqrt()) as f32
    }
}

impl CustomOp2 for Rms {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, gamma: &CpuStorage, lg: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, gamma) = (slice(x, lx)?, slice(gamma, lg)?);
        let d = gamma.len();
        let mut y = vec![0.0; x.len()];
        chunks(&mut y, ROWS * d, |i, y| {
            for (y, x) in y.chunks_exact_mut(d).zip(x[i * ROWS * d..].chunks_exact(d)) {
                let r = self.rstd(x);
                for ((y, x), g) in y.iter_mut().zip(x).zip(gamma) {
                    *y = *x * r * *g;
                }
            }
        });
        output(y, lx.shape())
    }

    fn bwd(&self, x: &Tensor, gamma: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let d = gamma.elem_count();
        let rows = x.elem_count() / d;
        let (mut dx, mut parts) = (vec![0.0; rows * d], vec![0.0; rows.div_ceil(ROWS) * d]);
        with(x, |x| {
            with(&grad, |g| {
                with(gamma, |gamma| {
                    chunks(&mut dx, ROWS * d, |i, dx| {
                        let at = i * ROWS * d;
                        for ((dx, x), g) in dx.chunks_exact_mut(d).zip(x[at..].chunks_exact(d)).zip(g[at..].chunks_exact(d)) {
                            let r = self.rstd(x);
                            let dot = (0..d).map(|j| f64::from(g[j] * gamma[j]) * f64::from(x[j])).sum::<f64>() / d as f64;
                            let k = (f64::from(r).powi(3) * dot) as f32;
                            for j in 0..d {
                                dx[j] = g[j] * gamma[j] * r - x[j] * k;
                            }
                        }
                    });
                    chunks(&mut parts, d, |i, part| {
                        let at = i * ROWS * d;
                        for (x, g) in x[at..].chunks_exact(d).zip(g[at..].chunks_exact(d)).take(ROWS) {
                            let r = self.rstd(x);
                            for j in 0..d {
                                part[j] += g[j] * x[j] * r;
                            }
                        }
                    });
                })
            })
        })???;
        Ok((Some(tensor(dx, x.shape())?), Some(tensor(add_parts(&parts, d), gamma.shape())?)))
    }
}
