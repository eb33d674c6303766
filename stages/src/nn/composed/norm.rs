//! Normalisation by groups of channels, by rows, and by the root of the mean square; in single precision inside.

use candle_core::{Result, Tensor};

use super::sums::{column_sums, inverse_root, row_means};
use super::{node::node, single, values};

/// `[n, pixels, groups · width]`, whose groups become rows.
#[derive(Debug, Clone, Copy)]
struct Groups {
    n: usize,
    pixels: usize,
    groups: usize,
    width: usize,
}

impl Groups {
    fn channels(&self) -> usize {
        self.groups * self.width
    }

    /// As `[n · groups, pixels · width]`.
    fn rows(&self, x: &Tensor) -> Result<Tensor> {
        let Self { n, pixels, groups, width } = *self;
        x.reshape((n, pixels, groups, width))?.permute((0, 2, 1, 3))?.contiguous()?.reshape((n * groups, pixels * width))
    }

    /// As `[n · pixels, c]`.
    fn channels_last(&self, rows: &Tensor) -> Result<Tensor> {
        let Self { n, pixels, groups, width } = *self;
        rows.reshape((n, groups, pixels, width))?.permute((0, 2, 1, 3))?.contiguous()?.reshape((n * pixels, groups * width))
    }

    /// The rows with mean 0 and variance 1, and one over their deviations.
    fn normalised(&self, x: &Tensor, eps: f32) -> Result<(Tensor, Tensor)> {
        let rows = self.rows(x)?;
        let centred = rows.broadcast_sub(&row_means(&rows)?)?;
        let rstd = inverse_root(&row_means(&centred.sqr()?)?, eps)?;
        Ok((centred.broadcast_mul(&rstd)?, rstd))
    }
}

/// Every one of `groups` groups of channels of `x` `[n, …, c]` is normalised over its pixels (of which a layer norm has one), scaled by `gamma`
/// `[c]` and shifted by `beta` `[c]`.
///
/// # Errors
/// Those of candle.
pub fn group_norm(x: &Tensor, pixels: usize, groups: usize, affine: [&Tensor; 2], eps: f32) -> Result<Tensor> {
    let [gamma, beta] = affine;
    let c = gamma.elem_count();
    let shape = Groups { n: x.elem_count() / (pixels * c), pixels, groups, width: c / groups };
    let (x0, gamma0) = (values(x)?, values(gamma)?);
    let (rows, _) = shape.normalised(&single(&x0)?, eps)?;
    let y = shape.channels_last(&rows)?.broadcast_mul(&gamma0)?.broadcast_add(&values(beta)?)?;
    let y = y.to_dtype(x.dtype())?.reshape(x.shape())?;
    node("norm", [x, gamma, beta], y, move |_, dy, [x_is, ..]| {
        // Normalised again: it is not kept. With g = dy·γ: dx = (g − mean(g) − x̂·mean(g·x̂))·rstd.
        let (rows, rstd) = shape.normalised(&single(&x0)?, eps)?;
        let dy32 = single(dy)?.reshape((shape.n * shape.pixels, shape.channels()))?;
        let dgamma = column_sums(&(&dy32 * shape.channels_last(&rows)?)?)?;
        let dx = || {
            let g = shape.rows(&dy32.broadcast_mul(&gamma0)?)?;
            let along = rows.broadcast_mul(&row_means(&(&g * &rows)?)?)?;
            let inner = (g.broadcast_sub(&row_means(&g)?)? - along)?.broadcast_mul(&rstd)?;
            shape.channels_last(&inner)?.reshape(dy.shape())?.to_dtype(dy.dtype())
        };
        Ok([x_is.then(dx).transpose()?, Some(dgamma), Some(column_sums(&dy32)?)])
    })
}

/// `γ·x / √(mean(x²) + ε)` over the last dimension of `x` `[…, d]`, with `gamma` `[d]`.
///
/// # Errors
/// Those of candle.
pub fn rms_norm(x: &Tensor, gamma: &Tensor, eps: f32) -> Result<Tensor> {
    let d = gamma.elem_count();
    let (x0, gamma0, rows) = (values(x)?, values(gamma)?, (x.elem_count() / d, d));
    let parts = move |x0: &Tensor| -> Result<(Tensor, Tensor)> {
        let x = single(x0)?.reshape(rows)?;
        let r = inverse_root(&row_means(&x.sqr()?)?, eps)?;
        Ok((x, r))
    };
    let (x32, r) = parts(&x0)?;
    let y = x32.broadcast_mul(&r)?.broadcast_mul(&gamma0)?.to_dtype(x.dtype())?.reshape(x.shape())?;
    node("rms_norm", [x, gamma], y, move |_, dy, _| {
        let (x, r) = parts(&x0)?;
        let dy32 = single(dy)?.reshape(rows)?;
        let g = dy32.broadcast_mul(&gamma0)?;
        let along = (row_means(&(&g * &x)?)? * (&r * r.sqr()?)?)?;
        let dx = (g.broadcast_mul(&r)? - x.broadcast_mul(&along)?)?;
        let dgamma = column_sums(&(dy32 * x.broadcast_mul(&r)?)?)?;
        Ok([Some(dx.reshape(dy.shape())?.to_dtype(dy.dtype())?), Some(dgamma)])
    })
}
