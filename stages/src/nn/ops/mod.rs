//! The differentiable operations, which skip the gradients that nobody wants. Contiguous `f32` tensors on the CPU take the kernels of this
//! crate; all others the [`composed`](super::composed) form of the same op.

mod activation;
mod batch_norm;
mod broadcast;
mod conv;
mod conv_pool;
mod embedding;
mod expand;
mod linear;
mod loss;
mod norm;
mod norm_rows;
mod pool;
mod rms_norm;
mod self_attention;
mod softmax;
mod window_pool;

pub use activation::{gelu, gelu_erf, hard_sigmoid, hard_swish, relu, relu6, silu};
pub use batch_norm::{BatchNorm, Moments};
pub use broadcast::{add_samples, bias_add, scale, scale_samples};
pub use conv::{Window, conv, conv_relu, conv2d};
pub use conv_pool::conv_relu_max_pool;
pub use embedding::{embedding, first};
pub use expand::expand;
pub use linear::{linear, linear_add, linear_gelu, matmul};
pub use loss::{cross_entropy, mse, one_hot};
pub use norm::{group_norm, group_norm_silu, layer_norm};
pub use pool::{global_avg_pool, max_pool2, pixel_shuffle2, upsample2};
pub use rms_norm::rms_norm;
pub use self_attention::{attention, self_attention};
pub use softmax::softmax;
pub use window_pool::{PoolWindow, adaptive_avg_pool, avg_pool, max_pool};
