//! Attention: of tokens to each other, whose queries, keys and values are read where one product has put them, and of tokens to others.
#![allow(unsafe_code, reason = "results that are written whole need not be filled with zeros first")]

use std::sync::OnceLock;

use crate::nn::parallel::Parallel;
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::nn::composed;
use crate::nn::kernel::{Matrix, gemm, with_scratch};
use crate::nn::math::{LANES, exp2, halved};
use crate::nn::simd::vectorised;
use crate::nn::storage::{gradient, output, slice, unwritten, with};
use crate::nn::tape::{apply1, apply3};

/// Rows of a softmax that go through it together.
const SOFTMAX_ROWS: usize = 8;

/// One head of one sample: `t` queries to `s` keys, of `d` channels.
#[derive(Clone, Copy)]
struct Head {
    t: usize,
    s: usize,
    d: usize,
}

struct SelfAttention {
    tokens: usize,
    heads: usize,
    /// Channels of a head.
    d: usize,
    /// Whether somebody may ask for gradients.
    keeps: bool,
    /// The softmax of every head of every sample, `[n, heads, tokens, tokens]`.
    weights: OnceLock<Vec<f32>>,
}

/// The values of a row put together over fixed lanes.
#[inline(always)]
fn lanes(row: &[f32], join: impl Fn(f32, f32) -> f32 + Copy, start: f32) -> f32 {
    let mut kept = [start; LANES];
    let (blocks, rest) = row.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            kept[lane] = join(kept[lane], block[lane]);
        }
    }
    // By themselves, so that the lanes stay in a register.
    let mut last = start;
    for value in rest {
        last = join(last, *value);
    }
    join(halved(kept, join), last)
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
    let mut last = 0.0;
    for (a, b) in a_rest.iter().zip(b_rest) {
        last += a * b;
    }
    halved(sums, |a, b| a + b) + last
}

