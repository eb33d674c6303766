//! Random changes of the images, each image from a random stream of its own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::recipe::Want;
use crate::data::Normalisation;
use crate::rng::Stream;

/// How much images are changed; all zero leaves them as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Largest move in each direction, in pixels; the border is continued.
    pub shift: f64,
    /// Largest change of size: 0.1 is 90 % to 110 %.
    pub scale: f64,
    /// Standard deviation of the noise, where the whole range of values is 1.
    pub noise: f64,
}

impl Augment {
    pub(super) fn check(&self, want: &mut Want<'_>) {
        want(self.shift.is_finite() && self.shift >= 0.0, "augment.shift", format!("a shift of {} pixels is below 0", self.shift));
        want((0.0..1.0).contains(&self.scale), "augment.scale", format!("{} is not a share from 0 to below 1", self.scale));
        want(self.noise.is_finite() && self.noise >= 0.0, "augment.noise", format!("noise of {} is below 0", self.noise));
    }

    /// Writes the image `bytes` `[h, w, c]` to `out`, changed by numbers from `stream`.
    pub(super) fn image(
        &self,
        bytes: &[u8],
        out: &mut [f32],
        (h, w, c): (usize, usize, usize),
        normalisation: Normalisation,
        stream: impl FnOnce() -> Stream,
    ) {
        out.iter_mut().zip(bytes).for_each(|(v, byte)| *v = normalisation.float(*byte));
        if *self == Self::default() {
            return;
        }
        let mut stream = stream();
        let mut between = |limit: f64| (2.0 * stream.uniform() - 1.0) * limit;
        let (dy, dx, size) = (between(self.shift), between(self.shift), 1.0 + between(self.scale));
        if self.shift > 0.0 || self.scale > 0.0 {
            let moved = resample(out, (h, w, c), dy as f32, dx as f32, size as f32);
            out.copy_from_slice(&moved);
        }
        if self.noise > 0.0 {
            let range = normalisation.float(255) - normalisation.float(0);
            out.iter_mut().for_each(|v| *v += (self.noise * stream.normal()) as f32 * range);
        }
    }
}

/// The image enlarged `size` times about its centre and moved by (`dy`, `dx`), bilinear.
fn resample(image: &[f32], (h, w, c): (usize, usize, usize), dy: f32, dx: f32, size: f32) -> Vec<f32> {
    let rows = taps(h, dy, size);
    let columns = taps(w, dx, size);
    let mut out = Vec::with_capacity(image.len());
    for &(top, bottom, b) in &rows {
        for &(left, right, r) in &columns {
            for k in 0..c {
                let at = |y: usize, x: usize| image[(y * w + x) * c + k];
                let upper = at(top, left) * (1.0 - r) + at(top, right) * r;
                let lower = at(bottom, left) * (1.0 - r) + at(bottom, right) * r;
                out.push(upper * (1.0 - b) + lower * b);
            }
        }
    }
    out
}

/// For each pixel of a side, the two that it lies between and the weight of the second.
fn taps(n: usize, shift: f32, size: f32) -> Vec<(usize, usize, f32)> {
    let centre = (n as f32 - 1.0) / 2.0;
    let source = |i: usize| ((i as f32 - centre - shift) / size + centre).clamp(0.0, n as f32 - 1.0);
    (0..n)
        .map(|i| {
            let at = source(i);
            let low = at.floor();
            (low as usize, (low as usize + 1).min(n - 1), at - low)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_shift_moves_pixels_and_continues_the_border() {
        let image: Vec<f32> = (0..9).map(|v| v as f32).collect();
        assert_eq!(resample(&image, (3, 3, 1), 0.0, 1.0, 1.0), [0.0, 0.0, 1.0, 3.0, 3.0, 4.0, 6.0, 6.0, 7.0]);
        assert_eq!(resample(&image, (3, 3, 1), -1.0, 0.0, 1.0), [3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 6.0, 7.0, 8.0]);
        assert_eq!(resample(&image, (3, 3, 1), 0.0, 0.0, 1.0), image);
    }

    #[test]
    fn enlarging_keeps_the_centre() {
        let image: Vec<f32> = (0..25).map(|v| v as f32).collect();
        let big = resample(&image, (5, 5, 1), 0.0, 0.0, 2.0);
        assert_eq!((big[12], big[10], big[14]), (12.0, 11.0, 13.0));
    }
}
