//! Losses: in single precision, whatever the logits are.

use candle_core::{Result, Tensor};

use super::{node::node, single, values};

/// Mean over rows of −Σ target·log softmax(logit): one value in `f32`.
///
/// # Errors
/// Those of candle.
pub fn cross_entropy(logits: &Tensor, targets: &[f32]) -> Result<Tensor> {
    let (n, classes) = logits.dims2()?;
    let targets = Tensor::from_vec(targets.to_vec(), (n, classes), logits.device())?;
    let x = single(&values(logits)?)?;
    let shifted = x.broadcast_sub(&x.max_keepdim(1)?)?;
    let e = shifted.exp()?;
    let sums = e.sum_keepdim(1)?;
    let surprise = shifted.broadcast_sub(&sums.log()?)?;
    let y = (&targets * surprise)?.sum_all()?.affine(-1.0 / n as f64, 0.0)?;
    let p = e.broadcast_div(&sums)?;
    let dtype = logits.dtype();
    node("cross_entropy", [logits], y, move |_, dy, _| {
        let inner = (p.broadcast_mul(&targets.sum_keepdim(1)?)? - &targets)?;
        Ok([Some(inner.broadcast_mul(&dy.affine(1.0 / n as f64, 0.0)?)?.to_dtype(dtype)?)])
    })
}

/// Mean of the squared differences to `target`, which gets no gradient: one value in `f32`.
///
/// # Errors
/// Those of candle.
pub fn mse(x: &Tensor, target: &Tensor) -> Result<Tensor> {
    let gap = (single(&values(x)?)? - single(&values(target)?)?)?;
    let share = 1.0 / gap.elem_count() as f64;
    let y = gap.sqr()?.sum_all()?.affine(share, 0.0)?;
    let dtype = x.dtype();
    node("mse", [x], y, move |_, dy, _| Ok([Some(gap.broadcast_mul(&dy.affine(2.0 * share, 0.0)?)?.to_dtype(dtype)?)]))
}
