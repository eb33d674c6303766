//! Small moves and changes of size between pixels.

/// The image enlarged `size` times about its centre and moved by (`dy`, `dx`), bilinear.
pub fn resample(image: &[f32], (h, w, c): (usize, usize, usize), dy: f32, dx: f32, size: f32) -> Vec<f32> {
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
