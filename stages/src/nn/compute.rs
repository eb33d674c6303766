//! Where and in which precision models are computed: as a pipeline says it, and as it is on this machine.

use candle_core::{DType, Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trestle_engine::stage::ParamError;

use crate::error::{Error, Result};

/// A kind of device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The processor, by the kernels of this program.
    #[default]
    Cpu,
    /// A GPU of NVIDIA, in a program that was built for one.
    Cuda,
}

/// What activations are computed in; weights and their gradients are always `f32`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Single precision.
    #[default]
    F32,
    /// Half as many bits, the exponent of single precision; on a GPU.
    Bf16,
}

/// Whether a value is the usual one: such params are not written down, so that a stage has the key that it had before there were any.
pub(crate) fn is_usual<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Whether this program was built for GPUs.
pub fn has_cuda() -> bool {
    cfg!(feature = "cuda")
}

/// Where, and in which precision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Compute {
    /// Where.
    pub device: DeviceKind,
    /// In which precision.
    pub precision: Precision,
}

impl Compute {
    /// Complaints about what cannot be.
    pub fn complaints(self) -> Vec<ParamError> {
        let mut errors = Vec::new();
        if self.device == DeviceKind::Cuda && !has_cuda() {
            let message = "this trestle was built without CUDA; build it with `cargo build --release --features cuda`, see docs/gpu.md";
            errors.push(ParamError::new("device", message));
        }
        if self.device == DeviceKind::Cpu && self.precision == Precision::Bf16 {
            errors.push(ParamError::new("precision", "`bf16` is for `device: cuda`; the kernels for the CPU are `f32`"));
        }
        errors
    }

    /// GPUs that a stage needs for this.
    pub fn gpus(self) -> u32 {
        u32::from(self.device == DeviceKind::Cuda)
    }

    /// Opens the device: of several GPUs the first that this process may see.
    ///
    /// # Errors
    /// If there is none, or its driver does not answer.
    pub fn open(self) -> Result<Place> {
        let device = match self.device {
            DeviceKind::Cpu => Device::Cpu,
            DeviceKind::Cuda => Device::new_cuda(0).map_err(|e| Error::argument(format!("no GPU can be opened: {e}; see docs/gpu.md")))?,
        };
        Ok(Place { device, dtype: if self.precision == Precision::Bf16 { DType::BF16 } else { DType::F32 } })
    }
}

/// A device that is open, and the type of activations on it.
#[derive(Debug, Clone)]
pub struct Place {
    /// Where tensors lie.
    pub device: Device,
    /// What activations are computed in.
    pub dtype: DType,
}

impl Place {
    /// The CPU, in single precision.
    pub fn cpu() -> Self {
        Self { device: Device::Cpu, dtype: DType::F32 }
    }

    /// A tensor, brought there.
    ///
    /// # Errors
    /// If there is no room.
    pub fn bring(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.to_device(&self.device)?.to_dtype(self.dtype)?)
    }
}

/// Rows of values, in single precision on the host.
///
/// # Errors
/// If `x` does not have two dimensions.
pub fn rows(x: &Tensor) -> Result<Vec<Vec<f32>>> {
    Ok(x.to_dtype(DType::F32)?.to_vec2()?)
}
