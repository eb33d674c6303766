//! Pooling and upsampling of NHWC images.

#![allow(unsafe_code, reason = "results that are written whole need not be filled with zeros first")]

use std::sync::OnceLock;

use crate::nn::parallel::Parallel;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::nn::composed::{self, Taps};
use crate::nn::kernel::add;
use crate::nn::simd::vectorised;
use crate::nn::storage::{gradient, output, slice, unwritten, with};
use crate::nn::tape::apply1;

/// The values of one image.
type Image<'a> = &'a [f32];

/// Maximum of each 2×2 square.
struct MaxPool2 {
    h: usize,
    w: usize,
    c: usize,
    /// Which of the four was the largest, for the way back.
    largest: OnceLock<Vec<u8>>,
}

impl MaxPool2 {
    #[inline(always)]
    fn image(&self, x: Image<'_>, y: &mut [f32], largest: &mut [u8]) {
        let (w, c) = (self.w, self.c);
        for (cell, (y, largest)) in y.chunks_exact_mut(c).zip(largest.chunks_exact_mut(c)).enumerate() {
            let (i, j) = (cell / (w / 2) * 2, cell % (w / 2) * 2);
            y.copy_from_slice(&x[(i * w + j) * c..][..c]);
            largest.fill(0);
            for (k, (di, dj)) in [(0, 1), (1, 0), (1, 1)].into_iter().enumerate() {
                let other = &x[((i + di) * w + j + dj) * c..][..c];
                for ((y, l), o) in y.iter_mut().zip(largest.iter_mut()).zip(other) {
                    if *o > *y || o.is_nan() {
                        *y = *o;
                        *l = k as u8 + 1;
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn image_back(&self, dy: Image<'_>, largest: &[u8], dx: &mut [f32]) {
        let (w, c) = (self.w, self.c);
        for (cell, (dy, largest)) in dy.chunks_exact(c).zip(largest.chunks_exact(c)).enumerate() {
            let (i, j) = (cell / (w / 2) * 2, cell % (w / 2) * 2);
            for k in 0..4 {
                let dx = &mut dx[((i + k / 2) * w + j + k % 2) * c..][..c];
                for ((dx, dy), l) in dx.iter_mut().zip(dy).zip(largest) {
                    *dx = if usize::from(*l) == k { *dy } else { 0.0 };
                }
            }
        }
    }
}

impl CustomOp1 for MaxPool2 {
    fn name(&self) -> &'static str {
        "max_pool2"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, size) = (slice(x, lx)?, self.h * self.w * self.c);
        // SAFETY: every 2×2 square of every image is written; the sides are even.
        let mut y = unsafe { unwritten(x.len() / 4) };
        let mut largest = vec![0u8; y.len()];
        y.par_chunks_mut(size / 4).zip(largest.par_chunks_mut(size / 4)).zip(x.par_chunks(size)).run(|((y, l), x)| {
            vectorised!(self.image(x, y, l));
        });
        // A second forward pass of one op does not happen: every call of `max_pool2` makes its own.
        let _ = self.largest.set(largest);
        output(y, (x.len() / size, self.h / 2, self.w / 2, self.c))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let Some(largest) = self.largest.get() else { bail!("max_pool2: backward before forward") };
        let size = self.h * self.w * self.c;
        // SAFETY: as in the forward pass.
        let mut dx = unsafe { unwritten(x.elem_count()) };
        with(dy, |dy| {
            dx.par_chunks_mut(size).zip(dy.par_chunks(size / 4)).zip(largest.par_chunks(size / 4)).run(|((dx, dy), l)| {
                vectorised!(self.image_back(dy, l, dx));
            });
            Ok(())
        })?;
        gradient(dx, x).map(Some)
    }
}

/// Maximum over 2×2 squares of `[n, h, w, c]`, both `h` and `w` even: `[n, h/2, w/2, c]`. Of equal values the first gets the gradient.
///
/// # Errors
/// If a side is odd.
pub fn max_pool2(x: &Tensor) -> Result<Tensor> {
    let (_, h, w, c) = x.dims4()?;
    if h % 2 + w % 2 != 0 {
        bail!("max_pool2: {h}×{w} is not even");
    }
    if composed::wanted(x) {
        return composed::max_pool(x, Taps { image: [h, w], kernel: [2; 2], stride: [2; 2], pad: [0; 2], out: [h / 2, w / 2] });
    }
    apply1(x, MaxPool2 { h, w, c, largest: OnceLock::new() })
}

/// Mean over all pixels.
struct GlobalAvgPool {
    pixels: usize,
    c: usize,
}

impl CustomOp1 for GlobalAvgPool {
    fn name(&self) -> &'static str {
        "global_avg_pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, c) = (slice(x, lx)?, self.c);
        let n = x.len() / (self.pixels * c);
        let mut y = vec![0.0; n * c];
        y.par_chunks_mut(c).zip(x.par_chunks(self.pixels * c)).run(|(y, x)| {
            vectorised!({
                for x in x.chunks_exact(c) {
                    add(y, x);
                }
                for y in y {
                    *y /= self.pixels as f32;
                }
            });
        });
        output(y, (n, c))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let c = self.c;
        let mut dx = vec![0.0; x.elem_count()];
        with(dy, |dy| {
            dx.par_chunks_mut(self.pixels * c).zip(dy.par_chunks(c)).run(|(dx, dy)| {
                vectorised!(for dx in dx.chunks_exact_mut(c) {
                    for (dx, dy) in dx.iter_mut().zip(dy) {
                        *dx = dy / self.pixels as f32;
                    }
                });
            });
            Ok(())
        })?;
        gradient(dx, x).map(Some)
    }
}

/// Mean over the pixels of `[n, h, w, c]`: `[n, c]`.
///
/// # Errors
/// If `x` does not have four dimensions.
pub fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    let (_, h, w, c) = x.dims4()?;
    if composed::wanted(x) {
        return composed::global_avg_pool(x);
    }
    apply1(x, GlobalAvgPool { pixels: h * w, c })
}

/// Every pixel becomes a 2×2 square.
struct Upsample2 {
    h: usize,
    w: usize,
    c: usize,
}

impl CustomOp1 for Upsample2 {
    fn name(&self) -> &'static str {
        "upsample2"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, &Self { h, w, c }) = (slice(x, lx)?, self);
        let mut y = vec![0.0; x.len() * 4];
        y.par_chunks_mut(2 * w * c).enumerate().run(|(row, y)| {
            let (image, i) = (row / (2 * h), row % (2 * h) / 2);
            let x = &x[(image * h + i) * w * c..][..w * c];
            y.chunks_exact_mut(2 * c).zip(x.chunks_exact(c)).for_each(|(y, x)| y.chunks_exact_mut(c).for_each(|y| y.copy_from_slice(x)));
        });
        output(y, (x.len() / (h * w * c), 2 * h, 2 * w, c))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let &Self { w, c, .. } = self;
        let mut dx = vec![0.0; x.elem_count()];
        with(dy, |dy| {
            dx.par_chunks_mut(w * c).zip(dy.par_chunks(4 * w * c)).run(|(dx, dy)| {
                vectorised!(for (j, dx) in dx.chunks_exact_mut(c).enumerate() {
                    for place in [2 * j, 2 * j + 1, 2 * (w + j), 2 * (w + j) + 1] {
                        add(dx, &dy[place * c..][..c]);
                    }
                });
            });
            Ok(())
        })?;
        gradient(dx, x).map(Some)
    }
}

