//! Pooling and upsampling over `[n, h, w, c]`.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::sync::OnceLock;

use super::raw::{apply1, chunks, column_sums, output, slice, tensor, with};

/// The maximum over non-overlapping windows of 2×2; a last odd row or column is left out. The gradient goes to the first maximum.
///
/// # Errors
/// If `x` is not `[n, h, w, c]` with `h` and `w` of at least 2.
pub fn max_pool(x: &Tensor) -> Result<Tensor> {
    halves("max_pool", x)?;
    apply1(x, MaxPool { bias: false, winners: OnceLock::new() })
}

/// `max_pool(relu(x + b))` for `b` `[c]` in one pass over the image.
///
/// # Errors
/// If `x` is not `[n, h, w, c]` with `h` and `w` of at least 2, or `b` does not fit.
pub fn bias_relu_pool(x: &Tensor, b: &Tensor) -> Result<Tensor> {
    halves("bias_relu_pool", x)?;
    if b.dims() != [x.dim(3)?] {
        bail!("bias_relu_pool: bias {:?} does not fit image {:?}", b.dims(), x.dims());
    }
    x.contiguous()?.apply_op2(&b.contiguous()?, MaxPool { bias: true, winners: OnceLock::new() })
}

/// The mean over non-overlapping windows of `k`×`k`; rows and columns that do not fill a window are left out.
///
/// # Errors
/// If `x` is not `[n, h, w, c]` or smaller than a window.
pub fn avg_pool(x: &Tensor, k: usize) -> Result<Tensor> {
    let (_, h, w, _) = x.dims4()?;
    if k == 0 || h < k || w < k {
        bail!("avg_pool: image {:?} is smaller than a window of {k}", x.dims());
    }
    apply1(x, AvgPool { kh: k, kw: k })
}

/// The mean over all pixels, `[n, h, w, c]` to `[n, c]`.
///
/// # Errors
/// If `x` is not `[n, h, w, c]`.
pub fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    let (n, kh, kw, c) = x.dims4()?;
    apply1(x, AvgPool { kh, kw })?.reshape((n, c))
}

/// Every pixel four times, `[n, h, w, c]` to `[n, 2h, 2w, c]`.
///
/// # Errors
/// If `x` is not `[n, h, w, c]`.
pub fn upsample2x(x: &Tensor) -> Result<Tensor> {
    x.dims4()?;
    apply1(x, Upsample)
}

fn halves(name: &str, x: &Tensor) -> Result<()> {
    let (_, h, w, _) = x.dims4()?;
    if h < 2 || w < 2 { bail!("{name}: image {:?} is smaller than a window of 2", x.dims()) } else { Ok(()) }
}

/// Which of a window's four pixels won (0 to 3), or 4 if the activation is zero.
struct MaxPool {
    bias: bool,
    winners: OnceLock<Vec<u8>>,
}

const DEAD: u8 = 4;

impl MaxPool {
    fn forward(&self, x: &[f32], layout: &Layout, bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let (n, h, w, c) = layout.shape().dims4()?;
        let (oh, ow) = (h / 2, w / 2);
        let mut y = vec![0.0; n * oh * ow * c];
        let mut winners = vec![0u8; y.len()];
        let line = ow * c;
        let rows = y.par_chunks_mut(line * oh).zip(winners.par_chunks_mut(line * oh)).enumerate();
        rows.for_each(|(image, (y, winners))| {
            for row in 0..oh {
                let top = &x[(image * h + 2 * row) * w * c..];
                let bottom = &top[w * c..];
                for col in 0..ow {
                    let (at, from) = (row * line + col * c, 2 * col * c);
                    let window =
                        [&top[from..from + c], &top[from + c..from + 2 * c], &bottom[from..from + c], &bottom[from + c..from + 2 * c]];
                    window_max(window, &mut y[at..at + c], &mut winners[at..at + c]);
                    if let Some(bias) = bias {
                        bias_relu(bias, &mut y[at..at + c], &mut winners[at..at + c]);
                    }
                }
            }
        });
        let _ = self.winners.set(winners);
        output(y, (n, oh, ow, c))
    }

    fn backward(&self, x: &Tensor, grad: &Tensor) -> Result<Vec<f32>> {
        let (_, h, w, c) = x.dims4()?;
        let (oh, ow) = (h / 2, w / 2);
        let Some(winners) = self.winners.get() else { bail!("{}: backward without a forward", self.label()) };
        let mut dx = vec![0.0; x.elem_count()];
        with(grad, |g| {
            chunks(&mut dx, h * w * c, |image, dx| {
                for pixel in 0..oh * ow {
                    let at = (image * oh * ow + pixel) * c;
                    let (g, winners) = (&g[at..at + c], &winners[at..at + c]);
                    for k in 0..4 {
                        let to = ((2 * (pixel / ow) + k / 2) * w + 2 * (pixel % ow) + k % 2) * c;
                        for ((d, g), winner) in dx[to..to + c].iter_mut().zip(g).zip(winners) {
                            *d = if *winner == k as u8 { *g } else { 0.0 };
                        }
                    }
                }
            });
        })?;
        Ok(dx)
    }

