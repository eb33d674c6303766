//! The tensors of a model, by name.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::{Error, Result};
use crate::rng::Stream;

use super::storage::with;

/// Whether a tensor is a running statistic, which a forward pass moves and no gradient does.
pub fn is_statistic(name: &str) -> bool {
    name.ends_with("running_mean") || name.ends_with("running_var")
}

/// Named tensors in the order of their names; all `f32`, all on one device.
#[derive(Debug, Clone, Default)]
pub struct Params {
    vars: BTreeMap<String, Var>,
}

impl Params {
    /// No tensors yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor, or replaces the one of that name.
    ///
    /// # Errors
    /// If the shape does not hold that many values.
    pub fn insert(&mut self, name: &str, shape: &[usize], values: Vec<f32>) -> Result<()> {
        let var = Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?)?;
        self.vars.insert(name.to_owned(), var);
        Ok(())
    }

    /// Adds a copy of a tensor, on its device, or replaces the one of that name.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn insert_tensor(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        self.vars.insert(name.to_owned(), Var::from_tensor(&tensor.detach().copy()?)?);
        Ok(())
    }

    /// A copy on another device: training one does not touch the other.
    ///
    /// # Errors
    /// If a tensor cannot be copied.
    pub fn on(&self, device: &Device) -> Result<Self> {
        let mut params = Self::new();
        for (name, var) in &self.vars {
            params.insert_tensor(name, &var.as_detached_tensor().to_device(device)?)?;
        }
        Ok(params)
    }

    /// Adds a tensor of normal values with variance `gain / fan_in` (He et al. 2015 with gain 2). The values depend on the seed and the name alone.
    ///
    /// # Errors
    /// As [`insert`](Self::insert).
    pub fn normal(&mut self, name: &str, shape: &[usize], fan_in: usize, gain: f64, stream: &Stream) -> Result<()> {
        let scale = (gain / fan_in.max(1) as f64).sqrt() as f32;
        let count = shape.iter().product();
        let values = stream.child(name).normals(count).into_iter().map(|v| v * scale).collect();
        self.insert(name, shape, values)
    }

    /// Adds a tensor of one value.
    ///
    /// # Errors
    /// As [`insert`](Self::insert).
    pub fn constant(&mut self, name: &str, shape: &[usize], value: f32) -> Result<()> {
        self.insert(name, shape, vec![value; shape.iter().product()])
    }

    /// The tensor called `name`, as part of a graph.
    ///
    /// # Errors
    /// If there is none.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        Ok(self.var(name)?.as_tensor())
    }

    /// The variable called `name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn var(&self, name: &str) -> Result<&Var> {
        self.vars.get(name).ok_or_else(|| Error::argument(format!("the model has no tensor `{name}`")))
    }

    /// All variables, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Var)> {
        self.vars.iter()
    }

    /// The variables that a gradient step changes: all but running statistics.
    pub fn trainable(&self) -> impl Iterator<Item = (&String, &Var)> {
        self.vars.iter().filter(|(name, _)| !is_statistic(name))
    }

    /// How many values there are in all.
    pub fn count(&self) -> usize {
        self.vars.values().map(|var| var.elem_count()).sum()
    }

    /// A copy whose tensors are constants: no gradient is computed for them.
    ///
    /// # Errors
    /// If a tensor cannot be copied.
    pub fn frozen(&self) -> Result<Frozen> {
        let tensors = self.vars.iter().map(|(name, var)| Ok((name.clone(), var.as_tensor().detach().copy()?)));
        Ok(Frozen { tensors: tensors.collect::<Result<_>>()? })
    }

    /// [`frozen`](Self::frozen) on another device.
    ///
    /// # Errors
    /// If a tensor cannot be copied.
    pub fn frozen_on(&self, device: &Device) -> Result<Frozen> {
        if device.is_cpu() { self.frozen() } else { self.on(device)?.frozen() }
    }

    /// A deep copy: training one does not touch the other.
    ///
    /// # Errors
    /// If a tensor cannot be copied.
    pub fn copied(&self) -> Result<Self> {
        let vars = self.vars.iter().map(|(name, var)| Ok((name.clone(), Var::from_tensor(&var.as_tensor().detach().copy()?)?)));
        Ok(Self { vars: vars.collect::<Result<_>>()? })
    }

    /// The values of the tensor called `name`.
    ///
    /// # Errors
    /// If there is none.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        Ok(with(self.get(name)?, |values| Ok(values.to_vec()))?)
    }

    /// Writes all tensors as safetensors: the same tensors give the same bytes.
    ///
    /// # Errors
    /// If a value is not finite, or the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut bytes: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        for (name, var) in &self.vars {
            let values = self.values(name)?;
            if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                return Err(Error::data(path, format!("value {i} of tensor `{name}` is not finite; the training diverged")));
            }
            bytes.push((name.clone(), var.dims().to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect()));
        }
        let views: Result<Vec<_>, _> =
            bytes.iter().map(|(name, shape, data)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), data)?))).collect();
        let views = views.map_err(|e: safetensors::SafeTensorError| Error::data(path, e))?;
        let encoded = safetensors::serialize(views, None).map_err(|e| Error::data(path, e))?;
        std::fs::write(path, encoded).map_err(Error::io(path))
    }

    /// Reads safetensors.
    ///
    /// # Errors
    /// If the file cannot be read, or a tensor is not `f32` or not finite; the error names file, tensor and index.
    pub fn load(path: &Path) -> Result<Self> {
        let mut params = Self::new();
        for (name, (shape, values)) in load_tensors(path)? {
            params.insert(&name, &shape, values)?;
        }
        Ok(params)
    }

    /// Complains unless `other` has the same names and shapes.
    ///
    /// # Errors
    /// Naming the first tensor that differs.
    pub fn expect_like(&self, wanted: &Self, place: &Path) -> Result<()> {
        for (name, var) in &wanted.vars {
            match self.vars.get(name) {
                None => return Err(Error::data(place, format!("the tensor `{name}` of the architecture is missing"))),
                Some(found) if found.dims() != var.dims() => {
                    return Err(Error::data(
                        place,
                        format!("tensor `{name}` has the shape {:?}, the architecture wants {:?}", found.dims(), var.dims()),
                    ));
                }
                Some(_) => {}
            }
        }
        match self.vars.keys().find(|name| !wanted.vars.contains_key(*name)) {
            Some(name) => Err(Error::data(place, format!("tensor `{name}` is not part of the architecture"))),
            None => Ok(()),
        }
    }
}

