//! Layer normalisation, the same to the bit as a group norm of one pixel and one group. Its sums run over single rows, in their order and in
//! double precision, each waiting for the one before: so those of several rows are taken beside each other.
#![allow(unsafe_code, reason = "results that are written whole need not be filled with zeros first")]

use rayon::prelude::*;

use crate::nn::kernel::add_up;
use crate::nn::simd::vectorised;
use crate::nn::storage::unwritten;

/// Rows whose sums run beside each other.
const BESIDE: usize = 8;
/// Rows that one task takes forward.
const ROWS: usize = 64;

/// Of each of `BESIDE` rows the sum of `f(row, column)`; rows from `count` on are copies of the first.
#[inline(always)]
fn sums(c: usize, count: usize, f: impl Fn(usize, usize) -> f32) -> [f32; BESIDE] {
    let rows: [usize; BESIDE] = std::array::from_fn(|r| if r < count { r } else { 0 });
    let mut totals = [0.0f64; BESIDE];
    for i in 0..c {
        for (total, row) in totals.iter_mut().zip(rows) {
            *total += f64::from(f(row, i));
        }
    }
    totals.map(|total| total as f32)
}

/// Means and one over the deviations of up to `BESIDE` rows.
#[inline(always)]
fn moments(x: &[f32], c: usize, eps: f32) -> ([f32; BESIDE], [f32; BESIDE]) {
    let count = x.len() / c;
    let mean = sums(c, count, |row, i| x[row * c + i]).map(|sum| sum / c as f32);
    let squares = sums(c, count, |row, i| (x[row * c + i] - mean[row]) * (x[row * c + i] - mean[row]));
    (mean, squares.map(|s| 1.0 / (s / c as f32 + eps).sqrt()))
}

/// The rows of `x`, normalised, scaled and shifted.
pub fn forward(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32) -> Vec<f32> {
    let c = gamma.len();
    assert!(beta.len() == c && x.len().is_multiple_of(c), "`apply` has compared the shapes");
    // SAFETY: the chunks below are all of y, in whole rows, and each is written whole.
    let mut y = unsafe { unwritten(x.len()) };
    y.par_chunks_mut(ROWS * c).zip(x.par_chunks(ROWS * c)).for_each(|(y, x)| {
        vectorised!(for (y, x) in y.chunks_mut(BESIDE * c).zip(x.chunks(BESIDE * c)) {
            let (mean, rstd) = moments(x, c, eps);
            for (row, (y, x)) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)).enumerate() {
                for (((y, x), g), b) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
                    let scale = g * rstd[row];
                    *y = x * scale + (b - mean[row] * scale);
                }
            }
        });
    });
    y
}

/// Gradients of x, gamma and beta; those of `together` rows are one sum.
pub fn backward(x: &[f32], gamma: &[f32], dy: &[f32], eps: f32, together: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let c = gamma.len();
    assert!(dy.len() == x.len() && x.len().is_multiple_of(c), "`apply` has compared the shapes");
    // SAFETY: the chunks below are all of dx, in whole rows, and each is written whole.
    let mut dx = unsafe { unwritten(x.len()) };
    let size = together * c;
    let parts: Vec<(Vec<f32>, Vec<f32>)> = (dx.par_chunks_mut(size).zip(x.par_chunks(size)).zip(dy.par_chunks(size)))
        .map(|((dx, x), dy)| {
            let (mut dgamma, mut dbeta) = (vec![0.0; c], vec![0.0; c]);
            vectorised!(for ((dx, x), dy) in dx.chunks_mut(BESIDE * c).zip(x.chunks(BESIDE * c)).zip(dy.chunks(BESIDE * c)) {
                some(dx, x, dy, gamma, eps, &mut dgamma, &mut dbeta);
            });
            (dgamma, dbeta)
        })
        .collect();
    let (dgamma, dbeta) = parts.into_iter().unzip();
    (dx, add_up(dgamma), add_up(dbeta))
}

/// [`backward`] of up to `BESIDE` rows.
#[inline(always)]
fn some(dx: &mut [f32], x: &[f32], dy: &[f32], gamma: &[f32], eps: f32, dgamma: &mut [f32], dbeta: &mut [f32]) {
    let c = gamma.len();
    let count = x.len() / c;
    let (mean, rstd) = moments(x, c, eps);
    let weighted = sums(c, count, |row, i| dy[row * c + i] * (x[row * c + i] - mean[row]) * rstd[row] * gamma[i]);
    let plain = sums(c, count, |row, i| dy[row * c + i] * gamma[i]);
    for (row, ((dx, x), dy)) in dx.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(dy.chunks_exact(c)).enumerate() {
        let (mean, rstd) = (mean[row], rstd[row]);
        // dx = dy·a + x·b + e, with a by channel.
        let b = -weighted[row] / c as f32 * rstd * rstd;
        let e = -plain[row] / c as f32 * rstd - mean * b;
        for (((dx, x), dy), g) in dx.iter_mut().zip(x).zip(dy).zip(gamma) {
            *dx = dy * (g * rstd) + x * b + e;
        }
        for (((tg, tb), x), dy) in dgamma.iter_mut().zip(dbeta.iter_mut()).zip(x).zip(dy) {
            *tg += dy * (x - mean) * rstd;
            *tb += dy;
        }
    }
}
