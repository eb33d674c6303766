//! Convolution: windows gathered into rows, then one product with the kernels (in each group). Images and kernels lie as they do everywhere
//! here, channels last, so nothing is turned around: with candle's own convolution, which wants channels first, every layer would turn its
//! images twice. The rows are gathered again on the way back, not kept.

use candle_core::{Result, Tensor};

use super::sums::{column_sums, product};
use super::windows::{Taps, Way};
use super::{node::node, single, values};

/// A convolution whose shapes fit.
#[derive(Debug, Clone, Copy)]
struct Conv {
    taps: Taps,
    n: usize,
    c: usize,
    o: usize,
    groups: usize,
}

impl Conv {
    /// One kernel a channel.
    fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.c && self.c == self.o
    }

    /// The rows of all windows (or of all places), group by group: `[groups, n · windows, taps · channels of a group]`.
    fn rows(&self, x: &Tensor, way: Way) -> Result<Tensor> {
        let (from, to, channels) = match way {
            Way::Forward => (self.taps.places(), self.taps.windows(), self.c),
            Way::Back => (self.taps.windows(), self.taps.places(), self.o),
        };
        let x = x.reshape((self.n, from, channels))?;
        let rows = if self.taps.is_identity() { x } else { self.taps.gather(&x, way)? };
        let (taps, width) = (self.taps.count(), channels / self.groups);
        rows.reshape((self.n * to, taps, self.groups, width))?.permute((2, 0, 1, 3))?.contiguous()?.reshape((
            self.groups,
            self.n * to,
            taps * width,
        ))
    }

    /// `[groups, m, width]` as `[m, groups · width]`.
    fn side_by_side(&self, y: &Tensor) -> Result<Tensor> {
        let (groups, m, width) = y.dims3()?;
        y.permute((1, 0, 2))?.contiguous()?.reshape((m, groups * width))
    }

    /// `[m, groups · width]` as `[groups, m, width]`.
    fn apart(&self, y: &Tensor) -> Result<Tensor> {
        let (m, all) = y.dims2()?;
        y.reshape((m, self.groups, all / self.groups))?.permute((1, 0, 2))?.contiguous()
    }

    /// Kernels `[taps, c / groups, groups, o / groups]`.
    fn kernels(&self, w: &Tensor) -> Result<Tensor> {
        w.reshape((self.taps.count(), self.c / self.groups, self.groups, self.o / self.groups))
    }

    fn forward(&self, x: &Tensor, w: &Tensor) -> Result<Tensor> {
        if self.is_depthwise() {
            return self.each_channel(x, w, Way::Forward);
        }
        let w = self.kernels(w)?.permute((2, 0, 1, 3))?.contiguous()?;
        let w = w.reshape((self.groups, self.taps.count() * self.c / self.groups, self.o / self.groups))?;
        self.side_by_side(&product(&self.rows(x, Way::Forward)?, &w)?)
    }

    /// A convolution of `dy` with the kernels of each window that saw a place.
    fn backward_input(&self, w: &Tensor, dy: &Tensor) -> Result<Tensor> {
        if self.is_depthwise() {
            return self.each_channel(dy, w, Way::Back);
        }
        let w = self.kernels(w)?.permute((2, 0, 3, 1))?.contiguous()?;
        let w = w.reshape((self.groups, self.taps.count() * self.o / self.groups, self.c / self.groups))?;
        self.side_by_side(&product(&self.rows(dy, Way::Back)?, &w)?)
    }

    /// In `f32`.
    fn backward_weight(&self, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        if self.is_depthwise() {
            return self.each_channels_weight(x, dy);
        }
        let rows = self.rows(x, Way::Forward)?;
        let dw = product(&rows.t()?, &self.apart(&dy.reshape((self.n * self.taps.windows(), self.o))?)?)?;
        single(&self.side_by_side(&dw)?)
    }

    /// Depthwise: the sum over the taps of shifted images, each times its row of factors, `[n · places, c]`.
    fn each_channel(&self, x: &Tensor, w: &Tensor, way: Way) -> Result<Tensor> {
        let (x, w) = (x.reshape((self.n, x.elem_count() / self.n / self.c, self.c))?, single(&w.reshape((self.taps.count(), self.c))?)?);
        let mut sum: Option<Tensor> = None;
        for tap in 0..self.taps.count() {
            let part = single(&self.taps.gather_tap(&x, way, tap)?)?.broadcast_mul(&w.narrow(0, tap, 1)?)?;
            sum = Some(match sum {
                None => part,
                Some(sum) => (sum + part)?,
            });
        }
        let Some(sum) = sum else { candle_core::bail!("conv: kernels without values") };
        sum.to_dtype(x.dtype())?.reshape((sum.elem_count() / self.c, self.c))
    }

    /// Depthwise: for every tap the sum over all windows of what it saw times the gradient.
    fn each_channels_weight(&self, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (x, m) = (x.reshape((self.n, self.taps.places(), self.c))?, self.n * self.taps.windows());
        let dy = single(&dy.reshape((m, self.c))?)?;
        let of = |tap| column_sums(&(single(&self.taps.gather_tap(&x, Way::Forward, tap)?.reshape((m, self.c))?)? * &dy)?);
        let sums: Vec<Tensor> = (0..self.taps.count()).map(of).collect::<Result<_>>()?;
        Tensor::stack(&sums, 0)
    }
}

/// `x` `[n, h, w, c]` with kernels `w` `[kh, kw, c / groups, o]` and perhaps a bias `[o]`, over the windows of `taps`: `[n, h', w', o]`.
///
/// # Errors
/// Those of candle.
pub fn conv(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, taps: Taps, groups: usize) -> Result<Tensor> {
    let ((n, _, _, c), o) = (x.dims4()?, w.dim(3)?);
    let conv = Conv { taps, n, c, o, groups };
    let (x0, w0) = (values(x)?, values(w)?.to_dtype(x.dtype())?);
    let mut y = conv.forward(&x0, &w0)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(&values(bias)?.to_dtype(y.dtype())?)?;
    }
    let y = y.reshape((n, taps.out[0], taps.out[1], o))?;
    let (x_shape, w_shape) = (x.shape().clone(), w.shape().clone());
    let gradients = move |dy: &Tensor, x_is: bool, w_is: bool| -> Result<[Option<Tensor>; 2]> {
        let dx = || conv.backward_input(&w0, dy)?.reshape(&x_shape);
        let dw = || conv.backward_weight(&x0, dy)?.reshape(&w_shape);
        Ok([x_is.then(dx).transpose()?, w_is.then(dw).transpose()?])
    };
    match bias {
        None => node("conv2d", [x, w], y, move |_, dy, [x_is, w_is]| gradients(dy, x_is, w_is)),
        Some(bias) => node("conv2d with bias", [x, w, bias], y, move |_, dy, [x_is, w_is, bias_is]| {
            let [dx, dw] = gradients(dy, x_is, w_is)?;
            let db = || column_sums(&dy.reshape((dy.elem_count() / o, o))?);
            Ok([dx, dw, bias_is.then(db).transpose()?])
        }),
    }
}
