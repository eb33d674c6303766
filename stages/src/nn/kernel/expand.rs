//! Two convolutions of the same images, 1×1 and 3×3, whose results stand side by side (SqueezeNet's fire module): each is written where it
//! belongs, and read there on the way back.
#![allow(unsafe_code, reason = "results that are written whole need not be filled with zeros first")]

use crate::nn::parallel::{Parallel, fair};
use rayon::prelude::*;

use super::{Conv, Matrix, Then, add_up, gemm, gemm_panels, gemm_panels_then, masked_with_sums, with_panels};
use crate::nn::storage::unwritten;

/// Pixels that one task takes.
const PIXELS: usize = 512;
/// Parts into which a sum over pixels is cut.
const PARTS: usize = 8;

/// Weights and biases: of the 1×1 kernels `[c, o]` and `[o]`, then of the 3×3 ones `[3, 3, c, o]` and `[o]`.
pub type Weights<'a> = [&'a [f32]; 4];

impl Conv {
    /// This, a 3×3 convolution by Winograd's algorithm, as the second half of results twice as wide.
    fn half(&self) -> Self {
        Self { y_row: 2 * self.o, ..*self }
    }

    /// Whether [`expand`](Self::expand) can be used with this as its 3×3 convolution.
    pub fn can_expand(&self) -> bool {
        self.is_winograd()
    }

    /// The results of 1×1 kernels and of this convolution side by side, with bias and ReLU: `[n, h, w, 2·o]`.
    pub fn expand(&self, x: &[f32], [w1, b1, w3, b3]: Weights<'_>) -> Vec<f32> {
        let (c, o) = (self.c, self.o);
        assert!(w1.len() == c * o && b1.len() == o && x.len() == self.pixels() * c, "the weights have the shape of the convolution");
        // SAFETY: the first call writes the second half of every pixel, the loop the first one; neither reads.
        let mut y = unsafe { unwritten(self.pixels() * 2 * o) };
        self.half().winograd_into(x, w3, Then { bias: Some(b3), relu: true }, &mut y[o..]);
        with_panels(c, o, Matrix::new(w1, o), |w1| {
            let pixels = fair(self.pixels(), PIXELS);
            y.par_chunks_mut(pixels * 2 * o).zip(x.par_chunks(pixels * c)).run(|(y, x)| {
                gemm_panels_then(x.len() / c, y, 2 * o, Then { bias: Some(b1), relu: true }, Matrix::new(x, c), w1);
            });
        });
        y
    }

    /// The gradients of the images, if they are wanted, and of the weights, one after the other as [`Weights`] has them.
    pub fn expand_back(&self, x: &[f32], weights: Weights<'_>, y: &[f32], dy: &[f32], wants_x: bool) -> (Option<Vec<f32>>, Vec<f32>) {
        let (c, o, [w1, _, w3, _]) = (self.c, self.o, weights);
        let (dy, db) = masked_with_sums(y, dy, 2 * o);
        let dx = wants_x.then(|| {
            let mut dx = self.half().winograd_input(&dy[o..], w3);
            with_panels(o, c, Matrix::new(w1, o).t(), |wt| {
                let pixels = fair(self.pixels(), PIXELS);
                dx.par_chunks_mut(pixels * c).zip(dy.par_chunks(pixels * 2 * o)).run(|(dx, dy)| {
                    gemm_panels(dx.len() / c, dx, c, true, Matrix::new(dy, 2 * o), wt);
                });
            });
            dx
        });
        let chunks = self.pixels().div_ceil(PIXELS);
        let parts = PARTS.min(chunks).max(1);
        let sums = (0..parts).into_par_iter().gather(|part| {
            let mut sum = vec![0.0; c * o];
            let (from, to) = (chunks * part / parts * PIXELS, (chunks * (part + 1) / parts * PIXELS).min(self.pixels()));
            gemm(c, o, to - from, &mut sum, o, false, Matrix::new(&x[from * c..], c).t(), Matrix::new(&dy[from * 2 * o..], 2 * o));
            sum
        });
        let mut gradients = add_up(sums);
        gradients.extend(&db[..o]);
        gradients.extend(self.half().winograd_weight(x, &dy[o..]));
        gradients.extend(&db[o..]);
        (dx, gradients)
    }
}
