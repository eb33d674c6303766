//! Image classifiers: an architecture as a list of named units, its weights, and the `model` artifact.

mod import;
mod layer;
mod names;
mod variant;
pub mod weights;
mod zoo;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::{Images, Normalisation, read_json, write_json};
use crate::error::{Error, Result};
use crate::nn::Params;
use crate::nn::ops::Moments;
use crate::nn::params::Weights;
use crate::rng::Stream;
pub use import::Import;
use layer::{Layer, Pass, Spec};
pub use names::Names;
pub use variant::{Range, Variant};
use zoo::Unit;

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
    /// ResNet-18 (He et al. 2016): 11.7 million values with 1,000 classes.
    #[serde(rename = "resnet-18")]
    ResNet18,
    /// ResNet-34: 21.8 million.
    #[serde(rename = "resnet-34")]
    ResNet34,
    /// ResNet-50: 25.6 million.
    #[serde(rename = "resnet-50")]
    ResNet50,
    /// ResNet-18 for images of 32 pixels: a 3×3 stem without pooling.
    #[serde(rename = "resnet-18-32px")]
    ResNet18Small,
    /// ResNet-34 for images of 32 pixels.
    #[serde(rename = "resnet-34-32px")]
    ResNet34Small,
    /// ResNet-50 for images of 32 pixels.
    #[serde(rename = "resnet-50-32px")]
    ResNet50Small,
    /// SqueezeNet 1.1 (Iandola et al. 2016): 1.2 million.
    #[serde(rename = "squeezenet-1.1")]
    SqueezeNet,
    /// Vision transformer (Dosovitskiy et al. 2021), 16-pixel patches, 12 blocks of width 192: 5.7 million.
    #[serde(rename = "vit-ti-16")]
    VitTiny,
    /// Width 384: 22 million.
    #[serde(rename = "vit-s-16")]
    VitSmall,
    /// Width 768: 86.6 million.
    #[serde(rename = "vit-b-16")]
    VitBase,
    /// 24 blocks of width 1024: 304 million.
    #[serde(rename = "vit-l-16")]
    VitLarge,
    /// The vision transformer of width 192 with 4-pixel patches, for images of 32 pixels.
    #[serde(rename = "vit-ti-4")]
    VitTinySmall,
    /// EfficientNet-Lite0 (Tan and Le 2019): 4.7 million.
    #[serde(rename = "efficientnet-lite0")]
    EfficientNetLite0,
    /// MobileNetV3-Large (Howard et al. 2019): 5.5 million.
    #[serde(rename = "mobilenet-v3-large")]
    MobileNetV3Large,
    /// MobileNetV3-Small: 2.5 million.
    #[serde(rename = "mobilenet-v3-small")]
    MobileNetV3Small,
    /// ConvNeXt-T (Liu et al. 2022): 28.6 million.
    #[serde(rename = "convnext-t")]
    ConvNextTiny,
}

