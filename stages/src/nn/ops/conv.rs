//! Convolution.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use crate::nn::composed::{self, Taps};
use crate::nn::kernel::{Conv, Then, column_sums, masked_with_sums};
use crate::nn::storage::{gradient, output, slice, with};
use crate::nn::tape::{apply2, apply3};

struct Conv2d {
    conv: Conv,
    /// A ReLU at the end.
    relu: bool,
}

impl Conv2d {
    fn run(&self, x: &[f32], w: &[f32], bias: Option<&[f32]>) -> Result<(CpuStorage, Shape)> {
        let conv = self.conv;
        output(conv.forward(x, w, Then { bias, relu: self.relu }), (conv.n, conv.out_h(), conv.out_w(), conv.o))
    }

    /// Gradients of x and w, given that of the sums.
    fn gradients(&self, x: &Tensor, w: &Tensor, dy: &[f32]) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = if x.track_op() { Some(gradient(with(w, |w| Ok(self.conv.backward_input(dy, w)))?, x)?) } else { None };
        let dw = if w.track_op() { Some(gradient(with(x, |x| Ok(self.conv.backward_weight(x, dy)))?, w)?) } else { None };
        Ok((dx, dw))
    }
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        if self.relu { "conv2d with relu" } else { "conv2d" }
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        self.run(slice(x, lx)?, slice(w, lw)?, None)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        with(dy, |dy| match self.relu {
            false => self.gradients(x, w, dy),
            true => self.gradients(x, w, &with(y, |y| Ok(masked_with_sums(y, dy, self.conv.o).0))?),
        })
    }
}

impl CustomOp3 for Conv2d {
    fn name(&self) -> &'static str {
        if self.relu { "conv2d with bias and relu" } else { "conv2d with bias" }
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

    fn bwd(&self, x: &Tensor, w: &Tensor, b: &Tensor, y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        with(dy, |dy| {
            let (masked, sums);
            let dy = if self.relu {
                (masked, sums) = with(y, |y| Ok(masked_with_sums(y, dy, self.conv.o)))?;
                &masked
            } else {
                sums = if b.track_op() { column_sums(dy, self.conv.o) } else { Vec::new() };
                dy
            };
            let (dx, dw) = self.gradients(x, w, dy)?;
            let db = if b.track_op() { Some(gradient(sums, b)?) } else { None };
            Ok((dx, dw, db))
        })
    }
}

/// How a convolution goes over its images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Step down and to the right.
    pub stride: [usize; 2],
    /// Zeros above, left, below and right.
    pub pad: [usize; 4],
    /// Groups of channels that do not see each other.
    pub groups: usize,
    /// Whether a faster algorithm may be used whose rounding is larger (Winograd's, for 3×3 kernels with stride 1).
    pub fast: bool,
}

impl Window {
    /// The same stride and the same padding in all directions, one group.
    pub fn new(stride: usize, pad: usize) -> Self {
        Self { stride: [stride; 2], pad: [pad; 4], groups: 1, fast: false }
    }

    /// TensorFlow's `SAME` padding of images `h × w` under kernels of `k`: ⌈size / stride⌉ results, of an odd number of zeros the larger half behind.
    pub fn same(h: usize, w: usize, k: usize, stride: usize) -> Self {
        let total = |size: usize| ((size.div_ceil(stride) - 1) * stride + k).saturating_sub(size);
        let (down, across) = (total(h), total(w));
        Self { stride: [stride; 2], pad: [down / 2, across / 2, down - down / 2, across - across / 2], groups: 1, fast: false }
    }

    /// The same window in `groups` groups.
    #[must_use]
    pub fn groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }

    /// The same window, by a faster algorithm if there is one.
    #[must_use]
    pub fn fast(self) -> Self {
        Self { fast: true, ..self }
    }
}

/// Convolution of `x` `[n, h, w, c]` with kernels `w` `[kh, kw, c / groups, o]`, plus `bias` `[o]`: `[n, h', w', o]` with
/// `h' = (h + above + below − kh) / stride + 1`. The first `o / groups` kernels see the first `c / groups` channels, and so on.
///
/// # Errors
/// If the shapes do not fit.
pub fn conv(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, window: Window) -> Result<Tensor> {
    apply(x, w, bias, window, false)
}

/// [`conv`] and then ReLU, in one pass.
///
/// # Errors
/// If the shapes do not fit.
pub fn conv_relu(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, window: Window) -> Result<Tensor> {
    apply(x, w, bias, window, true)
}

/// The shape of a convolution of `x` with `w`.
///
/// # Errors
/// If the shapes do not fit.
pub(super) fn shape(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, window: Window) -> Result<Conv> {
    let (n, h, width, c) = x.dims4()?;
    let (kh, kw, wc, o) = w.dims4()?;
    let Window { stride, pad, groups, fast } = window;
    let fits = stride.iter().all(|s| *s > 0)
        && groups > 0
        && c.is_multiple_of(groups)
        && o.is_multiple_of(groups)
        && wc * groups == c
        && kh * kw > 0
        && h + pad[0] + pad[2] >= kh
        && width + pad[1] + pad[3] >= kw;
    if !fits || x.elem_count() == 0 {
        bail!("conv: kernels {:?} with {window:?} do not fit images {:?}", w.shape(), x.shape());
    }
    if let Some(bias) = bias.filter(|bias| bias.dims() != [o]) {
        bail!("conv: a bias {:?} does not fit {o} kernels", bias.shape());
    }
    Ok(Conv { n, h, w: width, c, o, kh, kw, stride, pad, groups, fast, x_row: c, y_row: o })
}

fn apply(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, window: Window, relu: bool) -> Result<Tensor> {
    let op = Conv2d { conv: shape(x, w, bias, window)?, relu };
    let Conv { h, w: width, kh, kw, stride, pad, groups, .. } = op.conv;
    if composed::wanted(x) {
        let out = [op.conv.out_h(), op.conv.out_w()];
        let y = composed::conv(x, w, bias, Taps { image: [h, width], kernel: [kh, kw], stride, pad: [pad[0], pad[1]], out }, groups)?;
        return if relu { super::relu(&y) } else { Ok(y) };
    }
    match bias {
        None => apply2(x, w, op),
        Some(bias) => apply3(x, w, bias, op),
    }
}

/// [`conv`] with one stride, one padding and one group.
///
/// # Errors
/// If the shapes do not fit.
pub fn conv2d(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, stride: usize, pad: usize) -> Result<Tensor> {
    conv(x, w, bias, Window::new(stride, pad))
}
