//! Pooling and upsampling of NHWC images.

use candle_core::{DType, Result, Tensor, bail};

use super::broadcast::pixel_sums;
use super::sums::product;
use super::windows::{Taps, Way};
use super::{node::node, single, values};

/// The largest value of each window of `x` `[n, h, w, c]`; of equal ones the first gets the gradient.
///
/// # Errors
/// Those of candle.
pub fn max_pool(x: &Tensor, taps: Taps) -> Result<Tensor> {
    let (n, _, _, c) = x.dims4()?;
    let x0 = values(x)?.reshape((n, taps.places(), c))?;
    let (mut best, mut which) = (seen(&x0, taps, 0)?, Tensor::zeros((n, taps.windows(), c), DType::U8, x.device())?);
    for tap in 1..taps.count() {
        let other = seen(&x0, taps, tap)?;
        // What is not a number stays, so that a diverged model is noticed.
        let more = (other.gt(&best)? + other.ne(&other)?)?;
        best = more.where_cond(&other, &best)?;
        which = more.where_cond(&Tensor::full(tap as u8, which.shape(), x.device())?, &which)?;
    }
    let shape = x.shape().clone();
    node("max_pool", [x], best.reshape((n, taps.out[0], taps.out[1], c))?, move |_, dy, _| {
        let dy = dy.reshape(which.shape())?;
        let none = dy.zeros_like()?;
        let of = |tap: usize| taps.gather_tap(&which.eq(tap as u8)?.where_cond(&dy, &none)?, Way::Back, tap);
        let dx = (1..taps.count()).try_fold(of(0)?, |sum, tap| sum + of(tap)?)?;
        Ok([Some(dx.reshape(&shape)?)])
    })
}

/// What one tap of all windows sees; −∞ outside of the image.
fn seen(x: &Tensor, taps: Taps, tap: usize) -> Result<Tensor> {
    let values = taps.gather_tap(x, Way::Forward, tap)?;
    match taps.outside(tap, x)? {
        None => Ok(values),
        Some(floor) => values.broadcast_add(&floor),
    }
}

/// Sums of the pixels of `x` `[n, h, w, c]`, each window with weights of its own: `weights` `[h' · w', h · w]`, row by row; `[n, h', w', c]`.
///
/// # Errors
/// If there are not that many weights.
pub fn weighted_pool(name: &'static str, x: &Tensor, weights: Vec<f32>, out: [usize; 2]) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    if weights.len() != out[0] * out[1] * h * w {
        bail!("{name}: {} weights do not fit {:?}", weights.len(), x.shape());
    }
    let weights = Tensor::from_vec(weights, (1, out[0] * out[1], h * w), x.device())?.to_dtype(x.dtype())?;
    let weights = weights.broadcast_as((n, out[0] * out[1], h * w))?.contiguous()?;
    let y = product(&weights, &values(x)?.reshape((n, h * w, c))?)?.reshape((n, out[0], out[1], c))?;
    node(name, [x], y, move |_, dy, _| {
        let dx = product(&weights.t()?, &dy.reshape((n, out[0] * out[1], c))?)?;
        Ok([Some(dx.reshape((n, h, w, c))?)])
    })
}

/// Mean over the pixels of `[n, h, w, c]`: `[n, c]`.
///
/// # Errors
/// Those of candle.
pub fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    let share = 1.0 / (h * w) as f64;
    let y = pixel_sums(&values(x)?.reshape((n, h * w, c))?)?.affine(share, 0.0)?;
    node("global_avg_pool", [x], y, move |_, dy, _| {
        let dx = dy.affine(share, 0.0)?.reshape((n, 1, 1, c))?.broadcast_as((n, h, w, c))?;
        Ok([Some(dx.contiguous()?)])
    })
}

/// Every pixel becomes a 2×2 square.
///
/// # Errors
/// Those of candle.
pub fn upsample2(x: &Tensor) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    let y = values(x)?.reshape((n, h, 1, w, 1, c))?.broadcast_as((n, h, 2, w, 2, c))?.contiguous()?.reshape((n, 2 * h, 2 * w, c))?;
    node("upsample2", [x], y, move |_, dy, _| {
        let squares = dy.reshape((n, h, 2, w, 2, c))?;
        let place = |i: usize, j: usize| single(&squares.narrow(2, i, 1)?.narrow(4, j, 1)?);
        let dx = ((place(0, 0)? + place(0, 1)?)? + (place(1, 0)? + place(1, 1)?)?)?;
        Ok([Some(dx.reshape((n, h, w, c))?.to_dtype(dy.dtype())?)])
    })
}

/// `[n, h, w, 4·c]` to `[n, 2·h, 2·w, c]`.
///
/// # Errors
/// Those of candle.
pub fn pixel_shuffle2(x: &Tensor) -> Result<Tensor> {
    let (n, h, w, c) = x.dims4()?;
    let y = values(x)?.reshape((n, h, w, 2, 2, c / 4))?.permute((0, 1, 3, 2, 4, 5))?.contiguous()?.reshape((n, 2 * h, 2 * w, c / 4))?;
    node("pixel_shuffle2", [x], y, move |_, dy, _| {
        let dx = dy.reshape((n, h, 2, w, 2, c / 4))?.permute((0, 1, 3, 2, 4, 5))?.contiguous()?;
        Ok([Some(dx.reshape((n, h, w, c))?)])
    })
}
