//! Activations.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::nn::composed::{self, Function};
use crate::nn::math::{map, map2, normal_density, normal_tail, sigmoid, tanh};
use crate::nn::storage::{gradient, output, slice, with};
use crate::nn::tape::apply1;

/// A function of one value and its derivative.
pub(super) trait Scalar: Send + Sync {
    const NAME: &'static str;
    /// The same in its composed form.
    const COMPOSED: Function;
    fn value(x: f32) -> f32;
    fn slope(x: f32) -> f32;
}

struct Pointwise<S>(std::marker::PhantomData<S>);

impl<S: Scalar> CustomOp1 for Pointwise<S> {
    fn name(&self) -> &'static str {
        S::NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        output(map(slice(x, lx)?, S::value), lx.shape().clone())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = with(x, |values| with(dy, |dy| Ok(map2(values, dy, |x, d| d * S::slope(x)))))?;
        gradient(dx, x).map(Some)
    }
}

fn apply<S: Scalar + 'static>(x: &Tensor) -> Result<Tensor> {
    if composed::wanted(x) {
        return composed::pointwise(S::NAME, x, S::COMPOSED);
    }
    apply1(x, Pointwise::<S>(std::marker::PhantomData))
}

struct Relu;
impl Scalar for Relu {
    const NAME: &'static str = "relu";
    const COMPOSED: Function = Function::Relu;
    #[inline(always)]
    fn value(x: f32) -> f32 {
        // Not a number stays what it is, so that a diverged model is noticed.
        if x > 0.0 || x.is_nan() { x } else { 0.0 }
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        if x > 0.0 { 1.0 } else { 0.0 }
    }
}

pub(super) struct Silu;
impl Scalar for Silu {
    const NAME: &'static str = "silu";
    const COMPOSED: Function = Function::Silu;
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * sigmoid(x)
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let s = sigmoid(x);
        s * (1.0 + x * (1.0 - s))
    }
}

/// √(2/π) and the cubic coefficient of the tanh form (Hendrycks and Gimpel 2016).
const GELU: (f32, f32) = (0.797_884_6, 0.044_715);

struct Gelu;
impl Scalar for Gelu {
    const NAME: &'static str = "gelu";
    const COMPOSED: Function = Function::Gelu;
    #[inline(always)]
    fn value(x: f32) -> f32 {
        0.5 * x * (1.0 + tanh(GELU.0 * (x + GELU.1 * x * x * x)))
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let t = tanh(GELU.0 * (x + GELU.1 * x * x * x));
        0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * GELU.0 * (1.0 + 3.0 * GELU.1 * x * x)
    }
}

pub(super) struct GeluErf;

impl GeluErf {
    /// The value and the slope, which have the share beyond |x| in common.
    #[inline(always)]
    pub(super) fn both(x: f32) -> (f32, f32) {
        let beyond = normal_tail(x.abs());
        let below = if x < 0.0 { beyond } else { 1.0 - beyond };
        (Self::at(x, beyond), x.mul_add(normal_density(x), below))
    }

    /// `x·Φ(x)`, given `Φ(−|x|)`.
    #[inline(always)]
    fn at(x: f32, beyond: f32) -> f32 {
        let above = if x < 0.0 { 0.0 } else { x };
        x.abs().mul_add(-beyond, above)
    }
}

impl Scalar for GeluErf {
    const NAME: &'static str = "gelu_erf";
    const COMPOSED: Function = Function::GeluErf;
    #[inline(always)]
    fn value(x: f32) -> f32 {
        Self::at(x, normal_tail(x.abs()))
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        Self::both(x).1
    }
}

struct Relu6;
impl Scalar for Relu6 {
    const NAME: &'static str = "relu6";
    const COMPOSED: Function = Function::Relu6;
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x.clamp(0.0, 6.0)
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        if x > 0.0 && x < 6.0 { 1.0 } else { 0.0 }
    }
}

struct HardSigmoid;
impl Scalar for HardSigmoid {
    const NAME: &'static str = "hard_sigmoid";
    const COMPOSED: Function = Function::HardSigmoid;
    #[inline(always)]
    fn value(x: f32) -> f32 {
        Relu6::value(x + 3.0) / 6.0
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        if x > -3.0 && x < 3.0 { 1.0 / 6.0 } else { 0.0 }
    }
}

struct HardSwish;
impl Scalar for HardSwish {
    const NAME: &'static str = "hard_swish";
    const COMPOSED: Function = Function::HardSwish;
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * HardSigmoid::value(x)
    }
    #[inline(always)]
    fn slope(x: f32) -> f32 {
        // As in PyTorch, the borders belong to the flat parts.
        if x <= -3.0 {
            0.0
        } else if x >= 3.0 {
            1.0
        } else {
            x / 3.0 + 0.5
        }
    }
}

/// `max(x, 0)`, with gradient 0 at 0.
///
/// # Errors
/// If `x` holds no floating-point numbers.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    apply::<Relu>(x)
}

/// `x / (1 + e^-x)`.
///
/// # Errors
/// If `x` holds no floating-point numbers.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    apply::<Silu>(x)
}

/// The tanh form of GELU.
///
/// # Errors
/// If `x` holds no floating-point numbers.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    apply::<Gelu>(x)
}

/// The exact form of GELU, `x·Φ(x)`.
///
/// # Errors
/// If `x` holds no floating-point numbers.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    apply::<GeluErf>(x)
}

/// `min(max(x, 0), 6)`.
///
/// # Errors
/// If `x` holds no floating-point numbers.
pub fn relu6(x: &Tensor) -> Result<Tensor> {
    apply::<Relu6>(x)
}

/// `relu6(x + 3) / 6`.
///
/// # Errors
/// If `x` holds no floating-point numbers.
pub fn hard_sigmoid(x: &Tensor) -> Result<Tensor> {
    apply::<HardSigmoid>(x)
}

/// `x · relu6(x + 3) / 6` (Howard et al. 2019).
///
/// # Errors
/// If `x` holds no floating-point numbers.
pub fn hard_swish(x: &Tensor) -> Result<Tensor> {
    apply::<HardSwish>(x)
}
