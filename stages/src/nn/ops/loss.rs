//! Losses.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::softmax::softmax_row;
use crate::nn::composed;
use crate::nn::storage::{gradient, output, slice, with};
use crate::nn::tape::apply1;

struct CrossEntropy {
    targets: Vec<f32>,
    classes: usize,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let logits = slice(logits, layout)?;
        let mut total = 0.0f64;
        for (row, targets) in logits.chunks_exact(self.classes).zip(self.targets.chunks_exact(self.classes)) {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let log_sum = row.iter().map(|v| f64::from(v - max).exp()).sum::<f64>().ln() + f64::from(max);
            total += row.iter().zip(targets).map(|(v, t)| f64::from(*t) * (log_sum - f64::from(*v))).sum::<f64>();
        }
        let rows = logits.len() / self.classes;
        output(vec![(total / rows as f64) as f32], ())
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let scale = dy.to_scalar::<f32>()? / (logits.elem_count() / self.classes) as f32;
        let mut dx = with(logits, |logits| Ok(logits.to_vec()))?;
        for (row, targets) in dx.chunks_exact_mut(self.classes).zip(self.targets.chunks_exact(self.classes)) {
            softmax_row(row);
            let mass: f32 = targets.iter().sum();
            row.iter_mut().zip(targets).for_each(|(p, t)| *p = (*p * mass - t) * scale);
        }
        gradient(dx, logits).map(Some)
    }
}

/// Mean over rows of −Σ target·log softmax(logit); `logits` `[n, classes]`, `targets` row-major `[n, classes]` (one-hot, mixed or smoothed).
///
/// # Errors
/// If the numbers of values differ.
pub fn cross_entropy(logits: &Tensor, targets: &[f32]) -> Result<Tensor> {
    let (n, classes) = logits.dims2()?;
    if targets.len() != n * classes {
        bail!("cross_entropy: {} targets do not fit logits {:?}", targets.len(), logits.shape());
    }
    if composed::wanted(logits) {
        return composed::cross_entropy(logits, targets);
    }
    apply1(logits, CrossEntropy { targets: targets.to_vec(), classes })
}

struct Mse {
    target: Vec<f32>,
}

impl CustomOp1 for Mse {
    fn name(&self) -> &'static str {
        "mse"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, layout)?;
        // Rows of a fixed length in single precision, their sums in double.
        let total: f64 = x
            .chunks(1024)
            .zip(self.target.chunks(1024))
            .map(|(x, t)| f64::from(x.iter().zip(t).map(|(x, t)| (x - t) * (x - t)).sum::<f32>()))
            .sum();
        output(vec![(total / x.len() as f64) as f32], ())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let scale = 2.0 * dy.to_scalar::<f32>()? / x.elem_count() as f32;
        let dx = with(x, |x| Ok(crate::nn::math::map2(x, &self.target, |x, t| (x - t) * scale)))?;
        gradient(dx, x).map(Some)
    }
}

/// Mean of the squared differences to `target`, which gets no gradient.
///
/// # Errors
/// If the shapes differ.
pub fn mse(x: &Tensor, target: &Tensor) -> Result<Tensor> {
    if x.dims() != target.dims() {
        bail!("mse: {:?} and {:?} differ", x.shape(), target.shape());
    }
    if composed::wanted(x) {
        return composed::mse(x, target);
    }
    let target = with(target, |target| Ok(target.to_vec()))?;
    apply1(x, Mse { target })
}

/// Targets of [`cross_entropy`], row-major `[labels, classes]`: `1 − smoothing` for the label, and `smoothing` spread over all classes
/// (Szegedy et al. 2016).
///
/// # Errors
/// If a label is not below `classes`, or the smoothing is no share.
pub fn one_hot(labels: &[u32], classes: usize, smoothing: f32) -> Result<Vec<f32>> {
    if let Some(i) = labels.iter().position(|label| *label as usize >= classes) {
        bail!("one_hot: label {i} is {}, there are {classes} classes", labels[i]);
    }
    if !(0.0..=1.0).contains(&smoothing) {
        bail!("one_hot: a smoothing of {smoothing} is not a share from 0 to 1");
    }
    let mut targets = vec![smoothing / classes as f32; labels.len() * classes];
    for (row, label) in targets.chunks_exact_mut(classes.max(1)).zip(labels) {
        row[*label as usize] += 1.0 - smoothing;
    }
    Ok(targets)
}
