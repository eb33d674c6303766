//! Images mixed with each other, and their targets with them: mixup and CutMix.

use super::batch::Batch;
use super::recipe::Recipe;
use crate::rng::Stream;

/// How the images of one batch are mixed.
#[derive(Debug, Clone, PartialEq)]
pub struct Mix {
    /// The other image of each.
    pub partners: Vec<usize>,
    /// Share of the image itself.
    pub weight: f64,
    /// Where the part that the partner gives is, as shares of the sides; without, it is mixed in everywhere.
    pub centre: Option<(f64, f64)>,
}

/// Draws how batches are mixed.
#[derive(Debug)]
pub struct Mixer {
    mixup: f64,
    cutmix: f64,
    /// One stream a purpose.
    mixing: Stream,
    cutting: Stream,
    choosing: Stream,
}

impl Mixer {
    pub fn new(recipe: &Recipe, seed: u64) -> Self {
        let stream = |purpose| Stream::new(seed, purpose);
        let [mixing, cutting, choosing] = ["train/mixup", "train/cutmix", "train/mixup or cutmix"].map(stream);
        Self { mixup: recipe.mixup, cutmix: recipe.cutmix, mixing, cutting, choosing }
    }

    /// For the next batch, of `n` images.
    pub fn draw(&mut self, n: usize) -> Option<Mix> {
        let cuts = match (self.mixup > 0.0, self.cutmix > 0.0) {
            (false, false) => return None,
            (false, true) => true,
            (true, false) => false,
            (true, true) => self.choosing.uniform() < 0.5,
        };
        let (stream, alpha) = if cuts { (&mut self.cutting, self.cutmix) } else { (&mut self.mixing, self.mixup) };
        let (weight, partners) = (stream.beta(alpha), stream.permutation(n));
        let centre = cuts.then(|| (stream.uniform(), stream.uniform()));
        Some(Mix { partners, weight, centre })
    }
}

impl Mix {
    /// Mixes the images `[n, h, w, c]` of a batch and their targets.
    pub fn apply(&self, batch: &mut Batch, (h, w, c): (usize, usize, usize)) {
        match self.centre {
            None => {
                blend(&mut batch.pixels, self.weight as f32, &self.partners);
                blend(&mut batch.targets, self.weight as f32, &self.partners);
            }
            Some(centre) => {
                let (rows, columns) = cut(self.weight, centre, (h, w));
                let old = batch.pixels.clone();
                for (image, partner) in batch.pixels.chunks_exact_mut(h * w * c).zip(&self.partners) {
                    let partner = &old[partner * h * w * c..][..h * w * c];
                    for y in rows.clone() {
                        let row = (y * w + columns.start) * c..(y * w + columns.end) * c;
                        image[row.clone()].copy_from_slice(&partner[row]);
                    }
                }
                // The share that is really left: the window may stick out of the image.
                let left = 1.0 - (rows.len() * columns.len()) as f32 / (h * w) as f32;
                blend(&mut batch.targets, left, &self.partners);
            }
        }
    }
}

/// The window that leaves the share `weight` of an image, as far as it lies inside (Yun et al. 2019, equation 2).
fn cut(weight: f64, centre: (f64, f64), (h, w): (usize, usize)) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
    let side = (1.0 - weight).max(0.0).sqrt();
    let range = |centre: f64, n: usize| {
        let (middle, half) = ((centre * n as f64).floor(), (side * n as f64).floor() / 2.0);
        let inside = |v: f64| v.floor().clamp(0.0, n as f64) as usize;
        inside(middle - half)..inside(middle + half)
    };
    (range(centre.0, h), range(centre.1, w))
}

/// Each row of values becomes `weight` times itself plus `1 − weight` times its partner.
fn blend(values: &mut [f32], weight: f32, partners: &[usize]) {
    let size = values.len() / partners.len();
    let old = values.to_vec();
    for (row, partner) in values.chunks_exact_mut(size).zip(partners) {
        let partner = &old[partner * size..][..size];
        row.iter_mut().zip(partner).for_each(|(v, p)| *v = weight * *v + (1.0 - weight) * p);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_takes_its_share_and_stays_inside() {
        assert_eq!(cut(0.75, (0.5, 0.5), (8, 8)), (2..6, 2..6));
        assert_eq!(cut(0.75, (0.0, 0.99), (8, 8)), (0..2, 5..8));
        assert!(cut(1.0, (0.5, 0.5), (8, 8)).0.is_empty());
        assert_eq!(cut(0.0, (0.5, 0.5), (8, 6)), (0..8, 0..6));
    }

    #[test]
    fn cutmix_pastes_a_window_and_mixes_the_targets_by_its_area() {
        let mut batch = Batch { pixels: (0..32).map(|v| v as f32).collect(), targets: vec![1.0, 0.0, 0.0, 1.0], count: 2 };
        Mix { partners: vec![1, 0], weight: 0.75, centre: Some((0.5, 0.5)) }.apply(&mut batch, (4, 4, 1));
        let pasted: Vec<usize> = (0..16).filter(|&i| batch.pixels[i] == (i + 16) as f32).collect();
        assert_eq!(pasted, [5, 6, 9, 10]);
        assert!((0..16).all(|i| pasted.contains(&i) || batch.pixels[i] == i as f32));
        assert_eq!(batch.targets, [0.75, 0.25, 0.25, 0.75]);
    }

    #[test]
    fn both_together_take_turns_by_chance() {
        let both = Recipe { mixup: 0.2, cutmix: 1.0, ..Recipe::default() };
        let mut mixer = Mixer::new(&both, 1);
        let cuts = (0..200).filter(|_| mixer.draw(4).is_some_and(|mix| mix.centre.is_some())).count();
        assert!((70..130).contains(&cuts), "{cuts}");
        assert_eq!(Mixer::new(&Recipe::default(), 1).draw(4), None);
    }
}
