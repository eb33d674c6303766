//! The stage `synthetic-pretrain`: stage 1 of bridged transfer, a classifier trained on generated images (arXiv 2403.19866; bridged++ with
//! `mixup` in this stage alone).

use std::sync::Arc;

use trestle_engine::stage::{Arity, Context, InPort, OutPort, ParamError, Stage, StageError, Threads};

use crate::data::{Images, Stored};
use crate::formats;
use crate::model::Arch;
use crate::train::{self, Every, Parts, Source, Start, Training, training_params};

/// Trains a classifier on synthetic images, from random weights or from those of `model`.
pub struct SyntheticPretrain;

training_params! {
    /// Parameters of `synthetic-pretrain`.
    Params {
        /// Architecture, without an input `model`.
        arch: Arch = Arch::default(),
        /// Channels of the first unit, without an input `model`.
        width: usize = 32,
        /// Replaces the head of `model` by a random one, for the classes of `data`.
        reinit_head: bool = false,
    }
}

impl Stage for SyntheticPretrain {
    const KIND: &'static str = "synthetic-pretrain";
    // 3: SqueezeNet begins as torchvision's does.
    const VERSION: u32 = 6;
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
        train::outputs("The trained classifier")
    }

    fn check(params: &Params) -> Vec<ParamError> {
        params.complaints()
    }

    fn unkeyed() -> &'static [&'static str] {
        &train::UNKEYED
    }

    fn threads(_: &Params) -> Threads {
        train::THREADS
    }

    fn gpus(params: &Params) -> u32 {
        params.compute().gpus()
    }

    fn run(params: &Params, cx: &mut Context<'_>) -> Result<(), StageError> {
        let path = cx.input("data")?.to_path_buf();
        let set: Arc<dyn Images> = Arc::new(Stored::open(&path)?);
        let start = Start { arch: params.arch, width: params.width, reinit_head: params.reinit_head, seed: params.seed };
        let model = start.model(set.as_ref(), &path, cx.optional("model"), &params.freeze)?;
        let recipe = params.recipe();
        let parts = Parts::new(set, None, &recipe, params.seed)?;
        let sources = [Source { set: parts.train.0.as_ref(), share: 1.0 }];
        let training = Training { compute: params.compute(), ..parts.training(&sources, &recipe, params.seed) };
        train::run(training, Every::of(params.checkpoint_every), model, cx)
    }
}
