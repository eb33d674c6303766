//! Convolution over `[n, h, w, c]` by gathering patches into rows and multiplying by the weight.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::matmul::{input_gradient, product};
use super::raw::{Mat, add_parts, chunks, column_sums, gemm, output, scratch, slice, tensor, transpose, with};

/// The shape of a convolution: square kernel, the same stride and padding in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv {
    n: usize,
    h: usize,
    w: usize,
    c: usize,
    o: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
}

/// Cross-correlation of `x` `[n, h, w, c]` with `w` `[k, k, c, o]`, plus `b` `[o]`, to `[n, oh, ow, o]` with
/// `oh = (h + 2·padding - k) / stride + 1`.
///
/// # Errors
/// If the shapes do not fit.
pub fn conv2d(x: &Tensor, w: &Tensor, b: Option<&Tensor>, stride: usize, padding: usize) -> Result<Tensor> {
    let conv = Conv::of(x, w, stride, padding)?;
    let (x, w) = (x.contiguous()?, w.contiguous()?);
    match b {
        Some(b) if b.dims() != [conv.o] => bail!("conv2d: bias {:?} does not fit weight {:?}", b.dims(), w.dims()),
        Some(b) => x.apply_op3(&w, &b.contiguous()?, conv),
        None => x.apply_op2(&w, conv),
    }
}

impl Conv {
    fn of(x: &Tensor, w: &Tensor, stride: usize, padding: usize) -> Result<Self> {
        let ((n, h, width, c), (kernel, kernel_w, c_w, o)) = (x.dims4()?, w.dims4()?);
        if kernel != kernel_w || c != c_w || stride == 0 || h + 2 * padding < kernel || width + 2 * padding < kernel {
            bail!("conv2d: input {:?} does not fit weight {:?} with stride {stride} and padding {padding}", x.dims(), w.dims());
        }
        Ok(Self { n, h, w: width, c, o, kernel, stride, padding })
    }

    fn out_h(&self) -> usize {
        (self.h + 2 * self.padding - self.kernel) / self.stride + 1
    }

    fn out_w(&self) -> usize {
        (self.w + 2 * self.padding - self.kernel) / self.stride + 1
    }

    fn pixels(&self) -> usize {
        self.n * self.out_h() * self.out_w()
    }

    /// Values of one gathered patch.
    fn patch(&self) -> usize {
        self.kernel * self.kernel * self.c
    }

    /// Whether the input already is the matrix of patches.
    fn pointwise(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.padding == 0
    }

    /// Output pixels of one block: its patches stay in the second-level cache.
    fn block(&self) -> usize {
        (131_072 / self.patch()).clamp(32, 512)
    }

    /// Gathers the patches of output pixels `from..from + rows.len() / patch`.
    fn gather(&self, x: &[f32], from: usize, rows: &mut [f32]) {
        let (oh, ow, line) = (self.out_h(), self.out_w(), self.kernel * self.c);
        for (i, row) in rows.chunks_exact_mut(self.patch()).enumerate() {
            let (image, pixel) = ((from + i) / (oh * ow), (from + i) % (oh * ow));
            let (y, left) = (pixel / ow * self.stride, pixel % ow * self.stride);
            // Columns below `skip` and from `end` on lie in the padding.
            let skip = self.padding.saturating_sub(left).min(self.kernel);
            let end = (self.w + self.padding).saturating_sub(left).min(self.kernel).max(skip);
            for (ky, out) in row.chunks_exact_mut(line).enumerate() {
                let row_y = y + ky;
                if row_y < self.padding || row_y >= self.h + self.padding || end == skip {
                    out.fill(0.0);
                    continue;
                }
                let start = ((image * self.h + row_y - self.padding) * self.w + left + skip - self.padding) * self.c;
                let (a, b) = (skip * self.c, end * self.c);
                out[..a].fill(0.0);
                copy(&x[start..start + b - a], &mut out[a..b]);
                out[b..].fill(0.0);
            }
        }
    }

    /// Adds the rows of patch gradients back onto the image that they came from.
    fn scatter(&self, rows: &[f32], from: usize, dx: &mut [f32]) {
        let ow = self.out_w();
        for (i, row) in rows.chunks_exact(self.patch()).enumerate() {
            let (y, x) = ((from + i) / ow * self.stride, (from + i) % ow * self.stride);
            for (k, values) in row.chunks_exact(self.c).enumerate() {
                let (iy, ix) = (y + k / self.kernel, x + k % self.kernel);
                let inside = iy >= self.padding && iy < self.h + self.padding && ix >= self.padding && ix < self.w + self.padding;
                if inside {
                    let at = ((iy - self.padding) * self.w + ix - self.padding) * self.c;
                    for (d, v) in dx[at..at + self.c].iter_mut().zip(values) {
                        *d += *v;
                    }
                }
            }
        }
    }