impl Arch {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::SmallCnn,
        Self::ResNet18,
        Self::ResNet34,
        Self::ResNet50,
        Self::ResNet18Small,
        Self::ResNet34Small,
        Self::ResNet50Small,
        Self::SqueezeNet,
        Self::VitTiny,
        Self::VitSmall,
        Self::VitBase,
        Self::VitLarge,
        Self::VitTinySmall,
        Self::EfficientNetLite0,
        Self::MobileNetV3Large,
        Self::MobileNetV3Small,
        Self::ConvNextTiny,
    ];

    /// Its name in a pipeline.
    pub fn name(self) -> String {
        // A variant without fields is written as its name.
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Pixels that the sides of an image must be a multiple of, and the least of them.
    fn sides(self) -> (usize, usize) {
        match self {
            Self::SmallCnn => (4, 4),
            Self::VitTiny | Self::VitSmall | Self::VitBase | Self::VitLarge => (16, 16),
            Self::VitTinySmall => (4, 4),
            Self::ResNet18Small | Self::ResNet34Small | Self::ResNet50Small => (1, 8),
            _ => (1, 32),
        }
    }

    fn units(self, channels: usize, size: [usize; 2], width: usize, classes: usize, variant: Variant) -> Vec<Unit> {
        let mut units = self.plain_units(channels, size, width, classes, variant.same_padding);
        if let Some(eps) = variant.norm_eps {
            units.iter_mut().flat_map(|unit| &mut unit.layers).for_each(|layer| layer.set_norm_eps(eps));
        }
        if let (Some(range), Some(stem)) = (variant.input, units.first_mut()) {
            stem.layers.insert(0, Layer::Range(range));
        }
        units
    }

    fn plain_units(self, channels: usize, size: [usize; 2], width: usize, classes: usize, same: bool) -> Vec<Unit> {
        let vit = |patch, c, depth, heads| zoo::vit(channels, size, patch, c, depth, heads, classes);
        let resnet = |blocks, bottleneck, small| zoo::resnet(channels, blocks, bottleneck, small, classes);
        match self {
            Self::SmallCnn => zoo::small_cnn(channels, size, width, GROUP, classes),
            Self::ResNet18 => resnet([2, 2, 2, 2], false, false),
            Self::ResNet34 => resnet([3, 4, 6, 3], false, false),
            Self::ResNet50 => resnet([3, 4, 6, 3], true, false),
            Self::ResNet18Small => resnet([2, 2, 2, 2], false, true),
            Self::ResNet34Small => resnet([3, 4, 6, 3], false, true),
            Self::ResNet50Small => resnet([3, 4, 6, 3], true, true),
            Self::SqueezeNet => zoo::squeezenet(channels, same, classes),
            Self::VitTiny => vit(16, 192, 12, 3),
            Self::VitSmall => vit(16, 384, 12, 6),
            Self::VitBase => vit(16, 768, 12, 12),
            Self::VitLarge => vit(16, 1024, 24, 16),
            Self::VitTinySmall => vit(4, 192, 12, 3),
            Self::EfficientNetLite0 => zoo::efficientnet_lite0(channels, classes),
            Self::MobileNetV3Large => zoo::mobilenet_v3(channels, true, classes),
            Self::MobileNetV3Small => zoo::mobilenet_v3(channels, false, classes),
            Self::ConvNextTiny => zoo::convnext_tiny(channels, classes),
        }
    }
}

/// What a model is, apart from its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The architecture.
    pub arch: Arch,
    /// Channels of the first unit of the small CNN; the other architectures have widths of their own.
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
    /// What weights from elsewhere need otherwise than our form of the architecture.
    #[serde(default, skip_serializing_if = "Variant::is_plain")]
    pub variant: Variant,
}

impl Config {
    /// A model for the images and classes of `set`.
    ///
    /// # Errors
    /// If the architecture does not take images of that size, or the width is not a multiple of 8.
    pub fn for_images(arch: Arch, width: usize, set: &dyn Images) -> Result<Self> {
        let meta = set.meta();
        Self::new(arch, width, [meta.height, meta.width], meta.channels, meta.classes.clone())
    }

    /// A model for images of `size` (height and width) with `channels` channels.
    ///
    /// # Errors
    /// As [`for_images`](Self::for_images).
    pub fn new(arch: Arch, width: usize, size: [usize; 2], channels: usize, classes: Vec<String>) -> Result<Self> {
        let [height, input_width] = size;
        let normalisation = Normalisation::Signed;
        let mut config =
            Self { arch, width, height, input_width, channels, normalisation, classes, units: Vec::new(), variant: Variant::default() };
        config.units = config.layers().into_iter().map(|unit| unit.name).collect();
        config.check().map_err(Error::Argument)?;
        Ok(config)
    }

    /// The same model with the layers that weights from elsewhere need.
    ///
    /// # Errors
    /// If a value of the variant makes no sense, or the architecture does not have it.
    pub fn varied(self, variant: Variant) -> Result<Self> {
        let config = Self { variant, ..self };
        config.check().map_err(Error::Argument)?;
        Ok(config)
    }

    /// The units with their layers.
    fn layers(&self) -> Vec<Unit> {
        self.arch.units(self.channels, [self.height, self.input_width], self.width, self.classes.len(), self.variant)
    }

