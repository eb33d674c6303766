//! Convolution.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::nn::kernel::{Conv, column_sums};
use crate::nn::storage::{gradient, output, slice, with};

struct Conv2d(Conv);

impl Conv2d {
    fn run(&self, x: &[f32], w: &[f32], bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let conv = self.0;
        output(conv.forward(x, w, bias), (conv.n, conv.out_h(), conv.out_w(), conv.o))
    }

    fn gradients(&self, x: &Tensor, w: &Tensor, dy: &[f32]) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = if x.track_op() { Some(gradient(with(w, |w| Ok(self.0.backward_input(dy, w)))?, x)?) } else { None };
        let dw = if w.track_op() { Some(gradient(with(x, |x| Ok(self.0.backward_weight(x, dy)))?, w)?) } else { None };
        Ok((dx, dw))
    }
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        self.run(slice(x, lx)?, slice(w, lw)?, None)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        with(dy, |dy| self.gradients(x, w, dy))
    }
}

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
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
        self.run(slice(x, lx)?, slice(w, lw)?, Some(slice(b, lb)?))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, b: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        with(dy, |dy| {
            let (dx, dw) = self.gradients(x, w, dy)?;
            let db = if b.track_op() { Some(gradient(column_sums(dy, self.0.o), b)?) } else { None };
            Ok((dx, dw, db))
        })
    }
}

/// Convolution of `x` `[n, h, w, c]` with square kernels `w` `[k, k, c, o]`, plus `bias` `[o]`: `[n, h', w', o]` with `h' = (h + 2·pad − k) / stride + 1`.
///
/// # Errors
/// If the shapes do not fit.
pub fn conv2d(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, stride: usize, pad: usize) -> Result<Tensor> {
    let (n, h, width, c) = x.dims4()?;
    let (k, k2, wc, o) = w.dims4()?;
    if k != k2 || wc != c || h + 2 * pad < k || width + 2 * pad < k || stride == 0 {
        bail!("conv2d: kernels {:?} with stride {stride} and padding {pad} do not fit images {:?}", w.shape(), x.shape());
    }
    let op = Conv2d(Conv { n, h, w: width, c, o, k, s: stride, p: pad });
    let (x, w) = (x.contiguous()?, w.contiguous()?);
    match bias {
        None => x.apply_op2(&w, op),
        Some(bias) if bias.dims() == [o] => x.apply_op3(&w, &bias.contiguous()?, op),
        Some(bias) => bail!("conv2d: a bias {:?} does not fit {o} kernels", bias.shape()),
    }
}
