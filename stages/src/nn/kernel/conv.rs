//! Convolutions: patches of images as rows of a matrix, times the weights.

#![allow(unsafe_code, reason = "results that are written whole need not be filled with zeros first")]

use crate::nn::parallel::{Parallel, fair};
use rayon::prelude::*;

use super::{Matrix, Panels, Shape, Then, add, add_up, floor, gemm, gemm_panels_then, matmul, transposed, vectorised, with_scratch};
use crate::nn::storage::unwritten;

/// Parts into which a sum over pixels is cut; each has a buffer of the size of the weights.
pub(super) const PARTS: usize = 8;

/// Values of the parts' buffers together above which they cost more than they bring.
const LARGE: usize = 1 << 20;
/// Values of a line of a patch up to which it is copied from an image with its padding.
const NARROW: usize = 32;
/// Values of gathered patches that one convolution may hold.
const GATHERED: usize = 1 << 24;
/// Rows of the weights' gradient that one task makes.
const WEIGHT_ROWS: usize = 192;

/// The shape of a convolution over `[n, h, w, c]` with `o` kernels of `kh × kw` in `groups` groups: weights `[kh, kw, c / groups, o]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub o: usize,
    pub kh: usize,
    pub kw: usize,
    /// Step down and to the right.
    pub stride: [usize; 2],
    /// Zeros above, left, below and right.
    pub pad: [usize; 4],
    pub groups: usize,
    /// Whether Winograd's algorithm may be used, which rounds more.
    pub fast: bool,
    /// Values from one pixel of the images to the next: `c`, unless they are part of wider ones, as [`expand`](Self::expand) has them.
    pub x_row: usize,
    /// The same of the results.
    pub y_row: usize,
}

/// Kernels as [`Conv::kernels_of`] lays them out.
#[derive(Debug)]
pub struct Kernels {
    values: Vec<f32>,
    shape: Shape,
}

impl Kernels {
    fn group(&self, group: usize) -> Panels<'_> {
        Panels::new(&self.values[group * self.shape.len()..], self.shape)
    }
}

impl Conv {
    /// Height of the result.
    pub fn out_h(&self) -> usize {
        (self.h + self.pad[0] + self.pad[2] - self.kh) / self.stride[0] + 1
    }

    /// Width of the result.
    pub fn out_w(&self) -> usize {
        (self.w + self.pad[1] + self.pad[3] - self.kw) / self.stride[1] + 1
    }

    /// Pixels of the result.
    pub fn pixels(&self) -> usize {
        self.n * self.out_h() * self.out_w()
    }

    /// Input and output channels of a group.
    fn group(&self) -> (usize, usize) {
        (self.c / self.groups, self.o / self.groups)
    }

    /// Values of one patch of a group.
    fn patch(&self) -> usize {
        self.kh * self.kw * self.group().0
    }

    /// A 1×1 convolution is a plain product.
    fn is_product(&self) -> bool {
        self.kh * self.kw == 1 && self.stride == [1, 1] && self.pad == [0; 4] && self.groups == 1
    }

    /// One kernel a channel.
    pub(super) fn is_depthwise(&self) -> bool {
        self.groups == self.c && self.c == self.o && self.groups > 1
    }

    /// Pixels whose patches one task holds at a time: about half a megabyte of them.
    fn chunk(&self) -> usize {
        (131_072 / self.patch()).clamp(32, 512)
    }

