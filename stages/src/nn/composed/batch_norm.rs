//! Batch normalisation, with the addition of a shortcut and a ReLU; in single precision inside.

use candle_core::{Result, Tensor};

use super::sums::{column_sums, inverse_root};
use super::{node::node, single, values};

/// Mean and biased variance of every channel, `[c]` in `f32` on the device of the images.
#[derive(Debug, Clone)]
pub struct Statistics {
    /// Means.
    pub mean: Tensor,
    /// Mean squared distances from them.
    pub variance: Tensor,
}

impl Statistics {
    fn of(x: &Tensor) -> Result<Self> {
        let share = 1.0 / x.dim(0)? as f64;
        let mean = column_sums(x)?.affine(share, 0.0)?;
        let variance = column_sums(&x.broadcast_sub(&mean)?.sqr()?)?.affine(share, 0.0)?;
        Ok(Self { mean, variance })
    }
}

/// Normalises every channel of `x` `[…, c]` by the `given` statistics, or by the batch's own, through which the gradient goes too; `affine`
/// holds the scale of every channel, then the shift. Gives the statistics too.
///
/// # Errors
/// Those of candle.
pub fn batch_norm(
    x: &Tensor,
    affine: &Tensor,
    shortcut: Option<&Tensor>,
    given: Option<Statistics>,
    (eps, relu): (f32, bool),
) -> Result<(Tensor, Statistics)> {
    let c = affine.elem_count() / 2;
    let (x0, affine0, rows) = (values(x)?, values(affine)?, (x.elem_count() / c, c));
    let trains = given.is_none();
    let x32 = single(&x0)?.reshape(rows)?;
    let statistics = match given {
        Some(given) => given,
        None => Statistics::of(&x32)?,
    };
    let (mean, rstd) = (statistics.mean.clone(), inverse_root(&statistics.variance, eps)?);
    let scale = (affine0.narrow(0, 0, c)? * &rstd)?;
    let mut y = x32.broadcast_sub(&mean)?.broadcast_mul(&scale)?.broadcast_add(&affine0.narrow(0, c, c)?)?;
    if let Some(shortcut) = shortcut {
        y = (y + single(&values(shortcut)?)?.reshape(rows)?)?;
    }
    if relu {
        // Not a number is not at most 0, so it stays what it is.
        y = y.le(0.0)?.where_cond(&y.zeros_like()?, &y)?;
    }
    let y = y.to_dtype(x.dtype())?.reshape(x.shape())?;
    // Of the result's gradient those of the shortcut, of x, and of scale and shift: with g the first and x̂ the normalised x,
    // dx = γ·rstd·(g − mean(g) − x̂·mean(g·x̂)); of constant statistics only the first term is left.
    let gradients = move |y: &Tensor, dy: &Tensor| -> Result<[Tensor; 3]> {
        let g = single(dy)?.reshape(rows)?;
        let g = if relu { y.reshape(rows)?.gt(0.0)?.where_cond(&g, &g.zeros_like()?)? } else { g };
        let normal = single(&x0)?.reshape(rows)?.broadcast_sub(&mean)?.broadcast_mul(&rstd)?;
        let (by_normal, plain) = (column_sums(&(&g * &normal)?)?, column_sums(&g)?);
        let share = 1.0 / rows.0 as f64;
        let inner = match trains {
            false => g.clone(),
            true => g.broadcast_sub(&plain.affine(share, 0.0)?)?.sub(&normal.broadcast_mul(&by_normal.affine(share, 0.0)?)?)?,
        };
        let dx = inner.broadcast_mul(&scale)?.to_dtype(dy.dtype())?.reshape(dy.shape())?;
        Ok([g.to_dtype(dy.dtype())?.reshape(dy.shape())?, dx, Tensor::cat(&[&by_normal, &plain], 0)?])
    };
    let y = match shortcut {
        None => node("batch_norm", [x, affine], y, move |y, dy, _| {
            let [_, dx, daffine] = gradients(y, dy)?;
            Ok([Some(dx), Some(daffine)])
        })?,
        Some(shortcut) => node("batch_norm with shortcut", [x, affine, shortcut], y, move |y, dy, [.., way_is]| {
            let [dway, dx, daffine] = gradients(y, dy)?;
            Ok([Some(dx), Some(daffine), way_is.then_some(dway)])
        })?,
    };
    Ok((y, statistics))
}
