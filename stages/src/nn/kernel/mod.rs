//! The hot loops on plain slices: matrix products, convolutions, sums of rows.
#![allow(unsafe_code, reason = "gemm takes pointers, and chunks of one buffer are written from several threads")]

use std::cell::RefCell;

use crate::nn::parallel::Parallel;
use rayon::prelude::*;

use super::simd::vectorised;
use super::storage::unwritten;

mod conv;
mod depthwise;
mod expand;
pub(crate) mod lanes;
mod winograd;

pub use conv::{Conv, Then};
pub use expand::Weights as ExpandWeights;

/// Rows of a product that one task computes. A fixed number: the cut must not depend on the threads.
const ROWS: usize = 256;
/// Columns of a product that one task computes when there are few rows.
const COLUMNS: usize = 256;
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

/// A matrix in a slice: element `(i, j)` is at `i * rows + j * columns`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major with `width` columns.
    pub fn new(data: &'a [f32], width: usize) -> Self {
        Self { data, rows: width, columns: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, ..self }
    }

    fn row(self, i: usize) -> Self {
        Self { data: &self.data[(i * self.rows).min(self.data.len())..], ..self }
    }

    fn column(self, j: usize) -> Self {
        Self { data: &self.data[(j * self.columns).min(self.data.len())..], ..self }
    }

    fn holds(self, m: usize, n: usize) -> bool {
        m == 0 || n == 0 || (m - 1) * self.rows + (n - 1) * self.columns < self.data.len()
    }
}

/// `c = a·b`, or `c += a·b`, on this thread; `c` is `[m, n]` with `ldc` values from row to row.
pub fn gemm(m: usize, n: usize, k: usize, c: &mut [f32], ldc: usize, accumulate: bool, a: Matrix<'_>, b: Matrix<'_>) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(a.holds(m, k) && b.holds(k, n) && (m - 1) * ldc + n <= c.len(), "a matrix is smaller than its product needs");
    // SAFETY: the assertion keeps every element that is read or written inside of its slice, and `c` is borrowed alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            ldc as isize,
            accumulate,
            a.data.as_ptr(),
            a.columns as isize,
            a.rows as isize,
            b.data.as_ptr(),
            b.columns as isize,
            b.rows as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `c = aᵀ·b` on all threads, of many rows: `a` `[k, m]`, `b` `[k, n]`, `c` `[m, n]`, all row-major. The rows are cut into a fixed number of
/// parts, whose sums are added in their order.
pub fn matmul_of_columns(m: usize, n: usize, k: usize, c: &mut [f32], a: &[f32], b: &[f32]) {
    const PARTS: usize = 4;
    /// Rows below which parts cost more than they bring.
    const FEW: usize = 1024;
    if k < FEW || m * n > 1 << 20 {
        return matmul(m, n, k, c, Matrix::new(a, m).t(), Matrix::new(b, n));
    }
    let rows = k.div_ceil(PARTS);
    let (first, c) = (&mut c[..m * n], m * n);
    with_scratch((PARTS - 1) * c, |rest| {
        let parts = std::iter::once(&mut *first).chain(rest.chunks_exact_mut(c)).collect::<Vec<_>>();
        parts.into_par_iter().zip(a.par_chunks(rows * m)).zip(b.par_chunks(rows * n)).run(|((c, a), b)| {
            gemm(m, n, b.len() / n, c, n, false, Matrix::new(a, m).t(), Matrix::new(b, n));
        });
        for part in rest.chunks_exact(c) {
            vectorised!(add(first, part));
        }
    });
}

/// `c = a·b` on all threads; `c` is row-major `[m, n]`.
pub fn matmul(m: usize, n: usize, k: usize, c: &mut [f32], a: Matrix<'_>, b: Matrix<'_>) {
    if m * n * k < 1 << 15 {
        return gemm(m, n, k, c, n, false, a, b);
    }
    if m >= 2 * ROWS || n < 2 * COLUMNS {
        let rows = if m >= 2 * ROWS { ROWS } else { m.div_ceil(2).max(1) };
        c[..m * n].par_chunks_mut(rows * n).enumerate().run(|(i, chunk)| gemm(chunk.len() / n, n, k, chunk, n, false, a.row(i * rows), b));
        return;
    }
    // Few rows, many columns: each task makes a block of columns apart, which is then copied to its place.
    let blocks: Vec<Vec<f32>> = (0..n.div_ceil(COLUMNS)).into_par_iter().gather(|j| {
        let width = COLUMNS.min(n - j * COLUMNS);
        let mut block = vec![0.0; m * width];
        gemm(m, width, k, &mut block, width, false, a, b.column(j * COLUMNS));
        block
    });
    for (j, block) in blocks.iter().enumerate() {
        let width = block.len() / m;
        for i in 0..m {
            c[i * n + j * COLUMNS..][..width].copy_from_slice(&block[i * width..][..width]);
        }
    }
}

/// The transpose of a row-major `[rows, columns]` matrix.
pub fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const BLOCK: usize = 16;
    let mut out = vec![0.0; rows * columns];
    for i0 in (0..rows).step_by(BLOCK) {
        for j0 in (0..columns).step_by(BLOCK) {
            for i in i0..(i0 + BLOCK).min(rows) {
                for j in j0..(j0 + BLOCK).min(columns) {
                    out[j * rows + i] = x[i * columns + j];
                }
            }
        }
    }
    out
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
