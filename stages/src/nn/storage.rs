//! Tensors as slices.
#![allow(unsafe_code, reason = "results that are written whole need not be filled with zeros first")]

use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};

/// The values of a contiguous `f32` storage.
pub fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else { bail!("a kernel got {:?}, it takes f32", storage_type(storage)) };
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("a kernel got a tensor that is not contiguous: {layout:?}") };
    Ok(&values[start..end])
}

fn storage_type(storage: &CpuStorage) -> candle_core::DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

/// Calls `f` with the values of a tensor, which are copied if it lies on another device or has another type.
pub fn with<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> Result<R>) -> Result<R> {
    if !tensor.device().is_cpu() || (tensor.dtype() != DType::F32 && tensor.dtype().is_float()) {
        return f(&tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?);
    }
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(slice(storage, layout)?),
        _ => bail!("this kernel runs on the CPU only"),
    }
}

/// What the forward pass of a custom op returns.
pub fn output(values: Vec<f32>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(values), shape.into()))
}

/// A gradient of the shape of `like`.
pub fn gradient(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), &Device::Cpu)
}

/// Room for `n` values that are not written yet: large results are then written once, not twice.
///
/// # Safety
/// The caller writes every value before it reads any.
pub unsafe fn unwritten(n: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(n);
    // SAFETY: every pattern of bits is an f32, and the caller writes before it reads.
    #[allow(clippy::uninit_vec)]
    unsafe {
        values.set_len(n);
    }
    values
}
