//! The stage `features`, and its artifact: what the frozen beginning of a model makes of images.
//!
//! Where many trainings share a frozen beginning and do not change the images, it is worked out once: `real-adaptation` takes the features in
//! place of the images and trains what follows.

use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trestle_engine::stage::{Arity, Context, InPort, OutPort, ParamError, Progress, Stage, StageError, Threads};

use crate::data::{Images, Stored, read_json, write_json};
use crate::error::{Error, Result};
use crate::formats;
use crate::model::Model;
use crate::nn::compute::{Compute, DeviceKind, Place, Precision};

/// Name of the tensor's file in a features folder.
const FILE: &str = "features.safetensors";
/// Name of the description's file in a features folder.
const META: &str = "meta.json";

/// What features are of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meta {
    /// The units that they are the output of, from the first on.
    pub units: Vec<String>,
    /// Of those units' weights.
    pub weights: String,
    /// Of the images.
    pub images: String,
}

/// What the first units of a model make of each image of a set.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// What they are of.
    pub meta: Meta,
    /// Of one image.
    dims: Vec<usize>,
    values: Vec<f32>,
}

impl Meta {
    /// Of the first `units` of a model, and of a set.
    ///
    /// # Errors
    /// If a tensor or an image cannot be read.
    pub fn of(model: &Model, units: usize, set: &dyn Images) -> Result<Self> {
        let units: Vec<String> = model.config.units.iter().take(units).cloned().collect();
        let mut weights = blake3::Hasher::new();
        for (name, _) in model.params.iter().filter(|(name, _)| units.iter().any(|unit| unit == model.unit_of(name))) {
            weights.update(name.as_bytes()).update(&[0]);
            let bytes: Vec<u8> = model.params.values(name)?.iter().flat_map(|v| v.to_le_bytes()).collect();
            weights.update(&bytes);
        }
        let (mut images, meta) = (blake3::Hasher::new(), set.meta());
        for side in [meta.height, meta.width, meta.channels] {
            images.update(&(side as u64).to_le_bytes());
        }
        let mut image = vec![0; set.pixels()];
        for i in 0..set.len() {
            set.copy(i, &mut image)?;
            images.update(&image);
        }
        Ok(Self { units, weights: weights.finalize().to_string(), images: images.finalize().to_string() })
    }
}

impl Features {
    /// Of all images, `batch` at a time; calls `report(done)` after each batch.
    ///
    /// # Errors
    /// If the set is empty, or does not fit the model.
    pub fn compute(
        model: &Model,
        place: &Place,
        units: usize,
        set: &dyn Images,
        batch: usize,
        mut report: impl FnMut(usize),
    ) -> Result<Self> {
        let meta = Meta::of(model, units, set)?;
        let weights = model.params.frozen_on(&place.device)?;
        let indices: Vec<usize> = (0..set.len()).collect();
        let (mut dims, mut values) = (Vec::new(), Vec::new());
        for part in indices.chunks(batch.max(1)) {
            let features = model.prefix(&weights, &place.bring(&set.to_f32(part, model.config.normalisation)?)?, units)?;
            dims = features.dims()[1..].to_vec();
            values.extend(features.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?);
            report(values.len() / dims.iter().product::<usize>().max(1));
        }
        if values.is_empty() {
            return Err(Error::argument("the set has no images"));
        }
        Ok(Self { meta, dims, values })
    }

    fn size(&self) -> usize {
        self.dims.iter().product()
    }

