//! Which images each batch is made of, and how they are mixed: drawn from the seed alone, so that any step can be drawn again.

use crate::data::Images;
use crate::error::{Error, Result};
use crate::rng::Stream;

use super::mix::{Mix, Mixer};
use super::recipe::Recipe;

/// A set of images and its share of every batch.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The images.
    pub set: &'a dyn Images,
    /// Share of each batch; all shares together are 1.
    pub share: f64,
}

/// What one batch is to be made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// Of the weights' update, from 0.
    pub step: usize,
    /// Which of the step's batches, from 0.
    pub part: usize,
    /// Source and place of every image.
    pub images: Vec<(usize, usize)>,
    /// How images are mixed with each other.
    pub mix: Option<Mix>,
}

/// Goes through a set in random order, again and again, each time in another.
#[derive(Debug)]
struct Shuffled {
    members: Vec<usize>,
    order: Vec<usize>,
    next: usize,
    stream: Stream,
}

impl Shuffled {
    fn new(members: Vec<usize>, stream: Stream) -> Self {
        let next = members.len();
        Self { members, order: Vec::new(), next, stream }
    }

    fn draw(&mut self) -> usize {
        if self.next == self.members.len() {
            self.order = self.stream.permutation(self.members.len());
            self.next = 0;
        }
        self.next += 1;
        self.members[self.order[self.next - 1]]
    }
}

/// The order of one source.
#[derive(Debug)]
enum Order {
    /// Every image once a pass.
    Plain(Shuffled),
    /// The classes in turn, each pass over them in another order; the images of a class as above.
    Balanced { classes: Shuffled, images: Vec<Shuffled> },
}

impl Order {
    fn new(set: &dyn Images, balanced: bool, stream: Stream) -> Self {
        if !balanced {
            return Self::Plain(Shuffled::new((0..set.len()).collect(), stream));
        }
        let mut members = vec![Vec::new(); set.meta().classes.len()];
        set.labels().iter().enumerate().for_each(|(i, label)| members[*label as usize].push(i));
        // A class without images is never drawn.
        let present = (0..members.len()).filter(|&class| !members[class].is_empty()).collect();
        let of_class = |(class, members)| Shuffled::new(members, stream.child(&format!("class {class}")));
        let images = members.into_iter().enumerate().map(of_class).collect();
        Self::Balanced { classes: Shuffled::new(present, stream.child("classes")), images }
    }

    fn draw(&mut self) -> usize {
        match self {
            Self::Plain(order) => order.draw(),
            Self::Balanced { classes, images } => images[classes.draw()].draw(),
        }
    }
}

/// An endless row of batches to make.
#[derive(Debug)]
pub struct Draws {
    /// Number of the source, images of each batch.
    sources: Vec<(usize, Order)>,
    mixer: Mixer,
    accumulate: usize,
    drawn: usize,
}

impl Draws {
    /// Batches with a share from each source. The order of one source does not depend on the others.
    ///
    /// # Errors
    /// If a source is empty or its share gives no image.
    pub fn new(sources: &[Source<'_>], recipe: &Recipe, seed: u64) -> Result<Self> {
        let size = recipe.batch;
        let mut left = size;
        let mut drawn = Vec::new();
        for (i, source) in sources.iter().enumerate() {
            let last = i + 1 == sources.len();
            let count = if last { left } else { ((source.share * size as f64).round() as usize).min(left) };
            left -= count;
            if source.set.is_empty() || count == 0 {
                let what = &source.set.meta().source;
                return Err(Error::argument(format!(
                    "source {i} (`{what}`) gives no image to a batch of {size}: it holds {}",
                    source.set.len()
                )));
            }
            let stream = Stream::new(seed, "train/order").child(&i.to_string());
            drawn.push((count, Order::new(source.set, recipe.balanced, stream)));
        }
        if drawn.is_empty() {
            return Err(Error::argument("there is nothing to train on"));
        }
        Ok(Self { sources: drawn, mixer: Mixer::new(recipe, seed), accumulate: recipe.accumulate, drawn: 0 })
    }

    /// Passes over the batches of so many steps.
    pub fn skip_steps(&mut self, steps: usize) {
        (0..steps * self.accumulate).for_each(|_| drop(self.draw()));
    }

    /// What the next batch is made of.
    pub fn draw(&mut self) -> Drawn {
        let mut images = Vec::new();
        for (source, (count, order)) in self.sources.iter_mut().enumerate() {
            images.extend((0..*count).map(|_| (source, order.draw())));
        }
        let mix = self.mixer.draw(images.len());
        let (step, part) = (self.drawn / self.accumulate, self.drawn % self.accumulate);
        self.drawn += 1;
        Drawn { step, part, images, mix }
    }
}
