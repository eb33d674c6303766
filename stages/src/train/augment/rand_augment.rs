//! RandAugment (Cubuk et al. 2020): a few changes drawn from fourteen, all of one strength. Changes and strengths are torchvision's.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::picture::Picture;
use crate::rng::Stream;

/// RandAugment's two figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RandAugment {
    /// Changes of each image, one after the other.
    pub ops: usize,
    /// Their strength, from 0 to 30.
    pub magnitude: usize,
}

/// Largest magnitude.
pub const STRONGEST: usize = 30;

impl Default for RandAugment {
    fn default() -> Self {
        Self { ops: 2, magnitude: 9 }
    }
}

/// One of the fourteen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Identity,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Brightness,
    Color,
    Contrast,
    Sharpness,
    Posterize,
    Solarize,
    AutoContrast,
    Equalize,
}

const OPS: [Op; 14] = [
    Op::Identity,
    Op::ShearX,
    Op::ShearY,
    Op::TranslateX,
    Op::TranslateY,
    Op::Rotate,
    Op::Brightness,
    Op::Color,
    Op::Contrast,
    Op::Sharpness,
    Op::Posterize,
    Op::Solarize,
    Op::AutoContrast,
    Op::Equalize,
];

impl RandAugment {
    pub(super) fn apply(self, picture: &mut Picture, stream: &mut Stream) {
        let strength = self.magnitude as f64 / STRONGEST as f64;
        for _ in 0..self.ops {
            // Both are drawn whatever the change makes of them.
            let (op, sign) = (OPS[stream.below(OPS.len())], if stream.below(2) == 0 { 1.0 } else { -1.0 });
            op.apply(picture, strength, sign);
        }
    }
}

impl Op {
    /// With a strength from 0 to 1, one way or the other.
    fn apply(self, picture: &mut Picture, strength: f64, sign: f64) {
        let shear = 0.3 * strength * sign;
        let moved = |side: usize| (150.0 / 331.0 * side as f64 * strength * sign).trunc();
        let factor = 1.0 + 0.9 * strength * sign;
        match self {
            Self::Identity => {}
            Self::ShearX => *picture = picture.warped(|y, x| (y, x + shear * y)),
            Self::ShearY => *picture = picture.warped(|y, x| (y + shear * x, x)),
            Self::TranslateX => *picture = picture.warped(|y, x| (y, x - moved(picture.w))),
            Self::TranslateY => *picture = picture.warped(|y, x| (y - moved(picture.h), x)),
            Self::Rotate => *picture = picture.rotated(30.0 * strength * sign),
            Self::Brightness => picture.brightness(factor),
            Self::Color => picture.saturation(factor),
            Self::Contrast => picture.contrast(factor),
            Self::Sharpness => picture.sharpness(factor),
            Self::Posterize => picture.posterize(8 - (4.0 * strength).round_ties_even() as u32),
            Self::Solarize => picture.solarize(255.0 * (1.0 - strength)),
            Self::AutoContrast => picture.autocontrast(),
            Self::Equalize => picture.equalize(),
        }
    }
}
