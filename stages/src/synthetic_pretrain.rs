//! The stage `synthetic-pretrain`: stage 1 of bridged transfer, a classifier trained on generated images.

use trestle_engine::stage::{Arity, Context, InPort, OutPort, ParamError, Stage, StageError, Threads};

use crate::data::ImageSet;
use crate::formats;
use crate::model::{Arch, Config, Model};
use crate::train::{self, Source, training_params};

/// Trains a classifier on synthetic images, from random weights or from those of `model`.
pub struct SyntheticPretrain;

training_params! {
    /// Parameters of `synthetic-pretrain`.
    Params {
        /// Architecture, without an input `model`.
        arch: Arch = Arch::default(),
        /// Channels of the first unit, without an input `model`.
        width: usize = 32,
    }
}

impl Stage for SyntheticPretrain {
    const KIND: &'static str = "synthetic-pretrain";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Trains a classifier on synthetic images";
    type Params = Params;

    fn inputs() -> Vec<InPort> {
        let model = "Weights to start from; without, random ones";
        vec![
            InPort { name: "data", format: formats::IMAGE_SET, arity: Arity::One, doc: "Images to learn from" },
            InPort { name: "model", format: formats::MODEL, arity: Arity::Optional, doc: model },
        ]
    }

    fn outputs() -> Vec<OutPort> {
        vec![
            OutPort { name: "model", format: formats::MODEL, path: "model", doc: "The trained classifier" },
            OutPort {
                name: "metrics",
                format: formats::METRICS,
                path: "metrics.csv",
                doc: "Loss, accuracy and learning rate of each step",
            },
        ]
    }

    fn check(params: &Params) -> Vec<ParamError> {
        params.complaints()
    }

    fn threads(_: &Params) -> Threads {
        train::THREADS
    }

    fn run(params: &Params, cx: &mut Context<'_>) -> Result<(), StageError> {
        let path = cx.input("data")?.to_path_buf();
        let set = ImageSet::read(&path)?;
        let model = match cx.optional("model") {
            None => Model::new(Config::for_images(params.arch, params.width, &set)?, params.seed)?,
            Some(dir) => {
                let model = Model::read(dir)?;
                model.config.expect_size(&set, &path)?;
                model.config.expect_classes(&set, &path)?;
                model
            }
        };
        train::run(model, &[Source { set: &set, share: 1.0 }], &[], &params.recipe(), params.seed, cx)
    }
}
