//! What architectures are made of: layers with the names of their tensors, the tensors that they own, and their forward pass.

use std::cell::RefCell;

use candle_core::Tensor;

use super::variant::Range;
use crate::error::Result;
use crate::nn::Params;
use crate::nn::ops::{self, BatchNorm, Moments, PoolWindow, Window};
use crate::nn::params::Weights;
use crate::nn::tape;
use crate::rng::Stream;

/// An activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Relu,
    Relu6,
    HardSwish,
    HardSigmoid,
    Gelu,
}

impl Act {
    fn of(self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Relu => ops::relu(x),
            Self::Relu6 => ops::relu6(x),
            Self::HardSwish => ops::hard_swish(x),
            Self::HardSigmoid => ops::hard_sigmoid(x),
            Self::Gelu => ops::gelu_erf(x),
        }
    }
}

/// Zeros around an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pad {
    /// So many on all sides.
    Zeros(usize),
    /// TensorFlow's.
    Same,
}

/// A convolution: `[kh, kw, c / groups, o]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Conv {
    pub name: String,
    pub shape: [usize; 4],
    pub stride: usize,
    pub pad: Pad,
    pub groups: usize,
    pub bias: bool,
    /// Whether Winograd's algorithm may be used.
    pub fast: bool,
    pub start: Start,
}

/// One step of a forward pass. Images are `[n, h, w, c]`, tokens `[n, t, c]`, features `[n, c]`.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::enum_variant_names, reason = "LayerNorm is the name of that layer")]
pub enum Layer {
    Conv(Conv),
    BatchNorm {
        name: String,
        c: usize,
        eps: f32,
        relu: bool,
    },
    GroupNorm {
        name: String,
        c: usize,
        groups: usize,
    },
    LayerNorm {
        name: String,
        c: usize,
        eps: f32,
    },
    Act(Act),
    MaxPool {
        k: usize,
        stride: usize,
        pad: usize,
        ceil: bool,
    },
    /// The mean over all pixels.
    Average,
    Linear {
        name: String,
        inputs: usize,
        outputs: usize,
    },
    /// The body's result plus its input, which goes through `shortcut`; with a ReLU at the end.
    Residual {
        body: Vec<Layer>,
        shortcut: Vec<Layer>,
        relu: bool,
    },
    /// The results of all branches, channel by channel one after the other.
    Branches(Vec<Vec<Layer>>),
    /// Every channel times what two 1×1 convolutions and `gate` make of all channels' means (Hu et al. 2018).
    SqueezeExcite {
        names: [String; 2],
        c: usize,
        squeezed: usize,
        act: Act,
        gate: Act,
    },
    /// Pixels become tokens, a learned one in front, and learned positions are added (`cls_token`, `pos_embed`).
    Tokens {
        c: usize,
        count: usize,
    },
    /// Attention of tokens to each other: `name.qkv` and `name.proj`.
    Attention {
        name: String,
        c: usize,
        heads: usize,
    },
    /// Every channel times a learned factor.
    Scale {
        name: String,
        c: usize,
        start: f32,
    },
    /// The first token alone.
    FirstToken,
    /// Values from −1 to 1 become those of a range.
    Range(Range),
}

/// How a tensor begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Start {
    /// Normal values of variance `gain / fan`.
    Normal { fan: usize, gain: f64 },
    /// One value.
    Constant(f32),
}

/// A tensor of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    pub name: String,
    pub shape: Vec<usize>,
    pub start: Start,
}

impl Spec {
    fn new(name: &str, tensor: &str, shape: &[usize], start: Start) -> Self {
        let name = if name.is_empty() { tensor.to_owned() } else { format!("{name}.{tensor}") };
        Self { name, shape: shape.to_vec(), start }
    }

    /// Draws the tensor; the values depend on the stream and the tensor's name alone.
    pub fn draw(&self, params: &mut Params, stream: &Stream) -> Result<()> {
        match self.start {
            Start::Normal { fan, gain } => params.normal(&self.name, &self.shape, fan, gain, stream),
            Start::Constant(value) => params.constant(&self.name, &self.shape, value),
        }
    }
}

