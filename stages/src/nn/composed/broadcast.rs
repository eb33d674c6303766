//! Small tensors repeated over large ones, sums of two, and values in another type.

use candle_core::{DType, Result, Tensor};

use super::sums::{column_sums, product};
use super::{node::node, single, values};

/// `a + b`, of one shape.
///
/// # Errors
/// Those of candle.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let y = (values(a)? + values(b)?)?;
    node("add", [a, b], y, |_, dy, _| Ok([Some(dy.clone()), Some(dy.clone())]))
}

/// The values of `x` in another type.
///
/// # Errors
/// Those of candle.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    let from = x.dtype();
    node("cast", [x], values(x)?.to_dtype(dtype)?, move |_, dy, _| Ok([Some(dy.to_dtype(from)?)]))
}

/// `x + b`, or `x · b`, where the shape of `b` is the end of `x`'s.
///
/// # Errors
/// Those of candle.
pub fn rows(name: &'static str, x: &Tensor, b: &Tensor, is_product: bool) -> Result<Tensor> {
    let (x0, b0) = (values(x)?, values(b)?.to_dtype(x.dtype())?);
    let y = if is_product { x0.broadcast_mul(&b0)? } else { x0.broadcast_add(&b0)? };
    let (shape, flat) = (b.shape().clone(), (x.elem_count() / b.elem_count(), b.elem_count()));
    node(name, [x, b], y, move |_, dy, [x_is, b_is]| {
        let dx = || if is_product { dy.broadcast_mul(&b0) } else { Ok(dy.clone()) };
        let db = || {
            let by_value = if is_product { (dy * &x0)? } else { dy.clone() };
            column_sums(&by_value.reshape(flat)?)?.reshape(&shape)
        };
        Ok([x_is.then(dx).transpose()?, b_is.then(db).transpose()?])
    })
}

/// `x` `[n, …, c]` plus, or times, a value `s` `[n, c]` for every channel of every sample.
///
/// # Errors
/// Those of candle.
pub fn samples(name: &'static str, x: &Tensor, s: &Tensor, is_product: bool) -> Result<Tensor> {
    let (n, c) = s.dims2()?;
    let (shape, pixels) = (x.shape().clone(), x.elem_count() / (n * c));
    let x0 = values(x)?.reshape((n, pixels, c))?;
    let s0 = values(s)?.to_dtype(x.dtype())?.reshape((n, 1, c))?;
    let y = if is_product { x0.broadcast_mul(&s0)? } else { x0.broadcast_add(&s0)? };
    let s_type = s.dtype();
    node(name, [x, s], y.reshape(&shape)?, move |_, dy, [x_is, s_is]| {
        let dy = dy.reshape((n, pixels, c))?;
        let dx = || if is_product { dy.broadcast_mul(&s0) } else { Ok(dy.clone()) }?.reshape(&shape);
        let ds = || {
            let by_value = if is_product { (single(&dy)? * single(&x0)?)? } else { single(&dy)? };
            pixel_sums(&by_value)?.to_dtype(s_type)
        };
        Ok([x_is.then(dx).transpose()?, s_is.then(ds).transpose()?])
    })
}

/// The sum over the pixels of `x` `[n, pixels, c]`: `[n, c]`.
pub fn pixel_sums(x: &Tensor) -> Result<Tensor> {
    let (n, pixels, c) = x.dims3()?;
    product(&Tensor::ones((n, 1, pixels), x.dtype(), x.device())?, x)?.reshape((n, c))
}
