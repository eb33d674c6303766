//! The network: a UNet over 2×2 pixel blocks (`[b, h/2, w/2, 4c]`), two levels, with cross-attention to the words on the lower one.

use candle_core::Tensor;

use super::artifact::Config;
use super::text::Context;
use crate::error::Result;
use crate::nn::ops::{Window, add_samples, attention, conv, group_norm_silu, layer_norm, linear, pixel_shuffle2, silu, upsample2};
use crate::nn::params::{Params, Weights};
use crate::nn::tape::{add, join, like, reshape};
use crate::rng::Stream;

const EPS: f32 = 1e-5;
/// Groups of every group norm; widths are multiples of it.
pub const GROUPS: usize = 8;
/// Width from which on the convolutions may go by Winograd's algorithm, which rounds more: narrow networks gain little by it.
const FAST: usize = 64;
/// Frequencies of the time's sines and cosines.
const FREQUENCIES: usize = 16;

/// A residual block: name, channels in, channels out.
struct Block(&'static str, usize, usize);

fn blocks(width: usize) -> [Block; 6] {
    let wide = 2 * width;
    [
        Block("down.0", width, width),
        Block("down.1", wide, wide),
        Block("mid", wide, wide),
        Block("up.1", 2 * wide, wide),
        Block("up.0", width + width, width),
        Block("last", width, width),
    ]
}

/// Adds the network's tensors to `params`.
pub fn init(params: &mut Params, config: &Config, stream: &Stream) -> Result<()> {
    let (width, wide, emb) = (config.width, 2 * config.width, config.embedding());
    let pixels = 4 * config.channels;
    convolution(params, "unet.stem", 3, pixels, width, 1.0, stream)?;
    dense(params, "unet.time1", 2 * FREQUENCIES, emb, stream)?;
    dense(params, "unet.time2", emb, emb, stream)?;
    dense(params, "unet.text", config.text_width, emb, stream)?;
    for Block(name, c, o) in blocks(width) {
        norm(params, &format!("unet.{name}.norm1"), c)?;
        convolution(params, &format!("unet.{name}.conv1"), 3, c, o, 1.0, stream)?;
        dense(params, &format!("unet.{name}.emb"), emb, o, stream)?;
        norm(params, &format!("unet.{name}.norm2"), o)?;
        // Small at first, so that a block begins close to the identity.
        convolution(params, &format!("unet.{name}.conv2"), 3, o, o, 0.1, stream)?;
        if c != o {
            convolution(params, &format!("unet.{name}.skip"), 1, c, o, 1.0, stream)?;
        }
    }
    convolution(params, "unet.downsample", 3, width, wide, 1.0, stream)?;
    convolution(params, "unet.upsample", 1, wide, width, 1.0, stream)?;
    norm(params, "unet.attention.norm", wide)?;
    dense(params, "unet.attention.q", wide, wide, stream)?;
    // Keys have no bias: it would add the same to the score of every word, which softmax takes away again.
    params.normal("unet.attention.k.weight", &[config.text_width, wide], config.text_width, 1.0, stream)?;
    dense(params, "unet.attention.v", config.text_width, wide, stream)?;
    dense(params, "unet.attention.out", wide, wide, stream)?;
    norm(params, "unet.norm", width)?;
    convolution(params, "unet.out", 3, width, pixels, 0.1, stream)
}

fn convolution(params: &mut Params, name: &str, k: usize, c: usize, o: usize, gain: f64, stream: &Stream) -> Result<()> {
    params.normal(&format!("{name}.weight"), &[k, k, c, o], k * k * c, gain, stream)?;
    params.constant(&format!("{name}.bias"), &[o], 0.0)
}

fn dense(params: &mut Params, name: &str, c: usize, o: usize, stream: &Stream) -> Result<()> {
    params.normal(&format!("{name}.weight"), &[c, o], c, 1.0, stream)?;
    params.constant(&format!("{name}.bias"), &[o], 0.0)
}

fn norm(params: &mut Params, name: &str, c: usize) -> Result<()> {
    params.constant(&format!("{name}.weight"), &[c], 1.0)?;
    params.constant(&format!("{name}.bias"), &[c], 0.0)
}

/// A forward pass in the making.
struct Net<'w> {
    w: &'w dyn Weights,
    fast: bool,
}

