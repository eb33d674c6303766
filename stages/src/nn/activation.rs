//! Elementwise activations.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::math::{sigmoid, tanh};
use super::raw::{apply1, map, map2, output, slice, tensor, with};

#[derive(Clone, Copy)]
enum Activation {
    Relu,
    Silu,
    Gelu,
}

/// `max(x, 0)`, with gradient 0 at 0.
///
/// # Errors
/// If `x` is not an f32 tensor on the CPU.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    apply1(x, Activation::Relu)
}

/// `x · sigmoid(x)`.
///
/// # Errors
/// If `x` is not an f32 tensor on the CPU.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    apply1(x, Activation::Silu)
}

/// GELU in its tanh form (Hendrycks and Gimpel 2016).
///
/// # Errors
/// If `x` is not an f32 tensor on the CPU.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    apply1(x, Activation::Gelu)
}

/// The derivative of SiLU.
#[inline(always)]
pub(super) fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
}

const GELU_A: f32 = 0.797_884_6; // sqrt(2 / pi)
const GELU_B: f32 = 0.044_715;

#[inline(always)]
fn gelu_value(x: f32) -> f32 {
    0.5 * x * (1.0 + tanh(GELU_A * (x + GELU_B * x * x * x)))
}

#[inline(always)]
fn gelu_slope(x: f32) -> f32 {
    let t = tanh(GELU_A * (x + GELU_B * x * x * x));
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * GELU_A * (1.0 + 3.0 * GELU_B * x * x)
}

impl CustomOp1 for Activation {
    fn name(&self) -> &'static str {
        "activation"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, layout)?;
        let y = match self {
            Self::Relu => map(x, |x| if x <= 0.0 { 0.0 } else { x }), // lets NaN through
            Self::Silu => map(x, |x| x * sigmoid(x)),
            Self::Gelu => map(x, gelu_value),
        };
        output(y, layout.shape())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let dx = with(x, |x| {
            with(&grad, |g| match self {
                Self::Relu => map2(x, g, |x, g| if x > 0.0 { g } else { 0.0 }),
                Self::Silu => map2(x, g, |x, g| g * silu_slope(x)),
                Self::Gelu => map2(x, g, |x, g| g * gelu_slope(x)),
            })
        })??;
        Ok(Some(tensor(dx, x.shape())?))
    }
}
