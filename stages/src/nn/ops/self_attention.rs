//! Attention of tokens to each other, its queries, keys and values read where one product has put them.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::nn::kernel::{Matrix, gemm, with_scratch};
use crate::nn::math::exp;
use crate::nn::simd::vectorised;
use crate::nn::storage::{gradient, output, slice, with};
use crate::nn::tape::apply1;

/// Sums that run beside each other: a fixed number, so that every machine adds in the same order.
const LANES: usize = 16;

struct SelfAttention {
    tokens: usize,
    heads: usize,
    /// Channels of a head.
    d: usize,
    /// The softmax of every head of every sample, `[n, heads, tokens, tokens]`.
    weights: OnceLock<Vec<f32>>,
}

/// The values of a row put together over fixed lanes.
#[inline(always)]
fn lanes(row: &[f32], join: impl Fn(f32, f32) -> f32, start: f32) -> f32 {
    let mut kept = [start; LANES];
    let (blocks, rest) = row.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            kept[lane] = join(kept[lane], block[lane]);
        }
    }
    for (kept, value) in kept.iter_mut().zip(rest) {
        *kept = join(*kept, *value);
    }
    let mut all = start;
    for value in kept {
        all = join(all, value);
    }
    all
}

/// Σ a·b over fixed lanes.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    for ((a, b), sum) in a_rest.iter().zip(b_rest).zip(&mut sums) {
        *sum += a * b;
    }
    let mut all = 0.0;
    for sum in sums {
        all += sum;
    }
    all
}

/// Softmax of `scale · row`.
#[inline(always)]
fn softmax(row: &mut [f32], scale: f32) {
    let max = lanes(row, |a, b| if b > a { b } else { a }, f32::NEG_INFINITY);
    for v in row.iter_mut() {
        *v = exp((*v - max) * scale);
    }
    let share = 1.0 / lanes(row, |a, b| a + b, 0.0);
    for v in row {
        *v *= share;
    }
}

/// From the gradient of a softmax `p` that of its logits, in place, times `scale`.
#[inline(always)]
fn softmax_back(p: &[f32], row: &mut [f32], scale: f32) {
    let dot = dot(p, row);
    for (d, p) in row.iter_mut().zip(p) {
        *d = p * (*d - dot) * scale;
    }
}

impl SelfAttention {
    fn width(&self) -> usize {
        self.heads * self.d
    }

    fn scale(&self) -> f32 {
        1.0 / (self.d as f32).sqrt()
    }

    /// Queries, keys and values of one head of one sample.
    fn parts<'a>(&self, qkv: &'a [f32], head: usize) -> [Matrix<'a>; 3] {
        [0, 1, 2].map(|part| Matrix::new(&qkv[part * self.width() + head * self.d..], 3 * self.width()))
    }

    fn forward(&self, qkv: &[f32]) -> Vec<f32> {
        let (t, d, c) = (self.tokens, self.d, self.width());
        let n = qkv.len() / (3 * t * c);
        let (mut y, mut weights) = (vec![0.0; n * t * c], vec![0.0; n * self.heads * t * t]);
        (y.par_chunks_mut(t * c).zip(weights.par_chunks_mut(self.heads * t * t)).zip(qkv.par_chunks(3 * t * c))).for_each(
            |((y, weights), qkv)| {
                for (head, p) in weights.chunks_exact_mut(t * t).enumerate() {
                    let [q, k, v] = self.parts(qkv, head);
                    gemm(t, t, d, p, t, false, q, k.t());
                    vectorised!(for row in p.chunks_exact_mut(t) {
                        softmax(row, self.scale());
                    });
                    gemm(t, d, t, &mut y[head * d..], c, false, Matrix::new(p, t), v);
                }
            },
        );
        // A second forward pass of one op does not happen: every call makes its own.
        let _ = self.weights.set(weights);
        y
    }

    fn backward(&self, qkv: &[f32], weights: &[f32], dy: &[f32]) -> Vec<f32> {
        let (t, d, c) = (self.tokens, self.d, self.width());
        let mut dqkv = vec![0.0; qkv.len()];
        (dqkv.par_chunks_mut(3 * t * c).zip(qkv.par_chunks(3 * t * c)).zip(dy.par_chunks(t * c)))
            .zip(weights.par_chunks(self.heads * t * t))
            .for_each(|(((dqkv, qkv), dy), weights)| {
                for (head, p) in weights.chunks_exact(t * t).enumerate() {
                    let ([q, k, v], dy) = (self.parts(qkv, head), Matrix::new(&dy[head * d..], c));
                    let mut into = |part: usize, a: Matrix<'_>, b: Matrix<'_>| {
                        gemm(t, d, t, &mut dqkv[part * c + head * d..], 3 * c, false, a, b);
                    };
                    into(2, Matrix::new(p, t).t(), dy);
                    with_scratch(t * t, |ds| {
                        gemm(t, t, d, ds, t, false, dy, v.t());
                        vectorised!(for (ds, p) in ds.chunks_exact_mut(t).zip(p.chunks_exact(t)) {
                            softmax_back(p, ds, self.scale());
                        });
                        into(0, Matrix::new(ds, t), k);
                        into(1, Matrix::new(ds, t).t(), q);
                    });
                }
            });
        dqkv
    }
}

impl CustomOp1 for SelfAttention {
    fn name(&self) -> &'static str {
        "self_attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, t, _) = layout.shape().dims3()?;
        output(self.forward(slice(qkv, layout)?), (n, t, self.width()))
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let Some(weights) = self.weights.get() else { bail!("self_attention: backward before forward") };
        gradient(with(qkv, |qkv| with(dy, |dy| Ok(self.backward(qkv, weights, dy))))?, qkv).map(Some)
    }
}

/// Softmax(q·kᵀ / √d)·v with `heads` heads of d channels; `qkv` `[n, t, 3·c]` holds queries, keys and values side by side, result `[n, t, c]`.
///
/// # Errors
/// If the channels cannot be parted so.
pub fn self_attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let (_, tokens, width) = qkv.dims3()?;
    if heads == 0 || !width.is_multiple_of(3 * heads) || qkv.elem_count() == 0 {
        bail!("self_attention: {:?} does not hold queries, keys and values of {heads} heads", qkv.shape());
    }
    apply1(qkv, SelfAttention { tokens, heads, d: width / 3 / heads, weights: OnceLock::new() })
}
