//! The stage `real-adaptation`: stage 2 of bridged transfer, a classifier trained on the real images.
//!
//! The same stage is every method of "Is Synthetic Image Useful for Transfer Learning?" (arXiv 2403.19866): vanilla transfer (no `model` of
//! synthetic images), mixed transfer (synthetic images as `extra`, one stage on the union), bridged transfer (`model` from
//! `synthetic-pretrain`) and bridged++ (that with `mixup`, and `reinit_head` here).

use std::sync::Arc;

use trestle_engine::stage::{Arity, Context, InPort, OutPort, ParamError, Stage, StageError, Threads};

use crate::data::{Images, Stored, View};
use crate::error::Result as StagesResult;
use crate::formats;
use crate::model::Arch;
use crate::train::{self, Every, Parts, Source, Start, Training, training_params};

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
        /// Share of each batch that comes from `extra`, if that is connected; without, `data` and `extra` are one set, as in the paper, and an
        /// epoch passes over both.
        mix: Option<f64> = None,
    }
}

/// The sets of an input, one after the other.
fn open_all(cx: &Context<'_>) -> StagesResult<Option<Arc<dyn Images>>> {
    let mut all: Option<Arc<dyn Images>> = None;
    for input in cx.inputs("data") {
        let set: Arc<dyn Images> = Arc::new(Stored::open(&input.path)?);
        all = Some(match all {
            None => set,
            Some(all) => Arc::new(View::join(all, set).map_err(|e| crate::Error::data(&input.path, e))?),
        });
    }
    Ok(all)
}

impl Stage for RealAdaptation {
    const KIND: &'static str = "real-adaptation";
    // 3: SqueezeNet begins as torchvision's does.
    const VERSION: u32 = 6;
    const ABOUT: &'static str = "Trains a classifier on real images: vanilla, mixed or bridged transfer, by its inputs";
    type Params = Params;

    fn inputs() -> Vec<InPort> {
        let extra = "Images to learn from together with `data`, as one set or by the share `mix`: mixed transfer";
        let features = "What frozen units of `model` make of `data`, from the stage `features`: they are not worked out in every step";
        let model = "Weights to start from: bridged transfer; without, random ones";
        vec![
            InPort { name: "data", format: formats::IMAGE_SET, arity: Arity::Many, doc: "Images to learn from" },
            InPort { name: "extra", format: formats::IMAGE_SET, arity: Arity::Optional, doc: extra },
            InPort { name: "model", format: formats::MODEL, arity: Arity::Optional, doc: model },
            InPort { name: "features", format: formats::FEATURES, arity: Arity::Optional, doc: features },
        ]
    }

    fn outputs() -> Vec<OutPort> {
        train::outputs("The adapted classifier")
    }

    fn check(params: &Params) -> Vec<ParamError> {
        let mut errors = params.complaints();
        if let Some(mix) = params.mix.filter(|mix| !(*mix > 0.0 && *mix < 1.0)) {
            errors.push(ParamError::new("mix", format!("{mix} is not a share between 0 and 1; to mix nothing in, leave out `extra`")));
        }
        errors
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
        let set = open_all(cx)?.ok_or_else(|| StageError::new("input `data` is not connected"))?;
        let start = Start { arch: params.arch, width: params.width, reinit_head: params.reinit_head, seed: params.seed };
        let model = start.model(set.as_ref(), cx.input("data")?, cx.optional("model"), &params.freeze)?;
        let recipe = params.recipe();
        let extra: Option<Arc<dyn Images>> = match cx.optional("extra") {
            None => None,
            Some(path) => {
                let extra = Stored::open(path)?;
                model.config.expect_size(&extra, path)?;
                model.config.expect_classes(&extra, path)?;
                Some(Arc::new(extra))
            }
        };
        let features = match (cx.optional("features"), &extra) {
            (None, _) => None,
            (Some(dir), None) => Some(train::features(dir, &model, set.as_ref(), &recipe)?),
            (Some(_), Some(_)) => return Err(StageError::new("`features` are of `data` alone; leave out `features` or `extra`")),
        };
        let parts = Parts::new(set, features, &recipe, params.seed)?;
        let set = parts.train.0.as_ref();
        let union;
        let sources = match (&extra, params.mix) {
            (None, _) => vec![Source { set, share: 1.0 }],
            (Some(extra), Some(mix)) => vec![Source { set, share: 1.0 - mix }, Source { set: extra.as_ref(), share: mix }],
            (Some(extra), None) => {
                union = View::join(parts.train.0.clone(), extra.clone())?;
                vec![Source { set: &union, share: 1.0 }]
            }
        };
        let training = Training { compute: params.compute(), ..parts.training(&sources, &recipe, params.seed) };
        train::run(training, Every::of(params.checkpoint_every), model, cx)
    }
}
