//! Images that are not trained on, by which it is seen when training stops helping.

use super::log::Score;
use super::recipe::EarlyStopping;
use super::training::argmax;
use crate::data::Images;
use crate::data::split::{Share, Split, split_labels};
use crate::error::{Error, Result};
use crate::features::Features;
use crate::model::Model;
use crate::nn::compute::{Place, rows};
use crate::nn::ops::cross_entropy;
use crate::nn::params::{Params, Weights};
use crate::rng::Stream;

/// The weights with the lowest loss on the held-out images so far.
#[derive(Debug, Clone)]
pub(super) struct Best {
    pub params: Params,
    pub loss: f64,
    /// Epochs since then.
    pub waited: usize,
}

/// The places of the images to train on (`train`), and of those that are held out (`test`): the same share of every class.
///
/// # Errors
/// If no image would be held out, or none left.
pub fn hold_out(set: &dyn Images, stopping: EarlyStopping, seed: u64) -> Result<Split> {
    let seed = Stream::new(seed, "train/held out").bits();
    let parts = split_labels(set.labels(), &set.meta().classes, Share::AllBut(stopping.holdout), seed)?;
    for (part, what) in [(&parts.test, "is held out"), (&parts.train, "is left to train on")] {
        if part.is_empty() {
            let message = format!("`early_stopping.holdout`: of {} images no share of {} {what}", set.len(), stopping.holdout);
            return Err(Error::argument(message));
        }
    }
    Ok(parts)
}

/// How well a model with these weights does on all images of a set, `batch` at a time; `features` are what its beginning makes of them.
/// The weights lie in `place`.
pub(super) fn score(
    model: &Model,
    (weights, place): (&dyn Weights, &Place),
    set: &dyn Images,
    features: Option<&Features>,
    batch: usize,
) -> Result<Score> {
    let indices: Vec<usize> = (0..set.len()).collect();
    let (mut loss, mut hits) = (0.0, 0);
    let classes = model.config.classes.len();
    for part in indices.chunks(batch.max(1)) {
        let logits = match features {
            None => model.logits(weights, &place.bring(&set.to_f32(part, model.config.normalisation)?)?)?,
            Some(features) => {
                let values = part.iter().flat_map(|&i| features.row(i)).copied().collect();
                model.logits_from(features.meta.units.len(), weights, &place.bring(&features.tensor(values, part.len())?)?)?
            }
        };
        let mut targets = vec![0.0; part.len() * classes];
        for (row, &i) in targets.chunks_exact_mut(classes).zip(part) {
            let label = set.labels()[i] as usize;
            let target = row.get_mut(label).ok_or_else(|| Error::argument(format!("held-out image {i} has the label {label}")))?;
            *target = 1.0;
        }
        loss += f64::from(cross_entropy(&logits, &targets)?.to_scalar::<f32>()?) * part.len() as f64;
        hits += rows(&logits)?.iter().zip(part).filter(|(row, i)| argmax(row) == set.labels()[**i] as usize).count();
    }
    Ok(Score { loss: loss / set.len() as f64, accuracy: hits as f64 / set.len() as f64 })
}
