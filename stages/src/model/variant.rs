//! What a network that was trained elsewhere does otherwise than our form of its architecture.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The values that a network takes: `(byte − mean) / std`, channel by channel.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// Red, green, blue; from 0 to 255.
    pub mean: [f32; 3],
    /// Red, green, blue.
    pub std: [f32; 3],
}

impl Range {
    /// torchvision's: 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225 of 255.
    pub const IMAGENET: Self = Self { mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375] };
    /// Caffe's: the means alone.
    pub const CAFFE: Self = Self { mean: [123.68, 116.779, 103.939], std: [1.0; 3] };
}

/// Differences; the default is ours: values from −1 to 1, torchvision's and timm's layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Variant {
    /// The values that the first layer takes; without, −1 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<Range>,
    /// What batch normalisations add to the variance; without, as the architecture has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_eps: Option<f32>,
    /// SqueezeNet with TensorFlow's zeros around its first layer, and pooling without an incomplete last window.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub same_padding: bool,
}

impl Variant {
    /// Whether it is ours.
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// Complains about values that make no sense.
    pub fn check(&self) -> Result<(), String> {
        if let Some(Range { mean, std }) = self.input
            && !(mean.iter().all(|v| v.is_finite()) && std.iter().all(|v| v.is_finite() && *v > 0.0))
        {
            return Err(format!("values of mean {mean:?} and deviation {std:?} are no range: deviations are above 0"));
        }
        match self.norm_eps {
            Some(eps) if !(eps.is_finite() && eps > 0.0) => Err(format!("`norm_eps` {eps} is not above 0")),
            _ => Ok(()),
        }
    }
}