    /// Patches of a group of the pixels from `start` on, one a row, into `rows`.
    fn patches(&self, x: &[f32], start: usize, group: usize, rows: &mut [f32]) {
        if self.groups == 1 && self.kw * self.c <= NARROW {
            return self.narrow_patches(x, start, rows);
        }
        let (oh, ow) = (self.out_h(), self.out_w());
        let (c, [sh, sw]) = (self.group().0, self.stride);
        let line = self.kw * c;
        for (i, row) in rows.chunks_exact_mut(self.patch()).enumerate() {
            let (image, pixel) = ((start + i) / (oh * ow), (start + i) % (oh * ow));
            let (top, left) = (pixel / ow * sh, pixel % ow * sw);
            // Columns of the patch that lie inside the image.
            let from = self.pad[1].saturating_sub(left).min(self.kw);
            let to = (self.w + self.pad[1]).saturating_sub(left).min(self.kw);
            for (dy, line) in row.chunks_exact_mut(line).enumerate() {
                let y = top + dy;
                if y < self.pad[0] || y >= self.h + self.pad[0] || from >= to {
                    line.fill(0.0);
                    continue;
                }
                let source = ((image * self.h + y - self.pad[0]) * self.w + left + from - self.pad[1]) * self.c + group * c;
                line[..from * c].fill(0.0);
                if self.groups == 1 {
                    line[from * c..to * c].copy_from_slice(&x[source..source + (to - from) * c]);
                } else {
                    for (j, part) in line[from * c..to * c].chunks_exact_mut(c).enumerate() {
                        part.copy_from_slice(&x[source + j * self.c..][..c]);
                    }
                }
                line[to * c..].fill(0.0);
            }
        }
    }

    /// [`patches`](Self::patches) where a line of one is a few values, as of grey and RGB images: copied from an image with its padding,
    /// without a call or a question for each line.
    fn narrow_patches(&self, x: &[f32], start: usize, rows: &mut [f32]) {
        let (size, c) = (self.out_h() * self.out_w(), self.c);
        let [top, left, bottom, right] = self.pad;
        let (tall, wide) = (self.h + top + bottom, self.w + left + right);
        with_scratch(tall * wide * c, |padded| {
            padded.fill(0.0);
            let (mut pixel, mut rows) = (start, rows);
            while !rows.is_empty() {
                let (image, first) = (pixel / size, pixel % size);
                let lines = x[image * self.h * self.w * c..].chunks_exact(self.w * c).take(self.h);
                for (line, to) in lines.zip(padded[top * wide * c..].chunks_exact_mut(wide * c)) {
                    to[left * c..][..self.w * c].copy_from_slice(line);
                }
                let count = (size - first).min(rows.len() / self.patch());
                let (these, rest) = rows.split_at_mut(count * self.patch());
                vectorised!(match self.kw * c {
                    3 => self.lines::<3>(padded, wide, first, these),
                    9 => self.lines::<9>(padded, wide, first, these),
                    21 => self.lines::<21>(padded, wide, first, these),
                    _ => self.lines::<0>(padded, wide, first, these),
                });
                (pixel, rows) = (pixel + count, rest);
            }
        });
    }

    /// The patches from `first` on of an image with padding, whose lines have `N` values, or any number if that is 0.
    #[inline(always)]
    fn lines<const N: usize>(&self, padded: &[f32], wide: usize, first: usize, rows: &mut [f32]) {
        let (line, ow, [sh, sw]) = (if N == 0 { self.kw * self.c } else { N }, self.out_w(), self.stride);
        for (i, row) in rows.chunks_exact_mut(self.kh * line).enumerate() {
            let from = ((first + i) / ow * sh * wide + (first + i) % ow * sw) * self.c;
            for (y, to) in row.chunks_exact_mut(line).enumerate() {
                to.copy_from_slice(&padded[from + y * wide * self.c..][..line]);
            }
        }
    }

    /// `y = conv(x, w)`, and what follows.
    pub fn forward(&self, x: &[f32], w: &[f32], then: Then<'_>) -> Vec<f32> {
        if self.is_depthwise() {
            let mut y = self.depthwise(x, w, then.bias);
            if then.relu {
                y.par_chunks_mut(256 * self.o).run(|y| vectorised!(floor(y)));
            }
            return y;
        }
        if self.is_winograd() {
            return self.winograd(x, w, then);
        }
        // SAFETY: every chunk is a product that does not read what was there.
        let mut y = unsafe { unwritten(self.pixels() * self.o) };
        let (kernels, chunk) = (self.kernels_of(w), fair(self.pixels(), self.chunk()));
        y.par_chunks_mut(chunk * self.o).enumerate().run(|(i, y)| self.pixels_into(x, &kernels, i * chunk, then, y));
        y
    }