/// Variance 0.02², as ViT begins.
const TOKEN: Start = Start::Normal { fan: 2500, gain: 1.0 };
const ZERO: Start = Start::Constant(0.0);
const ONE: Start = Start::Constant(1.0);

impl Layer {
    /// The tensors of this layer.
    pub fn specs(&self) -> Vec<Spec> {
        let affine = |name: &str, c: usize| vec![Spec::new(name, "weight", &[c], ONE), Spec::new(name, "bias", &[c], ZERO)];
        match self {
            Self::Conv(conv) => conv.specs(),
            Self::BatchNorm { name, c, .. } => {
                let statistics = [Spec::new(name, "running_mean", &[*c], ZERO), Spec::new(name, "running_var", &[*c], ONE)];
                [affine(name, *c), statistics.to_vec()].concat()
            }
            Self::GroupNorm { name, c, .. } | Self::LayerNorm { name, c, .. } => affine(name, *c),
            Self::Linear { name, inputs, outputs } => linear_specs(name, *inputs, *outputs, Start::Normal { fan: *inputs, gain: 1.0 }),
            Self::Residual { body, shortcut, .. } => body.iter().chain(shortcut).flat_map(Self::specs).collect(),
            Self::Branches(branches) => branches.iter().flatten().flat_map(Self::specs).collect(),
            Self::SqueezeExcite { names, c, squeezed, .. } => [(&names[0], *c, *squeezed), (&names[1], *squeezed, *c)]
                .into_iter()
                .flat_map(|(name, i, o)| Conv::new(name, 1, i, o, 1).biased().specs())
                .collect(),
            Self::Tokens { c, count } => {
                vec![Spec::new("", "cls_token", &[1, 1, *c], TOKEN), Spec::new("", "pos_embed", &[1, count + 1, *c], TOKEN)]
            }
            Self::Attention { name, c, .. } => {
                let parts = [("qkv", 3 * c), ("proj", *c)];
                parts.into_iter().flat_map(|(part, o)| linear_specs(&format!("{name}.{part}"), *c, o, TOKEN)).collect()
            }
            Self::Scale { name, c, start } => vec![Spec::new("", name, &[*c], Start::Constant(*start))],
            Self::Act(_) | Self::MaxPool { .. } | Self::Average | Self::FirstToken | Self::Range(_) => Vec::new(),
        }
    }

    /// Makes every convolution the plain sum.
    pub fn make_exact(&mut self) {
        match self {
            Self::Conv(conv) => conv.fast = false,
            Self::Residual { body, shortcut, .. } => body.iter_mut().chain(shortcut).for_each(Self::make_exact),
            Self::Branches(branches) => branches.iter_mut().flatten().for_each(Self::make_exact),
            _ => {}
        }
    }

    /// Gives every batch normalisation that ε.
    pub fn set_norm_eps(&mut self, new: f32) {
        match self {
            Self::BatchNorm { eps, .. } => *eps = new,
            Self::Residual { body, shortcut, .. } => body.iter_mut().chain(shortcut).for_each(|layer| layer.set_norm_eps(new)),
            Self::Branches(branches) => branches.iter_mut().flatten().for_each(|layer| layer.set_norm_eps(new)),
            _ => {}
        }
    }

