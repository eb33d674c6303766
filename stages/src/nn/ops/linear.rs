//! Matrix products.
#![allow(unsafe_code, reason = "results that are written whole need not be filled with zeros first")]

use std::sync::OnceLock;

use crate::nn::parallel::Parallel;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::activation::{GeluErf, Scalar};
use crate::nn::composed;
use crate::nn::kernel::{self, Matrix, Panels, Then, add, column_sums, with_scratch};
use crate::nn::math::map2;
use crate::nn::simd::vectorised;
use crate::nn::storage::{gradient, output, slice, unwritten, with};
use crate::nn::tape::{add as add_tensors, apply2, apply3, reshape};

/// Rows that one task takes where something follows the product: they stay in the second-level cache.
const ROWS: usize = 216;
/// Rows that are read once for all gradients, which have to stay there too.
const FEW_ROWS: usize = 120;
/// Parts of the rows whose sums are made apart.
const PARTS: usize = 8;
/// Weights above which they are not.
const LARGE: usize = 1 << 20;

/// `[m, k] · [k, n]`, with a bias or without, and perhaps GELU.
struct Linear {
    m: usize,
    k: usize,
    n: usize,
    gelu: bool,
    /// Whether somebody may ask for gradients.
    keeps: bool,
    /// GELU's slope at what went into it, which takes no more memory than that and is made with the value at once.
    slope: OnceLock<Vec<f32>>,
}

impl Linear {
    fn new([m, k, n]: [usize; 3], gelu: bool, keeps: bool) -> Self {
        Self { m, k, n, gelu, keeps, slope: OnceLock::new() }
    }

    /// The result, and `more` of the same shape added to it.
    fn forward(&self, x: &[f32], w: &[f32], bias: Option<&[f32]>, more: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let &Self { m, k, n, .. } = self;
        // SAFETY: the product writes all of y and does not read it.
        let mut y = unsafe { unwritten(m * n) };
        if !self.gelu || !self.keeps {
            kernel::matmul_then(m, n, k, &mut y, Matrix::new(x, k), Matrix::new(w, n), bias, |row, y| {
                if self.gelu {
                    vectorised!(for y in y.iter_mut() {
                        *y = GeluErf::value(*y);
                    });
                }
                if let Some(more) = more {
                    vectorised!(add(y, &more[row * n..]));
                }
            });
            return output(y, (m, n));
        }
        // SAFETY: as above.
        let mut slope = unsafe { unwritten(m * n) };
        kernel::with_panels(k, n, Matrix::new(w, n), |w| {
            let rows = y.par_chunks_mut(ROWS * n).zip(slope.par_chunks_mut(ROWS * n)).zip(x.par_chunks(ROWS * k));
            rows.run(|((y, slope), x)| {
                kernel::gemm_panels_then(y.len() / n, slope, n, Then { bias, relu: false }, Matrix::new(x, k), w);
                vectorised!(for (y, slope) in y.iter_mut().zip(slope) {
                    (*y, *slope) = GeluErf::both(*slope);
                });
            });
        });
        // A second forward pass of one op does not happen: every call makes its own.
        let _ = self.slope.set(slope);
        output(y, (m, n))
    }

    /// Gradients of x, w and the bias: a few rows at a time, so that what all three need of them is read from memory once.
    fn backward(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>, dy: &[f32]) -> Result<[Option<Tensor>; 3]> {
        let &Self { m, k, n, .. } = self;
        let wants_x = x.track_op();
        let wants_bias = bias.is_some_and(Tensor::track_op);
        // Where the weights are large, or nobody asks for their gradient, parts of it would cost more than they bring.
        let parts = if !w.track_op() || k * n > LARGE || m < PARTS * ROWS { 1 } else { PARTS };
        if parts == 1 {
            return self.backward_apart(x, w, bias, dy);
        }
        // SAFETY: every part writes its rows, all of them, and its sums, and does not read them before.
        let (mut dx, mut dw) = unsafe { (unwritten(if wants_x { m * k } else { 0 }), unwritten(k * n)) };
        let rows = m.div_ceil(parts);
        let db = with(x, |x| {
            with(w, |w| {
                with_scratch((parts - 1) * k * n, |sums| {
                    let places = std::iter::once(&mut *dw).chain(sums.chunks_exact_mut(k * n)).collect::<Vec<_>>();
                    let operands = places.into_par_iter().zip(x.par_chunks(rows * k)).zip(dy.par_chunks(rows * n)).enumerate();
                    let db = if wants_x {
                        kernel::with_panels(n, k, Matrix::new(w, n).t(), |w| {
                            let part = |((i, ((dw, x), dy)), dx)| self.backward_part([x, dy], i * rows, Some((w, dx)), dw, wants_bias);
                            operands.zip(dx.par_chunks_mut(rows * k)).gather(part)
                        })
                    } else {
                        operands.gather(|(i, ((dw, x), dy))| self.backward_part([x, dy], i * rows, None, dw, wants_bias))
                    };
                    for sum in sums.chunks_exact(k * n) {
                        vectorised!(add(&mut dw, sum));
                    }
                    Ok(db)
                })
            })
        })?;
        let db = bias.filter(|_| wants_bias).map(|bias| gradient(kernel::add_up(db), bias)).transpose()?;
        Ok([wants_x.then(|| gradient(dx, x)).transpose()?, Some(gradient(dw, w)?), db])
    }

