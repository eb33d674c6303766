//! Layer normalisation: each row by itself. Sums run over fixed lanes, so that every machine adds in the same order.
#![allow(unsafe_code, reason = "results that are written whole need not be filled with zeros first")]

use crate::nn::parallel::Parallel;
use rayon::prelude::*;

use crate::nn::kernel::add_up;
use crate::nn::math::{LANES, halved};
use crate::nn::simd::vectorised;
use crate::nn::storage::unwritten;

/// Rows that one task takes forward.
const ROWS: usize = 64;

/// What each row was normalised with: its mean and one over its deviation.
pub type Moments = Vec<[f32; 2]>;

/// The sum of `f` of two rows' values, over the lanes.
#[inline(always)]
fn sum(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += f(a[lane], b[lane]);
        }
    }
    let mut last = 0.0;
    for (a, b) in a_rest.iter().zip(b_rest) {
        last += f(*a, *b);
    }
    halved(sums, |a, b| a + b) + last
}

/// Mean first, then the squares of what is left: no cancellation.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> [f32; 2] {
    let c = x.len() as f32;
    let mean = sum(x, x, |x, _| x) / c;
    let squares = sum(x, x, |x, _| (x - mean) * (x - mean));
    [mean, 1.0 / (squares / c + eps).sqrt()]
}

/// The rows of `x`, normalised, scaled and shifted.
pub fn forward(x: &[f32], gamma: &[f32], beta: &[f32], eps: f32) -> (Vec<f32>, Moments) {
    let c = gamma.len();
    assert!(beta.len() == c && x.len().is_multiple_of(c), "`apply` has compared the shapes");
    // SAFETY: the chunks below are all of y, in whole rows, and each is written whole.
    let mut y = unsafe { unwritten(x.len()) };
    let mut all = vec![[0.0; 2]; x.len() / c];
    y.par_chunks_mut(ROWS * c).zip(x.par_chunks(ROWS * c)).zip(all.par_chunks_mut(ROWS)).run(|((y, x), all)| {
        vectorised!(for ((y, x), kept) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(all) {
            let [mean, rstd] = moments(x, eps);
            *kept = [mean, rstd];
            for (((y, x), g), b) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
                *y = (x - mean) * rstd * g + b;
            }
        });
    });
    (y, all)
}

/// Gradients of x, gamma and beta; those of `together` rows are one sum.
pub fn backward(x: &[f32], gamma: &[f32], dy: &[f32], moments: &[[f32; 2]], together: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let c = gamma.len();
    assert!(dy.len() == x.len() && x.len() == moments.len() * c, "`apply` has compared the shapes");
    // SAFETY: the chunks below are all of dx, in whole rows, and each is written whole.
    let mut dx = unsafe { unwritten(x.len()) };
    let size = together * c;
    let parts: Vec<(Vec<f32>, Vec<f32>)> = (dx.par_chunks_mut(size).zip(x.par_chunks(size)).zip(dy.par_chunks(size)))
        .zip(moments.par_chunks(together))
        .gather(|(((dx, x), dy), moments)| {
            let (mut dgamma, mut dbeta) = (vec![0.0; c], vec![0.0; c]);
            vectorised!(
                for (((dx, x), dy), moments) in dx.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(dy.chunks_exact(c)).zip(moments) {
                    row_back(dx, x, dy, gamma, *moments, &mut dgamma, &mut dbeta);
                }
            );
            (dgamma, dbeta)
        });
    let (dgamma, dbeta) = parts.into_iter().unzip();
    (dx, add_up(dgamma), add_up(dbeta))
}

/// [`backward`] of one row.
#[inline(always)]
fn row_back(dx: &mut [f32], x: &[f32], dy: &[f32], gamma: &[f32], [mean, rstd]: [f32; 2], dgamma: &mut [f32], dbeta: &mut [f32]) {
    let c = gamma.len() as f32;
    // g = dy·gamma, and g once more weighed by x̂.
    for ((((dx, x), dy), g), (tg, tb)) in dx.iter_mut().zip(x).zip(dy).zip(gamma).zip(dgamma.iter_mut().zip(dbeta.iter_mut())) {
        *dx = dy * g;
        *tg += dy * ((x - mean) * rstd);
        *tb += dy;
    }
    let plain = sum(dx, dx, |g, _| g) / c * rstd;
    let weighted = sum(dx, x, |g, x| g * (x - mean)) / c * rstd * rstd * rstd;
    for (dx, x) in dx.iter_mut().zip(x) {
        *dx = *dx * rstd - plain - (x - mean) * weighted;
    }
}
