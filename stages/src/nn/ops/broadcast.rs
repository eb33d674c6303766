//! Small tensors repeated over large ones. candle's own sums for their gradients run on one thread, with a division for every value.

#![allow(unsafe_code, reason = "results that are written whole need not be filled with zeros first")]

use crate::nn::parallel::Parallel;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::nn::composed;
use crate::nn::kernel::column_sums;
use crate::nn::simd::vectorised;
use crate::nn::storage::{gradient, output, slice, unwritten, with};
use crate::nn::tape::apply2;

/// Values that one task takes, in whole rows.
const CHUNK: usize = 1 << 14;

/// `f(row, b)` of every row of `x` as long as `b`.
fn by_row(x: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    let size = (CHUNK / b.len()).max(1) * b.len();
    assert!(x.len().is_multiple_of(b.len()), "`rows` has compared the shapes");
    // SAFETY: the chunks below are all of y, in whole rows, and each is written whole.
    let mut y = unsafe { unwritten(x.len()) };
    y.par_chunks_mut(size).zip(x.par_chunks(size)).run(|(y, x)| {
        vectorised!(for (y, x) in y.chunks_exact_mut(b.len()).zip(x.chunks_exact(b.len())) {
            for ((y, x), b) in y.iter_mut().zip(x).zip(b) {
                *y = f(*x, *b);
            }
        });
    });
    y
}

/// The end of `x`'s shape is that of `b`: `x + b`, or `x · b`.
struct Rows {
    product: bool,
}

impl CustomOp2 for Rows {
    fn name(&self) -> &'static str {
        if self.product { "scale" } else { "bias_add" }
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, b) = (slice(x, lx)?, slice(b, lb)?);
        output(if self.product { by_row(x, b, |x, b| x * b) } else { by_row(x, b, |x, b| x + b) }, lx.shape().clone())
    }

    fn bwd(&self, x: &Tensor, b: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        with(dy, |d| {
            let sums = |values: &[f32]| gradient(column_sums(values, b.elem_count()), b);
            if !self.product {
                return Ok((Some(dy.clone()), b.track_op().then(|| sums(d)).transpose()?));
            }
            let dx = || gradient(with(b, |b| Ok(by_row(d, b, |d, b| d * b)))?, x);
            let db = || sums(&with(x, |x| Ok(crate::nn::math::map2(x, d, |x, d| x * d)))?);
            Ok((x.track_op().then(dx).transpose()?, b.track_op().then(db).transpose()?))
        })
    }
}

fn rows(name: &'static str, x: &Tensor, b: &Tensor, product: bool) -> Result<Tensor> {
    if b.elem_count() == 0 || !x.dims().ends_with(b.dims()) {
        bail!("{name}: {:?} is not the end of {:?}", b.shape(), x.shape());
    }
    if composed::wanted(x) {
        return composed::rows(name, x, b, product);
    }
    apply2(x, b, Rows { product })
}

/// `x + b`, where the shape of `b` is the end of `x`'s: a bias `[c]`, or a table of positions `[t, d]`.
///
/// # Errors
/// If it is not.
pub fn bias_add(x: &Tensor, b: &Tensor) -> Result<Tensor> {
    rows("bias_add", x, b, false)
}

/// `x · s`, where the shape of `s` is the end of `x`'s: a factor for every channel.
///
/// # Errors
/// If it is not.
pub fn scale(x: &Tensor, s: &Tensor) -> Result<Tensor> {
    rows("scale", x, s, true)
}

/// `x · s`, or `x + s`, with a value for every channel of every sample.
struct Samples {
    product: bool,
    /// Values of a sample.
    size: usize,
    c: usize,
}

impl Samples {
    fn each(&self, x: &[f32], s: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
        assert!(x.len() * self.c == s.len() * self.size, "`samples` has compared the shapes");
        // SAFETY: the chunks below are whole samples, all of y, and each is written whole.
        let mut y = unsafe { unwritten(x.len()) };
        y.par_chunks_mut(self.size).zip(x.par_chunks(self.size)).zip(s.par_chunks(self.c)).run(|((y, x), s)| {
            vectorised!(for (y, x) in y.chunks_exact_mut(self.c).zip(x.chunks_exact(self.c)) {
                for ((y, x), s) in y.iter_mut().zip(x).zip(s) {
                    *y = f(*x, *s);
                }
            });
        });
        y
    }
}

impl Samples {
    /// Of every channel of every sample the sum of `f(x, dy)` over the pixels.
    fn sums(&self, x: &[f32], dy: &[f32], count: usize, f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
        let mut ds = vec![0.0; count];
        ds.par_chunks_mut(self.c).zip(x.par_chunks(self.size)).zip(dy.par_chunks(self.size)).run(|((ds, x), dy)| {
            vectorised!(for (x, dy) in x.chunks_exact(self.c).zip(dy.chunks_exact(self.c)) {
                for ((ds, x), dy) in ds.iter_mut().zip(x).zip(dy) {
                    *ds += f(*x, *dy);
                }
            });
        });
        ds
    }
}

impl CustomOp2 for Samples {
    fn name(&self) -> &'static str {
        if self.product { "scale_samples" } else { "add_samples" }
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, s: &CpuStorage, ls: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, s) = (slice(x, lx)?, slice(s, ls)?);
        output(if self.product { self.each(x, s, |x, s| x * s) } else { self.each(x, s, |x, s| x + s) }, lx.shape().clone())
    }

    fn bwd(&self, x: &Tensor, s: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = || match self.product {
            false => Ok(dy.clone()),
            true => with(dy, |dy| gradient(with(s, |s| Ok(self.each(dy, s, |d, s| d * s)))?, x)),
        };
        let ds = || {
            let ds = with(dy, |dy| match self.product {
                false => Ok(self.sums(dy, dy, s.elem_count(), |_, d| d)),
                true => with(x, |x| Ok(self.sums(x, dy, s.elem_count(), |x, d| x * d))),
            })?;
            gradient(ds, s)
        };
        Ok((x.track_op().then(dx).transpose()?, s.track_op().then(ds).transpose()?))
    }
}

fn samples(name: &'static str, x: &Tensor, s: &Tensor, product: bool) -> Result<Tensor> {
    let (n, c) = (x.dim(0)?, x.dim(candle_core::D::Minus1)?);
    if x.elem_count() == 0 || s.dims() != [n, c] {
        bail!("{name}: values {:?} for every channel of every sample do not fit {:?}", s.shape(), x.shape());
    }
    if composed::wanted(x) {
        return composed::samples(name, x, s, product);
    }
    apply2(x, s, Samples { product, size: x.elem_count() / n, c })
}

/// `x` `[n, …, c]` with every channel of every sample times its factor in `s` `[n, c]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn scale_samples(x: &Tensor, s: &Tensor) -> Result<Tensor> {
    samples("scale_samples", x, s, true)
}

/// `x` `[n, …, c]` with every channel of every sample moved by its value in `s` `[n, c]`.
///
/// # Errors
/// If the shapes do not fit.
pub fn add_samples(x: &Tensor, s: &Tensor) -> Result<Tensor> {
    samples("add_samples", x, s, false)
}
