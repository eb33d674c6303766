//! Random changes of the images, each image from a random stream of its own, each change from one of its own within that.
//!
//! Their order is torchvision's: first what works on bytes (crop, flip, jitter, RandAugment), then what works on floats.

mod colour;
mod picture;
mod rand_augment;
#[cfg(test)]
mod tests;
mod warp;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::recipe::Want;
use crate::data::Normalisation;
use crate::rng::Stream;
use picture::{Picture, window};
pub use rand_augment::RandAugment;
use warp::resample;

/// How images are changed; without any of it they stay as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Black pixels put around the image, of which then a random window of its size is taken.
    pub crop: usize,
    /// A random part of the image, in the image's size.
    pub resized_crop: Option<ResizedCrop>,
    /// Share of the images that are mirrored, left to right.
    pub flip: f64,
    /// Random changes of the colours.
    pub jitter: Option<Jitter>,
    /// Random changes drawn from fourteen.
    pub rand_augment: Option<RandAugment>,
    /// Largest move in each direction, in pixels; the border is continued.
    pub shift: f64,
    /// Largest change of size: 0.1 is 90 % to 110 %.
    pub scale: f64,
    /// Standard deviation of the noise, where the whole range of values is 1.
    pub noise: f64,
    /// Share of the images of which a random rectangle becomes grey (Zhong et al. 2020): 2 to 33 % of the area.
    pub erase: f64,
}

/// What part of an image is taken.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ResizedCrop {
    /// Least and largest share of the area.
    pub area: [f64; 2],
    /// Least and largest ratio of width to height.
    pub ratio: [f64; 2],
}

impl Default for ResizedCrop {
    fn default() -> Self {
        Self { area: [0.08, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0] }
    }
}

/// Largest changes of the colours; each is drawn anew for every image, and they come in random order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Jitter {
    /// 0.4 is a factor from 0.6 to 1.4.
    pub brightness: f64,
    /// As for brightness.
    pub contrast: f64,
    /// As for brightness.
    pub saturation: f64,
    /// Share of the circle of hues, to either side: at most 0.5.
    pub hue: f64,
}

impl Jitter {
    fn apply(self, picture: &mut Picture, stream: &mut Stream) {
        let order = stream.permutation(4);
        let turn = (2.0 * stream.uniform() - 1.0) * self.hue;
        let factors = [self.brightness, self.contrast, self.saturation].map(|limit| {
            let low = (1.0 - limit).max(0.0);
            low + (1.0 + limit - low) * stream.uniform()
        });
        for change in order {
            match change {
                0 if self.brightness > 0.0 => picture.brightness(factors[0]),
                1 if self.contrast > 0.0 => picture.contrast(factors[1]),
                2 if self.saturation > 0.0 => picture.saturation(factors[2]),
                3 if self.hue > 0.0 => picture.hue(turn),
                _ => {}
            }
        }
    }
}

fn is_share(value: f64) -> bool {
    (0.0..=1.0).contains(&value)
}

impl Augment {
    pub(super) fn check(&self, want: &mut Want<'_>) {
        want(self.shift.is_finite() && self.shift >= 0.0, "augment.shift", format!("a shift of {} pixels is below 0", self.shift));
        want((0.0..1.0).contains(&self.scale), "augment.scale", format!("{} is not a share from 0 to below 1", self.scale));
        want(self.noise.is_finite() && self.noise >= 0.0, "augment.noise", format!("noise of {} is below 0", self.noise));
        for (name, share) in [("augment.flip", self.flip), ("augment.erase", self.erase)] {
            want(is_share(share), name, format!("{share} is not a share from 0 to 1"));
        }
        if let Some(ResizedCrop { area, ratio }) = self.resized_crop {
            let areas = area[0] > 0.0 && area[0] <= area[1] && area[1] <= 1.0;
            want(areas, "augment.resized_crop.area", format!("{area:?} are not a least and a largest share above 0 up to 1"));
            let ratios = ratio[0] > 0.0 && ratio[0] <= ratio[1] && ratio[1].is_finite();
            want(ratios, "augment.resized_crop.ratio", format!("{ratio:?} are not a least and a largest ratio above 0"));
        }
        if let Some(Jitter { brightness, contrast, saturation, hue }) = self.jitter {
            for (name, limit) in [("brightness", brightness), ("contrast", contrast), ("saturation", saturation)] {
                want(limit.is_finite() && limit >= 0.0, &format!("augment.jitter.{name}"), format!("{limit} is below 0"));
            }
            want((0.0..=0.5).contains(&hue), "augment.jitter.hue", format!("{hue} is not a share from 0 to 0.5"));
        }
        if let Some(RandAugment { ops, magnitude }) = self.rand_augment {
            want(ops > 0, "augment.rand_augment.ops", "without a change there is nothing to do; leave it out".into());
            let message = format!("{magnitude} is above {}", rand_augment::STRONGEST);
            want(magnitude <= rand_augment::STRONGEST, "augment.rand_augment.magnitude", message);
        }
    }