    /// All tensors, with the unit that they belong to.
    fn specs(&self) -> Vec<(String, Spec)> {
        let of = |unit: Unit| unit.layers.iter().flat_map(Layer::specs).map(|spec| (unit.name.clone(), spec)).collect::<Vec<_>>();
        self.layers().into_iter().flat_map(of).collect()
    }

    fn check(&self) -> Result<(), String> {
        let (height, width) = (self.height, self.input_width);
        let (multiple, least) = self.arch.sides();
        if self.arch == Arch::SmallCnn && (height.min(width) < least || height % 4 + width % 4 != 0) {
            return Err(format!("the small CNN halves images twice, so their sides must be multiples of 4, not {height}x{width}"));
        }
        if height.min(width) < least || height % multiple + width % multiple != 0 {
            let arch = self.arch.name();
            return Err(format!("{arch} takes images whose sides are multiples of {multiple} from {least} on, not {height}x{width}"));
        }
        if self.arch == Arch::SmallCnn && (self.width == 0 || !self.width.is_multiple_of(GROUP)) {
            return Err(format!("width {} is not a multiple of {GROUP}", self.width));
        }
        self.variant.check()?;
        if self.variant.same_padding && self.arch != Arch::SqueezeNet {
            return Err(format!("`same_padding` is a variant of SqueezeNet, not of {}", self.arch.name()));
        }
        if self.variant.input.is_some() && (self.channels != 3 || self.normalisation != Normalisation::Signed) {
            return Err("a range of values of its own takes images in colour, from -1 to 1".into());
        }
        if !self.layers().iter().map(|unit| &unit.name).eq(&self.units) {
            return Err(format!("units {:?} are not those of {:?}", self.units, self.arch));
        }
        Ok(())
    }

    /// Complains unless `set` has the size that the model takes.
    ///
    /// # Errors
    /// Naming both sizes and the folder `place`.
    pub fn expect_size(&self, set: &dyn Images, place: &Path) -> Result<()> {
        let (wanted, found) = ((self.height, self.input_width, self.channels), (set.meta().height, set.meta().width, set.meta().channels));
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
    pub fn expect_classes(&self, set: &dyn Images, place: &Path) -> Result<()> {
        let found = &set.meta().classes;
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
    /// Its weights: torchvision's or timm's names, and for the small CNN `unit.weight`, `unit.norm.weight` and so on.
    pub params: Params,
    units: Vec<Unit>,
    /// The unit of every tensor.
    owners: BTreeMap<String, String>,
}

/// The statistics of a batch, by the name of the normalisation.
pub type BatchStatistics = Vec<(String, Moments)>;

impl Model {
    /// Random weights: He et al. 2015 for the convolutions, small ones for the rest.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn new(config: Config, seed: u64) -> Result<Self> {
        let stream = Stream::new(seed, "model/init");
        let mut params = Params::new();
        let specs = config.specs();
        specs.iter().try_for_each(|(_, spec)| spec.draw(&mut params, &stream))?;
        Ok(Self::assembled(config, params))
    }

    fn assembled(config: Config, params: Params) -> Self {
        let owners = config.specs().into_iter().map(|(unit, spec)| (spec.name, unit)).collect();
        Self { units: config.layers(), owners, config, params }
    }

    /// The same model with every convolution as the plain sum, without Winograd's algorithm: slower, with about a tenth of the rounding.
    #[must_use]
    pub fn exact(mut self) -> Self {
        self.units.iter_mut().flat_map(|unit| &mut unit.layers).for_each(Layer::make_exact);
        self
    }

    /// The same architecture with other weights, of the same names and shapes.
    pub fn with_params(&self, params: Params) -> Self {
        Self { params, ..self.clone() }
    }

    /// A new random head, for `classes`.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn reinit_head(&mut self, classes: &[String], seed: u64) -> Result<()> {
        self.config.classes = classes.to_vec();
        self.units = self.config.layers();
        let stream = Stream::new(seed, "model/head");
        let mut head = self.config.specs().into_iter().filter(|(unit, _)| unit == HEAD);
        head.try_for_each(|(_, spec)| spec.draw(&mut self.params, &stream))
    }

