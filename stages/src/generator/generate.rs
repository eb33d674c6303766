//! From prompts to images.

use candle_core::{Device, Tensor};

use super::artifact::{Config, Generator};
use super::sampler::{Sampler, step};
use super::schedule::times;
use super::text::{self, Context};
use super::unet;
use crate::data::Normalisation;
use crate::error::Result;
use crate::nn::params::{Frozen, Weights};
use crate::rng::Stream;

/// How images are sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Which sampler.
    pub sampler: Sampler,
    /// Share of fresh noise in DDIM's steps, 0 to 1.
    pub eta: f64,
    /// Steps.
    pub steps: usize,
    /// Guidance scale g: the network's v is v∅ + g·(v − v∅), so 1 is the prompt alone and 0 ignores it.
    pub guidance: f64,
    /// Images that go through the network together; the images do not depend on it.
    pub batch: usize,
}

/// An image to be.
#[derive(Debug, Clone)]
pub struct Order {
    /// Its prompt, as numbers.
    pub prompt: Vec<u32>,
    /// Where all of its noise comes from.
    pub noise: Stream,
}

/// Turns a generator's weights into images.
pub struct Painter<'g> {
    config: &'g Config,
    empty: Vec<u32>,
    weights: Frozen,
    style: Option<Tensor>,
}

impl<'g> Painter<'g> {
    /// A painter with a generator and, for prompts that use the style token, a style `[1, text_width]`.
    ///
    /// # Errors
    /// If the weights cannot be copied.
    pub fn new(generator: &'g Generator, style: Option<Tensor>) -> Result<Self> {
        Ok(Self { config: &generator.config, empty: generator.vocab.empty(), weights: generator.params.frozen()?, style })
    }

    /// Bytes of one image.
    fn pixels(&self) -> usize {
        self.config.size * self.config.size * self.config.channels
    }

    /// Paints images `[n, h, w, c]` in the order given; `on_batch` gets the number of images that are done.
    ///
    /// # Errors
    /// If a prompt does not fit the generator.
    pub fn paint(&self, sampling: &Sampling, mut orders: Vec<Order>, mut on_batch: impl FnMut(usize)) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(orders.len() * self.pixels());
        for batch in orders.chunks_mut(sampling.batch.max(1)) {
            let images = self.batch(sampling, batch)?;
            bytes.extend(images.iter().map(|v| Normalisation::Signed.byte(*v)));
            on_batch(bytes.len() / self.pixels());
        }
        Ok(bytes)
    }

    /// One batch of images, −1 to 1.
    ///
    /// # Errors
    /// As [`paint`](Self::paint).
    pub fn batch(&self, sampling: &Sampling, orders: &mut [Order]) -> Result<Vec<f32>> {
        let context = self.context(sampling, orders)?;
        let mut x: Vec<f32> = orders.iter_mut().flat_map(|order| order.noise.normals(self.pixels())).collect();
        let eta = sampling.sampler.eta(sampling.eta);
        for pair in times(sampling.steps).windows(2) {
            let v = self.velocity(sampling, &x, orders.len(), pair[0], &context)?;
            let fresh: Option<Vec<f32>> =
                (eta > 0.0).then(|| orders.iter_mut().flat_map(|order| order.noise.normals(self.pixels())).collect());
            step(&mut x, &v, fresh.as_deref(), pair[0], pair[1], eta);
        }
        Ok(x)
    }

    /// The prompts and, where guidance needs them, as many empty ones.
    fn context(&self, sampling: &Sampling, orders: &[Order]) -> Result<Context> {
        let mut prompts: Vec<Vec<u32>> = orders.iter().map(|order| order.prompt.clone()).collect();
        if sampling.guidance != 1.0 {
            prompts.extend(std::iter::repeat_n(self.empty.clone(), orders.len()));
        }
        text::encode(&self.weights as &dyn Weights, self.config, &prompts, self.style.as_ref())
    }

    fn velocity(&self, sampling: &Sampling, x: &[f32], count: usize, t: f64, context: &Context) -> Result<Vec<f32>> {
        let guided = sampling.guidance != 1.0;
        let rows = if guided { 2 * count } else { count };
        let values = if guided { [x, x].concat() } else { x.to_vec() };
        let (size, channels) = (self.config.size, self.config.channels);
        let input = Tensor::from_vec(values, (rows, size, size, channels), &Device::Cpu)?;
        let v: Vec<f32> = unet::forward(&self.weights, self.config, &input, &vec![t; rows], context)?.flatten_all()?.to_vec1()?;
        if !guided {
            return Ok(v);
        }
        let (with, without) = v.split_at(v.len() / 2);
        let g = sampling.guidance as f32;
        Ok(with.iter().zip(without).map(|(with, without)| without + g * (with - without)).collect())
    }
}