    /// Whether results are made by [`pixels_into`](Self::pixels_into).
    pub fn is_direct(&self) -> bool {
        !self.is_depthwise() && !self.is_winograd()
    }

    /// The kernels of all groups, laid out for the products.
    pub fn kernels_of(&self, w: &[f32]) -> Kernels {
        let shape = Shape { k: self.patch(), n: self.group().1 };
        let mut values = vec![0.0; shape.len() * self.groups];
        for (group, to) in values.chunks_exact_mut(shape.len()).enumerate() {
            shape.pack_on_all(Matrix::new(&w[group * shape.n..], self.o), to);
        }
        Kernels { values, shape }
    }

    /// The results of the pixels from `start` on, as many as `y` holds, and what follows.
    pub fn pixels_into(&self, x: &[f32], kernels: &Kernels, start: usize, then: Then<'_>, y: &mut [f32]) {
        let (patch, (c, o)) = (self.patch(), self.group());
        if self.is_product() {
            return gemm_panels_then(y.len() / o, y, o, then, Matrix::new(&x[start * c..], c), &kernels.group(0));
        }
        let chunk = self.chunk();
        for (i, y) in y.chunks_mut(chunk * self.o).enumerate() {
            let pixels = y.len() / self.o;
            with_scratch(pixels * patch, |rows| {
                for group in 0..self.groups {
                    self.patches(x, start + i * chunk, group, rows);
                    let columns = group * o..(group + 1) * o;
                    let (y, then) = (&mut y[columns.start..], then.columns(columns));
                    gemm_panels_then(pixels, y, self.o, then, Matrix::new(rows, patch), &kernels.group(group));
                }
            });
        }
    }

    /// The gradient of `x`, given that of the result.
    pub fn backward_input(&self, dy: &[f32], w: &[f32]) -> Vec<f32> {
        if self.is_depthwise() {
            return self.depthwise_input(dy, w);
        }
        if self.is_winograd() {
            return self.winograd_input(dy, w);
        }
        if self.is_product() {
            // SAFETY: the product writes all of dx and does not read it.
            let mut dx = unsafe { unwritten(self.n * self.h * self.w * self.c) };
            matmul(self.pixels(), self.c, self.o, &mut dx, Matrix::new(dy, self.o), Matrix::new(w, self.o).t());
            return dx;
        }
        let [top, left, bottom, right] = self.pad;
        if self.stride == [1, 1] && top.max(bottom) < self.kh && left.max(right) < self.kw && self.groups == 1 {
            // A convolution of dy with the kernels turned around, inputs and outputs exchanged.
            let (down, across) = (self.kh - 1, self.kw - 1);
            let pad = [down - top, across - left, down - bottom, across - right];
            let turned =
                Self { h: self.out_h(), w: self.out_w(), c: self.o, o: self.c, x_row: self.y_row, y_row: self.x_row, pad, ..*self };
            return turned.forward(dy, &self.turned(w), Then::default());
        }
        self.scatter(dy, w)
    }

    /// The columns of a group of the weights, transposed: `[o / groups, patch]`.
    fn group_transposed(&self, w: &[f32], group: usize) -> Vec<f32> {
        if self.groups == 1 {
            return transposed(w, self.patch(), self.o);
        }
        let o = self.group().1;
        let columns: Vec<f32> = w.chunks_exact(self.o).flat_map(|row| &row[group * o..(group + 1) * o]).copied().collect();
        transposed(&columns, self.patch(), o)
    }

