//! How much of an image is left at time t, from 0 (all of it) to 1 (noise): α = cos(πt/2), σ = sin(πt/2).

use std::f64::consts::FRAC_PI_2;

/// Times are kept away from the ends, where one of the two is 0.
const EDGE: f64 = 1e-3;

/// A time that the network is trained at.
pub fn clamp(t: f64) -> f64 {
    t.clamp(EDGE, 1.0 - EDGE)
}

/// Share of the image.
pub fn alpha(t: f64) -> f64 {
    (FRAC_PI_2 * t).cos()
}

/// Share of the noise; α² + σ² = 1.
pub fn sigma(t: f64) -> f64 {
    (FRAC_PI_2 * t).sin()
}

/// The times of a sampler with `steps` steps, from noise to image, and 0 at the end.
pub fn times(steps: usize) -> Vec<f64> {
    (0..=steps).map(|i| if i == steps { 0.0 } else { clamp(1.0 - i as f64 / steps as f64) }).collect()
}
