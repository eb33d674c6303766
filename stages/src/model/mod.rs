//! Image classifiers: an architecture as a list of named units, its weights, and the `model` artifact.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::{ImageSet, Normalisation, read_json, write_json};
use crate::error::{Error, Result};
use crate::nn::Params;
use crate::nn::ops::{conv2d, global_avg_pool, group_norm, linear, max_pool2, relu};
use crate::nn::params::Weights;
use crate::rng::Stream;

/// Name of the weights' file in a model folder.
pub const FILE: &str = "model.safetensors";
/// Name of the description's file in a model folder.
pub const CONFIG: &str = "config.json";
/// The unit that turns features into a value for each class.
pub const HEAD: &str = "head";

/// Channels of one group of the normalisation.
const GROUP: usize = 8;

/// An architecture.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Arch {
    /// Three 3×3 convolutions of width w, 2w and 4w, each with GroupNorm and ReLU, the first two with 2×2 max-pooling; the mean over
    /// all pixels; a linear head. With w = 32 and ten classes 94,000 values.
    #[default]
    SmallCnn,
}

/// What a model is, apart from its weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The architecture.
    pub arch: Arch,
    /// Channels of the first unit.
    pub width: usize,
    /// Pixels of an input.
    pub height: usize,
    /// Pixels of an input.
    pub input_width: usize,
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// Range of the input's values.
    pub normalisation: Normalisation,
    /// Name of each label.
    pub classes: Vec<String>,
    /// The units in the order of the forward pass: what freezing and cutting name.
    pub units: Vec<String>,
}

impl Config {
    /// A model for the images and classes of `set`.
    ///
    /// # Errors
    /// If the architecture does not take images of that size, or the width is not a multiple of 8.
    pub fn for_images(arch: Arch, width: usize, set: &ImageSet) -> Result<Self> {
        let meta = &set.meta;
        let units = ["conv1", "conv2", "conv3", HEAD].map(str::to_owned).to_vec();
        let config = Self {
            arch,
            width,
            height: meta.height,
            input_width: meta.width,
            channels: meta.channels,
            normalisation: Normalisation::Signed,
            classes: meta.classes.clone(),
            units,
        };
        config.check().map_err(Error::Argument)?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let (height, width) = (self.height, self.input_width);
        if height == 0 || width == 0 || height % 4 + width % 4 != 0 {
            return Err(format!("the small CNN halves images twice, so their sides must be multiples of 4, not {height}x{width}"));
        }
        if self.width == 0 || !self.width.is_multiple_of(GROUP) {
            return Err(format!("width {} is not a multiple of {GROUP}", self.width));
        }
        if self.units != ["conv1", "conv2", "conv3", HEAD] {
            return Err(format!("units {:?} are not those of the small CNN", self.units));
        }
        Ok(())
    }

    /// Input and output channels of the convolutions.
    fn convolutions(&self) -> [(&'static str, usize, usize); 3] {
        let w = self.width;
        [("conv1", self.channels, w), ("conv2", w, 2 * w), ("conv3", 2 * w, 4 * w)]
    }

    fn features(&self) -> usize {
        4 * self.width
    }

    /// Complains unless `set` has the size that the model takes.
    ///
    /// # Errors
    /// Naming both sizes and the folder `place`.
    pub fn expect_size(&self, set: &ImageSet, place: &Path) -> Result<()> {
        let (wanted, found) = ((self.height, self.input_width, self.channels), (set.meta.height, set.meta.width, set.meta.channels));
        if wanted == found {
            return Ok(());
        }
        let text = |(h, w, c): (usize, usize, usize)| format!("{h}x{w} with {c} channels");
        Err(Error::data(place, format!("images of {}, yet the model takes {}; resize one of them", text(found), text(wanted))))
    }

    /// Complains unless `set` has the model's classes, in its order.
    ///
    /// # Errors
    /// Naming the first label that differs and the folder `place`.
    pub fn expect_classes(&self, set: &ImageSet, place: &Path) -> Result<()> {
        let found = &set.meta.classes;
        if found.len() != self.classes.len() {
            return Err(Error::data(place, format!("{} classes, yet the model has {}", found.len(), self.classes.len())));
        }
        match found.iter().zip(&self.classes).position(|(a, b)| a != b) {
            Some(i) => Err(Error::data(place, format!("label {i} is `{}`, for the model it is `{}`", found[i], self.classes[i]))),
            None => Ok(()),
        }
    }
}

/// A classifier.
#[derive(Debug, Clone)]
pub struct Model {
    /// What it is.
    pub config: Config,
    /// Its weights, named `unit.weight`, `unit.bias`, `unit.norm.weight` and `unit.norm.bias`.
    pub params: Params,
}

impl Model {
    /// Random weights: He et al. 2015 for the convolutions, small ones for the head.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn new(config: Config, seed: u64) -> Result<Self> {
        let stream = Stream::new(seed, "model/init");
        let mut params = Params::new();
        for (unit, inputs, outputs) in config.convolutions() {
            params.normal(&format!("{unit}.weight"), &[3, 3, inputs, outputs], 9 * inputs, 2.0, &stream)?;
            params.constant(&format!("{unit}.norm.weight"), &[outputs], 1.0)?;
            params.constant(&format!("{unit}.norm.bias"), &[outputs], 0.0)?;
        }
        let mut model = Self { config, params };
        model.draw_head(&stream)?;
        Ok(model)
    }

