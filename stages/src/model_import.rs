//! The stage `model-import`: a classifier from a file of weights that another program wrote.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trestle_engine::stage::{Arity, Context, Format, InPort, OutPort, ParamError, Stage, StageError};

use crate::data::{Classes, check_names};
use crate::formats::{CLASSES, MODEL};
use crate::model::weights::File;
use crate::model::{Arch, Import, Model, Names, Range, Variant};

/// Reads weights under the names of torchvision, timm or the packages of `docs/models.md`.
pub struct ModelImport;

/// The values that a network takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Values {
    /// Those that the networks under these names were trained on: `docs/models.md` has the table.
    #[default]
    Auto,
    /// −1 to 1.
    Signed,
    /// torchvision's: 0 to 1, minus 0.485, 0.456, 0.406, divided by 0.229, 0.224, 0.225.
    Imagenet,
    /// Caffe's: 0 to 255 minus 123.68, 116.779, 103.939.
    Caffe,
    /// `(byte - mean) / std` for red, green and blue.
    #[serde(untagged)]
    Range(Range),
}

/// Parameters of `model-import`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// Architecture of the weights.
    pub arch: Arch,
    /// Whose names the tensors have; without, those that most of them have.
    pub names: Option<Names>,
    /// Key under which a checkpoint keeps its weights, such as `ema.model`; without, `state_dict`, `model_state_dict`, `model`, `module` or `net`
    /// if the file has one of them.
    pub entry: Option<String>,
    /// Side in pixels of the images that the model will take; without, 224, and 32 for the forms for 32 pixels.
    pub size: Option<usize>,
    /// Values that the network takes.
    pub input: Values,
    /// What batch normalisations add to the variance; without, as the networks under these names do.
    pub norm_eps: Option<f32>,
    /// Name of each label; without (and without an input `classes`), their numbers.
    pub classes: Option<Vec<String>>,
    /// Replaces the head by a random one for `classes`, however many classes the file has.
    pub reinit_head: bool,
    /// Seed of the new head.
    pub seed: u64,
}

impl Params {
    fn side(&self) -> usize {
        let small = matches!(self.arch, Arch::ResNet18Small | Arch::ResNet34Small | Arch::ResNet50Small | Arch::VitTinySmall);
        self.size.unwrap_or(if small { 32 } else { 224 })
    }

    /// The variant, where the params say something.
    fn variant(&self, names: Names) -> Variant {
        let known = names.variant(self.arch);
        let input = match self.input {
            Values::Auto => known.input,
            Values::Signed => None,
            Values::Imagenet => Some(Range::IMAGENET),
            Values::Caffe => Some(Range::CAFFE),
            Values::Range(range) => Some(range),
        };
        Variant { input, norm_eps: self.norm_eps.or(known.norm_eps), ..known }
    }

    fn import(&self, path: &Path, classes: Option<Vec<String>>) -> crate::Result<Model> {
        let file = File::open(path, self.entry.as_deref())?;
        let size = [self.side(); 2];
        let names = match self.names {
            Some(names) => names,
            None => Names::detect(self.arch, size, &file)?,
        };
        let kept = if self.reinit_head { None } else { classes.clone() };
        let variant = Some(self.variant(names));
        let mut model = Import { arch: self.arch, names: Some(names), size, classes: kept, variant }.read(&file)?;
        if let (true, Some(classes)) = (self.reinit_head, classes) {
            model.reinit_head(&classes, self.seed)?;
        }
        Ok(model)
    }
}

impl Stage for ModelImport {
    const KIND: &'static str = "model-import";
    // 2: SqueezeNet's new head begins as torchvision's does.
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "A classifier from weights in a file: safetensors, PyTorch (both formats), pickled NumPy arrays";
    type Params = Params;

    fn inputs() -> Vec<InPort> {
        let names = "names of the labels, instead of the param `classes`";
        vec![
            InPort { name: "weights", format: Format::ANY, arity: Arity::One, doc: "a file of weights" },
            InPort { name: "classes", format: CLASSES, arity: Arity::Optional, doc: names },
        ]
    }

    fn outputs() -> Vec<OutPort> {
        vec![OutPort { name: "model", format: MODEL, path: "model", doc: "The classifier" }]
    }

    fn check(params: &Params) -> Vec<ParamError> {
        let mut out = Vec::new();
        if Names::of(params.arch).is_empty() {
            out.push(ParamError::new("arch", "it is trestle's own: no other program writes its weights"));
        } else if let Some(names) = params.names.filter(|names| !Names::of(params.arch).contains(names)) {
            let known = Names::of(params.arch).iter().map(|names| names.name()).collect::<Vec<_>>().join(", ");
            out.push(ParamError::new("names", format!("{} is not known under the names of {}: {known}", params.arch.name(), names.name())));
        }
        if let Some(Err(message)) = params.classes.as_deref().map(check_names) {
            out.push(ParamError::new("classes", message));
        }
        let range = if let Values::Range(range) = params.input { Some(range) } else { None };
        if let Err(message) = (Variant { input: range, norm_eps: params.norm_eps, same_padding: false }).check() {
            out.push(ParamError::new(if range.is_some() { "input" } else { "norm_eps" }, message));
        }
        out
    }

    fn run(params: &Params, cx: &mut Context<'_>) -> Result<(), StageError> {
        let classes = match (&params.classes, cx.optional("classes")) {
            (Some(_), Some(_)) => return Err(StageError::new("the classes stand in `with` and come as an input: give one of the two")),
            (Some(names), None) => Some(names.clone()),
            (None, Some(path)) => Some(Classes::read(path)?.names),
            (None, None) => None,
        };
        if params.reinit_head && classes.is_none() {
            return Err(StageError::new("`reinit_head` needs the classes of the new head").help("name them in `classes`"));
        }
        let model = params.import(cx.input("weights")?, classes)?;
        model.write(cx.output("model")?)?;
        cx.metric("values", model.params.count() as f64);
        Ok(())
    }
}
