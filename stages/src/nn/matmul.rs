//! Linear layers and batched matrix products.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, Layout, Result, Shape, Tensor, bail};

use super::raw::{Mat, chunks, column_sums, gemm, output, scratch, slice, tensor, transpose, with};

/// `x · w + b` for `x` `[.., in]`, `w` `[in, out]`, `b` `[out]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let (inputs, outputs) = w.dims2()?;
    if x.dim(D::Minus1)? != inputs {
        bail!("linear: input {:?} does not fit weight [{inputs}, {outputs}]", x.dims());
    }
    let (x, w) = (x.contiguous()?, w.contiguous()?);
    match b {
        Some(b) if b.dims() != [outputs] => bail!("linear: bias {:?} does not fit weight [{inputs}, {outputs}]", b.dims()),
        Some(b) => x.apply_op3(&w, &b.contiguous()?, Linear),
        None => x.apply_op2(&w, Linear),
    }
}

/// Rows of one block, by the work in a row.
fn row_block(rows: usize, work: usize) -> usize {
    let least = (1 << 18) / work.max(1);
    rows.div_ceil(8).max(least).max(16)
}

/// `y[rows, n] = x[rows, k] · w[k, n]` (+ bias), in blocks of rows.
pub(super) fn product(x: &[f32], w: &[f32], k: usize, n: usize, bias: Option<&[f32]>, y: &mut [f32]) {
    let rows = x.len() / k;
    let block = row_block(rows, k * n);
    chunks(y, block * n, |i, y| {
        let m = y.len() / n;
        if let Some(bias) = bias {
            y.chunks_exact_mut(n).for_each(|row| row.copy_from_slice(bias));
        }
        gemm(m, n, k, y, n, bias.is_some(), 1.0, Mat::new(&x[i * block * k..], k), Mat::new(w, n));
    });
}

/// `dw[k, n] = x[rows, k]ᵀ · g[rows, n]`, in blocks of rows of `dw`.
fn weight_gradient(x: &[f32], g: &[f32], k: usize, n: usize) -> Vec<f32> {
    let rows = x.len() / k;
    let mut dw = vec![0.0; k * n];
    let block = row_block(k, rows * n);
    chunks(&mut dw, block * n, |i, dw| {
        gemm(dw.len() / n, n, rows, dw, n, false, 1.0, Mat::new(&x[i * block..], k).t(), Mat::new(g, n));
    });
    dw
}

/// `dx[rows, k] = g[rows, n] · w[k, n]ᵀ`; the weight is transposed first, since that product runs faster row-major.
pub(super) fn input_gradient(g: &[f32], w: &[f32], k: usize, n: usize) -> Vec<f32> {
    let mut dx = vec![0.0; g.len() / n * k];
    scratch(k * n, |wt| {
        transpose(w, k, n, wt);
        product(g, wt, n, k, None, &mut dx);
    });
    dx
}

struct Linear;

impl Linear {
    fn forward(x: &[f32], lx: &Layout, w: &[f32], lw: &Layout, b: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let (k, n) = lw.shape().dims2()?;
        let mut y = vec![0.0; x.len() / k * n];
        product(x, w, k, n, b, &mut y);
        let mut dims = lx.dims().to_vec();
        dims.pop();
        dims.push(n);
        output(y, dims)
    }

    fn backward(x: &Tensor, w: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (k, n) = w.dims2()?;
        let dx = if x.track_op() { Some(tensor(with(g, |g| with(w, |w| input_gradient(g, w, k, n)))??, x.shape())?) } else { None };
        let dw = if w.track_op() { Some(tensor(with(x, |x| with(g, |g| weight_gradient(x, g, k, n)))??, w.shape())?) } else { None };
        Ok((dx, dw))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        Self::forward(slice(x, lx)?, lx, slice(w, lw)?, lw, None)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Self::backward(x, w, &grad.contiguous()?)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear with bias"
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
        Self::forward(slice(x, lx)?, lx, slice(w, lw)?, lw, Some(slice(b, lb)?))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dx, dw) = Self::backward(x, w, &grad)?;
        let db = if b.track_op() { Some(tensor(with(&grad, |g| column_sums(g, b.elem_count()))?, b.shape())?) } else { None };
        Ok((dx, dw, db))
    }
}

/// The product of each pair of matrices: `a` `[b, m, k]`, `b` `[b, k, n]` to `[b, m, n]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let ((batch, _, k), (batch_b, k_b, _)) = (a.dims3()?, b.dims3()?);
    if batch != batch_b || k != k_b {
        bail!("matmul: {:?} does not fit {:?}", a.dims(), b.dims());
    }
    a.contiguous()?.apply_op2(&b.contiguous()?, Batched)
}

struct Batched;

impl CustomOp2 for Batched {
    fn name(&self) -> &'static str {
        "batched matmul"
    }

    fn cpu_fwd(&self, a: &CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((batch, m, k), n) = (la.shape().dims3()?, lb.shape().dims()[2]);
        let (a, b) = (slice(a, la)?, slice(b, lb)?);
        let mut y = vec![0.0; batch * m * n];
        chunks(&mut y, m * n, |i, y| gemm(m, n, k, y, n, false, 1.0, Mat::new(&a[i * m * k..], k), Mat::new(&b[i * k * n..], n)));
        output(y, (batch, m, n))
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let ((batch, m, k), n) = (a.dims3()?, b.dim(2)?);
        let (mut da, mut db) = (vec![0.0; batch * m * k], vec![0.0; batch * k * n]);
        with(&grad, |g| -> Result<()> {
            with(b, |b| {
                chunks(&mut da, m * k, |i, da| {
                    gemm(m, k, n, da, k, false, 1.0, Mat::new(&g[i * m * n..], n), Mat::new(&b[i * k * n..], n).t())
                })
            })?;
            with(a, |a| {
                chunks(&mut db, k * n, |i, db| {
                    gemm(k, n, m, db, n, false, 1.0, Mat::new(&a[i * m * k..], k).t(), Mat::new(&g[i * m * n..], n))
                })
            })
        })??;
        Ok((Some(tensor(da, a.shape())?), Some(tensor(db, b.shape())?)))
    }
}
