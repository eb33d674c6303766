//! The hot loops on plain slices: matrix products, and patches of images as rows.
#![allow(unsafe_code, reason = "gemm takes pointers, and chunks of one buffer are written from several threads")]

use std::cell::RefCell;

use rayon::prelude::*;

use super::simd::vectorised;

/// Rows of a product that one task computes. A fixed number: the cut must not depend on the threads.
const ROWS: usize = 128;
/// Columns of a product that one task computes when there are few rows.
const COLUMNS: usize = 256;
/// Parts into which a sum over pixels is cut; each has a buffer of the size of the weights.
const PARTS: usize = 8;

thread_local! {
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with a buffer of `n` values that is kept for the next call; it holds whatever was left in it.
fn with_scratch<R>(n: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
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

/// `c = a·b` on all threads; `c` is row-major `[m, n]`.
pub fn matmul(m: usize, n: usize, k: usize, c: &mut [f32], a: Matrix<'_>, b: Matrix<'_>) {
    if m * n * k < 1 << 15 {
        return gemm(m, n, k, c, n, false, a, b);
    }
    if m >= 2 * ROWS || n < 2 * COLUMNS {
        let rows = if m >= 2 * ROWS { ROWS } else { m.div_ceil(2).max(1) };
        c[..m * n]
            .par_chunks_mut(rows * n)
            .enumerate()
            .for_each(|(i, chunk)| gemm(chunk.len() / n, n, k, chunk, n, false, a.row(i * rows), b));
        return;
    }
    // Few rows, many columns: each task makes a block of columns apart, which is then copied to its place.
    let blocks: Vec<Vec<f32>> = (0..n.div_ceil(COLUMNS))
        .into_par_iter()
        .map(|j| {
            let width = COLUMNS.min(n - j * COLUMNS);
            let mut block = vec![0.0; m * width];
            gemm(m, width, k, &mut block, width, false, a, b.column(j * COLUMNS));
            block
        })
        .collect();
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

/// The shape of a convolution over `[n, h, w, c]` with `o` square kernels of `k`, stride `s`, padding `p`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub o: usize,
    pub k: usize,
    pub s: usize,
    pub p: usize,
}

impl Conv {
    /// Height of the result.
    pub fn out_h(&self) -> usize {
        (self.h + 2 * self.p - self.k) / self.s + 1
    }

    /// Width of the result.
    pub fn out_w(&self) -> usize {
        (self.w + 2 * self.p - self.k) / self.s + 1
    }

    /// Pixels of the result.
    pub fn pixels(&self) -> usize {
        self.n * self.out_h() * self.out_w()
    }

    /// Values of one patch.
    fn patch(&self) -> usize {
        self.k * self.k * self.c
    }

    /// A 1×1 convolution is a plain product.
    fn is_product(&self) -> bool {
        self.k == 1 && self.s == 1 && self.p == 0
    }

    /// Pixels whose patches one task holds at a time: about half a megabyte of them.
    fn chunk(&self) -> usize {
        (131_072 / self.patch()).clamp(32, 512)
    }

    /// Patches of the pixels from `start` on, one a row, into `rows`.
    fn patches(&self, x: &[f32], start: usize, rows: &mut [f32]) {
        let (oh, ow) = (self.out_h(), self.out_w());
        let line = self.k * self.c;
        for (i, row) in rows.chunks_exact_mut(self.patch()).enumerate() {
            let (image, pixel) = ((start + i) / (oh * ow), (start + i) % (oh * ow));
            let (top, left) = (pixel / ow * self.s, pixel % ow * self.s);
            // Columns of the patch that lie inside the image.
            let from = self.p.saturating_sub(left).min(self.k);
            let to = (self.w + self.p).saturating_sub(left).min(self.k);
            for (dy, line) in row.chunks_exact_mut(line).enumerate() {
                let y = top + dy;
                if y < self.p || y >= self.h + self.p || from >= to {
                    line.fill(0.0);
                    continue;
                }
                let source = ((image * self.h + y - self.p) * self.w + left + from - self.p) * self.c;
                line[..from * self.c].fill(0.0);
                line[from * self.c..to * self.c].copy_from_slice(&x[source..source + (to - from) * self.c]);
                line[to * self.c..].fill(0.0);
            }
        }
    }

    /// `y = conv(x, w) + bias`; `w` is `[k, k, c, o]`.
    pub fn forward(&self, x: &[f32], w: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let mut y = vec![0.0; self.pixels() * self.o];
        let patch = self.patch();
        let chunk = self.chunk();
        y.par_chunks_mut(chunk * self.o).enumerate().for_each(|(i, y)| {
            let pixels = y.len() / self.o;
            if let Some(bias) = bias {
                y.chunks_exact_mut(self.o).for_each(|y| y.copy_from_slice(bias));
            }
            let add = bias.is_some();
            if self.is_product() {
                let x = Matrix::new(&x[i * chunk * self.c..], self.c);
                gemm(pixels, self.o, self.c, y, self.o, add, x, Matrix::new(w, self.o));
                return;
            }
            with_scratch(pixels * patch, |rows| {
                self.patches(x, i * chunk, rows);
                gemm(pixels, self.o, patch, y, self.o, add, Matrix::new(rows, patch), Matrix::new(w, self.o));
            });
        });
        y
    }

    /// The gradient of `x`, given that of the result.
    pub fn backward_input(&self, dy: &[f32], w: &[f32]) -> Vec<f32> {
        if self.is_product() {
            let mut dx = vec![0.0; self.n * self.h * self.w * self.c];
            let wt = transposed(w, self.c, self.o);
            matmul(self.pixels(), self.c, self.o, &mut dx, Matrix::new(dy, self.o), Matrix::new(&wt, self.c));
            return dx;
        }
        if self.s == 1 && self.p < self.k {
            // A convolution of dy with the kernels turned around, inputs and outputs exchanged.
            let turned = Self { h: self.out_h(), w: self.out_w(), c: self.o, o: self.c, p: self.k - 1 - self.p, ..*self };
            return turned.forward(dy, &self.turned(w), None);
        }
        self.scatter(dy, w)
    }

    /// `[k, k, c, o]` to `[k, k, o, c]` with both kernel axes reversed.
    fn turned(&self, w: &[f32]) -> Vec<f32> {
        let size = self.c * self.o;
        (0..self.k * self.k).rev().flat_map(|place| transposed(&w[place * size..][..size], self.c, self.o)).collect()
    }

    /// Patches of gradients, added to where they came from; one image a task.
    fn scatter(&self, dy: &[f32], w: &[f32]) -> Vec<f32> {
        let patch = self.patch();
        let wt = transposed(w, patch, self.o);
        let (oh, ow) = (self.out_h(), self.out_w());
        let mut dx = vec![0.0; self.n * self.h * self.w * self.c];
        dx.par_chunks_mut(self.h * self.w * self.c).enumerate().for_each(|(image, dx)| {
            with_scratch(oh * ow * patch, |rows| {
                gemm(
                    oh * ow,
                    patch,
                    self.o,
                    rows,
                    patch,
                    false,
                    Matrix::new(&dy[image * oh * ow * self.o..], self.o),
                    Matrix::new(&wt, patch),
                );
                for (pixel, row) in rows.chunks_exact(patch).enumerate() {
                    self.scatter_patch(pixel / ow * self.s, pixel % ow * self.s, row, dx);
                }
            });
        });
        dx
    }

    fn scatter_patch(&self, top: usize, left: usize, row: &[f32], dx: &mut [f32]) {
        for (place, values) in row.chunks_exact(self.c).enumerate() {
            let (y, x) = (top + place / self.k, left + place % self.k);
            if y < self.p || x < self.p || y >= self.h + self.p || x >= self.w + self.p {
                continue;
            }
            let at = ((y - self.p) * self.w + x - self.p) * self.c;
            dx[at..at + self.c].iter_mut().zip(values).for_each(|(d, v)| *d += v);
        }
    }

    /// The gradient of `w`: parts of the pixels apart, added in their order.
    pub fn backward_weight(&self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let (patch, chunk) = (self.patch(), self.chunk());
        let chunks = self.pixels().div_ceil(chunk);
        let parts = PARTS.min(chunks).max(1);
        let sums: Vec<Vec<f32>> = (0..parts)
            .into_par_iter()
            .map(|part| {
                let mut sum = vec![0.0; patch * self.o];
                for i in chunks * part / parts..chunks * (part + 1) / parts {
                    let pixels = chunk.min(self.pixels() - i * chunk);
                    let dy = Matrix::new(&dy[i * chunk * self.o..], self.o);
                    if self.is_product() {
                        gemm(patch, self.o, pixels, &mut sum, self.o, true, Matrix::new(&x[i * chunk * self.c..], self.c).t(), dy);
                        continue;
                    }
                    with_scratch(pixels * patch, |rows| {
                        self.patches(x, i * chunk, rows);
                        gemm(patch, self.o, pixels, &mut sum, self.o, true, Matrix::new(rows, patch).t(), dy);
                    });
                }
                sum
            })
            .collect();
        add_up(sums)
    }
}

/// The sum of equally long buffers, in their order.
pub fn add_up(mut parts: Vec<Vec<f32>>) -> Vec<f32> {
    let mut parts = parts.drain(..);
    let mut total = parts.next().unwrap_or_default();
    for part in parts {
        vectorised!(total.iter_mut().zip(&part).for_each(|(t, p)| *t += p));
    }
    total
}

/// Sums over the rows of `[rows, c]`: fixed chunks apart, added in their order.
pub fn column_sums(x: &[f32], c: usize) -> Vec<f32> {
    let parts = x
        .par_chunks(512 * c)
        .map(|chunk| {
            let mut sum = vec![0.0; c];
            vectorised!(chunk.chunks_exact(c).for_each(|row| sum.iter_mut().zip(row).for_each(|(s, v)| *s += v)));
            sum
        })
        .collect();
    add_up(parts)
}