impl Net<'_> {
    fn get(&self, name: &str, part: &str) -> Result<&Tensor> {
        self.w.weight(&format!("unet.{name}.{part}"))
    }

    fn conv(&self, name: &str, x: &Tensor, stride: usize) -> Result<Tensor> {
        let weight = self.get(name, "weight")?;
        let pad = weight.dim(0)? / 2;
        let window = Window { fast: self.fast, ..Window::new(stride, pad) };
        Ok(conv(x, weight, Some(self.get(name, "bias")?), window)?)
    }

    fn dense(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        Ok(linear(x, self.get(name, "weight")?, Some(self.get(name, "bias")?))?)
    }

    fn norm_silu(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        Ok(group_norm_silu(x, GROUPS, self.get(name, "weight")?, self.get(name, "bias")?, EPS)?)
    }

    fn block(&self, name: &str, x: &Tensor, emb: &Tensor) -> Result<Tensor> {
        let part = |part: &str| format!("{name}.{part}");
        let h = self.conv(&part("conv1"), &self.norm_silu(&part("norm1"), x)?, 1)?;
        let moved = self.dense(&part("emb"), emb)?;
        let h = add_samples(&h, &moved)?;
        let h = self.conv(&part("conv2"), &self.norm_silu(&part("norm2"), &h)?, 1)?;
        let has_skip = x.dim(3)? != h.dim(3)?;
        Ok(if has_skip { add(&h, &self.conv(&part("skip"), x, 1)?)? } else { add(&h, x)? })
    }

    fn attend(&self, x: &Tensor, context: &Context, heads: usize) -> Result<Tensor> {
        let (b, h, w, c) = x.dims4()?;
        let flat = reshape(x, (b, h * w, c))?;
        let q = layer_norm(&flat, self.get("attention.norm", "weight")?, self.get("attention.norm", "bias")?, EPS)?;
        let q = self.dense("attention.q", &q)?;
        let words = like(&context.words, x)?;
        let k = linear(&words, self.get("attention.k", "weight")?, None)?;
        let v = self.dense("attention.v", &words)?;
        let out = self.dense("attention.out", &attention(&q, &k, &v, heads)?)?;
        Ok(reshape(&add(&flat, &out)?, (b, h, w, c))?)
    }
}

/// Sines and cosines of times, `[b, 2·FREQUENCIES]`, where the images are.
fn time_features(times: &[f64], images: &Tensor) -> Result<Tensor> {
    let mut values = Vec::with_capacity(times.len() * 2 * FREQUENCIES);
    for t in times {
        for i in 0..FREQUENCIES {
            let angle = t * 1000f64.powf(i as f64 / (FREQUENCIES - 1) as f64);
            values.extend([angle.sin() as f32, angle.cos() as f32]);
        }
    }
    Ok(Tensor::from_vec(values, (times.len(), 2 * FREQUENCIES), images.device())?.to_dtype(images.dtype())?)
}

/// `[b, h, w, c]` to `[b, h/2, w/2, 4c]`.
fn to_blocks(x: &Tensor) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    Ok(x.reshape(&[b, h / 2, 2, w / 2, 2, c][..])?.permute(vec![0, 1, 3, 2, 4, 5])?.contiguous()?.reshape((b, h / 2, w / 2, 4 * c))?)
}

/// The predicted v of noisy images `x` `[b, h, w, c]` at `times` `[b]`.
pub fn forward(w: &dyn Weights, config: &Config, x: &Tensor, times: &[f64], context: &Context) -> Result<Tensor> {
    let net = Net { w, fast: config.width >= FAST };
    let time = net.dense("time2", &silu(&net.dense("time1", &time_features(times, x)?)?)?)?;
    let emb = silu(&add(&time, &net.dense("text", &like(&context.pooled, x)?)?)?)?;
    let stem = net.conv("stem", &to_blocks(x)?, 1)?;
    let upper = net.block("down.0", &stem, &emb)?;
    let lower = net.block("down.1", &net.conv("downsample", &upper, 2)?, &emb)?;
    let mid = net.block("mid", &net.attend(&lower, context, config.heads)?, &emb)?;
    let h = net.block("up.1", &join(&[&mid, &lower], true)?, &emb)?;
    let h = upsample2(&net.conv("upsample", &h, 1)?)?;
    let h = net.block("up.0", &join(&[&h, &upper], true)?, &emb)?;
    let h = net.block("last", &h, &emb)?;
    Ok(pixel_shuffle2(&net.conv("out", &net.norm_silu("norm", &h)?, 1)?)?)
}