/// Softmax of `scale` times each row of `n` values. One thing after the other for several rows: to put the lanes of a row together takes long,
/// and the rows do not wait for each other.
#[inline(always)]
fn softmax(rows: &mut [f32], n: usize, scale: f32) {
    let rate = scale * std::f32::consts::LOG2_E;
    for rows in rows.chunks_mut(SOFTMAX_ROWS * n) {
        let mut of_row = [0.0; SOFTMAX_ROWS];
        for (max, row) in of_row.iter_mut().zip(rows.chunks_exact(n)) {
            *max = lanes(row, |a, b| if b > a { b } else { a }, f32::NEG_INFINITY);
        }
        for (max, row) in of_row.iter().zip(rows.chunks_exact_mut(n)) {
            for v in row {
                *v = (*v - max) * rate;
            }
        }
        // Without regard to rows, whose last values do not fill a register.
        for v in rows.iter_mut() {
            *v = exp2(*v);
        }
        for (share, row) in of_row.iter_mut().zip(rows.chunks_exact(n)) {
            *share = 1.0 / lanes(row, |a, b| a + b, 0.0);
        }
        for (share, row) in of_row.iter().zip(rows.chunks_exact_mut(n)) {
            for v in row {
                *v *= share;
            }
        }
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

impl Head {
    fn scale(self) -> f32 {
        1.0 / (self.d as f32).sqrt()
    }

    /// The softmax into `p` `[t, s]`, the result into `y`, whose rows are `ldy` apart.
    fn forward(self, [q, k, v]: [Matrix<'_>; 3], p: &mut [f32], y: &mut [f32], ldy: usize) {
        let Self { t, s, d } = self;
        gemm(t, s, d, p, s, false, q, k.t());
        vectorised!(softmax(p, s, self.scale()));
        gemm(t, d, s, y, ldy, false, Matrix::new(p, s), v);
    }

    /// The gradients of queries (0), keys (1) and values (2): `into(which, rows, inner, a, b)` puts the product `a·b` where that one goes.
    fn backward<'a>(
        self,
        [q, k, v]: [Matrix<'a>; 3],
        p: &[f32],
        dy: Matrix<'_>,
        mut into: impl FnMut(usize, usize, usize, Matrix<'_>, Matrix<'_>),
    ) {
        let Self { t, s, d } = self;
        into(2, s, t, Matrix::new(p, s).t(), dy);
        with_scratch(t * s, |ds| {
            gemm(t, s, d, ds, s, false, dy, v.t());
            vectorised!(for (ds, p) in ds.chunks_exact_mut(s).zip(p.chunks_exact(s)) {
                softmax_back(p, ds, self.scale());
            });
            into(0, t, s, Matrix::new(ds, s), k);
            into(1, s, t, Matrix::new(ds, s).t(), q);
        });
    }
}

impl SelfAttention {
    fn width(&self) -> usize {
        self.heads * self.d
    }

    fn head(&self) -> Head {
        Head { t: self.tokens, s: self.tokens, d: self.d }
    }

    /// Queries, keys and values of one head of one sample.
    fn parts<'a>(&self, qkv: &'a [f32], head: usize) -> [Matrix<'a>; 3] {
        [0, 1, 2].map(|part| Matrix::new(&qkv[part * self.width() + head * self.d..], 3 * self.width()))
    }

    fn forward(&self, qkv: &[f32]) -> Vec<f32> {
        let (t, d, c) = (self.tokens, self.d, self.width());
        let n = qkv.len() / (3 * t * c);
        if !self.keeps {
            return self.values(qkv, n);
        }
        // SAFETY: every head's products write its weights and its part of y, and do not read what was there.
        let (mut y, mut weights) = unsafe { (unwritten(n * t * c), unwritten(n * self.heads * t * t)) };
        (y.par_chunks_mut(t * c).zip(weights.par_chunks_mut(self.heads * t * t)).zip(qkv.par_chunks(3 * t * c))).run(
            |((y, weights), qkv)| {
                for (head, p) in weights.chunks_exact_mut(t * t).enumerate() {
                    self.head().forward(self.parts(qkv, head), p, &mut y[head * d..], c);
                }
            },
        );
        // A second forward pass of one op does not happen: every call makes its own.
        let _ = self.weights.set(weights);
        y
    }

    /// The result alone.
    fn values(&self, qkv: &[f32], n: usize) -> Vec<f32> {
        let (t, d, c) = (self.tokens, self.d, self.width());
        // SAFETY: every head's product writes its part of y, and does not read what was there.
        let mut y = unsafe { unwritten(n * t * c) };
        y.par_chunks_mut(t * c).zip(qkv.par_chunks(3 * t * c)).run(|(y, qkv)| {
            with_scratch(t * t, |p| {
                for head in 0..self.heads {
                    self.head().forward(self.parts(qkv, head), p, &mut y[head * d..], c);
                }
            });
        });
        y
    }

    fn backward(&self, qkv: &[f32], weights: &[f32], dy: &[f32]) -> Vec<f32> {
        let (t, d, c) = (self.tokens, self.d, self.width());
        // SAFETY: every head writes its queries', keys' and values' gradients, and does not read what was there.
        let mut dqkv = unsafe { unwritten(qkv.len()) };
        (dqkv.par_chunks_mut(3 * t * c).zip(qkv.par_chunks(3 * t * c)).zip(dy.par_chunks(t * c)))
            .zip(weights.par_chunks(self.heads * t * t))
            .run(|(((dqkv, qkv), dy), weights)| {
                for (head, p) in weights.chunks_exact(t * t).enumerate() {
                    let ([q, k, v], dy) = (self.parts(qkv, head), Matrix::new(&dy[head * d..], c));
                    self.head().backward([q, k, v], p, dy, |part, rows, inner, a, b| {
                        gemm(rows, d, inner, &mut dqkv[part * c + head * d..], 3 * c, false, a, b);
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
    if composed::wanted(qkv) {
        return composed::self_attention(qkv, heads);
    }
    apply1(qkv, SelfAttention { tokens, heads, d: width / 3 / heads, keeps: qkv.track_op(), weights: OnceLock::new() })
}

/// Attention of tokens to others.
struct Attention {
    heads: usize,
    head: Head,
    /// The softmax of every head of every sample, `[n, heads, t, s]`.
    weights: OnceLock<Vec<f32>>,
}

impl Attention {
    fn width(&self) -> usize {
        self.heads * self.head.d
    }

    /// Queries, keys and values of one head of one sample.
    fn parts<'a>(&self, [q, k, v]: [&'a [f32]; 3], head: usize) -> [Matrix<'a>; 3] {
        [q, k, v].map(|x| Matrix::new(&x[head * self.head.d..], self.width()))
    }

    fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let (Head { t, s, d }, c) = (self.head, self.width());
        // SAFETY: every head's products write its weights and its part of y, and do not read what was there.
        let (mut y, mut weights) = unsafe { (unwritten(q.len()), unwritten(q.len() / c * self.heads * s)) };
        (y.par_chunks_mut(t * c).zip(weights.par_chunks_mut(self.heads * t * s)))
            .zip(q.par_chunks(t * c).zip(k.par_chunks(s * c)).zip(v.par_chunks(s * c)))
            .run(|((y, weights), ((q, k), v))| {
                for (head, p) in weights.chunks_exact_mut(t * s).enumerate() {
                    self.head.forward(self.parts([q, k, v], head), p, &mut y[head * d..], c);
                }
            });
        // A second forward pass of one op does not happen: every call makes its own.
        let _ = self.weights.set(weights);
        y
    }

    fn backward(&self, q: &[f32], k: &[f32], v: &[f32], weights: &[f32], dy: &[f32]) -> [Vec<f32>; 3] {
        let (Head { t, s, d }, c) = (self.head, self.width());
        // SAFETY: every head writes its part of all three, and does not read what was there.
        let (mut dq, mut dk, mut dv) = unsafe { (unwritten(q.len()), unwritten(k.len()), unwritten(v.len())) };
        (dq.par_chunks_mut(t * c).zip(dk.par_chunks_mut(s * c)).zip(dv.par_chunks_mut(s * c)))
            .zip(q.par_chunks(t * c).zip(k.par_chunks(s * c)).zip(v.par_chunks(s * c)))
            .zip(weights.par_chunks(self.heads * t * s).zip(dy.par_chunks(t * c)))
            .run(|((((dq, dk), dv), ((q, k), v)), (weights, dy))| {
                for (head, p) in weights.chunks_exact(t * s).enumerate() {
                    let dy = Matrix::new(&dy[head * d..], c);
                    self.head.backward(self.parts([q, k, v], head), p, dy, |part, rows, inner, a, b| {
                        let to = [&mut *dq, &mut *dk, &mut *dv].into_iter().nth(part).map(|to| &mut to[head * d..]);
                        if let Some(to) = to {
                            gemm(rows, d, inner, to, c, false, a, b);
                        }
                    });
                }
            });
        [dq, dk, dv]
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        output(self.forward(slice(q, lq)?, slice(k, lk)?, slice(v, lv)?), lq.shape().clone())
    }

    fn bwd(&self, q: &Tensor, k: &Tensor, v: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(weights) = self.weights.get() else { bail!("attention: backward before forward") };
        let [dq, dk, dv] = with(q, |q0| with(k, |k0| with(v, |v0| with(dy, |dy| Ok(self.backward(q0, k0, v0, weights, dy))))))?;
        Ok((Some(gradient(dq, q)?), Some(gradient(dk, k)?), Some(gradient(dv, v)?)))
    }
}

/// Attention with several heads: softmax(q·kᵀ / √d)·v with d channels a head; `q` `[b, t, c]`, `k` and `v` `[b, s, c]`, result `[b, t, c]`.
///
/// # Errors
/// If `c` is no multiple of `heads`, or the shapes do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, t, c) = q.dims3()?;
    let s = k.dim(1)?;
    if heads == 0 || c % heads != 0 || k.dims() != v.dims() || k.dims() != [b, s, c] || q.elem_count() * s == 0 {
        bail!("attention: {heads} heads, {:?}, {:?} and {:?} do not fit", q.shape(), k.shape(), v.shape());
    }
    if composed::wanted(q) {
        return composed::attention(q, k, v, heads);
    }
    apply3(q, k, v, Attention { heads, head: Head { t, s, d: c / heads }, weights: OnceLock::new() })
}