/// Shape and values of a tensor.
pub type Values = (Vec<usize>, Vec<f32>);

/// Shapes and values of the tensors in a safetensors file, by name; whole numbers (PyTorch counts batches) are left out.
///
/// # Errors
/// As [`Params::load`].
pub fn load_tensors(path: &Path) -> Result<BTreeMap<String, Values>> {
    let bytes = std::fs::read(path).map_err(Error::io(path))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| Error::data(path, e))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        if view.dtype() == Dtype::I64 {
            continue;
        }
        if view.dtype() != Dtype::F32 {
            return Err(Error::data(path, format!("tensor `{name}` has the type {:?}, f32 is wanted", view.dtype())));
        }
        let values: Vec<f32> = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::data(path, format!("value {i} of tensor `{name}` is not finite")));
        }
        tensors.insert(name, (view.shape().to_vec(), values));
    }
    Ok(tensors)
}

/// Named constants.
#[derive(Debug, Clone)]
pub struct Frozen {
    tensors: BTreeMap<String, Tensor>,
}

/// Where a model's forward pass takes its tensors from: variables or constants.
pub trait Weights {
    /// The tensor called `name`.
    ///
    /// # Errors
    /// If there is none.
    fn weight(&self, name: &str) -> Result<&Tensor>;
}

impl Weights for Params {
    fn weight(&self, name: &str) -> Result<&Tensor> {
        self.get(name)
    }
}

impl Weights for Frozen {
    fn weight(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| Error::argument(format!("the model has no tensor `{name}`")))
    }
}
