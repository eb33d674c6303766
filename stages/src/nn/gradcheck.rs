//! Holds gradients to central finite differences, for tests.

use candle_core::{Device, Result, Tensor, Var, bail};

use super::{Params, values};

/// The relative error that a gradient may have: f32 sums of a few thousand terms leave about 1e-3.
pub const TOLERANCE: f64 = 1e-2;

/// Entries of each tensor that are looked at one by one.
const SAMPLES: usize = 6;

/// Directions along which each tensor is looked at as a whole.
const DIRECTIONS: u64 = 2;

/// Checks the gradient of `loss` with respect to every trainable parameter of `params`: along random directions, and for a sample
/// of single entries, the derivative by backpropagation must be that by central differences. `loss` must be the same scalar
/// whenever it is called with the same parameters.
///
/// The parameters are put back as they were.
///
/// # Errors
/// The first parameter that has no gradient or a wrong one, with both numbers.
pub fn check(params: &Params, loss: impl Fn() -> Result<Tensor>) -> Result<()> {
    let named: Vec<(&str, &Var)> = params.trainable().collect();
    if named.is_empty() {
        bail!("there is nothing to check: every parameter is frozen");
    }
    let grads = loss()?.backward()?;
    for (name, var) in named {
        let Some(grad) = grads.get(var) else { bail!("`{name}` receives no gradient: an operation severs it") };
        if grad.dims() != var.dims() {
            bail!("`{name}` of shape {:?} receives a gradient of shape {:?}", var.dims(), grad.dims());
        }
        check_one(name, var, &values(grad)?, &loss)?;
    }
    Ok(())
}

/// Checks one function of some inputs, given as (shape, values): each input is treated as a parameter.
///
/// # Errors
/// See [`check`].
pub fn check_inputs(inputs: &[(&[usize], Vec<f32>)], loss: impl Fn(&[Tensor]) -> Result<Tensor>) -> Result<()> {
    let mut params = Params::new();
    let names: Vec<String> = (0..inputs.len()).map(|i| format!("input {i}")).collect();
    for (name, (shape, values)) in names.iter().zip(inputs) {
        params.insert(name, values.clone(), shape.to_vec())?;
    }
    let tensors = names.iter().map(|name| params.get(name)).collect::<Result<Vec<_>>>()?;
    check(&params, || loss(&tensors))
}

fn check_one(name: &str, var: &Var, grad: &[f32], loss: &impl Fn() -> Result<Tensor>) -> Result<()> {
    let origin = values(var)?;
    let mut draw = Draw(0x9e37_79b9_7f4a_7c15 ^ origin.len() as u64);
    let norm = grad.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    for i in 0..DIRECTIONS {
        let direction: Vec<f32> = (0..origin.len()).map(|_| draw.sign()).collect();
        check_along(&format!("`{name}` along direction {i}"), var, &origin, grad, &direction, norm, loss)?;
    }
    for _ in 0..SAMPLES.min(origin.len()) {
        let entry = draw.below(origin.len());
        let mut direction = vec![0.0; origin.len()];
        direction[entry] = 1.0;
        check_along(&format!("`{name}` at index {entry}"), var, &origin, grad, &direction, norm / (origin.len() as f64).sqrt(), loss)?;
    }
    Ok(())
}

/// Compares along one direction with steps of several sizes: a large one drowns the rounding of f32, a small one avoids the kinks
/// of ReLU and max-pooling, and one that agrees is enough, since a wrong gradient agrees with none.
fn check_along(
    what: &str,
    var: &Var,
    origin: &[f32],
    grad: &[f32],
    direction: &[f32],
    scale: f64,
    loss: &impl Fn() -> Result<Tensor>,
) -> Result<()> {
    let expected: f64 = grad.iter().zip(direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
    let length = direction.iter().map(|d| f64::from(*d).powi(2)).sum::<f64>().sqrt();
    let mut found = Vec::new();
    for step in [1e-2, 3e-3, 1e-3, 3e-2] {
        let step = step / length.sqrt();
        let at = |sign: f64| -> Result<f64> {
            let moved: Vec<f32> = origin.iter().zip(direction).map(|(w, d)| w + (sign * step) as f32 * d).collect();
            var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu)?)?;
            Ok(f64::from(loss()?.to_scalar::<f32>()?))
        };
        let (high, low) = (at(1.0)?, at(-1.0)?);
        var.set(&Tensor::from_slice(origin, var.shape(), &Device::Cpu)?)?;
        let measured = (high - low) / (2.0 * step);
        // What the rounding of the two losses alone can make of the difference.
        let noise = 4.0 * f64::from(f32::EPSILON) * high.abs().max(low.abs()) / (2.0 * step);
        let size = expected.abs().max(measured.abs());
        if (measured - expected).abs() <= TOLERANCE * size.max(scale) + noise.min(0.3 * size.max(scale)) {
            return Ok(());
        }
        found.push(measured);
    }
    bail!("{what}: the gradient says {expected:.6e}, finite differences say {found:.6?}")
}

/// A small generator of its own (SplitMix64), so that checks are the same everywhere.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn sign(&mut self) -> f32 {
        if self.next() & 1 == 0 { 1.0 } else { -1.0 }
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}
