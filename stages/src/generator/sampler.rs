//! One step of a sampler, from time t to an earlier time s, on plain slices.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schedule::{alpha, sigma};

/// How noise becomes an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Sampler {
    /// Denoising diffusion implicit models (Song et al. 2021): few steps; `eta` adds fresh noise.
    #[default]
    Ddim,
    /// Denoising diffusion probabilistic models (Ho et al. 2020): as DDIM with `eta` 1.
    Ddpm,
}

impl Sampler {
    /// Share of fresh noise.
    pub fn eta(self, eta: f64) -> f64 {
        match self {
            Self::Ddim => eta,
            Self::Ddpm => 1.0,
        }
    }
}

/// Moves `x` from time `t` to `s`, given the predicted `v`; `noise` is used where `eta` is above 0.
///
/// With x̂ = αx − σv (cut to [−1, 1]) and ε̂ = (x − αx̂)/σ: x ← α'x̂ + √(σ'² − η̃²)ε̂ + η̃·noise, η̃ = η·(σ'/σ)·√(1 − α²/α'²) (DDIM, eq. 12 and 16).
pub fn step(x: &mut [f32], v: &[f32], noise: Option<&[f32]>, t: f64, s: f64, eta: f64) {
    let (a, d) = (alpha(t), sigma(t));
    let (a2, d2) = (alpha(s), sigma(s));
    let fresh = if eta > 0.0 && s > 0.0 { eta * (d2 / d) * (1.0 - (a / a2).powi(2)).max(0.0).sqrt() } else { 0.0 };
    let kept = (d2 * d2 - fresh * fresh).max(0.0).sqrt();
    for (i, (x, v)) in x.iter_mut().zip(v).enumerate() {
        let image = (a * f64::from(*x) - d * f64::from(*v)).clamp(-1.0, 1.0);
        let direction = (f64::from(*x) - a * image) / d;
        let random = noise.map_or(0.0, |noise| fresh * f64::from(noise[i]));
        *x = (a2 * image + kept * direction + random) as f32;
    }
}
