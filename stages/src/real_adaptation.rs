//! The stage `real-adaptation`: stage 2 of bridged transfer, a classifier trained on the real images.
//!
//! The same stage is vanilla transfer (no `model`), mixed transfer (synthetic images as `extra`) and bridged transfer (`model` from
//! `synthetic-pretrain`, with `reinit_head` for bridged++).

use std::path::Path;

use trestle_engine::stage::{Arity, Context, InPort, OutPort, ParamError, Stage, StageError, Threads};

use crate::data::ImageSet;
use crate::error::Result as StagesResult;
use crate::formats;
use crate::model::{Arch, Config, Model};
use crate::train::{self, Source, training_params};

/// Trains a classifier on real images.
pub struct RealAdaptation;

training_params! {
    /// Parameters of `real-adaptation`.
    Params {
        /// Architecture, without an input `model`.
        arch: Arch = Arch::default(),
        /// Channels of the first unit, without an input `model`.
        width: usize = 32,
        /// Replaces the head of `model` by a random one, for the classes of `data`.
        reinit_head: bool = false,
        /// Units of `model` that stay as they are: `conv1`, `conv2`, `conv3`, `head`.
        freeze: Vec<String> = Vec::new(),
        /// Share of each batch that comes from `extra`, if that is connected.
        mix: f64 = 0.5,
    }
}

/// The sets of an input, one after the other.
fn read_all(cx: &Context<'_>) -> StagesResult<Option<ImageSet>> {
    let mut all: Option<ImageSet> = None;
    for input in cx.inputs("data") {
        let set = ImageSet::read(&input.path)?;
        all = Some(match all {
            None => set,
            Some(all) => all.concat(&set).map_err(|e| crate::Error::data(&input.path, e))?,
        });
    }
    Ok(all)
}

fn start(params: &Params, set: &ImageSet, data: &Path, model: Option<&Path>) -> Result<Model, StageError> {
    let Some(dir) = model else {
        if !params.freeze.is_empty() {
            let error = StageError::new("`freeze` would keep random weights: no `model` is connected");
            return Err(error.help("connect `model`, or leave `freeze` out"));
        }
        return Ok(Model::new(Config::for_images(params.arch, params.width, set)?, params.seed)?);
    };
    let mut model = Model::read(dir)?;
    model.config.expect_size(set, data)?;
    if params.reinit_head {
        model.reinit_head(&set.meta.classes, params.seed)?;
    } else {
        let help = "`reinit_head: true` gives the model a new head for these classes";
        model.config.expect_classes(set, data).map_err(|e| StageError::from(e).help(help))?;
    }
    Ok(model)
}

impl Stage for RealAdaptation {
    const KIND: &'static str = "real-adaptation";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Trains a classifier on real images: vanilla, mixed or bridged transfer, by its inputs";
    type Params = Params;

    fn inputs() -> Vec<InPort> {
        let extra = "Images mixed into every batch, by the share `mix`: mixed transfer";
        let model = "Weights to start from: bridged transfer; without, random ones";
        vec![
            InPort { name: "data", format: formats::IMAGE_SET, arity: Arity::Many, doc: "Images to learn from" },
            InPort { name: "extra", format: formats::IMAGE_SET, arity: Arity::Optional, doc: extra },
            InPort { name: "model", format: formats::MODEL, arity: Arity::Optional, doc: model },
        ]
    }

    fn outputs() -> Vec<OutPort> {
        vec![
            OutPort { name: "model", format: formats::MODEL, path: "model", doc: "The adapted classifier" },
            OutPort {
                name: "metrics",
                format: formats::METRICS,
                path: "metrics.csv",
                doc: "Loss, accuracy and learning rate of each step",
            },
        ]
    }

    fn check(params: &Params) -> Vec<ParamError> {
        let mut errors = params.complaints();
        if !(params.mix > 0.0 && params.mix < 1.0) {
            errors.push(ParamError::new(
                "mix",
                format!("{} is not a share between 0 and 1; to mix nothing in, leave out `extra`", params.mix),
            ));
        }
        errors
    }

    fn threads(_: &Params) -> Threads {
        train::THREADS
    }

    fn run(params: &Params, cx: &mut Context<'_>) -> Result<(), StageError> {
        let set = read_all(cx)?.ok_or_else(|| StageError::new("input `data` is not connected"))?;
        let model = start(params, &set, cx.input("data")?, cx.optional("model"))?;
        let extra = match cx.optional("extra") {
            None => None,
            Some(path) => {
                let extra = ImageSet::read(path)?;
                model.config.expect_size(&extra, path)?;
                model.config.expect_classes(&extra, path)?;
                Some(extra)
            }
        };
        let mut sources = vec![Source { set: &set, share: extra.as_ref().map_or(1.0, |_| 1.0 - params.mix) }];
        sources.extend(extra.as_ref().map(|set| Source { set, share: params.mix }));
        train::run(model, &sources, &params.freeze, &params.recipe(), params.seed, cx)
    }
}