    /// Gradients of the rows from `first` on of x, and the sums over these rows that are those of w, in `dw`, and of the bias.
    fn backward_part(
        &self,
        [x, dy]: [&[f32]; 2],
        first: usize,
        mut wt_and_dx: Option<(&Panels<'_>, &mut [f32])>,
        dw: &mut [f32],
        wants_bias: bool,
    ) -> Vec<f32> {
        let &Self { k, n, .. } = self;
        let mut db = vec![0.0; if wants_bias { n } else { 0 }];
        let slope = self.slope.get();
        with_scratch(if slope.is_some() { FEW_ROWS * n } else { 0 }, |inner| {
            for (chunk, (x, dy)) in x.chunks(FEW_ROWS * k).zip(dy.chunks(FEW_ROWS * n)).enumerate() {
                let dy = match slope {
                    None => dy,
                    Some(slope) => {
                        let slope = &slope[(first + chunk * FEW_ROWS) * n..][..dy.len()];
                        vectorised!(for ((inner, slope), d) in inner.iter_mut().zip(slope).zip(dy) {
                            *inner = d * slope;
                        });
                        &inner[..dy.len()]
                    }
                };
                if wants_bias {
                    vectorised!(for dy in dy.chunks_exact(n) {
                        add(&mut db, dy);
                    });
                }
                let rows = dy.len() / n;
                // Twice: the first product may drive it out of the second-level cache again.
                kernel::prefetch(x);
                if let Some((wt, dx)) = &mut wt_and_dx {
                    kernel::gemm_panels(rows, &mut dx[chunk * FEW_ROWS * k..], k, false, Matrix::new(dy, n), wt);
                }
                kernel::prefetch(x);
                kernel::gemm(k, n, rows, dw, n, chunk > 0, Matrix::new(x, k).t(), Matrix::new(dy, n));
            }
        });
        db
    }

    /// [`backward`](Self::backward), one after the other.
    fn backward_apart(&self, x: &Tensor, w: &Tensor, bias: Option<&Tensor>, dy: &[f32]) -> Result<[Option<Tensor>; 3]> {
        let &Self { m, k, n, .. } = self;
        let inner;
        let dy = match self.slope.get() {
            None => dy,
            Some(slope) => {
                inner = map2(slope, dy, |slope, d| d * slope);
                &inner
            }
        };
        let dx = || {
            // SAFETY: as in the forward pass.
            let mut dx = unsafe { unwritten(m * k) };
            with(w, |w| {
                kernel::matmul(m, k, n, &mut dx, Matrix::new(dy, n), Matrix::new(w, n).t());
                Ok(())
            })?;
            gradient(dx, x)
        };
        let dw = || {
            // SAFETY: as in the forward pass.
            let mut dw = unsafe { unwritten(k * n) };
            with(x, |x| {
                kernel::matmul(k, n, m, &mut dw, Matrix::new(x, k).t(), Matrix::new(dy, n));
                Ok(())
            })?;
            gradient(dw, w)
        };
        let db = |bias: &Tensor| gradient(column_sums(dy, n), bias);
        let db = bias.filter(|bias| bias.track_op()).map(db).transpose()?;
        Ok([x.track_op().then(dx).transpose()?, w.track_op().then(dw).transpose()?, db])
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(slice(x, lx)?, slice(w, lw)?, None, None)
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
        self.forward(slice(x, lx)?, slice(w, lw)?, Some(slice(b, lb)?), None)
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
    if let Some(bias) = bias.filter(|bias| bias.dims() != [n]) {
        bail!("linear: a bias {:?} does not fit {n} results", bias.shape());
    }
    let m = x.elem_count() / k;
    let keeps = x.track_op() || w.track_op() || bias.is_some_and(Tensor::track_op);
    let (x, op) = (reshape(x, (m, k))?, Linear::new([m, k, n], gelu, keeps));
    if composed::wanted(&x) {
        let y = composed::linear(&x, w, bias)?;
        return reshape(&if gelu { super::gelu_erf(&y)? } else { y }, dims);
    }
    let y = match bias {
        None => apply2(&x, w, op)?,
        Some(bias) => apply3(&x, w, bias, op)?,
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

/// [`linear`] and then the sum with `more`, in one pass where no gradients can be asked for.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear_add(x: &Tensor, w: &Tensor, bias: &Tensor, more: &Tensor) -> Result<Tensor> {
    let (k, n) = w.dims2()?;
    let m = x.elem_count() / k.max(1);
    let fits = x.dims().last() == Some(&k) && bias.dims() == [n] && x.rank() == more.rank() && more.elem_count() == m * n;
    if !fits || [x, w, bias, more].into_iter().any(Tensor::track_op) || composed::wanted(x) {
        return add_tensors(&linear(x, w, Some(bias))?, more);
    }
    let op = Linear::new([m, k, n], false, false);
    let of = |x: &[f32], more: &[f32]| with(w, |w| with(bias, |bias| op.forward(x, w, Some(bias), Some(more))));
    let (y, _) = with(x, |x| with(more, |more| of(x, more)))?;
    let CpuStorage::F32(y) = y else { bail!("linear: another type than that of the operands") };
    Tensor::from_vec(y, more.shape(), x.device())
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
        // SAFETY: every product writes its part, and does not read what was there.
        let mut y = unsafe { unwritten(b * m * n) };
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
    if composed::wanted(x) {
        return composed::matmul(x, y, transpose_right);
    }
    apply2(x, y, Batched { b, m, k, n, transpose: transpose_right })
}
