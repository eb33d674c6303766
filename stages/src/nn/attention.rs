//! Multi-head scaled dot-product attention.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use std::sync::OnceLock;

use super::loss::{softmax_row, softmax_row_back};
use super::raw::{Mat, chunks, gemm, output, scratch, slice, tensor, with};

/// Which keys a query may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mask {
    /// All.
    None,
    /// Those at its own position and before.
    Causal,
    /// The first `lengths[b]` (at least 1) of sample `b`: the rest is padding.
    Lengths(Vec<usize>),
}

/// Attention (Vaswani et al. 2017): `softmax(q·kᵀ / sqrt(d))·v` in each of `heads` heads, for `q` `[b, tq, heads·d]`, `k` and `v`
/// `[b, tk, heads·d]`, to `[b, tq, heads·d]`. The heads are read and written in place, without transposed copies.
///
/// # Errors
/// If the shapes or the mask do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize, mask: Mask) -> Result<Tensor> {
    let ((batch, queries, width), (batch_k, keys, width_k)) = (q.dims3()?, k.dims3()?);
    if heads == 0 || width % heads != 0 || batch != batch_k || width != width_k || k.dims() != v.dims() {
        bail!("attention: {:?}, {:?} and {:?} do not fit {heads} heads", q.dims(), k.dims(), v.dims());
    }
    if let Mask::Lengths(lengths) = &mask
        && (lengths.len() != batch || lengths.iter().any(|l| *l == 0 || *l > keys))
    {
        bail!("attention: lengths {lengths:?} do not fit {batch} samples of {keys} keys");
    }
    let op = Attention { batch, queries, keys, heads, d: width / heads, mask, weights: OnceLock::new() };
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
}

struct Attention {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    d: usize,
    mask: Mask,
    /// The softmax, `[b, heads, tq, tk]`.
    weights: OnceLock<Vec<f32>>,
}

impl Attention {
    fn width(&self) -> usize {
        self.heads * self.d
    }

    fn scale(&self) -> f32 {
        1.0 / (self.d as f32).sqrt()
    }

    /// How many keys query `query` of sample `sample` sees.
    fn visible(&self, sample: usize, query: usize) -> usize {
        match &self.mask {
            Mask::None => self.keys,
            Mask::Causal => (query + 1).min(self.keys),
            Mask::Lengths(lengths) => lengths[sample],
        }
    }

    fn weights(&self, q: &[f32], k: &[f32]) -> Vec<f32> {
        let (tq, tk, d, width) = (self.queries, self.keys, self.d, self.width());
        let mut weights = vec![0.0; self.batch * self.heads * tq * tk];
        chunks(&mut weights, tq * tk, |i, p| {
            let (sample, head) = (i / self.heads, i % self.heads);
            let q = Mat::new(&q[sample * tq * width + head * d..], width);
            let k = Mat::new(&k[sample * tk * width + head * d..], width);
            gemm(tq, tk, d, p, tk, false, self.scale(), q, k.t());
            for (query, row) in p.chunks_exact_mut(tk).enumerate() {
                let (seen, hidden) = row.split_at_mut(self.visible(sample, query));
                softmax_row(seen);
                hidden.fill(0.0);
            }
        });
        weights
    }

    fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let (tq, tk, d, width) = (self.queries, self.keys, self.d, self.width());
        let weights = self.weights(q, k);
        let mut y = vec![0.0; q.len()];
        chunks(&mut y, tq * width, |sample, y| {
            for head in 0..self.heads {
                let p = Mat::new(&weights[(sample * self.heads + head) * tq * tk..], tk);
                gemm(tq, d, tk, &mut y[head * d..], width, false, 1.0, p, Mat::new(&v[sample * tk * width + head * d..], width));
            }
        });
        let _ = self.weights.set(weights);
        y
    }

    /// Writes one sample's gradients, `out` being those of q, k and v one after the other.
    fn backward_sample(&self, sample: usize, q: &[f32], k: &[f32], v: &[f32], weights: &[f32], g: &[f32], out: &mut [f32]) {
        let (tq, tk, d, width, scale) = (self.queries, self.keys, self.d, self.width(), self.scale());
        let (dq, rest) = out.split_at_mut(tq * width);
        let (dk, dv) = rest.split_at_mut(tk * width);
        for head in 0..self.heads {
            let at = head * d;
            let q = Mat::new(&q[sample * tq * width + at..], width);
            let k = Mat::new(&k[sample * tk * width + at..], width);
            let v = Mat::new(&v[sample * tk * width + at..], width);
            let g = Mat::new(&g[sample * tq * width + at..], width);
            let p = &weights[(sample * self.heads + head) * tq * tk..][..tq * tk];
            gemm(tk, d, tq, &mut dv[at..], width, false, 1.0, Mat::new(p, tk).t(), g);
            scratch(tq * tk, |ds| {
                gemm(tq, tk, d, ds, tk, false, 1.0, g, v.t());
                for (ds, p) in ds.chunks_exact_mut(tk).zip(p.chunks_exact(tk)) {
                    softmax_row_back(p, ds);
                }
                gemm(tq, d, tk, &mut dq[at..], width, false, scale, Mat::new(ds, tk), k);
                gemm(tk, d, tq, &mut dk[at..], width, false, scale, Mat::new(ds, tk).t(), q);
            });
        }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        output(self.forward(slice(q, lq)?, slice(k, lk)?, slice(v, lv)?), lq.shape())
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(weights) = self.weights.get() else { bail!("attention: backward without a forward") };
        let grad = grad.contiguous()?;
        let (nq, nk) = (self.queries * self.width(), self.keys * self.width());
        let mut all = vec![0.0; self.batch * (nq + 2 * nk)];
        with(q, |q| {
            with(k, |k| {
                with(v, |v| {
                    with(&grad, |g| {
                        chunks(&mut all, nq + 2 * nk, |sample, out| self.backward_sample(sample, q, k, v, weights, g, out));
                    })
                })
            })
        })????;
        let part = |from: usize, len: usize, like: &Tensor| {
            let mut values = Vec::with_capacity(self.batch * len);
            all.chunks_exact(nq + 2 * nk).for_each(|sample| values.extend_from_slice(&sample[from..from + len]));
            tensor(values, like.shape())
        };
        Ok((Some(part(0, nq, q)?), Some(part(nq, nk, k)?), Some(part(nq + nk, nk, v)?)))
    }
}
