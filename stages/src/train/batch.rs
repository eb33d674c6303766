//! Batches as numbers.

use rayon::prelude::*;

use super::draws::{Drawn, Source};
use super::recipe::Recipe;
use crate::error::{Error, Result};
use crate::features::Features;
use crate::model::Config;
use crate::rng::Stream;

/// Images and their targets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// `[n, h, w, c]`, or features of n images.
    pub pixels: Vec<f32>,
    /// `[n, classes]`.
    pub targets: Vec<f32>,
    /// n.
    pub count: usize,
}

/// All that making a batch takes besides what it is to be made of.
#[derive(Debug)]
pub struct Maker<'a> {
    sources: &'a [Source<'a>],
    /// In place of the images.
    features: Option<&'a Features>,
    recipe: &'a Recipe,
    config: &'a Config,
    augmenting: Stream,
}

impl<'a> Maker<'a> {
    pub fn new(sources: &'a [Source<'a>], features: Option<&'a Features>, recipe: &'a Recipe, config: &'a Config, seed: u64) -> Self {
        Self { sources, features, recipe, config, augmenting: Stream::new(seed, "train/augment") }
    }

    /// Makes a batch, its images in parallel, each with random numbers of its own.
    ///
    /// # Errors
    /// If a label is not below the model's number of classes, or an image cannot be read.
    pub fn make(&self, drawn: &Drawn) -> Result<Batch> {
        let (count, config) = (drawn.images.len(), self.config);
        if let Some(features) = self.features {
            let pixels = drawn.images.iter().flat_map(|(_, index)| features.row(*index)).copied().collect();
            return Ok(Batch { pixels, targets: self.targets(drawn)?, count });
        }
        let size = (config.height, config.input_width, config.channels);
        let mut batch = Batch { pixels: vec![0.0; count * size.0 * size.1 * size.2], targets: self.targets(drawn)?, count };
        let stream = self.augmenting.child(&drawn.step.to_string());
        let first = drawn.part * self.recipe.batch;
        let images = batch.pixels.par_chunks_exact_mut(size.0 * size.1 * size.2).zip(&drawn.images).enumerate();
        images.try_for_each_init(Vec::new, |bytes, (i, (image, &(source, index)))| {
            bytes.resize(image.len(), 0);
            self.sources[source].set.copy(index, bytes)?;
            self.recipe.augment.image(bytes, image, size, config.normalisation, || stream.child(&(first + i).to_string()));
            Ok::<_, Error>(())
        })?;
        if let Some(mix) = &drawn.mix {
            mix.apply(&mut batch, size);
        }
        Ok(batch)
    }

    /// One-hot, smoothed.
    fn targets(&self, drawn: &Drawn) -> Result<Vec<f32>> {
        let (classes, smoothing) = (self.config.classes.len(), self.recipe.label_smoothing);
        let mut targets = vec![(smoothing / classes as f64) as f32; drawn.images.len() * classes];
        for (row, &(source, index)) in targets.chunks_exact_mut(classes).zip(&drawn.images) {
            let set = self.sources[source].set;
            let label = set.labels()[index] as usize;
            let Some(target) = row.get_mut(label) else {
                let what = &set.meta().source;
                return Err(Error::argument(format!("image {index} of `{what}` has label {label}, the model has {classes} classes")));
            };
            *target += (1.0 - smoothing) as f32;
        }
        Ok(targets)
    }
}
