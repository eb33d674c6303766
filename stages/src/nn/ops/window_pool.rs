//! Pooling of NHWC images over windows that may overlap.
#![allow(unsafe_code, reason = "results that are written whole need not be filled with zeros first")]

use std::sync::OnceLock;

use crate::nn::parallel::Parallel;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::nn::composed::{self, Taps};
use crate::nn::kernel::add;
use crate::nn::kernel::lanes::{Lanes, for_lanes};
use crate::nn::simd::vectorised;
use crate::nn::storage::{gradient, output, slice, unwritten, with};
use crate::nn::tape::apply1;

/// Values of the widest register.
const LANES: usize = 16;
/// Registers of channels that are looked at together, where there are as many.
const WIDE: usize = 4;

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

impl Pixels {
    /// The values of an image's rows under the window, each of neighbouring pixels.
    #[inline(always)]
    fn lines<'a>(&self, x: &'a [f32]) -> impl Iterator<Item = &'a [f32]> {
        let &Self { y, left, right, bottom, row, c, .. } = self;
        (y..bottom).map(move |y| &x[(y * row + left) * c..(y * row + right) * c])
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

/// Windows of `k × k` every `stride` pixels, with `pad` pixels of −∞ around; with `ceil` a last one may hang over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolWindow {
    /// Height and width.
    pub k: usize,
    /// Step down and to the right.
    pub stride: usize,
    /// Pixels in front and behind.
    pub pad: usize,
    /// Whether a last window may hang over.
    pub ceil: bool,
}

/// The largest value of each window.
pub(super) struct MaxPool {
    windows: Windows,
    /// Whether somebody may ask for gradients.
    keeps: bool,
    /// Which place of the window it had, counted over the places inside the image.
    largest: OnceLock<Vec<u8>>,
}

impl MaxPool {
    /// Over images `[n, h, w, c]`, without gradients.
    pub(super) fn over(images: [usize; 4], PoolWindow { k, stride, pad, ceil }: PoolWindow) -> Result<Self> {
        // Places in a window are kept as bytes.
        if k * k > 255 {
            bail!("max_pool: a window of {k}×{k} is too large, 15×15 is the largest");
        }
        let windows = windows("max_pool", images, |size| Side::strided(size, k, stride, pad, ceil))?;
        Ok(Self { windows, keeps: false, largest: OnceLock::new() })
    }

    /// Height and width of a result.
    pub(super) fn size(&self) -> [usize; 2] {
        [&self.windows.down, &self.windows.across].map(|side| side.spans.len())
    }

    /// Values of the result for an image.
    pub(super) fn values_of_image(&self) -> usize {
        self.windows.pooled()
    }

    /// The largest values of one image.
    pub(super) fn image_into(&self, x: &[f32], y: &mut [f32]) {
        // SAFETY: the machine has the lanes that were chosen.
        for_lanes!(V => unsafe { self.image::<V, false>(x, y, &mut []) });
    }

    /// One image: its largest values to `y`, and which places of the windows they have to `places`, unless that is empty as `KEEPS` says.
    ///
    /// # Safety
    /// The machine has the lanes.
    #[inline(always)]
    unsafe fn image<V: Lanes, const KEEPS: bool>(&self, x: &[f32], y: &mut [f32], places: &mut [u8]) {
        let c = self.windows.c;
        self.windows.each(
            #[inline(always)]
            |window, pixels| {
                let y = &mut y[window * c..][..c];
                let places = if KEEPS { &mut places[window * c..][..c] } else { &mut [] };
                let mut at = 0;
                // SAFETY: the caller's promise, and so many channels there are.
                unsafe {
                    while at + WIDE * V::COUNT <= c {
                        self.part::<V, WIDE, KEEPS>(x, &pixels, at, y, places);
                        at += WIDE * V::COUNT;
                    }
                    while at + V::COUNT <= c {
                        self.part::<V, 1, KEEPS>(x, &pixels, at, y, places);
                        at += V::COUNT;
                    }
                }
                y[at..].fill(f32::NEG_INFINITY);
                for (place, pixel) in pixels.enumerate() {
                    for channel in at..c {
                        if is_more(x[pixel + channel], y[channel]) {
                            y[channel] = x[pixel + channel];
                            if KEEPS {
                                places[channel] = place as u8;
                            }
                        }
                    }
                }
            },
        );
    }