    fn label(&self) -> &'static str {
        if self.bias { "bias_relu_pool" } else { "max_pool" }
    }
}

#[inline(always)]
fn window_max(window: [&[f32]; 4], y: &mut [f32], winners: &mut [u8]) {
    let [a, b, c, d] = window;
    for ((((y, winner), a), b), (c, d)) in y.iter_mut().zip(winners).zip(a).zip(b).zip(c.iter().zip(d)) {
        let (mut best, mut k) = (*a, 0);
        for (i, v) in [*b, *c, *d].into_iter().enumerate() {
            (best, k) = if v > best { (v, i as u8 + 1) } else { (best, k) };
        }
        (*y, *winner) = (best, k);
    }
}

#[inline(always)]
fn bias_relu(bias: &[f32], y: &mut [f32], winners: &mut [u8]) {
    for ((y, winner), b) in y.iter_mut().zip(winners).zip(bias) {
        let v = *y + *b;
        (*y, *winner) = if v <= 0.0 { (0.0, DEAD) } else { (v, *winner) }; // lets NaN through
    }
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        self.label()
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(slice(x, layout)?, layout, None)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(tensor(self.backward(x, &grad.contiguous()?)?, x.shape())?))
    }
}

impl CustomOp2 for MaxPool {
    fn name(&self) -> &'static str {
        self.label()
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(slice(x, lx)?, lx, Some(slice(b, lb)?))
    }

    fn bwd(&self, x: &Tensor, b: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = self.backward(x, &grad.contiguous()?)?;
        let db = if b.track_op() { Some(tensor(column_sums(&dx, b.elem_count()), b.shape())?) } else { None };
        let dx = if x.track_op() { Some(tensor(dx, x.shape())?) } else { None };
        Ok((dx, db))
    }
}

struct AvgPool {
    kh: usize,
    kw: usize,
}

impl CustomOp1 for AvgPool {
    fn name(&self) -> &'static str {
        "avg_pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, h, w, c) = layout.shape().dims4()?;
        let (oh, ow, x) = (h / self.kh, w / self.kw, slice(x, layout)?);
        let scale = 1.0 / (self.kh * self.kw) as f32;
        let mut y = vec![0.0; n * oh * ow * c];
        chunks(&mut y, oh * ow * c, |image, y| {
            for row in 0..oh * self.kh {
                for col in 0..ow * self.kw {
                    let (from, to) = (((image * h + row) * w + col) * c, (row / self.kh * ow + col / self.kw) * c);
                    for (y, x) in y[to..to + c].iter_mut().zip(&x[from..from + c]) {
                        *y += *x;
                    }
                }
            }
            y.iter_mut().for_each(|y| *y *= scale);
        });
        output(y, (n, oh, ow, c))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, h, w, c) = x.dims4()?;
        let (oh, ow) = (h / self.kh, w / self.kw);
        let scale = 1.0 / (self.kh * self.kw) as f32;
        let mut dx = vec![0.0; x.elem_count()];
        with(&grad.contiguous()?, |g| {
            chunks(&mut dx, h * w * c, |image, dx| {
                for row in 0..oh * self.kh {
                    for col in 0..ow * self.kw {
                        let (to, from) = ((row * w + col) * c, ((image * oh + row / self.kh) * ow + col / self.kw) * c);
                        for (d, g) in dx[to..to + c].iter_mut().zip(&g[from..from + c]) {
                            *d = *g * scale;
                        }
                    }
                }
            });
        })?;
        Ok(Some(tensor(dx, x.shape())?))
    }
}

struct Upsample;

impl CustomOp1 for Upsample {
    fn name(&self) -> &'static str {
        "upsample2x"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, h, w, c) = layout.shape().dims4()?;
        let x = slice(x, layout)?;
        let mut y = vec![0.0; x.len() * 4];
        // One chunk is the two rows that one row of the input becomes.
        chunks(&mut y, 4 * w * c, |row, y| {
            let (top, bottom) = y.split_at_mut(2 * w * c);
            for (from, to) in x[row * w * c..].chunks_exact(c).zip(top.chunks_exact_mut(2 * c)) {
                to[..c].copy_from_slice(from);
                to[c..].copy_from_slice(from);
            }
            bottom.copy_from_slice(top);
        });
        output(y, (n, 2 * h, 2 * w, c))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, w, c) = x.dims4()?;
        let mut dx = vec![0.0; x.elem_count()];
        with(&grad.contiguous()?, |g| {
            chunks(&mut dx, w * c, |row, dx| {
                let (top, bottom) = g[row * 4 * w * c..(row + 1) * 4 * w * c].split_at(2 * w * c);
                for ((d, t), b) in dx.chunks_exact_mut(c).zip(top.chunks_exact(2 * c)).zip(bottom.chunks_exact(2 * c)) {
                    for i in 0..c {
                        d[i] = (t[i] + t[c + i]) + (b[i] + b[c + i]);
                    }
                }
            });
        })?;
        Ok(Some(tensor(dx, x.shape())?))
    }
}
