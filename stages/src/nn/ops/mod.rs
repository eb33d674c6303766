//! The differentiable operations. Each takes and gives contiguous `f32` tensors on the CPU, and skips the gradients that nobody wants.

mod activation;
mod conv;
mod embedding;
mod linear;
mod loss;
mod norm;
mod pool;
mod softmax;

pub use activation::{gelu, relu, silu};
pub use conv::conv2d;
pub use embedding::embedding;
pub use linear::{linear, matmul};
pub use loss::{cross_entropy, mse};
pub use norm::{group_norm, layer_norm};
pub use pool::{global_avg_pool, max_pool2, upsample2};
pub use softmax::{attention, softmax};
