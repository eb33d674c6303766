//! Slices of tensors, the matrix product, and loops over fixed blocks.
#![allow(unsafe_code)] // one wrapper over the raw-pointer interface of the `gemm` crate, bounds checked before the call

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Storage, Tensor, bail};
use rayon::prelude::*;
use std::cell::RefCell;

/// Elements of one block of an elementwise loop.
pub(super) const BLOCK: usize = 1 << 14;

/// Runs `f` on a thread of rayon's pool, so that the loops inside it need not be handed over one by one.
pub fn in_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}

/// The values of a storage, which must be f32 and contiguous.
pub(super) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else { bail!("expected f32 values") };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("expected a contiguous tensor, got strides {:?}", layout.stride()),
    }
}

/// Calls `f` with the values of a contiguous f32 tensor.
pub(super) fn with<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(cpu) => Ok(f(slice(cpu, layout)?)),
        _ => bail!("these operations run on the CPU"),
    }
}

/// The values of an f32 tensor, in row-major order.
///
/// # Errors
/// If the tensor is not f32.
pub fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    with(&tensor.contiguous()?, <[f32]>::to_vec)
}

/// A tensor over `values`.
pub(super) fn tensor(values: Vec<f32>, shape: &Shape) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// What a forward pass returns.
pub(super) fn output(values: Vec<f32>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(values), shape.into()))
}

/// Applies an op of one argument to a contiguous form of it.
pub(super) fn apply1<C: CustomOp1 + Send + Sync + 'static>(x: &Tensor, op: C) -> Result<Tensor> {
    x.contiguous()?.apply_op1(op)
}

/// Calls `f(index, chunk)` for every chunk of `out`.
pub(super) fn chunks(out: &mut [f32], size: usize, f: impl Fn(usize, &mut [f32]) + Sync + Send) {
    let size = size.max(1);
    if out.len() <= size || rayon::current_num_threads() == 1 {
        out.chunks_mut(size).enumerate().for_each(|(i, chunk)| f(i, chunk));
    } else {
        out.par_chunks_mut(size).enumerate().for_each(|(i, chunk)| f(i, chunk));
    }
}

/// `f` of every value.
pub(super) fn map(x: &[f32], f: impl Fn(f32) -> f32 + Sync + Send) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    chunks(&mut out, BLOCK, |i, out| {
        for (y, x) in out.iter_mut().zip(&x[i * BLOCK..]) {
            *y = f(*x);
        }
    });
    out
}

/// `f` of every pair of values.
pub(super) fn map2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Sync + Send) -> Vec<f32> {
    let mut out = vec![0.0; a.len()];
    chunks(&mut out, BLOCK, |i, out| {
        for ((y, a), b) in out.iter_mut().zip(&a[i * BLOCK..]).zip(&b[i * BLOCK..]) {
            *y = f(*a, *b);
        }
    });
    out
}

/// The sum over blocks of `f(block)`, each block's own sum in f64, added in the order of the blocks.
pub(super) fn sum(n: usize, f: impl Fn(usize, usize) -> f64 + Sync + Send) -> f64 {
    let blocks = n.div_ceil(BLOCK);
    let of = |i: usize| f(i * BLOCK, ((i + 1) * BLOCK).min(n));
    let parts: Vec<f64> = if blocks <= 1 || rayon::current_num_threads() == 1 {
        (0..blocks).map(of).collect()
    } else {
        (0..blocks).into_par_iter().map(of).collect()
    };
    parts.iter().sum()
}

/// Adds the rows of `[parts, width]`, in order and in f64.
pub(super) fn add_parts(parts: &[f32], width: usize) -> Vec<f32> {
    let mut total = vec![0f64; width];
    for part in parts.chunks_exact(width) {
        for (t, p) in total.iter_mut().zip(part) {
            *t += f64::from(*p);
        }
    }
    total.into_iter().map(|t| t as f32).collect()
}

/// The sum of the rows of `[rows, width]`, in fixed blocks of rows.
pub(super) fn column_sums(x: &[f32], width: usize) -> Vec<f32> {
    let rows = 512;
    let mut parts = vec![0.0; (x.len() / width).div_ceil(rows) * width];
    chunks(&mut parts, width, |i, part| {
        for row in x[i * rows * width..].chunks_exact(width).take(rows) {
            for (p, v) in part.iter_mut().zip(row) {
                *p += *v;
            }
        }
    });
    add_parts(&parts, width)
}

thread_local! {
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `n` values of this thread's scratch memory, whatever they were before.
pub(super) fn scratch<R>(n: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut buffer = SCRATCH.with(|pool| pool.borrow_mut().pop()).unwrap_or_default();
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    let result = f(&mut buffer[..n]);
    SCRATCH.with(|pool| pool.borrow_mut().push(buffer));
    result
}

/// A matrix inside a slice: element (i, j) lies at `i * rows + j * cols`.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
}

impl<'a> Mat<'a> {
    /// Row-major, `stride` values from row to row.
    pub(super) fn new(data: &'a [f32], stride: usize) -> Self {
        Self { data, rows: stride, cols: 1 }
    }

    /// The transpose.
    pub(super) fn t(self) -> Self {
        Self { data: self.data, rows: self.cols, cols: self.rows }
    }
}

fn last(m: usize, n: usize, rows: usize, cols: usize) -> usize {
    (m - 1) * rows + (n - 1) * cols
}

/// `c[m, n] = alpha · a[m, k] · b[k, n]`, plus `c` itself if `accumulate`; `c` has `stride` values from row to row. One thread.
pub(super) fn gemm(m: usize, n: usize, k: usize, c: &mut [f32], stride: usize, accumulate: bool, alpha: f32, a: Mat<'_>, b: Mat<'_>) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(k > 0 && n <= stride, "an empty product or overlapping rows");
    assert!(last(m, n, stride, 1) < c.len(), "the result does not fit");
    assert!(last(m, k, a.rows, a.cols) < a.data.len(), "the left operand is too short");
    assert!(last(k, n, b.rows, b.cols) < b.data.len(), "the right operand is too short");
    // SAFETY: every element that these dimensions and strides reach was found inside its slice above, and `c` is borrowed
    // mutably, so it overlaps neither `a` nor `b`; its rows do not overlap since n <= stride.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.cols as isize,
            a.rows as isize,
            b.data.as_ptr(),
            b.cols as isize,
            b.rows as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// The transpose of `[rows, cols]`, by tiles.
pub(super) fn transpose(src: &[f32], rows: usize, cols: usize, dst: &mut [f32]) {
    const T: usize = 16;
    for i0 in (0..rows).step_by(T) {
        for j0 in (0..cols).step_by(T) {
            for j in j0..(j0 + T).min(cols) {
                for i in i0..(i0 + T).min(rows) {
                    dst[j * rows + i] = src[i * cols + j];
                }
            }
        }
    }
}
