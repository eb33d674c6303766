//! RMSNorm (Zhang and Sennrich 2019).

use crate::nn::parallel::Parallel;
use candle_core::{CpuStorage, CustomOp2, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::nn::composed;
use crate::nn::kernel::add_up;
use crate::nn::simd::vectorised;
use crate::nn::storage::{gradient, output, slice, with};
use crate::nn::tape::apply2;

/// Sums that run beside each other: a fixed number, so that every machine adds in the same order.
const LANES: usize = 16;
/// Rows that one task takes.
const ROWS: usize = 64;

struct RmsNorm {
    eps: f32,
}

/// Σ a·b over fixed lanes.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            sums[l] += a[l] * b[l];
        }
    }
    for ((a, b), s) in a_rest.iter().zip(b_rest).zip(&mut sums) {
        *s += a * b;
    }
    sums.iter().sum()
}

impl RmsNorm {
    #[inline(always)]
    fn rrms(&self, row: &[f32]) -> f32 {
        1.0 / (dot(row, row) / row.len() as f32 + self.eps).sqrt()
    }

    /// Gradients of x and γ: with r = 1/rms and g = dy·γ, dx = g·r − x·r³·mean(g·x) and dγ = Σ dy·x·r.
    fn backward(&self, x: &[f32], gamma: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let d = gamma.len();
        let mut dx = vec![0.0; x.len()];
        let sums = (dx.par_chunks_mut(ROWS * d).zip(x.par_chunks(ROWS * d)).zip(dy.par_chunks(ROWS * d))).gather(|((dx, x), dy)| {
            let mut dgamma = vec![0.0; d];
            vectorised!(for ((dx, x), dy) in dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(dy.chunks_exact(d)) {
                let r = self.rrms(x);
                for ((dx, dy), g) in dx.iter_mut().zip(dy).zip(gamma) {
                    *dx = dy * g;
                }
                let k = r * r * r * dot(dx, x) / d as f32;
                for (((dx, x), dy), t) in dx.iter_mut().zip(x).zip(dy).zip(&mut dgamma) {
                    *dx = *dx * r - x * k;
                    *t += dy * x * r;
                }
            });
            dgamma
        });
        (dx, add_up(sums))
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, gamma: &CpuStorage, lg: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, gamma) = (slice(x, lx)?, slice(gamma, lg)?);
        let d = gamma.len();
        let mut y = vec![0.0; x.len()];
        y.par_chunks_mut(ROWS * d).zip(x.par_chunks(ROWS * d)).run(|(y, x)| {
            vectorised!(for (y, x) in y.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
                let r = self.rrms(x);
                for ((y, x), g) in y.iter_mut().zip(x).zip(gamma) {
                    *y = x * r * g;
                }
            });
        });
        output(y, lx.shape().clone())
    }

    fn bwd(&self, x: &Tensor, gamma: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dgamma) = with(x, |x| with(gamma, |g| with(dy, |dy| Ok(self.backward(x, g, dy)))))?;
        Ok((Some(gradient(dx, x)?), Some(gradient(dgamma, gamma)?)))
    }
}

/// `γ·x / √(mean(x²) + ε)` over the last dimension of `x` `[…, d]`, with `gamma` `[d]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn rms_norm(x: &Tensor, gamma: &Tensor, eps: f32) -> Result<Tensor> {
    let d = x.dim(D::Minus1)?;
    if d == 0 || gamma.dims() != [d] {
        bail!("rms_norm: a scale {:?} does not fit {:?}", gamma.shape(), x.shape());
    }
    if composed::wanted(x) {
        return composed::rms_norm(x, gamma, eps);
    }
    apply2(x, gamma, RmsNorm { eps })
}