    /// Writes the image `bytes` `[h, w, c]` to `out`, changed by numbers from `stream`.
    pub(super) fn image(
        &self,
        bytes: &[u8],
        out: &mut [f32],
        size: (usize, usize, usize),
        normalisation: Normalisation,
        stream: impl FnOnce() -> Stream,
    ) {
        let float = |out: &mut [f32], bytes: &[u8]| out.iter_mut().zip(bytes).for_each(|(v, byte)| *v = normalisation.float(*byte));
        if *self == Self::default() {
            return float(out, bytes);
        }
        let stream = stream();
        if self.changes_bytes() {
            float(out, &self.of_bytes(Picture::new(bytes, size), &stream).bytes);
        } else {
            float(out, bytes);
        }
        self.of_floats(out, size, normalisation, stream);
    }

    fn changes_bytes(&self) -> bool {
        self.crop > 0 || self.flip > 0.0 || self.resized_crop.is_some() || self.jitter.is_some() || self.rand_augment.is_some()
    }

    fn of_bytes(&self, mut picture: Picture, stream: &Stream) -> Picture {
        let size = (picture.h, picture.w);
        if self.crop > 0 {
            let mut stream = stream.child("crop");
            let mut place = || stream.below(2 * self.crop + 1);
            picture = picture.crop_padded(self.crop, (place(), place()));
        }
        if let Some(ResizedCrop { area, ratio }) = self.resized_crop {
            let part = window(size, area, ratio, &mut stream.child("resized crop"));
            if let Some((place, part)) = part {
                picture = picture.crop(place, part).resized(size);
            }
        }
        if self.flip > 0.0 && stream.child("flip").uniform() < self.flip {
            picture.flip();
        }
        if let Some(jitter) = self.jitter {
            jitter.apply(&mut picture, &mut stream.child("jitter"));
        }
        if let Some(changes) = self.rand_augment {
            changes.apply(&mut picture, &mut stream.child("rand_augment"));
        }
        picture
    }

    fn of_floats(&self, out: &mut [f32], (h, w, c): (usize, usize, usize), normalisation: Normalisation, mut stream: Stream) {
        let erasing = (self.erase > 0.0).then(|| stream.child("erase"));
        let (black, white) = (normalisation.float(0), normalisation.float(255));
        let mut between = |limit: f64| (2.0 * stream.uniform() - 1.0) * limit;
        let (dy, dx, size) = (between(self.shift), between(self.shift), 1.0 + between(self.scale));
        if self.shift > 0.0 || self.scale > 0.0 {
            let moved = resample(out, (h, w, c), dy as f32, dx as f32, size as f32);
            out.copy_from_slice(&moved);
        }
        if self.noise > 0.0 {
            let range = white - black;
            out.iter_mut().for_each(|v| *v += (self.noise * stream.normal()) as f32 * range);
        }
        let Some(mut stream) = erasing else { return };
        if stream.uniform() >= self.erase {
            return;
        }
        if let Some(((y, x), (rows, columns))) = window((h, w), [0.02, 0.33], [0.3, 1.0 / 0.3], &mut stream) {
            let grey = (black + white) / 2.0;
            (y..y + rows).for_each(|y| out[(y * w + x) * c..(y * w + x + columns) * c].fill(grey));
        }
    }
}
