//! Matrix products.

use candle_core::{Result, Tensor};

use super::sums::{column_sums, product};
use super::{node::node, single, values};

/// `x · w + bias`: `x` `[m, k]`, `w` `[k, n]`, `bias` `[n]`.
///
/// # Errors
/// Those of candle.
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (x0, w0) = (values(x)?, values(w)?.to_dtype(x.dtype())?);
    let y = product(&x0, &w0)?;
    let gradients = move |dy: &Tensor, x_is: bool, w_is: bool| -> Result<[Option<Tensor>; 2]> {
        let dx = || product(dy, &w0.t()?);
        let dw = || single(&product(&x0.t()?, dy)?);
        Ok([x_is.then(dx).transpose()?, w_is.then(dw).transpose()?])
    };
    let Some(bias) = bias else { return node("linear", [x, w], y, move |_, dy, [x_is, w_is]| gradients(dy, x_is, w_is)) };
    let y = y.broadcast_add(&values(bias)?.to_dtype(y.dtype())?)?;
    node("linear with bias", [x, w, bias], y, move |_, dy, [x_is, w_is, bias_is]| {
        let [dx, dw] = gradients(dy, x_is, w_is)?;
        Ok([dx, dw, bias_is.then(|| column_sums(dy)).transpose()?])
    })
}

/// `[b, m, k] · [b, k, n]`; with `transpose`, the second is given as `[b, n, k]`.
///
/// # Errors
/// Those of candle.
pub fn matmul(x: &Tensor, y: &Tensor, transpose: bool) -> Result<Tensor> {
    let (x0, y0) = (values(x)?, values(y)?);
    let z = if transpose { product(&x0, &y0.t()?)? } else { product(&x0, &y0)? };
    node("matmul", [x, y], z, move |_, dz, [x_is, y_is]| {
        let dx = || if transpose { product(dz, &y0) } else { product(dz, &y0.t()?) };
        let dy = || if transpose { product(&dz.t()?, &x0) } else { product(&x0.t()?, dz) };
        Ok([x_is.then(dx).transpose()?, y_is.then(dy).transpose()?])
    })
}
