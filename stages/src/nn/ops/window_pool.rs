//! Pooling of NHWC images over windows that may overlap.
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

/// Channels that go through registers at once.
const LANES: usize = 16;

/// Where the windows of a pool lie along one side of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Side {
    /// First place and the one behind the last, inside the image, of every window.
    spans: Vec<(usize, usize)>,
    /// Places of the image.
    size: usize,
}

impl Side {
    /// Windows of `k` every `stride`, with `pad` in front and behind; `ceil` keeps a last window that hangs over.
    fn strided(size: usize, k: usize, stride: usize, pad: usize, ceil: bool) -> Option<Self> {
        if k == 0 || stride == 0 || 2 * pad > k || size + 2 * pad < k {
            return None;
        }
        let room = size + 2 * pad - k;
        let mut count = if ceil { room.div_ceil(stride) } else { room / stride } + 1;
        // As in PyTorch, a window must begin inside the image or the padding in front of it.
        if (count - 1) * stride >= size + pad {
            count -= 1;
        }
        let spans = (0..count).map(|i| ((i * stride).saturating_sub(pad), (i * stride + k).saturating_sub(pad).min(size))).collect();
        Some(Self { spans, size })
    }

    /// `count` windows that cover the side evenly: from ⌊i·size/count⌋ to ⌈(i + 1)·size/count⌉.
    fn adaptive(size: usize, count: usize) -> Option<Self> {
        let spans = (0..count).map(|i| (i * size / count, ((i + 1) * size).div_ceil(count))).collect();
        (size > 0 && count > 0).then_some(Self { spans, size })
    }
}

/// Where the pixels of a window begin, row by row.
#[derive(Clone)]
struct Pixels {
    y: usize,
    x: usize,
    left: usize,
    right: usize,
    bottom: usize,
    row: usize,
    c: usize,
}

impl Iterator for Pixels {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        if self.x >= self.right {
            self.x = self.left;
            self.y += 1;
        }
        if self.y >= self.bottom || self.left >= self.right {
            return None;
        }
        self.x += 1;
        Some((self.y * self.row + self.x - 1) * self.c)
    }
}

/// The windows of a pool.
struct Windows {
    down: Side,
    across: Side,
    c: usize,
}

impl Windows {
    fn image(&self) -> usize {
        self.down.size * self.across.size * self.c
    }

    fn pooled(&self) -> usize {
        self.down.spans.len() * self.across.spans.len() * self.c
    }

    /// Calls `f(window, pixels)` for every window, `pixels` giving where its values begin in the image.
    #[inline(always)]
    fn each(&self, mut f: impl FnMut(usize, Pixels)) {
        let mut window = 0;
        for &(top, bottom) in &self.down.spans {
            for &(left, right) in &self.across.spans {
                f(window, Pixels { y: top, x: left, left, right, bottom, row: self.across.size, c: self.c });
                window += 1;
            }
        }
    }

    fn result(&self, y: Vec<f32>) -> Result<(CpuStorage, Shape)> {
        let n = y.len() / self.pooled();
        output(y, (n, self.down.spans.len(), self.across.spans.len(), self.c))
    }
}

/// The largest value of each window.
struct MaxPool {
    windows: Windows,
    /// Whether somebody may ask for gradients.
    keeps: bool,
    /// Which place of the window it had, counted over the places inside the image.
    largest: OnceLock<Vec<u8>>,
}

impl MaxPool {
    /// The values alone.
    fn values(&self, x: &[f32]) -> Vec<f32> {
        let windows = &self.windows;
        let (image, pooled, c) = (windows.image(), windows.pooled(), windows.c);
        // SAFETY: every value of every window is written.
        let mut y = unsafe { unwritten(x.len() / image * pooled) };
        y.par_chunks_mut(pooled).zip(x.par_chunks(image)).run(|(y, x)| {
            vectorised!(windows.each(
                #[inline(always)]
                |window, pixels| {
                    let (blocks, rest) = y[window * c..][..c].as_chunks_mut::<LANES>();
                    for (i, y) in blocks.iter_mut().enumerate() {
                        // In registers until the last pixel.
                        let mut largest = [f32::NEG_INFINITY; LANES];
                        for pixel in pixels.clone() {
                            let x = &x[pixel + i * LANES..][..LANES];
                            for lane in 0..LANES {
                                largest[lane] = if is_more(x[lane], largest[lane]) { x[lane] } else { largest[lane] };
                            }
                        }
                        *y = largest;
                    }
                    rest.fill(f32::NEG_INFINITY);
                    for pixel in pixels {
                        for (y, x) in rest.iter_mut().zip(&x[pixel + c / LANES * LANES..]) {
                            *y = if is_more(*x, *y) { *x } else { *y };
                        }
                    }
                }
            ));
        });
        y
    }
}

