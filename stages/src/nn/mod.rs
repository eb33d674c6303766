//! Differentiable operations for training on CPU, as candle custom ops with a forward and a backward of our own.
//!
//! candle's own pooling, normalisation, softmax, upsampling and ReLU have wrong or severed gradients, often without an error, and
//! its initialisers and dropout draw from an unseeded generator. Models in this crate are therefore built from this module and
//! from the few candle operations whose gradients are right: `add`, `sub`, `mul`, `affine`, `reshape`, `transpose`, `permute`,
//! `narrow`, `cat`, `sum`. A test of the crate holds the sources to that list.
//!
//! # Layout
//! Images are `[n, h, w, c]`, convolution weights `[kh, kw, c, o]`, linear weights `[in, out]`, all row-major f32.
//!
//! # Reproducibility
//! Work is cut into blocks whose size depends on the shapes alone; sums are taken in a fixed order. The results are the same bytes
//! with any number of threads. Another instruction set may give other bits, since the matrix products choose their kernel by it.

pub mod gradcheck;

mod activation;
mod attention;
mod conv;
mod embedding;
mod loss;
mod math;
mod matmul;
mod norm;
mod optim;
mod params;
mod pool;
mod raw;
mod tile;

pub use activation::{gelu, relu, silu};
pub use attention::{Mask, attention};
pub use conv::{Conv, conv2d};
pub use embedding::embedding;
pub use loss::{cross_entropy, mse, one_hot, softmax};
pub use matmul::{linear, matmul};
pub use norm::{Post, group_norm, layer_norm, rms_norm};
pub use optim::{AdamW, AdamWConfig, Ema, Sgd, SgdConfig};
pub use params::Params;
pub use pool::{avg_pool, bias_relu_pool, global_avg_pool, max_pool, upsample2x};
pub use raw::{in_pool, values};
pub use tile::{add_bias, add_per_sample, cat_channels, film, gated_add};

#[cfg(test)]
mod tests;
