//! Softmax and attention. Scores and weights have the type of the activations, the softmax between them is single precision.

use candle_core::{D, Result, Tensor};

use super::sums::product;
use super::{node::node, single, values};

/// Softmax of `scale · x` over the last dimension, in the type of `x`.
fn weights(x: &Tensor, scale: f64) -> Result<Tensor> {
    let x32 = single(x)?;
    let e = x32.broadcast_sub(&x32.max_keepdim(D::Minus1)?)?.affine(scale, 0.0)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?.to_dtype(x.dtype())
}

/// From a softmax `p` of `scale · x` and its gradient that of x.
fn weights_back(p: &Tensor, dp: &Tensor, scale: f64) -> Result<Tensor> {
    let (p32, dp32) = (single(p)?, single(dp)?);
    let dot = (&p32 * &dp32)?.sum_keepdim(D::Minus1)?;
    (p32 * dp32.broadcast_sub(&dot)?)?.affine(scale, 0.0)?.to_dtype(dp.dtype())
}

/// Softmax over the last dimension.
///
/// # Errors
/// Those of candle.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let y = weights(&values(x)?, 1.0)?;
    node("softmax", [x], y, |y, dy, _| Ok([Some(weights_back(y, dy, 1.0)?)]))
}

/// Queries, keys and values of all heads of all samples: `[b · heads, tokens, d]` each.
struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: f64,
}

impl Heads {
    fn new(q: Tensor, k: Tensor, v: Tensor) -> Result<Self> {
        let scale = 1.0 / (q.dim(2)? as f64).sqrt();
        Ok(Self { q, k, v, scale })
    }

    /// The result and the softmax.
    fn forward(&self) -> Result<(Tensor, Tensor)> {
        let p = weights(&product(&self.q, &self.k.t()?)?, self.scale)?;
        Ok((product(&p, &self.v)?, p))
    }

    /// The gradients of queries, keys and values.
    fn backward(&self, p: &Tensor, dy: &Tensor) -> Result<[Tensor; 3]> {
        let ds = weights_back(p, &product(dy, &self.v.t()?)?, self.scale)?;
        Ok([product(&ds, &self.k)?, product(&ds.t()?, &self.q)?, product(&p.t()?, dy)?])
    }
}

/// `[b, t, heads · d]` as `[b · heads, t, d]`.
fn split(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, t, c) = x.dims3()?;
    x.reshape((b, t, heads, c / heads))?.transpose(1, 2)?.contiguous()?.reshape((b * heads, t, c / heads))
}

/// The other way round.
fn merge(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (all, t, d) = x.dims3()?;
    x.reshape((all / heads, heads, t, d))?.transpose(1, 2)?.contiguous()?.reshape((all / heads, t, heads * d))
}

/// Softmax(q·kᵀ / √d)·v: `q` `[b, t, c]`, `k` and `v` `[b, s, c]`, result `[b, t, c]`.
///
/// # Errors
/// Those of candle.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let part = |x: &Tensor| split(&values(x)?, heads);
    let all = Heads::new(part(q)?, part(k)?, part(v)?)?;
    let (y, p) = all.forward()?;
    node("attention", [q, k, v], merge(&y, heads)?, move |_, dy, _| {
        let [dq, dk, dv] = all.backward(&p, &split(dy, heads)?)?;
        Ok([Some(merge(&dq, heads)?), Some(merge(&dk, heads)?), Some(merge(&dv, heads)?)])
    })
}

/// The same with queries, keys and values side by side in `qkv` `[n, t, 3·c]`: `[n, t, c]`.
///
/// # Errors
/// Those of candle.
pub fn self_attention(qkv: &Tensor, heads: usize) -> Result<Tensor> {
    let (n, t, c) = (qkv.dim(0)?, qkv.dim(1)?, qkv.dim(2)? / 3);
    let qkv0 = values(qkv)?;
    // Split again on the way back: it is not kept.
    let all = move || {
        let part = |i: usize| split(&qkv0.narrow(2, i * c, c)?.contiguous()?, heads);
        Heads::new(part(0)?, part(1)?, part(2)?)
    };
    let (y, p) = all()?.forward()?;
    node("self_attention", [qkv], merge(&y, heads)?, move |_, dy, _| {
        let parts = all()?.backward(&p, &split(dy, heads)?)?;
        let parts: Vec<Tensor> = parts.iter().map(|part| merge(part, heads)).collect::<Result<_>>()?;
        Ok([Some(Tensor::cat(&parts, 2)?.contiguous()?.reshape((n, t, 3 * c))?)])
    })
}
