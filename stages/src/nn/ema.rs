//! A moving average of weights, which samples better than the weights themselves (Polyak averaging).

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::nn::parallel::Parallel;
use rayon::prelude::*;

use crate::error::{Error, Result};

use super::kept::{Kept, weighted};
use super::math::CHUNK;
use super::params::Params;
use super::simd::vectorised;
use super::storage::with;

/// The average of every tensor of a model.
#[derive(Debug, Clone)]
pub struct Ema {
    decay: f32,
    steps: u32,
    averages: BTreeMap<String, Kept>,
}

impl Ema {
    /// An average that begins with the weights as they are.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn new(params: &Params, decay: f64) -> Result<Self> {
        let averages = params.iter().map(|(name, var)| Ok((name.clone(), Kept::copy_of(var)?))).collect::<Result<_>>()?;
        Ok(Self { decay: decay as f32, steps: 0, averages })
    }

    /// Moves the average towards the weights: by `1 − decay`, by more in the first steps, so that the random start is soon forgotten.
    ///
    /// # Errors
    /// If a tensor cannot be read.
    pub fn update(&mut self, params: &Params) -> Result<()> {
        self.steps += 1;
        let decay = self.decay.min((1.0 + self.steps as f32) / (10.0 + self.steps as f32));
        for (name, var) in params.iter() {
            let average = match self.averages.get_mut(name) {
                None => continue,
                Some(Kept::Host(average)) => average,
                Some(Kept::There(average)) => {
                    *average = weighted((decay, average), (1.0 - decay, &var.as_detached_tensor()))?;
                    continue;
                }
            };
            with(var, |values| {
                average.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).run(|(a, w)| {
                    vectorised!(for (a, w) in a.iter_mut().zip(w) {
                        *a += (1.0 - decay) * (w - *a);
                    });
                });
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Updates so far.
    pub fn steps(&self) -> u32 {
        self.steps
    }

    /// The averages by name: with the number of updates enough to go on.
    ///
    /// # Errors
    /// If one cannot be read from its device.
    pub fn averages(&self) -> Result<BTreeMap<&String, Cow<'_, [f32]>>> {
        self.averages.iter().map(|(name, average)| Ok((name, average.values()?))).collect()
    }

    /// An average that goes on from such a state.
    ///
    /// # Errors
    /// If it is not one of these tensors.
    pub fn resumed(params: &Params, decay: f64, steps: u32, averages: BTreeMap<String, Vec<f32>>) -> Result<Self> {
        let fits = |(name, var): (&String, &candle_core::Var)| averages.get(name).is_some_and(|values| values.len() == var.elem_count());
        if !params.iter().all(fits) || averages.len() != params.iter().count() {
            return Err(Error::argument("an average of other tensors"));
        }
        let averages = averages.into_iter().map(|(name, values)| {
            let kept = Kept::of_values(values, params.get(&name)?)?;
            Ok((name, kept))
        });
        Ok(Self { decay: decay as f32, steps, averages: averages.collect::<Result<_>>()? })
    }

    /// The averages as a model, on the same device.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn params(&self, like: &Params) -> Result<Params> {
        let mut params = Params::new();
        for (name, average) in &self.averages {
            let var = like.get(name)?;
            match average {
                Kept::Host(values) => params.insert(name, var.dims(), values.clone())?,
                Kept::There(average) => params.insert_tensor(name, average)?,
            }
        }
        Ok(params)
    }
}
