//! Activations: in single precision inside, whatever goes in and comes out.

use candle_core::{Result, Tensor};

use super::{node::node, single, values};

/// An activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
    /// `relu6(x + 3) / 6`.
    HardSigmoid,
    /// `x · relu6(x + 3) / 6`.
    HardSwish,
    /// `x / (1 + e^-x)`.
    Silu,
    /// The tanh form of GELU.
    Gelu,
    /// `x·Φ(x)`.
    GeluErf,
}

/// √(2/π) and the cubic coefficient of GELU's tanh form.
const GELU: (f64, f64) = (0.797_884_560_802_865_4, 0.044_715);

/// 1 where `lowest < x < highest`, else 0.
fn between(x: &Tensor, lowest: f64, highest: f64) -> Result<Tensor> {
    let inside = (x.gt(lowest)? * x.lt(highest)?)?;
    single(&inside)
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    x.neg()?.exp()?.affine(1.0, 1.0)?.recip()
}

/// The share of a normal variable below `x`.
fn normal(x: &Tensor) -> Result<Tensor> {
    x.affine(std::f64::consts::FRAC_1_SQRT_2, 0.0)?.erf()?.affine(0.5, 0.5)
}

/// tanh of GELU's cubic.
fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    (x * x.sqr()?.affine(GELU.0 * GELU.1, GELU.0)?)?.tanh()
}

impl Function {
    fn value(self, x: &Tensor) -> Result<Tensor> {
        match self {
            // Not a number is not at most 0, so it stays what it is.
            Self::Relu => x.le(0.0)?.where_cond(&x.zeros_like()?, x),
            Self::Relu6 => x.clamp(0.0, 6.0),
            Self::HardSigmoid => x.affine(1.0, 3.0)?.clamp(0.0, 6.0)?.affine(1.0 / 6.0, 0.0),
            Self::HardSwish => x * Self::HardSigmoid.value(x)?,
            Self::Silu => x * sigmoid(x)?,
            Self::Gelu => x * gelu_tanh(x)?.affine(0.5, 0.5)?,
            Self::GeluErf => x * normal(x)?,
        }
    }

    /// The derivative; at a kink that of the flat side, as in PyTorch.
    fn slope(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Relu => single(&x.gt(0.0)?),
            Self::Relu6 => between(x, 0.0, 6.0),
            Self::HardSigmoid => between(x, -3.0, 3.0)?.affine(1.0 / 6.0, 0.0),
            Self::HardSwish => (between(x, -3.0, 3.0)? * x.affine(1.0 / 3.0, 0.5)?)? + single(&x.ge(3.0)?)?,
            Self::Silu => {
                let s = sigmoid(x)?;
                &s * (x * s.affine(-1.0, 1.0)?)?.affine(1.0, 1.0)?
            }
            Self::Gelu => {
                let t = gelu_tanh(x)?;
                let inner = x.sqr()?.affine(3.0 * GELU.0 * GELU.1, GELU.0)?;
                t.affine(0.5, 0.5)? + ((x * t.sqr()?.affine(-0.5, 0.5)?)? * inner)?
            }
            Self::GeluErf => {
                let density = x.sqr()?.affine(-0.5, 0.0)?.exp()?.affine(1.0 / (2.0 * std::f64::consts::PI).sqrt(), 0.0)?;
                normal(x)? + (x * density)?
            }
        }
    }
}

/// `f` of every value.
///
/// # Errors
/// Those of candle.
pub fn pointwise(name: &'static str, x: &Tensor, f: Function) -> Result<Tensor> {
    let x0 = values(x)?;
    let y = f.value(&single(&x0)?)?.to_dtype(x.dtype())?;
    node(name, [x], y, move |_, dy, _| Ok([Some((single(dy)? * f.slope(&single(&x0)?)?)?.to_dtype(dy.dtype())?)]))
}
