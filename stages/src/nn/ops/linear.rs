//! Matrix products.
#![allow(unsafe_code, reason = "results that are written whole need not be filled with zeros first")]

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::nn::kernel::{self, Matrix, transposed};
use crate::nn::storage::{gradient, output, slice, unwritten, with};
use crate::nn::tape::{apply2, reshape};

/// `[m, k] · [k, n]`.
struct Linear {
    m: usize,
    k: usize,
    n: usize,
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let &Self { m, k, n } = self;
        // SAFETY: the product writes all of y and does not read it.
        let mut y = unsafe { unwritten(m * n) };
        kernel::matmul(m, n, k, &mut y, Matrix::new(slice(x, lx)?, k), Matrix::new(slice(w, lw)?, n));
        output(y, (m, n))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let &Self { m, k, n } = self;
        with(dy, |dy| {
            let dy = Matrix::new(dy, n);
            let dx = || {
                // SAFETY: as in the forward pass.
                let mut dx = unsafe { unwritten(m * k) };
                let wt = with(w, |w| Ok(transposed(w, k, n)))?;
                kernel::matmul(m, k, n, &mut dx, dy, Matrix::new(&wt, k));
                gradient(dx, x)
            };
            let dw = || {
                // SAFETY: as in the forward pass.
                let mut dw = unsafe { unwritten(k * n) };
                with(x, |x| {
                    kernel::matmul(k, n, m, &mut dw, Matrix::new(x, k).t(), dy);
                    Ok(())
                })?;
                gradient(dw, w)
            };
            Ok((x.track_op().then(dx).transpose()?, w.track_op().then(dw).transpose()?))
        })
    }
}

/// `x · w + bias` over the last dimension: `x` `[…, in]`, `w` `[in, out]`, `bias` `[out]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (k, n) = w.dims2()?;
    let mut dims = x.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == k => *last = n,
        _ => bail!("linear: weights {:?} do not fit {:?}", w.shape(), x.shape()),
    }
    let m = x.elem_count() / k;
    let y = apply2(&reshape(x, (m, k))?, w, Linear { m, k, n })?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    reshape(&y, dims)
}

/// `[b, m, k] · [b, k, n]`; with `transpose`, the second is given as `[b, n, k]`.
struct Batched {
    b: usize,
    m: usize,
    k: usize,
    n: usize,
    transpose: bool,
}

impl Batched {
    /// One product a task; `f` gives the operands of product `i`.
    fn each<'a>(b: usize, m: usize, n: usize, k: usize, f: impl Fn(usize) -> (Matrix<'a>, Matrix<'a>) + Sync) -> Vec<f32> {
        let mut y = vec![0.0; b * m * n];
        y.par_chunks_mut((m * n).max(1)).enumerate().for_each(|(i, y)| {
            let (a, b) = f(i);
            kernel::gemm(m, n, k, y, n, false, a, b);
        });
        y
    }
}

impl CustomOp2 for Batched {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, y: &CpuStorage, ly: &Layout) -> Result<(CpuStorage, Shape)> {
        let &Self { b, m, k, n, transpose } = self;
        let (x, y) = (slice(x, lx)?, slice(y, ly)?);
        let product = Self::each(b, m, n, k, |i| {
            let right = &y[i * k * n..];
            (Matrix::new(&x[i * m * k..], k), if transpose { Matrix::new(right, k).t() } else { Matrix::new(right, n) })
        });
        output(product, (b, m, n))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, _: &Tensor, dz: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let &Self { b, m, k, n, transpose } = self;
        with(dz, |dz| {
            let dz = |i: usize| Matrix::new(&dz[i * m * n..], n);
            let dx = || {
                let dx = with(y, |y| {
                    Ok(Self::each(b, m, k, n, |i| {
                        let right = &y[i * k * n..];
                        (dz(i), if transpose { Matrix::new(right, k) } else { Matrix::new(right, n).t() })
                    }))
                })?;
                gradient(dx, x)
            };
            let dy = || {
                let dy = with(x, |x| {
                    let left = |i: usize| Matrix::new(&x[i * m * k..], k);
                    Ok(if transpose {
                        Self::each(b, n, k, m, |i| (dz(i).t(), left(i)))
                    } else {
                        Self::each(b, k, n, m, |i| (left(i).t(), dz(i)))
                    })
                })?;
                gradient(dy, y)
            };
            Ok((x.track_op().then(dx).transpose()?, y.track_op().then(dy).transpose()?))
        })
    }
}

/// Batched product `[b, m, k] · [b, k, n]`; with `transpose_right`, `y` is given as `[b, n, k]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn matmul(x: &Tensor, y: &Tensor, transpose_right: bool) -> Result<Tensor> {
    let (b, m, k) = x.dims3()?;
    let (b2, rows, columns) = y.dims3()?;
    let (inner, n) = if transpose_right { (columns, rows) } else { (rows, columns) };
    if b != b2 || inner != k {
        bail!("matmul: {:?} and {:?} do not fit", x.shape(), y.shape());
    }
    apply2(x, y, Batched { b, m, k, n, transpose: transpose_right })
}