    fn forward(&self, pass: &Pass<'_>, x: &Tensor) -> Result<Tensor> {
        let get = |name: &str, tensor: &str| pass.weights.weight(&format!("{name}.{tensor}"));
        Ok(match self {
            Self::Conv(conv) => conv.forward(pass, x, false)?,
            Self::BatchNorm { name, eps, relu, .. } => pass.batch_norm(name, BatchNorm { eps: *eps, relu: *relu }, x, None)?,
            Self::GroupNorm { name, groups, .. } => ops::group_norm(x, *groups, get(name, "weight")?, get(name, "bias")?, 1e-5)?,
            Self::LayerNorm { name, eps, .. } => ops::layer_norm(x, get(name, "weight")?, get(name, "bias")?, *eps)?,
            Self::Act(act) => act.of(x)?,
            Self::MaxPool { k: 2, stride: 2, pad: 0, .. } if (x.dim(1)? + x.dim(2)?).is_multiple_of(2) && x.dim(1)?.is_multiple_of(2) => {
                ops::max_pool2(x)?
            }
            &Self::MaxPool { k, stride, pad, ceil } => ops::max_pool(x, PoolWindow { k, stride, pad, ceil })?,
            Self::Average => ops::global_avg_pool(x)?,
            Self::Linear { name, .. } => dense(pass, name, x)?,
            Self::Residual { body, shortcut, relu } => pass.residual(body, shortcut, *relu, x)?,
            Self::Branches(branches) => {
                if let Some(y) = pass.expand(branches, x)? {
                    return Ok(y);
                }
                let parts: Result<Vec<Tensor>> = branches.iter().map(|branch| pass.run(branch, x)).collect();
                tape::join(&parts?.iter().collect::<Vec<_>>(), true)?
            }
            Self::SqueezeExcite { names, act, gate, .. } => {
                let (n, c) = (x.dim(0)?, x.dim(3)?);
                let mean = tape::reshape(&ops::global_avg_pool(x)?, (n, 1, 1, c))?;
                let one =
                    |name: &str, x: &Tensor| Ok::<_, crate::Error>(ops::conv2d(x, get(name, "weight")?, Some(get(name, "bias")?), 1, 0)?);
                let factors = gate.of(&one(&names[1], &act.of(&one(&names[0], &mean)?)?)?)?;
                ops::scale_samples(x, &tape::reshape(&factors, (n, c))?)?
            }
            Self::Tokens { c, .. } => {
                let (n, width, patches) = (x.dim(0)?, *c, x.dim(1)? * x.dim(2)?);
                // A row of zeros in front of each sample, to which the class token is added along with its position. Rows are joined as
                // long vectors, one a sample.
                let front = Tensor::zeros((n, width), x.dtype(), x.device())?;
                let tokens = tape::join(&[&front, &tape::reshape(x, (n, patches * width))?], true)?;
                let (class, places) = (pass.weights.weight("cls_token")?, pass.weights.weight("pos_embed")?);
                let rest = Tensor::zeros(patches * width, class.dtype(), class.device())?;
                let class = tape::join(&[&tape::reshape(class, width)?, &rest], false)?;
                let places = tape::add(&tape::reshape(places, (patches + 1) * width)?, &class)?;
                tape::reshape(&ops::bias_add(&tokens, &places)?, (n, patches + 1, width))?
            }
            Self::Attention { name, heads, .. } => dense(pass, &format!("{name}.proj"), &pass.attended(name, *heads, x)?)?,
            Self::Scale { name, .. } => ops::scale(x, pass.weights.weight(name)?)?,
            Self::FirstToken => ops::first(x)?,
            Self::Range(range) => ranged(x, range)?,
        })
    }
}

/// `(127.5 (x + 1) − mean) / std`.
fn ranged(x: &Tensor, range: &Range) -> Result<Tensor> {
    let of = |f: fn(f32, f32) -> f32| Tensor::from_vec((0..3).map(|c| f(range.mean[c], range.std[c])).collect(), 3, x.device());
    Ok(ops::bias_add(&ops::scale(x, &of(|_, std| 127.5 / std)?)?, &of(|mean, std| (127.5 - mean) / std)?)?)
}

fn linear_specs(name: &str, inputs: usize, outputs: usize, start: Start) -> Vec<Spec> {
    vec![Spec::new(name, "weight", &[inputs, outputs], start), Spec::new(name, "bias", &[outputs], ZERO)]
}

fn dense(pass: &Pass<'_>, name: &str, x: &Tensor) -> Result<Tensor> {
    let [weight, bias] = pass.linear(name)?;
    Ok(ops::linear(x, weight, Some(bias))?)
}

