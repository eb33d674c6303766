//! Convolutions with one kernel a channel. They move more than they compute, so nothing is gathered: every tap is a pass over channels.

use crate::nn::parallel::Parallel;
use rayon::prelude::*;

use super::conv::{Conv, PARTS};
use super::{add_up, vectorised};

/// Channels whose sums are kept in registers.
const LANES: usize = 32;

impl Conv {
    /// The taps of an output pixel that lie in the image: place in the kernel and pixel.
    fn taps(&self, i: usize, j: usize) -> impl Iterator<Item = (usize, usize)> {
        let (top, left) = (i * self.stride[0], j * self.stride[1]);
        let conv = *self;
        (0..self.kh * self.kw).filter_map(move |place| Some((place, conv.inside(top + place / conv.kw, left + place % conv.kw)?)))
    }

    /// Calls `f(row, values)` for every row of the result, of `width` values.
    fn rows(y: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
        // Short rows are taken several at a time; it changes no sum.
        let together = (8192 / width.max(1)).max(1);
        y.par_chunks_mut(width).with_min_len(together).enumerate().run(|(row, y)| f(row, y));
    }

    /// `y = conv(x, w) + bias`.
    pub(super) fn depthwise(&self, x: &[f32], w: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let (oh, ow, c) = (self.out_h(), self.out_w(), self.c);
        let mut y = vec![0.0; self.pixels() * c];
        Self::rows(&mut y, ow * c, |row, y| {
            let (image, i) = (row / oh, row % oh);
            let x = &x[image * self.h * self.w * c..][..self.h * self.w * c];
            let mut taps = Vec::with_capacity(self.kh * self.kw);
            for (j, y) in y.chunks_exact_mut(c).enumerate() {
                taps.clear();
                taps.extend(self.taps(i, j));
                vectorised!(pixel(&taps, x, w, bias, y));
            }
        });
        y
    }

    /// The gradient of `x`: every gradient of the result goes back along its taps; one image a task.
    pub(super) fn depthwise_input(&self, dy: &[f32], w: &[f32]) -> Vec<f32> {
        let (oh, ow, c) = (self.out_h(), self.out_w(), self.c);
        let mut dx = vec![0.0; self.n * self.h * self.w * c];
        dx.par_chunks_mut(self.h * self.w * c).zip(dy.par_chunks(oh * ow * c)).run(|(dx, dy)| {
            for (cell, dy) in dy.chunks_exact(c).enumerate() {
                for (place, pixel) in self.taps(cell / ow, cell % ow) {
                    let (dx, w) = (&mut dx[pixel * c..][..c], &w[place * c..][..c]);
                    vectorised!(add_products(dx, dy, w));
                }
            }
        });
        dx
    }

    /// The gradient of `w`: parts of the images apart, added in their order.
    pub(super) fn depthwise_weight(&self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let (oh, ow, c) = (self.out_h(), self.out_w(), self.c);
        let parts = PARTS.min(self.n).max(1);
        let sums = (0..parts).into_par_iter().gather(|part| {
            let mut sum = vec![0.0; self.kh * self.kw * c];
            for image in self.n * part / parts..self.n * (part + 1) / parts {
                let x = &x[image * self.h * self.w * c..][..self.h * self.w * c];
                for (cell, dy) in dy[image * oh * ow * c..][..oh * ow * c].chunks_exact(c).enumerate() {
                    for (place, pixel) in self.taps(cell / ow, cell % ow) {
                        let (x, sum) = (&x[pixel * c..][..c], &mut sum[place * c..][..c]);
                        vectorised!(add_products(sum, dy, x));
                    }
                }
            }
            sum
        });
        add_up(sums)
    }
}

/// All channels of one pixel of the result; `taps` are places in the kernel and pixels of `x`.
#[inline(always)]
fn pixel(taps: &[(usize, usize)], x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    let c = y.len();
    let (blocks, rest) = y.as_chunks_mut::<LANES>();
    let from_rest = c - rest.len();
    for (i, block) in blocks.iter_mut().enumerate() {
        let at = i * LANES;
        let mut sum = [0.0; LANES];
        if let Some(bias) = bias {
            sum.copy_from_slice(&bias[at..at + LANES]);
        }
        for &(place, pixel) in taps {
            let (x, w) = (&x[pixel * c + at..][..LANES], &w[place * c + at..][..LANES]);
            for l in 0..LANES {
                sum[l] += x[l] * w[l];
            }
        }
        *block = sum;
    }
    if let Some(bias) = bias {
        rest.copy_from_slice(&bias[from_rest..]);
    }
    for &(place, pixel) in taps {
        let (x, w) = (&x[pixel * c + from_rest..][..rest.len()], &w[place * c + from_rest..][..rest.len()]);
        add_products(rest, x, w);
    }
}

/// Adds the products of two rows to a third.
#[inline(always)]
fn add_products(to: &mut [f32], a: &[f32], b: &[f32]) {
    for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
        *to += a * b;
    }
}
