//! The same ops as [`ops`](super::ops), composed of candle's own: what runs on a GPU, and in `bf16`.
//!
//! Every function of `ops` asks [`wanted`] and then calls its form here, which is given shapes that fit already. A form computes its result
//! with candle's tensors apart from any graph, and says itself what its gradients are ([`node`]): candle's own ways back are partly wrong
//! (`max_pool2d`, `upsample_nearest2d`, ReLU at 0), cut (softmax, layer norm) or slow (the naive transposed convolution, `index_add` on one
//! thread a column), and keep every intermediate tensor. So all that a form keeps is what its gradient is worked out from, and the
//! [`tape`](super::tape) goes over these nodes as it goes over the CPU's ops.
//!
//! # Precision
//! The activations' type decides. Weights stay `f32` and are rounded where they are used; their gradients are `f32` again. Products of `bf16`
//! are summed in `f32` and rounded once; sums over more than a handful of values, statistics, softmax, activations and losses are `f32` inside.

mod attention;
mod batch_norm;
mod broadcast;
mod conv;
mod embedding;
mod linear;
mod loss;
mod node;
mod norm;
mod pointwise;
mod pool;
mod sums;
mod windows;

use std::cell::Cell;

use candle_core::{DType, Result, Tensor};

pub use attention::{attention, self_attention, softmax};
pub use batch_norm::{Statistics, batch_norm};
pub use broadcast::{add, cast, rows, samples};
pub use conv::conv;
pub use embedding::{embedding, first};
pub use linear::{linear, matmul};
pub use loss::{cross_entropy, mse};
pub use node::Composed;
pub(super) use node::{copied, on_cpu, on_cuda};
pub use norm::{group_norm, rms_norm};
pub use pointwise::{Function, pointwise};
pub use pool::{global_avg_pool, max_pool, pixel_shuffle2, upsample2, weighted_pool};
pub use windows::Taps;

#[cfg(test)]
mod tests;

thread_local! {
    static FORCED: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, ops of this thread take their composed form on the CPU too: what runs on a GPU can be tested without one.
#[derive(Debug)]
pub struct Forced(bool);

/// Forces the composed forms on this thread.
#[must_use]
pub fn forced() -> Forced {
    Forced(FORCED.replace(true))
}

impl Drop for Forced {
    fn drop(&mut self) {
        FORCED.set(self.0);
    }
}

/// Whether an op on these activations takes its composed form.
pub fn wanted(x: &Tensor) -> bool {
    FORCED.get() || x.dtype() != DType::F32 || !x.device().is_cpu()
}

/// In single precision.
fn single(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)
}

/// The values of `x` apart from any graph, one after the other.
fn values(x: &Tensor) -> Result<Tensor> {
    x.detach().contiguous()
}
