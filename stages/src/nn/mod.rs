//! Our own differentiable operations, as candle custom ops, and what trains with them.
//!
//! candle is the host: tensors, the graph of a backward pass, safetensors. Several of its own training ops have no gradient, or a wrong one, without an
//! error, and its CPU random numbers cannot be seeded. So models are built of [`ops`] and of these candle calls alone, whose gradients
//! were checked: `add`, `sub`, `mul`, `broadcast_{add,sub,mul}`, `affine`, `reshape`, `transpose`/`permute` + `contiguous`, `narrow`,
//! `cat`, `sum`, `mean`, `sqr`. A test keeps the others out of this crate, and [`gradcheck`] holds every trainable tensor of every model to
//! finite differences.
//!
//! Training goes over a [`tape`] of these ops alone, which is faster than candle's way back and gives the same bits; there only the ops and the
//! tape's own functions may stand between variables and loss, and anything else is refused.
//!
//! Images are NHWC, convolution weights `[kh, kw, c, o]`, linear weights `[in, out]`, all `f32`. What lies on a GPU, or is `bf16`, takes the
//! [`composed`] form of the same ops: one code of a model serves all.
//!
//! # The same bytes with any number of threads
//! Work is cut into chunks whose size depends on shapes alone, sums over chunks are added in their order, and each matrix product runs
//! on one thread. Another instruction set may give other bits, since `gemm` chooses its kernels at run time.

pub mod composed;
pub mod compute;
pub mod ema;
pub mod gradcheck;
mod kept;
mod kernel;
mod math;
pub mod ops;
pub mod optim;
pub mod parallel;
pub mod params;
pub mod profile;
mod simd;
mod storage;
pub mod tape;

pub use params::Params;

#[cfg(test)]
mod tests;
