//! Resizing images of 8-bit channels.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How an image is resized.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// The nearest pixel.
    Nearest,
    /// The weighted mean of neighbours. Where the image shrinks, all pixels under the new one take part.
    #[default]
    Bilinear,
}

/// For each new position, the old positions that it is made of and their weights.
type Taps = Vec<Vec<(usize, f32)>>;

/// Pixel centres are at halves (`align_corners = false`), as in PyTorch's `interpolate(…, antialias=True)` and Pillow.
fn taps(old: usize, new: usize, filter: Filter) -> Taps {
    let scale = old as f32 / new as f32;
    (0..new)
        .map(|i| {
            let centre = (i as f32 + 0.5) * scale;
            match filter {
                Filter::Nearest => vec![((centre as usize).min(old - 1), 1.0)],
                Filter::Bilinear => triangle(centre, scale.max(1.0), old),
            }
        })
        .collect()
}

/// Weights of a triangle of half width `reach` around `centre`, cut at the border and summing to 1.
fn triangle(centre: f32, reach: f32, old: usize) -> Vec<(usize, f32)> {
    let first = (centre - reach).floor().max(0.0) as usize;
    let last = ((centre + reach).ceil() as usize).min(old);
    let weight = |j: usize| (1.0 - ((j as f32 + 0.5 - centre) / reach).abs()).max(0.0);
    let sum: f32 = (first..last).map(weight).sum();
    (first..last).map(|j| (j, weight(j) / sum)).filter(|tap| tap.1 > 0.0).collect()
}

/// Resizes one image `[h, w, c]`, channels last. No side may be 0.
pub(super) fn resize(image: &[u8], (h, w, c): (usize, usize, usize), (new_h, new_w): (usize, usize), filter: Filter) -> Vec<u8> {
    let (rows, columns) = (taps(h, new_h, filter), taps(w, new_w, filter));
    let mut out = Vec::with_capacity(new_h * new_w * c);
    for row in &rows {
        for column in &columns {
            for k in 0..c {
                let mut sum = 0.0;
                for &(y, wy) in row {
                    for &(x, wx) in column {
                        sum += wy * wx * f32::from(image[(y * w + x) * c + k]);
                    }
                }
                out.push(sum.round().clamp(0.0, 255.0) as u8);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_size_is_the_same_image() {
        let image: Vec<u8> = (0..60).map(|i| i * 4).collect();
        for filter in [Filter::Nearest, Filter::Bilinear] {
            assert_eq!(resize(&image, (4, 5, 3), (4, 5), filter), image);
        }
    }

    #[test]
    fn nearest_doubles_each_pixel() {
        assert_eq!(resize(&[1, 2], (1, 2, 1), (2, 4), Filter::Nearest), [1, 1, 2, 2, 1, 1, 2, 2]);
    }

    #[test]
    fn bilinear_agrees_with_pytorch() {
        // torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False) of [[0, 100]].
        assert_eq!(resize(&[0, 100], (1, 2, 1), (1, 4), Filter::Bilinear), [0, 25, 75, 100]);
    }

    #[test]
    fn shrinking_uses_every_pixel() {
        // With antialiasing no bright pixel is lost: four images with one bright pixel each all leave a trace.
        for i in 0..4 {
            let mut image = [0u8; 4];
            image[i] = 200;
            assert!(resize(&image, (1, 4, 1), (1, 1), Filter::Bilinear)[0] > 0, "pixel {i}");
        }
        assert_eq!(resize(&[77; 64], (8, 8, 1), (3, 5), Filter::Bilinear), [77; 15]);
    }
}