    /// Images.
    pub fn len(&self) -> usize {
        self.values.len() / self.size().max(1)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Those of one image.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.size()..(index + 1) * self.size()]
    }

    /// Those of the images at `indices`, in that order.
    #[must_use]
    pub fn subset(&self, indices: &[usize]) -> Self {
        let values = indices.iter().flat_map(|&i| self.row(i)).copied().collect();
        Self { meta: self.meta.clone(), dims: self.dims.clone(), values }
    }

    /// Values of `count` images as `[count, …]`.
    ///
    /// # Errors
    /// If there are not as many.
    pub fn tensor(&self, values: Vec<f32>, count: usize) -> Result<Tensor> {
        let shape: Vec<usize> = std::iter::once(count).chain(self.dims.iter().copied()).collect();
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    }

    /// Writes a features folder.
    ///
    /// # Errors
    /// If a value is not finite, or a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let path = dir.join(FILE);
        if let Some(i) = self.values.iter().position(|v| !v.is_finite()) {
            return Err(Error::data(&path, format!("value {} of image {} is not finite", i % self.size(), i / self.size())));
        }
        let bytes: Vec<u8> = self.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape: Vec<usize> = std::iter::once(self.len()).chain(self.dims.iter().copied()).collect();
        let wrong = |e| Error::data(&path, e);
        let view = TensorView::new(Dtype::F32, shape, &bytes).map_err(wrong)?;
        fs::write(&path, safetensors::serialize([("features", view)], None).map_err(wrong)?).map_err(Error::io(&path))?;
        write_json(&dir.join(META), &self.meta)
    }

    /// Reads a features folder.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub fn read(dir: &Path) -> Result<Self> {
        let meta = read_json(&dir.join(META))?;
        let path = dir.join(FILE);
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| Error::data(&path, e))?;
        let view = tensors.tensor("features").map_err(|e| Error::data(&path, e))?;
        let (Dtype::F32, [_, dims @ ..]) = (view.dtype(), view.shape()) else {
            return Err(Error::data(&path, format!("`features` is {:?} {:?}", view.dtype(), view.shape())));
        };
        let values = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Ok(Self { meta, dims: dims.to_vec(), values })
    }
}

/// The stage.
pub struct FeaturesStage;

/// Parameters of `features`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Params {
    /// The last unit of the beginning, such as `conv3` of the small CNN.
    pub until: String,
    /// Images of one forward pass.
    #[serde(default = "usual_batch")]
    pub batch: usize,
    /// Where they are computed: `cpu` or `cuda`.
    #[serde(default, skip_serializing_if = "crate::nn::compute::is_usual")]
    pub device: DeviceKind,
    /// What they are computed in: `f32`, or with `device: cuda` also `bf16`.
    #[serde(default, skip_serializing_if = "crate::nn::compute::is_usual")]
    pub precision: Precision,
}

impl Params {
    fn compute(&self) -> Compute {
        Compute { device: self.device, precision: self.precision }
    }
}

fn usual_batch() -> usize {
    64
}

impl Stage for FeaturesStage {
    const KIND: &'static str = "features";
    const VERSION: u32 = 4;
    const ABOUT: &'static str = "Works out what the beginning of a model makes of images, for trainings that keep it frozen";
    type Params = Params;

    fn inputs() -> Vec<InPort> {
        vec![
            InPort { name: "model", format: formats::MODEL, arity: Arity::One, doc: "The classifier" },
            InPort { name: "data", format: formats::IMAGE_SET, arity: Arity::One, doc: "The images" },
        ]
    }

    fn outputs() -> Vec<OutPort> {
        let doc = "For `real-adaptation` of the same model to the same images";
        vec![OutPort { name: "features", format: formats::FEATURES, path: "features", doc }]
    }

    fn check(params: &Params) -> Vec<ParamError> {
        let mut errors = params.compute().complaints();
        if params.batch == 0 {
            errors.push(ParamError::new("batch", "a batch has at least one image"));
        }
        errors
    }

    fn threads(_: &Params) -> Threads {
        crate::train::THREADS
    }

    fn gpus(params: &Params) -> u32 {
        params.compute().gpus()
    }

    fn run(params: &Params, cx: &mut Context<'_>) -> Result<(), StageError> {
        let (model, path) = (Model::read(cx.input("model")?)?, cx.input("data")?.to_path_buf());
        let set = Stored::open(&path)?;
        model.config.expect_size(&set, &path)?;
        let units = &model.config.units;
        let Some(last) = units.iter().position(|unit| *unit == params.until) else {
            let message = format!("`until`: the model has no unit `{}`; its units are {}", params.until, units.join(", "));
            return Err(StageError::new(message));
        };
        if last + 1 == units.len() {
            return Err(StageError::new(format!("`until`: `{}` is the last unit, nothing would be left to train", params.until)));
        }
        let total = set.len() as u64;
        let features = Features::compute(&model, &params.compute().open()?, last + 1, &set, params.batch, |done| {
            cx.progress(Progress { step: done as u64, total, loss: None, note: None });
        })?;
        Ok(features.write(cx.output("features")?)?)
    }
}