impl Conv {
    /// Square kernels of `k` without a bias, with the zeros that keep the size under stride 1. The weights begin as He et al. 2015 have
    /// it, by what goes out, like torchvision's.
    pub fn new(name: impl Into<String>, k: usize, inputs: usize, outputs: usize, stride: usize) -> Self {
        let start = Start::Normal { fan: k * k * outputs, gain: 2.0 };
        let shape = [k, k, inputs, outputs];
        Self { name: name.into(), shape, stride, pad: Pad::Zeros(k / 2), groups: 1, bias: false, fast: true, start }
    }

    /// One kernel a channel.
    pub fn depthwise(name: impl Into<String>, k: usize, c: usize, stride: usize) -> Self {
        Self { groups: c, start: Start::Normal { fan: k * k, gain: 2.0 }, shape: [k, k, 1, c], ..Self::new(name, k, c, c, stride) }
    }

    /// The same with a bias.
    pub fn biased(self) -> Self {
        Self { bias: true, ..self }
    }

    /// The same with other zeros around.
    pub fn padded(self, pad: Pad) -> Self {
        Self { pad, ..self }
    }

    fn specs(&self) -> Vec<Spec> {
        let mut specs = vec![Spec::new(&self.name, "weight", &self.shape, self.start)];
        if self.bias {
            specs.push(Spec::new(&self.name, "bias", &[self.shape[3]], ZERO));
        }
        specs
    }

    fn window(&self, x: &Tensor) -> Result<Window> {
        let window = match self.pad {
            Pad::Zeros(pad) => Window::new(self.stride, pad),
            Pad::Same => Window::same(x.dim(1)?, x.dim(2)?, self.shape[0], self.stride),
        };
        Ok(Window { fast: self.fast, ..window.groups(self.groups) })
    }

    /// Kernels and, if there is one, the bias.
    fn weights<'a>(&self, pass: &Pass<'a>) -> Result<(&'a Tensor, Option<&'a Tensor>)> {
        let weight = pass.weights.weight(&format!("{}.weight", self.name))?;
        let bias = if self.bias { Some(pass.weights.weight(&format!("{}.bias", self.name))?) } else { None };
        Ok((weight, bias))
    }

    fn forward(&self, pass: &Pass<'_>, x: &Tensor, relu: bool) -> Result<Tensor> {
        let (window, (weight, bias)) = (self.window(x)?, self.weights(pass)?);
        Ok(if relu { ops::conv_relu(x, weight, bias, window)? } else { ops::conv(x, weight, bias, window)? })
    }
}

/// One forward pass.
pub struct Pass<'a> {
    weights: &'a dyn Weights,
    /// In training: the statistics of the batch, by the name of the normalisation.
    batch: Option<&'a RefCell<Vec<(String, Moments)>>>,
}

impl<'a> Pass<'a> {
    /// A pass that uses running statistics.
    pub fn eval(weights: &'a dyn Weights) -> Self {
        Self { weights, batch: None }
    }

    /// A pass that uses those of the batch, and adds them to `batch`.
    pub fn train(weights: &'a dyn Weights, batch: &'a RefCell<Vec<(String, Moments)>>) -> Self {
        Self { weights, batch: Some(batch) }
    }

    /// All layers, one after the other.
    pub fn run(&self, layers: &[Layer], x: &Tensor) -> Result<Tensor> {
        let (mut x, mut rest) = (x.clone(), layers);
        loop {
            (x, rest) = match rest {
                [] => return Ok(x),
                // What one pass can do together.
                [Layer::Linear { name, .. }, Layer::Act(Act::Gelu), behind @ ..] => {
                    let [weight, bias] = self.linear(name)?;
                    (ops::linear_gelu(&x, weight, bias)?, behind)
                }
                &[Layer::Conv(ref conv), Layer::Act(Act::Relu), Layer::MaxPool { k, stride, pad, ceil }, ref behind @ ..] => {
                    let (window, (weight, bias)) = (conv.window(&x)?, conv.weights(self)?);
                    (ops::conv_relu_max_pool(&x, weight, bias, window, PoolWindow { k, stride, pad, ceil })?, behind)
                }
                [Layer::Conv(conv), Layer::Act(Act::Relu), behind @ ..] => (conv.forward(self, &x, true)?, behind),
                [layer, behind @ ..] => (layer.forward(self, &x)?, behind),
            };
        }
    }