/// Whether `x` takes the place of the largest so far. What is not a number stays, so that a diverged model is noticed.
#[inline(always)]
fn is_more(x: f32, largest: f32) -> bool {
    x > largest || x.is_nan()
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, windows) = (slice(x, lx)?, &self.windows);
        if !self.keeps {
            return windows.result(self.values(x));
        }
        let (image, pooled, c) = (windows.image(), windows.pooled(), windows.c);
        let mut y = vec![f32::NEG_INFINITY; x.len() / image * pooled];
        let mut largest = vec![0u8; y.len()];
        y.par_chunks_mut(pooled).zip(largest.par_chunks_mut(pooled)).zip(x.par_chunks(image)).run(|((y, largest), x)| {
            vectorised!(windows.each(
                #[inline(always)]
                |window, pixels| {
                    let (y, largest) = (&mut y[window * c..][..c], &mut largest[window * c..][..c]);
                    for (place, pixel) in pixels.enumerate() {
                        for ((y, l), x) in y.iter_mut().zip(largest.iter_mut()).zip(&x[pixel..][..c]) {
                            let more = is_more(*x, *y);
                            *y = if more { *x } else { *y };
                            *l = if more { place as u8 } else { *l };
                        }
                    }
                }
            ));
        });
        // A second forward pass of one op does not happen: every call makes its own.
        let _ = self.largest.set(largest);
        windows.result(y)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let Some(largest) = self.largest.get() else { bail!("max_pool: backward before forward") };
        let windows = &self.windows;
        let (image, pooled, c) = (windows.image(), windows.pooled(), windows.c);
        let mut dx = vec![0.0; x.elem_count()];
        with(dy, |dy| {
            dx.par_chunks_mut(image).zip(dy.par_chunks(pooled)).zip(largest.par_chunks(pooled)).run(|((dx, dy), largest)| {
                vectorised!(windows.each(
                    #[inline(always)]
                    |window, pixels| {
                        let (dy, largest) = (&dy[window * c..][..c], &largest[window * c..][..c]);
                        for (place, pixel) in pixels.enumerate() {
                            for ((dx, dy), l) in dx[pixel..][..c].iter_mut().zip(dy).zip(largest) {
                                *dx += if *l == place as u8 { *dy } else { 0.0 };
                            }
                        }
                    }
                ));
            });
            Ok(())
        })?;
        gradient(dx, x).map(Some)
    }
}

/// The mean of each window, over its places inside the image.
struct AvgPool {
    windows: Windows,
    /// Divides every sum; without it the number of places does.
    divisor: Option<usize>,
}

impl AvgPool {
    /// What a value of each window weighs.
    fn weights(&self) -> Vec<f32> {
        let mut weights = Vec::new();
        self.windows.each(|_, pixels| weights.push(1.0 / self.divisor.unwrap_or_else(|| pixels.count()) as f32));
        weights
    }

    /// For every window what every place of an image weighs.
    fn all_weights(&self) -> Vec<f32> {
        let (weights, c) = (self.weights(), self.windows.c);
        let places = self.windows.image() / c;
        let mut all = vec![0.0; weights.len() * places];
        self.windows.each(|window, pixels| pixels.for_each(|pixel| all[window * places + pixel / c] = weights[window]));
        all
    }

    fn apply(self, x: &Tensor) -> Result<Tensor> {
        if composed::wanted(x) {
            let out = [self.windows.down.spans.len(), self.windows.across.spans.len()];
            return composed::weighted_pool("avg_pool", x, self.all_weights(), out);
        }
        apply1(x, self)
    }
}

