//! Softmax.

use crate::nn::parallel::Parallel;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use crate::nn::composed;
use crate::nn::math::exp;
use crate::nn::storage::{gradient, output, slice, with};
use crate::nn::tape::apply1;

/// Values that one task takes, in whole rows.
const CHUNK: usize = 1 << 13;

/// Softmax over rows of `width`.
struct Softmax {
    width: usize,
}

impl Softmax {
    fn chunk(&self) -> usize {
        (CHUNK / self.width).max(1) * self.width
    }
}

/// Softmax of one row, in place.
pub(super) fn softmax_row(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter_mut().for_each(|v| *v = exp(*v - max));
    let sum: f32 = row.iter().sum();
    row.iter_mut().for_each(|v| *v /= sum);
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = slice(x, lx)?.to_vec();
        y.par_chunks_mut(self.chunk()).run(|chunk| chunk.chunks_exact_mut(self.width).for_each(softmax_row));
        output(y, lx.shape().clone())
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let mut dx = vec![0.0; y.elem_count()];
        with(y, |y| {
            with(dy, |dy| {
                dx.par_chunks_mut(self.chunk()).zip(y.par_chunks(self.chunk())).zip(dy.par_chunks(self.chunk())).run(|((dx, y), dy)| {
                    for ((dx, y), dy) in dx.chunks_exact_mut(self.width).zip(y.chunks_exact(self.width)).zip(dy.chunks_exact(self.width)) {
                        let dot: f32 = y.iter().zip(dy).map(|(y, d)| y * d).sum();
                        dx.iter_mut().zip(y).zip(dy).for_each(|((dx, y), d)| *dx = y * (d - dot));
                    }
                });
                Ok(())
            })
        })?;
        gradient(dx, y).map(Some)
    }
}

/// Softmax over the last dimension.
///
/// # Errors
/// If `x` holds no floating-point numbers.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let width = x.dim(candle_core::D::Minus1)?;
    if composed::wanted(x) {
        return composed::softmax(x);
    }
    apply1(x, Softmax { width })
}