    /// Patches of gradients, added to where they came from; one image a task.
    fn scatter(&self, dy: &[f32], w: &[f32]) -> Vec<f32> {
        let (patch, o) = (self.patch(), self.group().1);
        let wt: Vec<Vec<f32>> = (0..self.groups).map(|group| self.group_transposed(w, group)).collect();
        let (oh, ow) = (self.out_h(), self.out_w());
        let mut dx = vec![0.0; self.n * self.h * self.w * self.c];
        dx.par_chunks_mut(self.h * self.w * self.c).enumerate().run(|(image, dx)| {
            with_scratch(oh * ow * patch, |rows| {
                for (group, wt) in wt.iter().enumerate() {
                    let dy = Matrix::new(&dy[image * oh * ow * self.o + group * o..], self.o);
                    gemm(oh * ow, patch, o, rows, patch, false, dy, Matrix::new(wt, patch));
                    vectorised!(for (pixel, row) in rows.chunks_exact(patch).enumerate() {
                        self.scatter_patch(pixel / ow * self.stride[0], pixel % ow * self.stride[1], group, row, dx);
                    });
                }
            });
        });
        dx
    }

    #[inline(always)]
    fn scatter_patch(&self, top: usize, left: usize, group: usize, row: &[f32], dx: &mut [f32]) {
        let c = self.group().0;
        for (place, values) in row.chunks_exact(c).enumerate() {
            if let Some(pixel) = self.inside(top + place / self.kw, left + place % self.kw) {
                let at = pixel * self.c + group * c;
                add(&mut dx[at..at + c], values);
            }
        }
    }

    /// The pixel at a place of the padded image, unless it is padding.
    #[inline(always)]
    pub(super) fn inside(&self, y: usize, x: usize) -> Option<usize> {
        let [top, left, ..] = self.pad;
        let hit = y >= top && x >= left && y < self.h + top && x < self.w + left;
        hit.then(|| (y - top) * self.w + x - left)
    }

    /// The gradient of large weights over few pixels: all patches are gathered, and each task makes some rows of the result.
    fn weight_by_rows(&self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let (patch, pixels, o) = (self.patch(), self.pixels(), self.o);
        let mut dw = vec![0.0; patch * o];
        let mut make = |rows: &[f32]| {
            dw.par_chunks_mut(WEIGHT_ROWS * o).enumerate().run(|(i, dw)| {
                let rows = Matrix::new(&rows[i * WEIGHT_ROWS..], patch).t();
                gemm(dw.len() / o, o, pixels, dw, o, false, rows, Matrix::new(dy, o));
            });
        };
        if self.is_product() {
            make(x);
            return dw;
        }
        with_scratch(pixels * patch, |rows| {
            let chunk = self.chunk();
            rows.par_chunks_mut(chunk * patch).enumerate().run(|(i, rows)| self.patches(x, i * chunk, 0, rows));
            make(rows);
        });
        dw
    }

    /// The gradient of `w`: parts of the pixels apart, added in their order.
    pub fn backward_weight(&self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        if self.is_depthwise() {
            return self.depthwise_weight(x, dy);
        }
        if self.is_winograd() {
            return self.winograd_weight(x, dy);
        }
        let (patch, chunk) = (self.patch(), self.chunk());
        let o = self.group().1;
        let chunks = self.pixels().div_ceil(chunk);
        let parts = PARTS.min(chunks).max(1);
        if self.fast && self.groups == 1 && patch * self.o * parts > LARGE && self.pixels() * patch <= GATHERED {
            return self.weight_by_rows(x, dy);
        }
        let sums: Vec<Vec<f32>> = (0..parts).into_par_iter().gather(|part| {
            let mut sum = vec![0.0; patch * self.o];
            for i in chunks * part / parts..chunks * (part + 1) / parts {
                let pixels = chunk.min(self.pixels() - i * chunk);
                if self.is_product() {
                    let (x, dy) = (Matrix::new(&x[i * chunk * self.c..], self.c), Matrix::new(&dy[i * chunk * self.o..], self.o));
                    gemm(patch, self.o, pixels, &mut sum, self.o, true, x.t(), dy);
                    continue;
                }
                with_scratch(pixels * patch, |rows| {
                    for group in 0..self.groups {
                        self.patches(x, i * chunk, group, rows);
                        let dy = Matrix::new(&dy[i * chunk * self.o + group * o..], self.o);
                        gemm(patch, o, pixels, &mut sum[group * o..], self.o, true, Matrix::new(rows, patch).t(), dy);
                    }
                });
            }
            sum
        });
        add_up(sums)
    }
}
