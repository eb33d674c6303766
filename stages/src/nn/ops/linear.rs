//! Matrix products.
#![allow(unsafe_code, reason = "results that are written whole need not be filled with zeros first")]

use std::sync::OnceLock;

use crate::nn::parallel::Parallel;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::activation::{GeluErf, Scalar};
use crate::nn::kernel::{self, Matrix, add, column_sums, transposed};
use crate::nn::math::map2;
use crate::nn::simd::vectorised;
use crate::nn::storage::{gradient, output, slice, unwritten, with};
use crate::nn::tape::{apply2, apply3, reshape};

/// Rows that one task takes where something follows the product: they stay in the second-level cache.
const ROWS: usize = 256;

/// `[m, k] · [k, n]`, with a bias or without, and perhaps GELU.
struct Linear {
    m: usize,
    k: usize,
    n: usize,
    gelu: bool,
    /// What went into GELU.
    before: OnceLock<Vec<f32>>,
}

impl Linear {
    fn new(m: usize, k: usize, n: usize, gelu: bool) -> Self {
        Self { m, k, n, gelu, before: OnceLock::new() }
    }

    fn forward(&self, x: &[f32], w: &[f32], bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let &Self { m, k, n, .. } = self;
        // SAFETY: the product writes all of y and does not read it.
        let mut y = unsafe { unwritten(m * n) };
        if !self.gelu {
            kernel::matmul(m, n, k, &mut y, Matrix::new(x, k), Matrix::new(w, n));
            if let Some(bias) = bias {
                y.par_chunks_mut(ROWS * n).run(|y| {
                    vectorised!(add_bias(y, bias));
                });
            }
            return output(y, (m, n));
        }
        // SAFETY: as above.
        let mut before = unsafe { unwritten(m * n) };
        let rows = y.par_chunks_mut(ROWS * n).zip(before.par_chunks_mut(ROWS * n)).zip(x.par_chunks(ROWS * k));
        rows.run(|((y, before), x)| {
            kernel::gemm(y.len() / n, n, k, before, n, false, Matrix::new(x, k), Matrix::new(w, n));
            vectorised!({
                if let Some(bias) = bias {
                    add_bias(before, bias);
                }
                for (y, v) in y.iter_mut().zip(before) {
                    *y = GeluErf::value(*v);
                }
            });
        });
        // A second forward pass of one op does not happen: every call makes its own.
        let _ = self.before.set(before);
        output(y, (m, n))
    }

    /// Gradients of x, w and the bias.
    fn backward(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>, dy: &[f32]) -> Result<[Option<Tensor>; 3]> {
        let &Self { m, k, n, .. } = self;
        let inner;
        let dy = match self.before.get() {
            None => dy,
            Some(before) => {
                inner = map2(before, dy, |v, d| d * GeluErf::slope(v));
                &inner
            }
        };
        let dx = || {
            // SAFETY: as in the forward pass.
            let mut dx = unsafe { unwritten(m * k) };
            let wt = with(w, |w| Ok(transposed(w, k, n)))?;
            kernel::matmul(m, k, n, &mut dx, Matrix::new(dy, n), Matrix::new(&wt, k));
            gradient(dx, x)
        };
        let dw = || {
            // SAFETY: as in the forward pass.
            let mut dw = unsafe { unwritten(k * n) };
            with(x, |x| {
                kernel::matmul_of_columns(k, n, m, &mut dw, x, dy);
                Ok(())
            })?;
            gradient(dw, w)
        };
        let db = |bias: &Tensor| gradient(column_sums(dy, n), bias);
        let db = bias.filter(|bias| bias.track_op()).map(db).transpose()?;
        Ok([x.track_op().then(dx).transpose()?, w.track_op().then(dw).transpose()?, db])
    }
}

#[inline(always)]
fn add_bias(y: &mut [f32], bias: &[f32]) {
    for y in y.chunks_exact_mut(bias.len()) {
        add(y, bias);
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(slice(x, lx)?, slice(w, lw)?, None)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, _] = with(dy, |dy| self.backward(x, w, None, dy))?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        if self.gelu { "linear with gelu" } else { "linear with bias" }
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(slice(x, lx)?, slice(w, lw)?, Some(slice(b, lb)?))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, b: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, db] = with(dy, |dy| self.backward(x, w, Some(b), dy))?;
        Ok((dx, dw, db))
    }
}

fn apply(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, gelu: bool) -> Result<Tensor> {
    let (k, n) = w.dims2()?;
    let mut dims = x.dims().to_vec();
    match dims.last_mut() {
        Some(last) if *last == k => *last = n,
        _ => bail!("linear: weights {:?} do not fit {:?}", w.shape(), x.shape()),
    }
    let m = x.elem_count() / k;
    let (x, op) = (reshape(x, (m, k))?, Linear::new(m, k, n, gelu));
    let y = match bias {
        None => apply2(&x, w, op)?,
        Some(bias) if bias.dims() == [n] => apply3(&x, w, bias, op)?,
        Some(bias) => bail!("linear: a bias {:?} does not fit {n} results", bias.shape()),
    };
    reshape(&y, dims)
}

/// `x · w + bias` over the last dimension: `x` `[…, in]`, `w` `[in, out]`, `bias` `[out]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    apply(x, w, bias, false)
}

/// [`linear`] and then GELU in its exact form, in one pass.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear_gelu(x: &Tensor, w: &Tensor, bias: &Tensor) -> Result<Tensor> {
    apply(x, w, Some(bias), true)
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
        y.par_chunks_mut((m * n).max(1)).enumerate().run(|(i, y)| {
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
