//! The hot loops on plain slices: matrix products, convolutions, sums of rows.
#![allow(
    unsafe_code,
    reason = "results that are written whole need not be filled with zeros first, and values are asked for by an instruction"
)]

use std::cell::RefCell;

use crate::nn::parallel::Parallel;
use rayon::prelude::*;

use super::simd::vectorised;
use super::storage::unwritten;

mod conv;
mod depthwise;
mod expand;
pub(crate) mod lanes;
mod product;
mod then;
mod transpose;
mod winograd;

pub use conv::Conv;
pub use expand::Weights as ExpandWeights;
pub use product::{Matrix, Panels, Shape, gemm, gemm_panels, gemm_panels_then, matmul, matmul_then, with_panels};
pub use then::{Then, floor};
pub use transpose::{transpose, transposed};

thread_local! {
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with a buffer of `n` values that is kept for the next call; it holds whatever was left in it.
pub fn with_scratch<R>(n: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = SCRATCH.with(|pool| pool.borrow_mut().pop()).unwrap_or_default();
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    let result = f(&mut buffer[..n]);
    SCRATCH.with(|pool| pool.borrow_mut().push(buffer));
    result
}

/// Asks for values that are soon read in another order than that in which they lie: memory gives them fastest in this one.
pub fn prefetch(values: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in values.chunks(16) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: every processor of this kind has the instruction, which changes nothing but what lies in caches.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// Adds values to others. A loop and not a `for_each`: that is a function of its own, which the compiler may leave out of line and then
/// compiles for the machine that every processor is.
#[inline(always)]
pub fn add(to: &mut [f32], values: &[f32]) {
    for (to, value) in to.iter_mut().zip(values) {
        *to += value;
    }
}

/// The sum of equally long buffers, in their order.
pub fn add_up(mut parts: Vec<Vec<f32>>) -> Vec<f32> {
    let mut parts = parts.drain(..);
    let mut total = parts.next().unwrap_or_default();
    for part in parts {
        vectorised!(add(&mut total, &part));
    }
    total
}

/// The gradient `dy` where `y` is above 0, and its sums over the rows of `[rows, c]`, as [`column_sums`] has them.
pub fn masked_with_sums(y: &[f32], dy: &[f32], c: usize) -> (Vec<f32>, Vec<f32>) {
    assert!(y.len() == dy.len() && y.len().is_multiple_of(c), "a gradient has the shape of the result");
    // SAFETY: the chunks below are all of it, in whole rows, and each is written whole.
    let mut masked = unsafe { unwritten(y.len()) };
    let chunks = masked.par_chunks_mut(512 * c).zip(y.par_chunks(512 * c)).zip(dy.par_chunks(512 * c));
    let parts = chunks.gather(|((masked, y), dy)| {
        let mut sum = vec![0.0; c];
        vectorised!(for ((masked, y), dy) in masked.chunks_exact_mut(c).zip(y.chunks_exact(c)).zip(dy.chunks_exact(c)) {
            for (((m, y), dy), sum) in masked.iter_mut().zip(y).zip(dy).zip(&mut sum) {
                *m = if *y > 0.0 { *dy } else { 0.0 };
                *sum += *m;
            }
        });
        sum
    });
    (masked, add_up(parts))
}

/// Sums over the rows of `[rows, c]`: fixed chunks apart, added in their order.
pub fn column_sums(x: &[f32], c: usize) -> Vec<f32> {
    let parts = x.par_chunks(512 * c).gather(|chunk| {
        let mut sum = vec![0.0; c];
        vectorised!(for row in chunk.chunks_exact(c) {
            add(&mut sum, row);
        });
        sum
    });
    add_up(parts)
}
