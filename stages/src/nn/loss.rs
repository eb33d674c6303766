//! Softmax and the losses.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Device, Layout, Result, Shape, Tensor, bail};

use super::math::exp;
use super::raw::{apply1, chunks, map2, output, slice, sum, tensor, with};

/// Rows of one block.
const ROWS: usize = 64;

/// Softmax in place over one row.
pub(super) fn softmax_row(row: &mut [f32]) {
    let max = row.iter().fold(f32::NEG_INFINITY, |m, v| if *v > m { *v } else { m });
    row.iter_mut().for_each(|v| *v = exp(*v - max));
    let total: f32 = row.iter().sum();
    let scale = 1.0 / total;
    row.iter_mut().for_each(|v| *v *= scale);
}

/// The gradient of a softmax row: `p · (g − Σ p·g)`, written over `g`.
pub(super) fn softmax_row_back(p: &[f32], g: &mut [f32]) {
    let dot: f32 = p.iter().zip(g.iter()).map(|(p, g)| p * g).sum();
    for (g, p) in g.iter_mut().zip(p) {
        *g = *p * (*g - dot);
    }
}

/// Softmax over the last dimension.
///
/// # Errors
/// If `x` is not f32 on the CPU.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    apply1(x, Softmax { width: x.dim(D::Minus1)? })
}

struct Softmax {
    width: usize,
}

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut y = slice(x, layout)?.to_vec();
        chunks(&mut y, ROWS * self.width, |_, y| y.chunks_exact_mut(self.width).for_each(softmax_row));
        output(y, layout.shape())
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut g = super::values(grad)?;
        with(y, |y| {
            chunks(&mut g, ROWS * self.width, |i, g| {
                for (g, p) in g.chunks_exact_mut(self.width).zip(y[i * ROWS * self.width..].chunks_exact(self.width)) {
                    softmax_row_back(p, g);
                }
            });
        })?;
        Ok(Some(tensor(g, x.shape())?))
    }
}

/// Targets `[n, classes]` from labels: `1 − smoothing` on the label and `smoothing / classes` on every class.
///
/// # Errors
/// If a label is not below `classes`; its index is named.
pub fn one_hot(labels: &[u32], classes: usize, smoothing: f32) -> Result<Tensor> {
    let mut values = vec![smoothing / classes as f32; labels.len() * classes];
    for (i, label) in labels.iter().enumerate() {
        if *label as usize >= classes {
            bail!("label {label} at index {i} is not below the {classes} classes");
        }
        values[i * classes + *label as usize] += 1.0 - smoothing;
    }
    Tensor::from_vec(values, (labels.len(), classes), &Device::Cpu)
}

/// The mean over rows of `−Σ t · log softmax(x)`, for logits and target distributions `[n, classes]`; a scalar. Targets get no gradient.
///
/// # Errors
/// If the shapes differ.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let (_, classes) = logits.dims2()?;
    same("cross_entropy", logits, targets)?;
    logits.contiguous()?.apply_op2(&targets.detach().contiguous()?, CrossEntropy { classes })
}

fn same(name: &str, a: &Tensor, b: &Tensor) -> Result<()> {
    if a.dims() == b.dims() && a.elem_count() > 0 { Ok(()) } else { bail!("{name}: {:?} does not fit {:?}", a.dims(), b.dims()) }
}

struct CrossEntropy {
    classes: usize,
}

impl CustomOp2 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, t: &CpuStorage, lt: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, t, classes) = (slice(x, lx)?, slice(t, lt)?, self.classes);
        let mut total = 0f64;
        for (x, t) in x.chunks_exact(classes).zip(t.chunks_exact(classes)) {
            let max = x.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
            let log_sum = x.iter().map(|v| f64::from(*v - max).exp()).sum::<f64>().ln();
            total += x.iter().zip(t).map(|(x, t)| f64::from(*t) * (log_sum - f64::from(*x - max))).sum::<f64>();
        }
        output(vec![(total / (x.len() / classes) as f64) as f32], ())
    }

    fn bwd(&self, x: &Tensor, t: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let classes = self.classes;
        let mut d = super::values(x)?;
        let scale = grad.to_scalar::<f32>()? / (d.len() / classes) as f32;
        with(t, |t| {
            for (d, t) in d.chunks_exact_mut(classes).zip(t.chunks_exact(classes)) {
                softmax_row(d);
                let mass: f32 = t.iter().sum();
                for (d, t) in d.iter_mut().zip(t) {
                    *d = (*d * mass - *t) * scale;
                }
            }
        })?;
        Ok((Some(tensor(d, x.shape())?), None))
    }
}

/// The mean of `(x − t)²`; a scalar. The target gets no gradient.
///
/// # Errors
/// If the shapes differ.
pub fn mse(x: &Tensor, target: &Tensor) -> Result<Tensor> {
    same("mse", x, target)?;
    x.contiguous()?.apply_op2(&target.detach().contiguous()?, Mse)
}

struct Mse;

impl CustomOp2 for Mse {
    fn name(&self) -> &'static str {
        "mse"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, t: &CpuStorage, lt: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, t) = (slice(x, lx)?, slice(t, lt)?);
        let total = sum(x.len(), |from, to| x[from..to].iter().zip(&t[from..to]).map(|(x, t)| f64::from(*x - *t).powi(2)).sum());
        output(vec![(total / x.len() as f64) as f32], ())
    }

    fn bwd(&self, x: &Tensor, t: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let scale = 2.0 * grad.to_scalar::<f32>()? / x.elem_count() as f32;
        let d = with(x, |x| with(t, |t| map2(x, t, |x, t| (x - t) * scale)))??;
        Ok((Some(tensor(d, x.shape())?), None))
    }
}
