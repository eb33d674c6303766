//! Values that belong to a tensor of a model and lie where it lies: an optimiser's memory, an average.

use std::borrow::Cow;

use candle_core::{DType, Result, Tensor};

use super::composed;
use super::storage::with;

/// As many values as a tensor has.
#[derive(Debug, Clone)]
pub enum Kept {
    /// Beside a tensor on the CPU: changed in place, in one pass.
    Host(Vec<f32>),
    /// Beside a tensor on another device: replaced by what candle's ops make of them.
    There(Tensor),
}

impl Kept {
    /// Zeros.
    ///
    /// # Errors
    /// Those of candle.
    pub fn zeros(like: &Tensor) -> Result<Self> {
        if composed::wanted(like) {
            return Ok(Self::There(Tensor::zeros(like.shape(), DType::F32, like.device())?));
        }
        Ok(Self::Host(vec![0.0; like.elem_count()]))
    }

    /// The values of `x`.
    ///
    /// # Errors
    /// Those of candle.
    pub fn copy_of(x: &Tensor) -> Result<Self> {
        if composed::wanted(x) {
            return Ok(Self::There(x.detach().copy()?));
        }
        Ok(Self::Host(with(x, |values| Ok(values.to_vec()))?))
    }

    /// These values, for the tensor `like`.
    ///
    /// # Errors
    /// If it does not have as many.
    pub fn of_values(values: Vec<f32>, like: &Tensor) -> Result<Self> {
        if composed::wanted(like) {
            return Ok(Self::There(Tensor::from_vec(values, like.shape(), like.device())?));
        }
        Ok(Self::Host(values))
    }

    /// The values, copied if they lie elsewhere.
    ///
    /// # Errors
    /// Those of candle.
    pub fn values(&self) -> Result<Cow<'_, [f32]>> {
        match self {
            Self::Host(values) => Ok(Cow::Borrowed(values)),
            Self::There(tensor) => Ok(Cow::Owned(tensor.flatten_all()?.to_vec1()?)),
        }
    }
}

/// `a·x + b·y`: what moving averages are made of on a device.
///
/// # Errors
/// If the shapes differ.
pub fn weighted((a, x): (f32, &Tensor), (b, y): (f32, &Tensor)) -> Result<Tensor> {
    x.affine(f64::from(a), 0.0)? + y.affine(f64::from(b), 0.0)?
}