    fn forward(&self, x: &[f32], w: &[f32], b: Option<&[f32]>) -> Vec<f32> {
        let mut y = vec![0.0; self.pixels() * self.o];
        if self.pointwise() {
            product(x, w, self.c, self.o, b, &mut y);
            return y;
        }
        let (block, patch) = (self.block(), self.patch());
        chunks(&mut y, block * self.o, |i, y| {
            let m = y.len() / self.o;
            scratch(m * patch, |rows| {
                self.gather(x, i * block, rows);
                if let Some(b) = b {
                    y.chunks_exact_mut(self.o).for_each(|row| row.copy_from_slice(b));
                }
                gemm(m, self.o, patch, y, self.o, b.is_some(), 1.0, Mat::new(rows, patch), Mat::new(w, self.o));
            });
        });
        y
    }

    /// The gradient with respect to the input.
    fn input_gradient(&self, g: &[f32], w: &[f32]) -> Vec<f32> {
        if self.pointwise() {
            return input_gradient(g, w, self.c, self.o);
        }
        if self.stride == 1 && self.padding < self.kernel {
            return self.input_gradient_by_convolution(g, w);
        }
        let (block, patch, pixels) = (self.block(), self.patch(), self.out_h() * self.out_w());
        let mut dx = vec![0.0; self.n * self.h * self.w * self.c];
        scratch(w.len(), |wt| {
            transpose(w, patch, self.o, wt);
            let wt = &*wt;
            chunks(&mut dx, self.h * self.w * self.c, |image, dx| {
                for from in (0..pixels).step_by(block) {
                    let m = block.min(pixels - from);
                    scratch(m * patch, |rows| {
                        let g = &g[(image * pixels + from) * self.o..];
                        gemm(m, patch, self.o, rows, patch, false, 1.0, Mat::new(g, self.o), Mat::new(wt, patch));
                        self.scatter(rows, from, dx);
                    });
                }
            });
        });
        dx
    }

    /// With stride 1 the gradient is itself a convolution of `g`, by the weight turned around with its channels exchanged.
    fn input_gradient_by_convolution(&self, g: &[f32], w: &[f32]) -> Vec<f32> {
        let back = Self { h: self.out_h(), w: self.out_w(), c: self.o, o: self.c, padding: self.kernel - 1 - self.padding, ..*self };
        let taps = self.kernel * self.kernel;
        scratch(w.len(), |turned| {
            let size = self.c * self.o;
            for (k, out) in turned.chunks_exact_mut(size).enumerate() {
                transpose(&w[(taps - 1 - k) * size..], self.c, self.o, out);
            }
            back.forward(g, turned, None)
        })
    }

    /// The gradient with respect to the weight: partial sums over fixed runs of pixels, added in order.
    fn weight_gradient(&self, x: &[f32], g: &[f32]) -> Vec<f32> {
        let (patch, pixels) = (self.patch(), self.pixels());
        let block = self.block().max(64);
        let run = pixels.div_ceil(8).max(1024).div_ceil(block) * block;
        let size = patch * self.o;
        let mut parts = vec![0.0; pixels.div_ceil(run) * size];
        chunks(&mut parts, size, |i, dw| {
            let (start, end) = (i * run, ((i + 1) * run).min(pixels));
            for from in (start..end).step_by(block) {
                let m = block.min(end - from);
                let g = Mat::new(&g[from * self.o..], self.o);
                if self.pointwise() {
                    gemm(patch, self.o, m, dw, self.o, from != start, 1.0, Mat::new(&x[from * patch..], patch).t(), g);
                    continue;
                }
                scratch(m * patch, |rows| {
                    self.gather(x, from, rows);
                    gemm(patch, self.o, m, dw, self.o, from != start, 1.0, Mat::new(rows, patch).t(), g);
                });
            }
        });
        add_parts(&parts, size)
    }

    fn backward(&self, x: &Tensor, w: &Tensor, g: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = if x.track_op() { Some(tensor(with(g, |g| with(w, |w| self.input_gradient(g, w)))??, x.shape())?) } else { None };
        let dw = if w.track_op() { Some(tensor(with(x, |x| with(g, |g| self.weight_gradient(x, g)))??, w.shape())?) } else { None };
        Ok((dx, dw))
    }

    fn shape(&self) -> (usize, usize, usize, usize) {
        (self.n, self.out_h(), self.out_w(), self.o)
    }
}

/// Copies without a call for the few values of a thin image.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    if from.len() <= 12 {
        for (t, f) in to.iter_mut().zip(from) {
            *t = *f;
        }
    } else {
        to.copy_from_slice(from);
    }
}

impl CustomOp2 for Conv {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        output(self.forward(slice(x, lx)?, slice(w, lw)?, None), self.shape())
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, w, &grad.contiguous()?)
    }
}

impl CustomOp3 for Conv {
    fn name(&self) -> &'static str {
        "conv2d with bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        output(self.forward(slice(x, lx)?, slice(w, lw)?, Some(slice(b, lb)?)), self.shape())
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dx, dw) = self.backward(x, w, &grad)?;
        let db = if b.track_op() { Some(tensor(with(&grad, |g| column_sums(g, self.o))?, b.shape())?) } else { None };
        Ok((dx, dw, db))
    }
}
