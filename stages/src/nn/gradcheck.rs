//! Gradients against finite differences.
//!
//! For each tensor w of a model the derivative along a direction d, (L(w + εd) − L(w − εd)) / 2ε, must equal ⟨∇L, d⟩. A gradient that was
//! cut is missing or zero, one that is wrong differs along almost every direction: tried are its own, the axis of its largest entry, which
//! shows two entries that were exchanged, and a random one. Losses are single precision, so each direction is tried with several ε, and the
//! best must agree: rounding spoils small ones, curvature large ones.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::rng::Stream;

use super::optim::gradient_values;
use super::params::Params;

/// Steps that are tried, for directions of unit length scaled to the size of the tensor.
const STEPS: [f32; 4] = [3e-2, 1e-2, 3e-3, 1e-3];
/// Directions for each tensor.
const DIRECTIONS: usize = 3;
/// Largest accepted difference, relative to the larger derivative.
const TOLERANCE: f64 = 0.02;
/// The same relative to the gradient's norm, for directions that are nearly across it.
const FLOOR: f64 = 2e-3;
/// Rounding of a loss relative to its size: a few units in the last place of single precision.
const ROUNDING: f64 = 3e-7;
/// Along the gradient the loss must change by so many times its rounding, or nothing was checked.
const SIGNAL: f64 = 5.0;

/// What was found for one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The tensor.
    pub name: String,
    /// Derivative by the backward pass.
    pub backward: f64,
    /// Derivative by differences.
    pub difference: f64,
    /// What rounding of the loss may have done to it.
    pub rounding: f64,
}

/// Checks every tensor of `params` under a loss of one value.
///
/// # Errors
/// If a tensor has no gradient, or one that finite differences contradict; all of them are named.
pub fn check(params: &Params, loss: impl Fn(&Params) -> Result<Tensor>) -> Result<Vec<Finding>> {
    let grads = loss(params)?.backward()?;
    let (mut findings, mut complaints) = (Vec::new(), Vec::new());
    for (name, var) in params.trainable() {
        let Some(gradient) = gradient_values(&grads, var)? else {
            complaints.push(format!("`{name}` has no gradient"));
            continue;
        };
        let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        if norm == 0.0 {
            complaints.push(format!("the gradient of `{name}` is zero"));
            continue;
        }
        for i in 0..DIRECTIONS {
            let direction = direction(&gradient, norm, i, name);
            let finding = derivative(params, &loss, name, &gradient, &direction)?;
            let gap = (finding.backward - finding.difference).abs();
            if i == 0 && norm < SIGNAL * finding.rounding {
                complaints.push(format!("the gradient of `{name}` ({norm:.1e}) is lost in rounding ({:.1e})", finding.rounding));
            } else if gap > TOLERANCE * finding.backward.abs().max(finding.difference.abs()) + FLOOR * norm + finding.rounding {
                complaints.push(format!("`{name}`: backward says {:.6e}, differences say {:.6e}", finding.backward, finding.difference));
            }
            findings.push(finding);
        }
    }
    if complaints.is_empty() { Ok(findings) } else { Err(Error::argument(format!("wrong gradients: {}", complaints.join("; ")))) }
}

/// A direction of unit length: the first along the gradient, the second along the axis of its largest entry, the last random.
fn direction(gradient: &[f32], norm: f64, i: usize, name: &str) -> Vec<f32> {
    if i == 1 {
        let largest = (0..gradient.len()).max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs()));
        return (0..gradient.len()).map(|j| if Some(j) == largest { 1.0 } else { 0.0 }).collect();
    }
    let raw: Vec<f32> = if i == 0 { gradient.to_vec() } else { Stream::new(i as u64, name).normals(gradient.len()) };
    let length = if i == 0 { norm } else { raw.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() };
    raw.iter().map(|v| (f64::from(*v) / length) as f32).collect()
}

fn derivative(
    params: &Params,
    loss: &impl Fn(&Params) -> Result<Tensor>,
    name: &str,
    gradient: &[f32],
    direction: &[f32],
) -> Result<Finding> {
    let backward: f64 = gradient.iter().zip(direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
    let values = params.values(name)?;
    let shape = params.get(name)?.dims().to_vec();
    // Directions over many values bear longer steps: each value moves little.
    let moved = direction.iter().filter(|d| **d != 0.0).count();
    let scale = (moved as f32).sqrt().min(10.0) * values.iter().fold(0.1f32, |m, v| m.max(v.abs())).min(1.0);
    let mut best: Option<Finding> = None;
    for step in STEPS.map(|s| s * scale) {
        let at = |sign: f32| -> Result<f64> {
            let mut moved = params.copied()?;
            moved.insert(name, &shape, values.iter().zip(direction).map(|(v, d)| v + sign * step * d).collect())?;
            Ok(f64::from(loss(&moved)?.to_scalar::<f32>()?))
        };
        let (up, down) = (at(1.0)?, at(-1.0)?);
        let width = 2.0 * f64::from(step);
        let finding = Finding {
            name: name.to_owned(),
            backward,
            difference: (up - down) / width,
            rounding: ROUNDING * up.abs().max(down.abs()) / width,
        };
        let gap = |finding: &Finding| (finding.difference - backward).abs();
        if best.as_ref().is_none_or(|best| gap(&finding) < gap(best)) {
            best = Some(finding);
        }
    }
    best.ok_or_else(|| Error::argument("no step was tried"))
}
