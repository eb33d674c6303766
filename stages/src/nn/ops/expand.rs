//! The two convolutions at the end of SqueezeNet's fire module (Iandola et al. 2016).

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use crate::nn::composed;
use crate::nn::kernel::{Conv, ExpandWeights};
use crate::nn::storage::{gradient, output, slice, with};
use crate::nn::tape::{apply2, join, reshape};

/// The 3×3 convolution; the 1×1 one has its channels.
struct Expand(Conv);

impl Expand {
    /// The weights and biases in one slice.
    fn parts<'a>(&self, all: &'a [f32]) -> ExpandWeights<'a> {
        let (c, o) = (self.0.c, self.0.o);
        let (w1, rest) = all.split_at(c * o);
        let (b1, rest) = rest.split_at(o);
        let (w3, b3) = rest.split_at(9 * c * o);
        [w1, b1, w3, b3]
    }
}

impl CustomOp2 for Expand {
    fn name(&self) -> &'static str {
        "expand"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let conv = &self.0;
        output(conv.expand(slice(x, lx)?, self.parts(slice(w, lw)?)), (conv.n, conv.h, conv.w, 2 * conv.o))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let wants = x.track_op();
        let back = |x: &[f32], w: &[f32], y: &[f32], dy: &[f32]| Ok(self.0.expand_back(x, self.parts(w), y, dy, wants));
        let (dx, dw) = with(x, |x| with(w, |w| with(y, |y| with(dy, |dy| back(x, w, y, dy)))))?;
        Ok((dx.map(|dx| gradient(dx, x)).transpose()?, Some(gradient(dw, w)?)))
    }
}

/// A 1×1 and a 3×3 convolution of `x` `[n, h, w, c]`, each with bias and ReLU, side by side: `[n, h, w, 2·o]`. `one` are the weights
/// `[1, 1, c, o]` and the bias `[o]` of the first, `three` `[3, 3, c, o]` and `[o]` those of the second, which goes by Winograd's algorithm.
/// `None` if that one cannot.
///
/// # Errors
/// If the shapes do not fit.
pub fn expand(x: &Tensor, one: [&Tensor; 2], three: [&Tensor; 2]) -> Result<Option<Tensor>> {
    let ((n, h, w, c), (kh, kw, _, o)) = (x.dims4()?, three[0].dims4()?);
    let conv = Conv { n, h, w, c, o, kh, kw, stride: [1; 2], pad: [1; 4], groups: 1, fast: true, x_row: c, y_row: o };
    let fits = three[0].dims() == [3, 3, c, o] && one[0].dims() == [1, 1, c, o] && [one[1], three[1]].iter().all(|b| b.dims() == [o]);
    if !fits || x.elem_count() == 0 {
        bail!("expand: kernels {:?} and {:?} do not fit images {:?}", one[0].shape(), three[0].shape(), x.shape());
    }
    // The composed forms have nothing to gain by it.
    if composed::wanted(x) || !conv.can_expand() {
        return Ok(None);
    }
    if !std::iter::once(x).chain(one).chain(three).any(Tensor::track_op) {
        let of = |x: &[f32]| {
            with(one[0], |w1| with(one[1], |b1| with(three[0], |w3| with(three[1], |b3| Ok(conv.expand(x, [w1, b1, w3, b3]))))))
        };
        return Tensor::from_vec(with(x, of)?, (n, h, w, 2 * o), x.device()).map(Some);
    }
    // Of three tensors at most an op can be made: the weights go as one.
    let flat = [one[0], one[1], three[0], three[1]].map(|t| reshape(t, t.elem_count()));
    let [w1, b1, w3, b3] = flat;
    apply2(x, &join(&[&w1?, &b1?, &w3?, &b3?], false)?, Expand(conv)).map(Some)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;

    use super::*;
    use crate::nn::gradcheck;
    use crate::nn::ops::{Window, conv_relu, mse};
    use crate::nn::params::Params;
    use crate::rng::Stream;

    fn params() -> Params {
        let (mut params, stream) = (Params::new(), Stream::new(1, "expand"));
        for (name, shape, fan) in [("x", [2, 5, 6, 16], 1), ("w1", [1, 1, 16, 32], 16), ("w3", [3, 3, 16, 32], 144)] {
            params.normal(name, &shape, fan, 1.0, &stream).unwrap();
        }
        for name in ["b1", "b3"] {
            params.normal(name, &[32], 1, 0.1, &stream).unwrap();
        }
        params
    }

    fn together(p: &Params) -> Tensor {
        let get = |name: &str| p.get(name).unwrap();
        expand(get("x"), [get("w1"), get("b1")], [get("w3"), get("b3")]).unwrap().unwrap()
    }

    #[test]
    fn expand_is_two_convolutions_side_by_side() {
        let p = params();
        let get = |name: &str| p.get(name).unwrap();
        let one = conv_relu(get("x"), get("w1"), Some(get("b1")), Window::new(1, 0)).unwrap();
        let three = conv_relu(get("x"), get("w3"), Some(get("b3")), Window::new(1, 1)).unwrap();
        let want = join(&[&one, &three], true).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let got = together(&p).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(got.len(), want.len());
        got.iter().zip(&want).for_each(|(g, w)| assert!((g - w).abs() < 1e-3, "{g}, not {w}"));
    }

    #[test]
    fn expand_has_a_right_gradient() {
        let target = Tensor::from_vec(Stream::new(2, "target").normals(2 * 5 * 6 * 64), (2, 5, 6, 64), &Device::Cpu).unwrap();
        gradcheck::check(&params(), |p| Ok(mse(&together(p), &target)?)).unwrap();
    }
}
