//! The loss of a diffusion model, and what a batch of it is made of.

use candle_core::{Device, Tensor};

use super::artifact::Config;
use super::schedule::{alpha, clamp, sigma};
use super::{text, unet};
use crate::data::{ImageSet, Images, Normalisation};
use crate::error::Result;
use crate::nn::compute::Place;
use crate::nn::ops::mse;
use crate::nn::params::Weights;
use crate::rng::Stream;

/// Noisy images and what the network should say about them.
pub struct Batch {
    /// `[b, h, w, c]`: αx + σε.
    pub noisy: Tensor,
    /// `[b, h, w, c]`: αε − σx.
    pub target: Tensor,
    /// `[b]`.
    pub times: Vec<f64>,
}

impl Batch {
    /// Images `indices` of a set, noisy to a random degree. Times are spread evenly over the batch, each moved by the same random amount, which makes
    /// the loss steadier than independent ones (Kingma et al. 2021).
    ///
    /// # Errors
    /// If there is no such image.
    pub fn draw(set: &ImageSet, indices: &[usize], random: &mut Stream) -> Result<Self> {
        let offset = random.uniform();
        let times: Vec<f64> = (0..indices.len()).map(|i| clamp((i as f64 + offset) / indices.len() as f64)).collect();
        let clean: Vec<f32> = set.to_f32(indices, Normalisation::Signed)?.flatten_all()?.to_vec1()?;
        let size = clean.len() / indices.len().max(1);
        let noise = random.normals(clean.len());
        let mut noisy = Vec::with_capacity(clean.len());
        let mut target = Vec::with_capacity(clean.len());
        for (i, (x, e)) in clean.iter().zip(&noise).enumerate() {
            let t = times[i / size];
            let (a, s) = (alpha(t) as f32, sigma(t) as f32);
            noisy.push(a * x + s * e);
            target.push(a * e - s * x);
        }
        let shape = (indices.len(), set.meta.height, set.meta.width, set.meta.channels);
        Ok(Self { noisy: Tensor::from_vec(noisy, shape, &Device::Cpu)?, target: Tensor::from_vec(target, shape, &Device::Cpu)?, times })
    }

    /// The same batch, brought to a device; what the network should say stays in single precision.
    ///
    /// # Errors
    /// If there is no room.
    pub fn on(self, place: &Place) -> Result<Self> {
        let target = self.target.to_device(&place.device)?;
        Ok(Self { noisy: place.bring(&self.noisy)?, target, times: self.times })
    }

    /// The mean squared error of the predicted v.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn loss(&self, w: &dyn Weights, config: &Config, prompts: &[Vec<u32>], style: Option<&Tensor>) -> Result<Tensor> {
        let context = text::encode(w, config, prompts, style)?;
        let v = unet::forward(w, config, &self.noisy, &self.times, &context)?;
        Ok(mse(&v, &self.target)?)
    }
}

/// The order in which images are taken: a shuffled set after the other.
pub struct Order {
    stream: Stream,
    count: usize,
    rest: Vec<usize>,
}

impl Order {
    /// An order over `count` images.
    pub fn new(count: usize, stream: Stream) -> Self {
        Self { stream, count, rest: Vec::new() }
    }

    /// The next `n` images.
    pub fn take(&mut self, n: usize) -> Vec<usize> {
        (0..n).map(|_| self.one()).collect()
    }

    fn one(&mut self) -> usize {
        loop {
            match self.rest.pop() {
                Some(index) => return index,
                None => self.rest = self.stream.permutation(self.count.max(1)),
            }
        }
    }
}