    fn draw_head(&mut self, stream: &Stream) -> Result<()> {
        let (features, classes) = (self.config.features(), self.config.classes.len());
        self.params.normal("head.weight", &[features, classes], features, 1.0, stream)?;
        self.params.constant("head.bias", &[classes], 0.0)
    }

    /// A new random head, for `classes`.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn reinit_head(&mut self, classes: &[String], seed: u64) -> Result<()> {
        self.config.classes = classes.to_vec();
        self.draw_head(&Stream::new(seed, "model/head"))
    }

    /// Logits `[n, classes]` of images `[n, h, w, c]`, with weights from `weights`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn logits(&self, weights: &dyn Weights, x: &Tensor) -> Result<Tensor> {
        self.prefix(weights, x, self.config.units.len())
    }

    /// The output of the first `units` units: a prefix of the model.
    ///
    /// # Errors
    /// If there are not that many units, or the shapes do not fit.
    pub fn prefix(&self, weights: &dyn Weights, x: &Tensor, units: usize) -> Result<Tensor> {
        let Some(units) = self.config.units.get(..units) else {
            return Err(Error::argument(format!("the model has {} units, not {units}", self.config.units.len())));
        };
        units.iter().try_fold(x.clone(), |x, unit| self.unit(weights, unit, &x))
    }

    fn unit(&self, weights: &dyn Weights, unit: &str, x: &Tensor) -> Result<Tensor> {
        let get = |name: &str| weights.weight(&format!("{unit}.{name}"));
        if unit == HEAD {
            return Ok(linear(&global_avg_pool(x)?, get("weight")?, Some(get("bias")?))?);
        }
        let y = conv2d(x, get("weight")?, None, 1, 1)?;
        let y = group_norm(&y, y.dim(3)? / GROUP, get("norm.weight")?, get("norm.bias")?, 1e-5)?;
        // Pooling before ReLU: the result is the same, for a quarter of the work.
        let y = if unit == "conv3" { y } else { max_pool2(&y)? };
        Ok(relu(&y)?)
    }

    /// The weights with those of the units `frozen` as constants, so that no gradient is computed for them, nor through a frozen prefix.
    ///
    /// # Errors
    /// If there is no such unit.
    pub fn frozen(&self, frozen: &[String]) -> Result<Partly> {
        if let Some(unit) = frozen.iter().find(|unit| !self.config.units.contains(unit)) {
            return Err(Error::argument(format!("the model has no unit `{unit}`; its units are {}", self.config.units.join(", "))));
        }
        let frozen: BTreeSet<&str> = frozen.iter().map(String::as_str).collect();
        let tensors = self.params.iter().map(|(name, var)| {
            let tensor = if frozen.contains(unit_of(name)) { var.as_detached_tensor() } else { var.as_tensor().clone() };
            (name.clone(), tensor)
        });
        Ok(Partly { tensors: tensors.collect() })
    }

    /// Reads a model folder.
    ///
    /// # Errors
    /// If a file is missing, or the weights are not those of the architecture; the message names file and tensor.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join(CONFIG);
        let config: Config = read_json(&path)?;
        config.check().map_err(|message| Error::data(&path, message))?;
        let wanted = Self::new(config, 0)?;
        let file = dir.join(FILE);
        let params = Params::load(&file)?;
        params.expect_like(&wanted.params, &file)?;
        Ok(Self { config: wanted.config, params })
    }

    /// Writes a model folder; the same model always gives the same bytes.
    ///
    /// # Errors
    /// If a weight is not finite, or the files cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir).map_err(Error::io(dir))?;
        self.params.save(&dir.join(FILE))?;
        write_json(&dir.join(CONFIG), &self.config)
    }
}

/// The unit that a tensor belongs to.
pub fn unit_of(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

/// Weights of which some are constants.
#[derive(Debug, Clone)]
pub struct Partly {
    tensors: BTreeMap<String, Tensor>,
}

impl Weights for Partly {
    fn weight(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| Error::argument(format!("the model has no tensor `{name}`")))
    }
}

#[cfg(test)]
mod tests;
