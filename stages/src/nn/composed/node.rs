//! A result that is there already, and its gradients.

use std::sync::Mutex;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};

use crate::nn::tape;

/// Gradients of all that an op took, given its result and that one's gradient.
type Back = Box<dyn Fn(&Tensor, &Tensor) -> Result<Vec<Option<Tensor>>> + Send + Sync>;

/// An op of up to three tensors whose result was worked out beforehand.
pub struct Composed {
    name: &'static str,
    result: Mutex<Option<Tensor>>,
    back: Back,
}

/// Puts the result `y` of an op on `args` into the graph or onto the tape. `back(y, dy, wants)` gives the gradient of every one of `args` that
/// is wanted, in its shape and type; what it holds must be apart from any graph.
pub fn node<const N: usize>(
    name: &'static str,
    args: [&Tensor; N],
    y: Tensor,
    back: impl Fn(&Tensor, &Tensor, [bool; N]) -> Result<[Option<Tensor>; N]> + Send + Sync + 'static,
) -> Result<Tensor> {
    let wants = args.map(Tensor::track_op);
    if !wants.contains(&true) {
        return Ok(y);
    }
    let back = move |y: &Tensor, dy: &Tensor| Ok(Vec::from(back(&y.detach(), &dy.detach().contiguous()?, wants)?));
    tape::apply_composed(&args, Composed { name, result: Mutex::new(Some(y)), back: Box::new(back) })
}

impl Composed {
    /// What it is called.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The result, once.
    ///
    /// # Errors
    /// The second time.
    pub fn take(&self) -> Result<Tensor> {
        match self.result.lock().map(|mut result| result.take()) {
            Ok(Some(result)) => Ok(result),
            _ => bail!("{}: a result was taken twice", self.name),
        }
    }

    /// The gradients of what it took.
    ///
    /// # Errors
    /// If one cannot be worked out.
    pub fn gradients(&self, y: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        (self.back)(y, dy)
    }

    fn exactly<const N: usize>(&self, y: &Tensor, dy: &Tensor) -> Result<[Option<Tensor>; N]> {
        match self.gradients(y, dy)?.try_into() {
            Ok(gradients) => Ok(gradients),
            Err(_) => bail!("{}: the op took another number of tensors", self.name),
        }
    }
}

/// The values of a tensor in a storage of their own: candle lets an op give nothing else.
pub(in crate::nn) fn copied<S: BackendStorage>(y: &Tensor, of: impl Fn(&Storage) -> Option<&S>) -> Result<(S, Shape)> {
    let (storage, layout) = y.storage_and_layout();
    match of(&storage) {
        // Times 1 plus 0 is the one copy in the trait that takes any layout.
        Some(storage) => Ok((storage.affine(layout, 1.0, 0.0)?, layout.shape().clone())),
        None => bail!("a result lies on another device than what it was made of"),
    }
}

pub(in crate::nn) fn on_cpu(storage: &Storage) -> Option<&CpuStorage> {
    if let Storage::Cpu(storage) = storage { Some(storage) } else { None }
}

pub(in crate::nn) fn on_cuda(storage: &Storage) -> Option<&CudaStorage> {
    if let Storage::Cuda(storage) = storage { Some(storage) } else { None }
}

impl CustomOp1 for Composed {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        copied(&self.take()?, on_cpu)
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        copied(&self.take()?, on_cuda)
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let [dx] = self.exactly(y, dy)?;
        Ok(dx)
    }
}

impl CustomOp2 for Composed {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        copied(&self.take()?, on_cpu)
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        copied(&self.take()?, on_cuda)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [da, db] = self.exactly(y, dy)?;
        Ok((da, db))
    }
}

impl CustomOp3 for Composed {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        copied(&self.take()?, on_cpu)
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        copied(&self.take()?, on_cuda)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [da, db, dc] = self.exactly(y, dy)?;
        Ok((da, db, dc))
    }
}
