//! The named parameters of a model.

use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// Parameters by name, in the order of their names; some may be frozen, which severs them from the graph.
#[derive(Debug, Default)]
pub struct Params {
    vars: BTreeMap<String, Var>,
    frozen: BTreeSet<String>,
}

impl Params {
    /// No parameters.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a parameter, or replaces the one of that name.
    ///
    /// # Errors
    /// If there are not as many values as the shape has elements.
    pub fn insert(&mut self, name: &str, values: Vec<f32>, shape: impl Into<Shape>) -> Result<()> {
        let shape = shape.into();
        if shape.elem_count() != values.len() {
            bail!("parameter `{name}`: {} values for shape {:?}", values.len(), shape.dims());
        }
        self.vars.insert(name.to_owned(), Var::from_vec(values, shape, &Device::Cpu)?);
        Ok(())
    }

    /// Adds a parameter of one value.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn constant(&mut self, name: &str, shape: impl Into<Shape>, value: f32) -> Result<()> {
        let shape = shape.into();
        self.insert(name, vec![value; shape.elem_count()], shape)
    }

    /// Adds a parameter of `std` times values drawn from `normal`, a source of standard normal values.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn normal(&mut self, name: &str, shape: impl Into<Shape>, std: f32, normal: &mut dyn FnMut() -> f32) -> Result<()> {
        let shape = shape.into();
        let values = (0..shape.elem_count()).map(|_| std * normal()).collect();
        self.insert(name, values, shape)
    }

    /// Adds a weight whose last dimension is its outputs, with standard deviation `sqrt(gain / fan_in)` (He et al. 2015 at gain 2).
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn scaled(&mut self, name: &str, shape: impl Into<Shape>, gain: f32, normal: &mut dyn FnMut() -> f32) -> Result<()> {
        let shape = shape.into();
        let outputs = shape.dims().last().copied().unwrap_or(1).max(1);
        let fan_in = (shape.elem_count() / outputs).max(1);
        self.normal(name, shape, (gain / fan_in as f32).sqrt(), normal)
    }

    /// The parameter as a tensor of the graph: a variable, or a constant if it is frozen.
    ///
    /// # Errors
    /// If there is no such parameter.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let Some(var) = self.vars.get(name) else { bail!("there is no parameter `{name}`") };
        Ok(if self.frozen.contains(name) { var.as_detached_tensor() } else { var.as_tensor().clone() })
    }

    /// Freezes the parameters for whose name `frozen` is true, and thaws the others.
    pub fn freeze(&mut self, frozen: impl Fn(&str) -> bool) {
        self.frozen = self.vars.keys().filter(|name| frozen(name)).cloned().collect();
    }

    /// All parameters.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.vars.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// Those that are not frozen.
    pub fn trainable(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.iter().filter(|(name, _)| !self.frozen.contains(*name))
    }

    /// The number of values in all.
    pub fn count(&self) -> usize {
        self.vars.values().map(|var| var.elem_count()).sum()
    }

    /// Replaces the values of a parameter.
    ///
    /// # Errors
    /// If there is no such parameter or the number of values differs.
    pub fn set(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let Some(var) = self.vars.get(name) else { bail!("there is no parameter `{name}`") };
        if var.elem_count() != values.len() {
            bail!("parameter `{name}` of shape {:?} cannot take {} values", var.dims(), values.len());
        }
        var.set(&Tensor::from_slice(values, var.shape(), &Device::Cpu)?)
    }

    /// Copies of the values, by name.
    ///
    /// # Errors
    /// If a parameter is not f32.
    pub fn values(&self) -> Result<BTreeMap<String, Vec<f32>>> {
        self.iter().map(|(name, var)| Ok((name.to_owned(), super::values(var)?))).collect()
    }

    /// Writes a safetensors file, the tensors in the order of their names: the same values give the same bytes.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = Vec::with_capacity(self.vars.len());
        for (name, var) in self.iter() {
            let bytes: Vec<u8> = super::values(var)?.iter().flat_map(|v| v.to_le_bytes()).collect();
            tensors.push((name.to_owned(), var.dims().to_vec(), bytes));
        }
        let mut views = Vec::with_capacity(tensors.len());
        for (name, dims, bytes) in &tensors {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, dims.clone(), bytes);
            views.push((name.as_str(), view.map_err(candle_core::Error::wrap)?));
        }
        safetensors::serialize_to_file(views, None, path).map_err(candle_core::Error::wrap)
    }

    /// Reads every parameter of a safetensors file.
    ///
    /// # Errors
    /// If the file cannot be read, or holds a tensor that is not f32 or a value that is not finite; the tensor and index are named.
    pub fn load(path: &Path) -> Result<Self> {
        let tensors: BTreeMap<_, _> = candle_core::safetensors::load(path, &Device::Cpu)?.into_iter().collect();
        let mut params = Self::new();
        for (name, tensor) in tensors {
            if tensor.dtype() != DType::F32 {
                bail!("{}: tensor `{name}` is {:?}, not f32", path.display(), tensor.dtype());
            }
            let values = super::values(&tensor)?;
            if let Some(i) = values.iter().position(|v| !v.is_finite()) {
                bail!("{}: tensor `{name}` holds {} at index {i}", path.display(), values[i]);
            }
            params.insert(&name, values, tensor.shape())?;
        }
        Ok(params)
    }

    /// Checks that the names and shapes are those of `other`.
    ///
    /// # Errors
    /// The first name that is missing, unknown or of another shape.
    pub fn same_shapes(&self, other: &Self) -> Result<()> {
        let shapes: HashMap<_, _> = other.iter().map(|(name, var)| (name, var.dims())).collect();
        for (name, var) in self.iter() {
            match shapes.get(name) {
                None => bail!("parameter `{name}` is missing"),
                Some(dims) if *dims != var.dims() => bail!("parameter `{name}` has shape {dims:?}, {:?} is wanted", var.dims()),
                Some(_) => {}
            }
        }
        match other.iter().find(|(name, _)| !self.vars.contains_key(*name)) {
            Some((name, _)) => bail!("parameter `{name}` is unknown to this architecture"),
            None => Ok(()),
        }
    }
}
