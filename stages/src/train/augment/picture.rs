//! An image of bytes that is being changed, and changes of where its pixels are.

use crate::rng::Stream;

/// An image `[h, w, c]` of bytes with 1 or 3 channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub bytes: Vec<u8>,
}

impl Picture {
    pub fn new(bytes: &[u8], (h, w, c): (usize, usize, usize)) -> Self {
        Self { h, w, c, bytes: bytes.to_vec() }
    }

    fn row(&self, y: usize) -> &[u8] {
        &self.bytes[y * self.w * self.c..(y + 1) * self.w * self.c]
    }

    /// Left and right are exchanged.
    pub fn flip(&mut self) {
        for row in self.bytes.chunks_exact_mut(self.w * self.c) {
            let (mut left, mut right) = (0, self.w - 1);
            while left < right {
                (0..self.c).for_each(|k| row.swap(left * self.c + k, right * self.c + k));
                (left, right) = (left + 1, right - 1);
            }
        }
    }

    /// The window of the image's own size that begins at (`dy`, `dx`) once `pad` zeros are put around it.
    pub fn crop_padded(&self, pad: usize, (dy, dx): (usize, usize)) -> Self {
        self.warped(|y, x| (y + dy as f64 - pad as f64, x + dx as f64 - pad as f64))
    }

    /// The window of `h` × `w` pixels at (`y`, `x`), which lies inside.
    pub fn crop(&self, (y, x): (usize, usize), (h, w): (usize, usize)) -> Self {
        let rows = (y..y + h).flat_map(|y| self.row(y)[x * self.c..(x + w) * self.c].iter().copied());
        Self { h, w, c: self.c, bytes: rows.collect() }
    }

    /// For each pixel the one whose square holds the place that `from` gives for its centre (y, x); outside of the image is black. As Pillow's
    /// `transform(AFFINE, NEAREST)`.
    pub fn warped(&self, from: impl Fn(f64, f64) -> (f64, f64)) -> Self {
        let mut bytes = vec![0; self.bytes.len()];
        for (i, pixel) in bytes.chunks_exact_mut(self.c).enumerate() {
            let (y, x) = from((i / self.w) as f64 + 0.5, (i % self.w) as f64 + 0.5);
            if y >= 0.0 && x >= 0.0 && y < self.h as f64 && x < self.w as f64 {
                let at = (y as usize * self.w + x as usize) * self.c;
                pixel.copy_from_slice(&self.bytes[at..at + self.c]);
            }
        }
        Self { bytes, ..*self }
    }

    /// Turned about its centre, counter-clockwise.
    pub fn rotated(&self, degrees: f64) -> Self {
        let (sin, cos) = (-degrees.to_radians()).sin_cos();
        let (cy, cx) = (self.h as f64 / 2.0, self.w as f64 / 2.0);
        self.warped(|y, x| (cy - sin * (x - cx) + cos * (y - cy), cx + cos * (x - cx) + sin * (y - cy)))
    }

    /// In another size, bilinear; where it shrinks, all pixels under a new one take part. The arithmetic is Pillow's, first along the rows, then
    /// along the columns, in integers (that of Pillow 11).
    pub fn resized(&self, (h, w): (usize, usize)) -> Self {
        let mut wide = Vec::with_capacity(self.h * w * self.c);
        let columns = taps(self.w, w);
        for y in 0..self.h {
            let row = self.row(y);
            for (first, weights) in &columns {
                wide.extend((0..self.c).map(|k| weighted(weights, |i| row[(first + i) * self.c + k])));
            }
        }
        let mut bytes = Vec::with_capacity(h * w * self.c);
        for (first, weights) in taps(self.h, h) {
            bytes.extend((0..w * self.c).map(|j| weighted(&weights, |i| wide[(first + i) * w * self.c + j])));
        }
        Self { h, w, c: self.c, bytes }
    }
}

/// Bits behind the point of a weight.
const BITS: u32 = 22;

fn weighted(weights: &[i32], value: impl Fn(usize) -> u8) -> u8 {
    let sum: i32 = weights.iter().enumerate().map(|(i, weight)| weight * i32::from(value(i))).sum();
    ((sum + (1 << (BITS - 1))) >> BITS).clamp(0, 255) as u8
}

/// For each new place the first old one that it is made of, and the weights from there on.
fn taps(old: usize, new: usize) -> Vec<(usize, Vec<i32>)> {
    let scale = old as f64 / new as f64;
    let reach = scale.max(1.0);
    (0..new)
        .map(|i| {
            let centre = (i as f64 + 0.5) * scale;
            let first = (centre - reach + 0.5).max(0.0) as usize;
            let last = ((centre + reach + 0.5) as usize).min(old);
            let weights: Vec<f64> = (first..last).map(|j| (1.0 - ((j as f64 - centre + 0.5) / reach).abs()).max(0.0)).collect();
            let sum: f64 = weights.iter().sum();
            (first, weights.iter().map(|weight| (weight / sum * f64::from(1 << BITS) + 0.5) as i32).collect())
        })
        .collect()
}

/// A window inside of `h` × `w` with a share of its area between those of `area` and a ratio of its sides (width to height) between those of
/// `ratio`, even on a logarithmic scale: its corner and its size. After ten misses there is none.
pub fn window((h, w): (usize, usize), area: [f64; 2], ratio: [f64; 2], stream: &mut Stream) -> Option<((usize, usize), (usize, usize))> {
    let between = |[low, high]: [f64; 2], stream: &mut Stream| low + (high - low) * stream.uniform();
    for _ in 0..10 {
        let wanted = (h * w) as f64 * between(area, stream);
        let ratio = between(ratio.map(f64::ln), stream).exp();
        let size = ((wanted / ratio).sqrt().round() as usize, (wanted * ratio).sqrt().round() as usize);
        if size.0 > 0 && size.1 > 0 && size.0 <= h && size.1 <= w {
            return Some(((stream.below(h - size.0 + 1), stream.below(w - size.1 + 1)), size));
        }
    }
    None
}