    /// `W` registers of channels from `at` on of one window.
    ///
    /// # Safety
    /// The machine has the lanes, and a pixel, `y` and, if it is kept, `places` so many channels.
    #[inline(always)]
    unsafe fn part<V: Lanes, const W: usize, const KEEPS: bool>(
        &self,
        x: &[f32],
        pixels: &Pixels,
        at: usize,
        y: &mut [f32],
        places: &mut [u8],
    ) {
        let (mut largest, mut of_largest, mut place) = ([V::splat(f32::NEG_INFINITY); W], [V::zero(); W], 0u32);
        for line in pixels.lines(x) {
            for pixel in line.chunks_exact(self.windows.c) {
                // The bits of a number that nobody calculates with.
                let here = V::splat(f32::from_bits(place));
                for w in 0..W {
                    // SAFETY: the caller's promise.
                    let value = unsafe { V::load(pixel.as_ptr().add(at + w * V::COUNT)) };
                    (largest[w], of_largest[w]) = largest[w].larger(value, of_largest[w], here);
                }
                place += 1;
            }
        }
        for w in 0..W {
            let at = at + w * V::COUNT;
            // SAFETY: the caller's promise; no register is wider than the room.
            unsafe { largest[w].store(y.as_mut_ptr().add(at)) };
            if KEEPS {
                let mut values = [0.0; LANES];
                // SAFETY: as above.
                unsafe { of_largest[w].store(values.as_mut_ptr()) };
                for (to, place) in places[at..][..V::COUNT].iter_mut().zip(values) {
                    *to = place.to_bits() as u8;
                }
            }
        }
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
        let (image, pooled) = (windows.image(), windows.pooled());
        // SAFETY: every value of every window is written.
        let mut y = unsafe { unwritten(x.len() / image * pooled) };
        if !self.keeps {
            y.par_chunks_mut(pooled).zip(x.par_chunks(image)).run(|(y, x)| self.image_into(x, y));
            return windows.result(y);
        }
        let mut largest = vec![0u8; y.len()];
        y.par_chunks_mut(pooled).zip(largest.par_chunks_mut(pooled)).zip(x.par_chunks(image)).run(|((y, largest), x)| {
            // SAFETY: the machine has the lanes that were chosen.
            for_lanes!(V => unsafe { self.image::<V, true>(x, y, largest) });
        });
        // A second forward pass of one op does not happen: every call makes its own.
        let _ = self.largest.set(largest);
        windows.result(y)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let Some(largest) = self.largest.get() else { bail!("max_pool: backward before forward") };
        let windows = &self.windows;
        let (image, pooled, c) = (windows.image(), windows.pooled(), windows.c);
        // SAFETY: every image is filled with zeros first, while it is on its way through the caches.
        let mut dx = unsafe { unwritten(x.elem_count()) };
        with(dy, |dy| {
            dx.par_chunks_mut(image).zip(dy.par_chunks(pooled)).zip(largest.par_chunks(pooled)).run(|((dx, dy), largest)| {
                dx.fill(0.0);
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
        // SAFETY: every image is filled with zeros first.
        let mut dx = unsafe { unwritten(x.elem_count()) };
        with(dy, |dy| {
            dx.par_chunks_mut(image).zip(dy.par_chunks(pooled)).run(|(dx, dy)| {
                dx.fill(0.0);
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

/// The windows over images `[n, h, w, c]`.
fn windows(name: &str, [n, h, w, c]: [usize; 4], side: impl Fn(usize) -> Option<Side>) -> Result<Windows> {
    match (side(h), side(w)) {
        (Some(down), Some(across)) if n * h * w * c > 0 => Ok(Windows { down, across, c }),
        _ => bail!("{name}: the windows do not fit {:?}; a padding is at most half a window", [n, h, w, c]),
    }
}

/// Maximum over windows of `[n, h, w, c]`: `[n, h', w', c]`, `h' = (h + 2·pad − k) / stride + 1`, rounded up with `ceil`. Of equal values the first
/// gets the gradient.
///
/// # Errors
/// If the windows do not fit the images, or hold more than 255 pixels.
pub fn max_pool(x: &Tensor, window: PoolWindow) -> Result<Tensor> {
    let PoolWindow { k, stride, pad, .. } = window;
    let (n, h, w, c) = x.dims4()?;
    let pool = MaxPool { keeps: x.track_op(), ..MaxPool::over([n, h, w, c], window)? };
    if composed::wanted(x) {
        return composed::max_pool(x, Taps { image: [h, w], kernel: [k; 2], stride: [stride; 2], pad: [pad; 2], out: pool.size() });
    }
    apply1(x, pool)
}

/// Mean over windows of `k × k` every `stride` pixels of `[n, h, w, c]`, with `pad` zeros around, which count if `count_pad` is set.
///
/// # Errors
/// If the windows do not fit the images.
pub fn avg_pool(x: &Tensor, k: usize, stride: usize, pad: usize, count_pad: bool) -> Result<Tensor> {
    let windows = windows("avg_pool", x.dims4()?.into(), |size| Side::strided(size, k, stride, pad, false))?;
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
    #![allow(clippy::unwrap_used)]
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

    /// Channels that fill wide registers, one register, and none; equal values, and some that are not numbers.
    #[test]
    fn the_first_of_equal_values_is_the_largest_and_what_is_not_a_number_stays() {
        let c = WIDE * LANES + LANES + 3;
        let draw = |i: usize| if i % 31 == 7 { f32::NAN } else { (i * 7919 % 13) as f32 - 6.0 };
        let x: Vec<f32> = (0..5 * 6 * c).map(draw).collect();
        let kept = MaxPool { keeps: true, ..MaxPool::over([1, 5, 6, c], PoolWindow { k: 3, stride: 2, pad: 1, ceil: true }).unwrap() };
        let layout = Layout::contiguous((1, 5, 6, c));
        let (CpuStorage::F32(y), _) = kept.cpu_fwd(&CpuStorage::F32(x.clone()), &layout).unwrap() else { panic!("another type") };
        let places = kept.largest.get().unwrap();
        kept.windows.each(|window, pixels| {
            for channel in 0..c {
                let (mut want, mut place) = (f32::NEG_INFINITY, 0);
                for (at, pixel) in pixels.clone().enumerate() {
                    if x[pixel + channel] > want || x[pixel + channel].is_nan() {
                        (want, place) = (x[pixel + channel], at);
                    }
                }
                let at = window * c + channel;
                assert_eq!((y[at].to_bits(), usize::from(places[at])), (want.to_bits(), place), "window {window}, channel {channel}");
            }
        });
        let check = |y_of: &[f32], places_of: Option<&[u8]>| {
            assert!(y_of.iter().zip(&y).all(|(a, b)| a.to_bits() == b.to_bits()));
            assert!(places_of.is_none_or(|of| of == places.as_slice()));
        };
        let mut free = vec![0.0; y.len()];
        kept.image_into(&x, &mut free);
        check(&free, None);
        let (free, found) = by::<[f32; 4]>(&kept, &x);
        check(&free, Some(&found));
        #[cfg(target_arch = "x86_64")]
        if crate::nn::simd::level() >= crate::nn::simd::Level::Avx2 {
            let (free, found) = by::<crate::nn::kernel::lanes::Eight>(&kept, &x);
            check(&free, Some(&found));
        }
    }

    /// The largest values and their places, by these lanes, which the machine has.
    fn by<V: Lanes>(pool: &MaxPool, x: &[f32]) -> (Vec<f32>, Vec<u8>) {
        let (mut y, mut places) = (vec![0.0; pool.values_of_image()], vec![0; pool.values_of_image()]);
        // SAFETY: the caller's promise.
        unsafe {
            V::with(
                #[inline(always)]
                || pool.image::<V, true>(x, &mut y, &mut places),
            );
        }
        (y, places)
    }
}