    /// A 1×1 and a 3×3 convolution side by side, both with bias and ReLU, in one op; `None` if the branches are something else.
    fn expand(&self, branches: &[Vec<Layer>], x: &Tensor) -> Result<Option<Tensor>> {
        let [one, three] = branches else { return Ok(None) };
        let ([Layer::Conv(one), Layer::Act(Act::Relu)], [Layer::Conv(three), Layer::Act(Act::Relu)]) = (one.as_slice(), three.as_slice())
        else {
            return Ok(None);
        };
        let is = |conv: &Conv, k: usize| {
            conv.shape[..2] == [k, k]
                && conv.pad == Pad::Zeros(k / 2)
                && (conv.stride, conv.groups, conv.bias, conv.fast) == (1, 1, true, true)
        };
        if !is(one, 1) || !is(three, 3) || one.shape[3] != three.shape[3] {
            return Ok(None);
        }
        let get = |conv: &Conv, tensor: &str| self.weights.weight(&format!("{}.{tensor}", conv.name));
        let of = |conv: &Conv| Ok::<_, crate::Error>([get(conv, "weight")?, get(conv, "bias")?]);
        Ok(ops::expand(x, of(one)?, of(three)?)?)
    }

    fn batch_norm(&self, name: &str, norm: BatchNorm, x: &Tensor, shortcut: Option<&Tensor>) -> Result<Tensor> {
        let get = |tensor: &str| self.weights.weight(&format!("{name}.{tensor}"));
        let (weight, bias) = (get("weight")?, get("bias")?);
        let Some(batch) = self.batch else {
            return Ok(norm.eval(x, [weight, bias], [get("running_mean")?, get("running_var")?], shortcut)?);
        };
        let (y, moments) = norm.train(x, weight, bias, shortcut)?;
        batch.borrow_mut().push((name.to_owned(), moments));
        Ok(y)
    }

    /// Weights and bias of a linear layer.
    fn linear(&self, name: &str) -> Result<[&'a Tensor; 2]> {
        let get = |tensor: &str| self.weights.weight(&format!("{name}.{tensor}"));
        Ok([get("weight")?, get("bias")?])
    }

    /// What the heads of an attention give, before their projection.
    fn attended(&self, name: &str, heads: usize, x: &Tensor) -> Result<Tensor> {
        Ok(ops::self_attention(&dense(self, &format!("{name}.qkv"), x)?, heads)?)
    }

    /// A linear layer, and `more` added to what it gives.
    fn dense_add(&self, name: &str, x: &Tensor, more: &Tensor) -> Result<Tensor> {
        let [weight, bias] = self.linear(name)?;
        Ok(ops::linear_add(x, weight, bias, more)?)
    }

    fn residual(&self, body: &[Layer], shortcut: &[Layer], relu: bool, x: &Tensor) -> Result<Tensor> {
        let way = self.run(shortcut, x)?;
        // A normalisation at the end adds the shortcut in its own pass.
        if let Some((Layer::BatchNorm { name, eps, relu: false, .. }, rest)) = body.split_last() {
            return self.batch_norm(name, BatchNorm { eps: *eps, relu }, &self.run(rest, x)?, Some(&way));
        }
        let y = match body.split_last() {
            Some((Layer::Linear { name, .. }, rest)) => self.dense_add(name, &self.run(rest, x)?, &way)?,
            Some((Layer::Attention { name, heads, .. }, rest)) => {
                self.dense_add(&format!("{name}.proj"), &self.attended(name, *heads, &self.run(rest, x)?)?, &way)?
            }
            _ => tape::add(&self.run(body, x)?, &way)?,
        };
        Ok(if relu { ops::relu(&y)? } else { y })
    }
}