/// Nearest-neighbour upsampling of `[n, h, w, c]` by 2.
///
/// # Errors
/// If `x` does not have four dimensions.
pub fn upsample2(x: &Tensor) -> Result<Tensor> {
    let (_, h, w, c) = x.dims4()?;
    if composed::wanted(x) {
        return composed::upsample2(x);
    }
    apply1(x, Upsample2 { h, w, c })
}

/// Every pixel's channels become a 2×2 square of pixels.
struct PixelShuffle2 {
    w: usize,
    /// Channels of the result.
    c: usize,
}

impl PixelShuffle2 {
    /// Calls `f(large, small)` with where each run of `c` values begins in the large image's two rows and in the row of squares.
    fn runs(&self, mut f: impl FnMut(usize, usize)) {
        for j in 0..self.w {
            for place in 0..4 {
                f(((place / 2) * 2 * self.w + 2 * j + place % 2) * self.c, (4 * j + place) * self.c);
            }
        }
    }
}

impl CustomOp1 for PixelShuffle2 {
    fn name(&self) -> &'static str {
        "pixel_shuffle2"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, h, w, _) = lx.shape().dims4()?;
        let (x, c, row) = (slice(x, lx)?, self.c, 4 * self.w * self.c);
        let mut y = vec![0.0; x.len()];
        y.par_chunks_mut(row).zip(x.par_chunks(row)).run(|(y, x)| {
            self.runs(|large, small| y[large..large + c].copy_from_slice(&x[small..small + c]));
        });
        output(y, (n, 2 * h, 2 * w, c))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (c, row) = (self.c, 4 * self.w * self.c);
        let mut dx = vec![0.0; x.elem_count()];
        with(dy, |dy| {
            dx.par_chunks_mut(row).zip(dy.par_chunks(row)).run(|(dx, dy)| {
                self.runs(|large, small| dx[small..small + c].copy_from_slice(&dy[large..large + c]));
            });
            Ok(())
        })?;
        gradient(dx, x).map(Some)
    }
}

/// `[n, h, w, 4·c]` to `[n, 2·h, 2·w, c]`: a pixel's channels, in four parts, are the pixels of a 2×2 square.
///
/// # Errors
/// If the channels are no multiple of 4.
pub fn pixel_shuffle2(x: &Tensor) -> Result<Tensor> {
    let (_, _, w, c) = x.dims4()?;
    if c == 0 || !c.is_multiple_of(4) {
        bail!("pixel_shuffle2: {c} channels are no multiple of 4");
    }
    if composed::wanted(x) {
        return composed::pixel_shuffle2(x);
    }
    apply1(x, PixelShuffle2 { w, c: c / 4 })
}