impl CustomOp1 for AvgPool {
    fn name(&self) -> &'static str {
        "avg_pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, windows) = (slice(x, lx)?, &self.windows);
        let (image, pooled, c) = (windows.image(), windows.pooled(), windows.c);
        let weights = self.weights();
        let mut y = vec![0.0; x.len() / image * pooled];
        y.par_chunks_mut(pooled).zip(x.par_chunks(image)).run(|(y, x)| {
            windows.each(|window, pixels| {
                let y = &mut y[window * c..][..c];
                for pixel in pixels {
                    let x = &x[pixel..][..c];
                    vectorised!(add(y, x));
                }
                y.iter_mut().for_each(|y| *y *= weights[window]);
            });
        });
        windows.result(y)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let windows = &self.windows;
        let (image, pooled, c) = (windows.image(), windows.pooled(), windows.c);
        let weights = self.weights();
        let mut dx = vec![0.0; x.elem_count()];
        with(dy, |dy| {
            dx.par_chunks_mut(image).zip(dy.par_chunks(pooled)).run(|(dx, dy)| {
                windows.each(|window, pixels| {
                    let (dy, weight) = (&dy[window * c..][..c], weights[window]);
                    for pixel in pixels {
                        let dx = &mut dx[pixel..][..c];
                        vectorised!(for (dx, dy) in dx.iter_mut().zip(dy) {
                            *dx += dy * weight;
                        });
                    }
                });
            });
            Ok(())
        })?;
        gradient(dx, x).map(Some)
    }
}

fn windows(name: &str, x: &Tensor, side: impl Fn(usize) -> Option<Side>) -> Result<Windows> {
    let (_, h, w, c) = x.dims4()?;
    match (side(h), side(w)) {
        (Some(down), Some(across)) if x.elem_count() > 0 => Ok(Windows { down, across, c }),
        _ => bail!("{name}: the windows do not fit {:?}; a padding is at most half a window", x.shape()),
    }
}

/// Maximum over windows of `k × k` every `stride` pixels of `[n, h, w, c]`, with `pad` pixels of −∞ around: `[n, h', w', c]`,
/// `h' = (h + 2·pad − k) / stride + 1`, rounded up with `ceil`. Of equal values the first gets the gradient.
///
/// # Errors
/// If the windows do not fit the images, or hold more than 255 pixels.
pub fn max_pool(x: &Tensor, k: usize, stride: usize, pad: usize, ceil: bool) -> Result<Tensor> {
    if k * k > 255 {
        bail!("max_pool: a window of {k}×{k} is too large, 15×15 is the largest");
    }
    let windows = windows("max_pool", x, |size| Side::strided(size, k, stride, pad, ceil))?;
    if composed::wanted(x) {
        let (image, out) = ([windows.down.size, windows.across.size], [windows.down.spans.len(), windows.across.spans.len()]);
        return composed::max_pool(x, Taps { image, kernel: [k; 2], stride: [stride; 2], pad: [pad; 2], out });
    }
    apply1(x, MaxPool { windows, keeps: x.track_op(), largest: OnceLock::new() })
}

/// Mean over windows of `k × k` every `stride` pixels of `[n, h, w, c]`, with `pad` zeros around, which count if `count_pad` is set.
///
/// # Errors
/// If the windows do not fit the images.
pub fn avg_pool(x: &Tensor, k: usize, stride: usize, pad: usize, count_pad: bool) -> Result<Tensor> {
    let windows = windows("avg_pool", x, |size| Side::strided(size, k, stride, pad, false))?;
    AvgPool { windows, divisor: count_pad.then_some(k * k) }.apply(x)
}

/// Means over `h' × w'` windows that cover the images evenly, as PyTorch's adaptive pooling: `[n, h', w', c]`.
///
/// # Errors
/// If a size is 0.
pub fn adaptive_avg_pool(x: &Tensor, size: [usize; 2]) -> Result<Tensor> {
    let (_, h, w, c) = x.dims4()?;
    let (Some(down), Some(across)) = (Side::adaptive(h, size[0]), Side::adaptive(w, size[1])) else {
        bail!("adaptive_avg_pool: {:?} cannot become {size:?}", x.shape());
    };
    AvgPool { windows: Windows { down, across, c }, divisor: None }.apply(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_lie_where_pytorch_puts_them() {
        let spans = |size, k, stride, pad, ceil| Side::strided(size, k, stride, pad, ceil).map(|side| side.spans);
        assert_eq!(spans(6, 3, 2, 1, false), Some(vec![(0, 2), (1, 4), (3, 6)]));
        assert_eq!(spans(6, 3, 2, 0, true), Some(vec![(0, 3), (2, 5), (4, 6)]));
        assert_eq!(spans(6, 3, 2, 0, false), Some(vec![(0, 3), (2, 5)]));
        // A window that would begin behind the image is left out even with `ceil`.
        assert_eq!(spans(2, 1, 3, 0, true), Some(vec![(0, 1)]));
        assert_eq!(spans(2, 3, 1, 0, false), None);
        assert_eq!(spans(9, 2, 1, 2, false), None);
        assert_eq!(Side::adaptive(7, 3).map(|side| side.spans), Some(vec![(0, 3), (2, 5), (4, 7)]));
    }
}