    /// The unit that the tensor called `name` belongs to.
    pub fn unit_of(&self, name: &str) -> &str {
        self.owners.get(name).map_or("", String::as_str)
    }

    /// Logits `[n, classes]` of images `[n, h, w, c]`, with weights from `weights`; normalisations use their running statistics.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn logits(&self, weights: &dyn Weights, x: &Tensor) -> Result<Tensor> {
        self.logits_from(0, weights, x)
    }

    /// The same of what the first `units` units have made of the images.
    ///
    /// # Errors
    /// If there are not that many units, or the shapes do not fit.
    pub fn logits_from(&self, units: usize, weights: &dyn Weights, x: &Tensor) -> Result<Tensor> {
        let pass = Pass::eval(weights);
        self.after(units)?.iter().try_fold(x.clone(), |x, unit| pass.run(&unit.layers, &x))
    }

    fn after(&self, units: usize) -> Result<&[Unit]> {
        let message = || Error::argument(format!("the model has {} units, not {units}", self.units.len()));
        self.units.get(units..).ok_or_else(message)
    }

    /// Logits in training: batch normalisations use the batch's statistics, except in the units `frozen`. Gives those statistics too, for
    /// [`move_statistics`](Self::move_statistics).
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn training_logits(&self, weights: &dyn Weights, x: &Tensor, frozen: &[String]) -> Result<(Tensor, BatchStatistics)> {
        self.training_logits_from(0, weights, x, frozen)
    }

    /// The same of what the first `units` units have made of the images.
    ///
    /// # Errors
    /// If there are not that many units, or the shapes do not fit.
    pub fn training_logits_from(
        &self,
        units: usize,
        weights: &dyn Weights,
        x: &Tensor,
        frozen: &[String],
    ) -> Result<(Tensor, BatchStatistics)> {
        let batch = RefCell::new(Vec::new());
        let (adapting, fixed) = (Pass::train(weights, &batch), Pass::eval(weights));
        let logits = self.after(units)?.iter().try_fold(x.clone(), |x, unit| {
            let pass = if frozen.contains(&unit.name) { &fixed } else { &adapting };
            pass.run(&unit.layers, &x)
        })?;
        Ok((logits, batch.into_inner()))
    }

    /// Moves every running statistic by a share of `momentum` towards the batch's.
    ///
    /// # Errors
    /// If there is no such normalisation.
    pub fn move_statistics(&self, batch: &BatchStatistics, momentum: f32) -> Result<()> {
        for (name, moments) in batch {
            for (tensor, towards) in ["running_mean", "running_var"].into_iter().zip(moments.towards()?) {
                let var = self.params.var(&format!("{name}.{tensor}"))?;
                let old = var.as_detached_tensor();
                var.set(&(&old + (towards - &old)?.affine(f64::from(momentum), 0.0)?)?)?;
            }
        }
        Ok(())
    }

    /// The output of the first `units` units: a prefix of the model.
    ///
    /// # Errors
    /// If there are not that many units, or the shapes do not fit.
    pub fn prefix(&self, weights: &dyn Weights, x: &Tensor, units: usize) -> Result<Tensor> {
        let Some(units) = self.units.get(..units) else {
            return Err(Error::argument(format!("the model has {} units, not {units}", self.units.len())));
        };
        let pass = Pass::eval(weights);
        units.iter().try_fold(x.clone(), |x, unit| pass.run(&unit.layers, &x))
    }

    /// The weights with those of the units `frozen` as constants, so that no gradient is computed for them, nor through a frozen prefix.
    /// Running statistics are always constants.
    ///
    /// # Errors
    /// If there is no such unit.
    pub fn frozen(&self, frozen: &[String]) -> Result<Partly> {
        if let Some(unit) = frozen.iter().find(|unit| !self.config.units.contains(unit)) {
            return Err(Error::argument(format!("the model has no unit `{unit}`; its units are {}", self.config.units.join(", "))));
        }
        let tensors = self.params.iter().map(|(name, var)| {
            let constant = frozen.iter().any(|unit| unit == self.unit_of(name));
            (name.clone(), if constant { var.as_detached_tensor() } else { var.as_tensor().clone() })
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
        Ok(Self { params, ..wanted })
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
