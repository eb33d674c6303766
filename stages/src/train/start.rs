//! The model that a training starts from.

use std::path::Path;

use trestle_engine::stage::StageError;

use super::held_out::hold_out;
use super::recipe::Recipe;
use crate::data::ImageSet;
use crate::error::Result as StagesResult;
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
    pub fn model(&self, set: &ImageSet, data: &Path, model: Option<&Path>, freeze: &[String]) -> Result<Model, StageError> {
        let Some(dir) = model else {
            if !freeze.is_empty() {
                let error = StageError::new("`freeze` would keep random weights: no `model` is connected");
                return Err(error.help("connect `model`, or leave `freeze` out"));
            }
            let config = Config::for_images(self.arch, self.width, set).map_err(|e| StageError::new(format!("{}: {e}", data.display())))?;
            return Ok(Model::new(config, self.seed)?);
        };
        let mut model = Model::read(dir)?;
        model.config.expect_size(set, data)?;
        if self.reinit_head {
            model.reinit_head(&set.meta.classes, self.seed)?;
        } else {
            let help = "`reinit_head: true` gives the model a new head for these classes";
            model.config.expect_classes(set, data).map_err(|e| StageError::from(e).help(help))?;
        }
        Ok(model)
    }
}

/// The images to train on, and those that are held out if the recipe wants some.
///
/// # Errors
/// As [`hold_out`].
pub(crate) fn part(set: ImageSet, recipe: &Recipe, seed: u64) -> StagesResult<(ImageSet, Option<ImageSet>)> {
    match recipe.early_stopping {
        None => Ok((set, None)),
        Some(stopping) => hold_out(&set, stopping, seed).map(|(train, held_out)| (train, Some(held_out))),
    }
}
