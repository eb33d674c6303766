//! Batches drawn from one or several sets of images.

use crate::data::ImageSet;
use crate::error::{Error, Result};
use crate::model::Config;
use crate::rng::Stream;

/// A set of images and its share of every batch.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The images.
    pub set: &'a ImageSet,
    /// Share of each batch; all shares together are 1.
    pub share: f64,
}

/// Images and their targets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// `[n, h, w, c]`.
    pub pixels: Vec<f32>,
    /// `[n, classes]`.
    pub targets: Vec<f32>,
    count: usize,
}

impl Batch {
    /// Images.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Each image and target becomes `weight` times itself plus `1 − weight` times its partner.
    pub fn mix(&mut self, weight: f32, partners: &[usize]) {
        for values in [&mut self.pixels, &mut self.targets] {
            let size = values.len() / self.count;
            let old = values.clone();
            for (image, partner) in values.chunks_exact_mut(size).zip(partners) {
                let partner = &old[partner * size..][..size];
                image.iter_mut().zip(partner).for_each(|(v, p)| *v = weight * *v + (1.0 - weight) * p);
            }
        }
    }
}

/// Goes through a set in random order, again and again, each time in another.
struct Shuffled {
    order: Vec<usize>,
    next: usize,
    stream: Stream,
}

impl Shuffled {
    fn draw(&mut self) -> usize {
        if self.next == self.order.len() {
            self.order = self.stream.permutation(self.order.len());
            self.next = 0;
        }
        self.next += 1;
        self.order[self.next - 1]
    }
}

/// An endless row of batches.
pub struct Batches<'a> {
    sources: Vec<(&'a ImageSet, usize, Shuffled)>,
}

impl<'a> Batches<'a> {
    /// Batches of `size` images, a share from each source. The order of one source does not depend on the others.
    ///
    /// # Errors
    /// If a source is empty or its share gives no image.
    pub fn new(sources: &[Source<'a>], size: usize, seed: u64) -> Result<Self> {
        let mut left = size;
        let mut drawn = Vec::new();
        for (i, source) in sources.iter().enumerate() {
            let last = i + 1 == sources.len();
            let count = if last { left } else { ((source.share * size as f64).round() as usize).min(left) };
            left -= count;
            if source.set.is_empty() || count == 0 {
                let what = &source.set.meta.source;
                return Err(Error::argument(format!(
                    "source {i} (`{what}`) gives no image to a batch of {size}: it holds {}",
                    source.set.len()
                )));
            }
            let n = source.set.len();
            let stream = Stream::new(seed, "train/order").child(&i.to_string());
            drawn.push((source.set, count, Shuffled { order: vec![0; n], next: n, stream }));
        }
        if drawn.is_empty() { Err(Error::argument("there is nothing to train on")) } else { Ok(Self { sources: drawn }) }
    }

    /// The next batch, labels smoothed by `smoothing`.
    ///
    /// # Errors
    /// If a label is not below the model's number of classes.
    pub fn next(&mut self, config: &Config, smoothing: f64) -> Result<Batch> {
        let classes = config.classes.len();
        let mut batch = Batch::default();
        for (set, count, order) in &mut self.sources {
            for _ in 0..*count {
                let i = order.draw();
                let label = set.labels[i] as usize;
                if label >= classes {
                    return Err(Error::argument(format!(
                        "image {i} of `{}` has label {label}, the model has {classes} classes",
                        set.meta.source
                    )));
                }
                batch.pixels.extend(set.image(i).iter().map(|&byte| config.normalisation.float(byte)));
                let start = batch.targets.len();
                batch.targets.resize(start + classes, (smoothing / classes as f64) as f32);
                batch.targets[start + label] += (1.0 - smoothing) as f32;
                batch.count += 1;
            }
        }
        Ok(batch)
    }
}
