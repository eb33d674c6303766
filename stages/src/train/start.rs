//! The model that a training starts from.

use std::path::Path;
use std::sync::Arc;

use trestle_engine::stage::StageError;

use super::augment::Augment;
use super::draws::Source;
use super::held_out::hold_out;
use super::recipe::{Norms, Recipe};
use super::training::{Given, Training};
use crate::data::{Images, View};
use crate::error::Result as StagesResult;
use crate::features::{Features, Meta};
use crate::model::{Arch, Config, Model};

/// What to start from, but for the input `model`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Start {
    /// Without a model: the architecture.
    pub arch: Arch,
    /// Without a model: its width.
    pub width: usize,
    /// With a model: whether its head goes.
    pub reinit_head: bool,
    /// Of all random weights.
    pub seed: u64,
}

impl Start {
    /// The model in the folder `model`, or a random one, for the images of `set`, which lie in `data`.
    ///
    /// # Errors
    /// If the model or architecture does not take such images or classes.
    pub fn model(&self, set: &dyn Images, data: &Path, model: Option<&Path>, freeze: &[String]) -> Result<Model, StageError> {
        let Some(dir) = model else {
            if !freeze.is_empty() {
                let error = StageError::new("`freeze` would keep random weights: no `model` is connected");
                return Err(error.help("connect `model`, or leave `freeze` out"));
            }
            let unfit = |e| StageError::new(format!("{}: {e}", data.display())).help("choose another `arch`, or images of another size");
            let config = Config::for_images(self.arch, self.width, set).map_err(unfit)?;
            return Ok(Model::new(config, self.seed)?);
        };
        let mut model = Model::read(dir)?;
        model.config.expect_size(set, data)?;
        if self.reinit_head {
            model.reinit_head(&set.meta().classes, self.seed)?;
        } else {
            let help = "`reinit_head: true` gives the model a new head for these classes";
            model.config.expect_classes(set, data).map_err(|e| StageError::from(e).help(help))?;
        }
        Ok(model)
    }
}

/// The images, and what the frozen beginning of the model makes of them, as far as they are trained on or held out.
pub(crate) struct Parts {
    /// To train on.
    pub train: (Arc<dyn Images>, Option<Features>),
    /// Held out.
    pub held_out: Option<(Arc<dyn Images>, Option<Features>)>,
}

impl Parts {
    /// Holds images out if the recipe wants that.
    ///
    /// # Errors
    /// As [`hold_out`].
    pub fn new(set: Arc<dyn Images>, features: Option<Features>, recipe: &Recipe, seed: u64) -> StagesResult<Self> {
        let Some(stopping) = recipe.early_stopping else { return Ok(Self { train: (set, features), held_out: None }) };
        let split = hold_out(set.as_ref(), stopping, seed)?;
        let part = |indices: &[usize]| -> StagesResult<(Arc<dyn Images>, Option<Features>)> {
            let part: Arc<dyn Images> = Arc::new(View::select(set.clone(), indices)?);
            Ok((part, features.as_ref().map(|features| features.subset(indices))))
        };
        Ok(Self { train: part(&split.train)?, held_out: Some(part(&split.test)?) })
    }

    /// A training on `sources`, of which the first are these images, with the held-out ones, and with features where they are given.
    pub fn training<'a>(&'a self, sources: &'a [Source<'a>], recipe: &'a Recipe, seed: u64) -> Training<'a> {
        let held_out = self.held_out.as_ref();
        let of_held_out = held_out.and_then(|(_, features)| features.as_ref());
        let features = self.train.1.as_ref().map(|train| Given { train, held_out: of_held_out });
        Training { held_out: held_out.map(|(set, _)| set.as_ref()), features, ..Training::new(sources, recipe, seed) }
    }
}

/// The features in the folder `dir`, which must be of this model and these images, and of units that the recipe leaves as they are.
///
/// # Errors
/// Naming what does not fit.
pub(crate) fn features(dir: &Path, model: &Model, set: &dyn Images, recipe: &Recipe) -> Result<Features, StageError> {
    let features = Features::read(dir)?;
    let units = &features.meta.units;
    let refuse = |message: String| Err(StageError::new(format!("`features`: {message}")));
    if let Some(unit) = units.iter().find(|unit| !recipe.freeze.contains(unit)) {
        return refuse(format!("they are of `{unit}` among others, which is to be trained; add it to `freeze`"));
    }
    let wanted = Meta::of(model, units.len(), set)?;
    if wanted.units != *units || wanted.weights != features.meta.weights {
        return refuse("they are of another `model`".to_owned());
    }
    if wanted.images != features.meta.images || features.len() != set.len() {
        return refuse("they are of other images than `data`".to_owned());
    }
    if recipe.augment != Augment::default() || recipe.mixup > 0.0 || recipe.cutmix > 0.0 {
        return refuse("images of which only features are known cannot be changed; leave out `augment`, `mixup` and `cutmix`".to_owned());
    }
    if recipe.frozen_norms != Norms::Frozen {
        return refuse("normalisations before them cannot adapt; leave out `frozen_norms`".to_owned());
    }
    Ok(features)
}
