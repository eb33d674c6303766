//! The architectures, as units of layers, with torchvision's or timm's names for their tensors.

use super::HEAD;
use super::layer::{Act, Conv, Layer, Pad, Start};

/// A named part of an architecture: what freezing, cutting and learning rates name.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// Its name.
    pub name: String,
    /// Its layers in their order.
    pub layers: Vec<Layer>,
}

impl Unit {
    fn new(name: impl Into<String>, layers: Vec<Layer>) -> Self {
        Self { name: name.into(), layers }
    }
}

fn bn(name: impl Into<String>, c: usize, eps: f32, relu: bool) -> Layer {
    Layer::BatchNorm { name: name.into(), c, eps, relu }
}

fn ln(name: impl Into<String>, c: usize) -> Layer {
    Layer::LayerNorm { name: name.into(), c, eps: 1e-6 }
}

fn linear(name: impl Into<String>, inputs: usize, outputs: usize) -> Layer {
    Layer::Linear { name: name.into(), inputs, outputs }
}

/// Three convolutions of width w, 2w and 4w with GroupNorm in groups of `group` channels. Pooling before ReLU: the result is the same, for
/// a quarter of the work. Images below 24 pixels gain little by Winograd's algorithm: there the convolutions are the plain sum.
pub fn small_cnn(channels: usize, size: [usize; 2], width: usize, group: usize, classes: usize) -> Vec<Unit> {
    let sizes = [channels, width, 2 * width, 4 * width];
    let mut units: Vec<Unit> = (0..3)
        .map(|i| {
            let (name, inputs, c) = (format!("conv{}", i + 1), sizes[i], sizes[i + 1]);
            let start = Start::Normal { fan: 9 * inputs, gain: 2.0 };
            let conv = Conv { start, fast: size[0].min(size[1]) >= 24, ..Conv::new(&name, 3, inputs, c, 1) };
            let mut layers = vec![Layer::Conv(conv), Layer::GroupNorm { name: format!("{name}.norm"), c, groups: c / group }];
            if i < 2 {
                layers.push(Layer::MaxPool { k: 2, stride: 2, pad: 0, ceil: false });
            }
            layers.push(Layer::Act(Act::Relu));
            Unit::new(name, layers)
        })
        .collect();
    units.push(Unit::new(HEAD, vec![Layer::Average, linear("head", 4 * width, classes)]));
    units
}

/// ResNet (He et al. 2016) as torchvision has it; `small` is the form for 32 pixels: a 3×3 stem without pooling.
pub fn resnet(channels: usize, blocks: [usize; 4], bottleneck: bool, small: bool, classes: usize) -> Vec<Unit> {
    const EPS: f32 = 1e-5;
    let stem = if small { Conv::new("conv1", 3, channels, 64, 1) } else { Conv::new("conv1", 7, channels, 64, 2) };
    let mut layers = vec![Layer::Conv(stem), bn("bn1", 64, EPS, true)];
    if !small {
        layers.push(Layer::MaxPool { k: 3, stride: 2, pad: 1, ceil: false });
    }
    let mut units = vec![Unit::new("stem", layers)];
    let mut inputs = 64;
    for (stage, count) in blocks.into_iter().enumerate() {
        let c = 64 << stage;
        let outputs = if bottleneck { 4 * c } else { c };
        for i in 0..count {
            let name = format!("layer{}.{i}", stage + 1);
            let stride = if stage > 0 && i == 0 { 2 } else { 1 };
            let steps: Vec<(usize, usize, usize, usize)> = match bottleneck {
                true => vec![(1, inputs, c, 1), (3, c, c, stride), (1, c, outputs, 1)],
                false => vec![(3, inputs, c, stride), (3, c, c, 1)],
            };
            let mut body = Vec::new();
            for (j, &(k, from, to, stride)) in steps.iter().enumerate() {
                body.push(Layer::Conv(Conv::new(format!("{name}.conv{}", j + 1), k, from, to, stride)));
                body.push(bn(format!("{name}.bn{}", j + 1), to, EPS, j + 1 < steps.len()));
            }
            let mut shortcut = Vec::new();
            if stride > 1 || inputs != outputs {
                shortcut.push(Layer::Conv(Conv::new(format!("{name}.downsample.0"), 1, inputs, outputs, stride)));
                shortcut.push(bn(format!("{name}.downsample.1"), outputs, EPS, false));
            }
            units.push(Unit::new(name, vec![Layer::Residual { body, shortcut, relu: true }]));
            inputs = outputs;
        }
    }
    units.push(Unit::new(HEAD, vec![Layer::Average, linear("fc", inputs, classes)]));
    units
}

/// SqueezeNet 1.1 (Iandola et al. 2016) as torchvision has it, without its dropout; with `same` as Keras has it: TensorFlow's zeros around
/// the first layer, and whole windows of the pooling alone. The weights begin as torchvision's do in mean and variance: He et al. 2015 by what
/// goes in, the head with a deviation of 0.01. By what goes out, as for the other architectures, a head of ten classes would begin with 0.45,
/// and fine-tuning with logits in the tens.
pub fn squeezenet(channels: usize, same: bool, classes: usize) -> Vec<Unit> {
    let relu = || Layer::Act(Act::Relu);
    let pool = || Layer::MaxPool { k: 3, stride: 2, pad: 0, ceil: !same };
    let conv = |name: &str, k: usize, from: usize, to: usize, stride: usize| {
        let start = Start::Normal { fan: k * k * from, gain: 2.0 };
        Conv { start, ..Conv::new(name, k, from, to, stride).biased() }
    };
    let stem = conv("features.0", 3, channels, 64, 2).padded(if same { Pad::Same } else { Pad::Zeros(0) });
    let mut units = vec![Unit::new("stem", vec![Layer::Conv(stem), relu(), pool()])];
    let mut inputs = 64;
    for (at, squeezed, expanded) in
        [(3, 16, 64), (4, 16, 64), (6, 32, 128), (7, 32, 128), (9, 48, 192), (10, 48, 192), (11, 64, 256), (12, 64, 256)]
    {
        let name = format!("features.{at}");
        let part = |part: &str, k, from, to| vec![Layer::Conv(conv(&format!("{name}.{part}"), k, from, to, 1)), relu()];
        let mut layers = part("squeeze", 1, inputs, squeezed);
        layers.push(Layer::Branches(vec![part("expand1x1", 1, squeezed, expanded), part("expand3x3", 3, squeezed, expanded)]));
        if at == 4 || at == 7 {
            layers.push(pool());
        }
        units.push(Unit::new(name, layers));
        inputs = 2 * expanded;
    }
    let classifier = Conv { start: Start::Normal { fan: 10_000, gain: 1.0 }, ..conv("classifier.1", 1, inputs, classes, 1) };
    units.push(Unit::new(HEAD, vec![Layer::Conv(classifier), relu(), Layer::Average]));
    units
}

/// Vision transformer (Dosovitskiy et al. 2021) as timm has it: `depth` blocks of width `c` over patches of `patch` pixels.
pub fn vit(channels: usize, size: [usize; 2], patch: usize, c: usize, depth: usize, heads: usize, classes: usize) -> Vec<Unit> {
    let project = Conv::new("patch_embed.proj", patch, channels, c, patch).padded(Pad::Zeros(0)).biased();
    let count = (size[0] / patch) * (size[1] / patch);
    let mut units = vec![Unit::new("stem", vec![Layer::Conv(project), Layer::Tokens { c, count }])];
    for i in 0..depth {
        let name = format!("blocks.{i}");
        let attention = vec![ln(format!("{name}.norm1"), c), Layer::Attention { name: format!("{name}.attn"), c, heads }];
        let mlp = vec![
            ln(format!("{name}.norm2"), c),
            linear(format!("{name}.mlp.fc1"), c, 4 * c),
            Layer::Act(Act::Gelu),
            linear(format!("{name}.mlp.fc2"), 4 * c, c),
        ];
        let residual = |body| Layer::Residual { body, shortcut: Vec::new(), relu: false };
        units.push(Unit::new(name, vec![residual(attention), residual(mlp)]));
    }
    units.push(Unit::new("norm", vec![Layer::FirstToken, ln("norm", c)]));
    units.push(Unit::new(HEAD, vec![linear("head", c, classes)]));
    units
}

/// EfficientNet-Lite0 (Tan and Le 2019; TensorFlow's lite form) as timm's `tf_efficientnet_lite0` has it, without its dropout.
pub fn efficientnet_lite0(channels: usize, classes: usize) -> Vec<Unit> {
    const EPS: f32 = 1e-3;
    let relu6 = || Layer::Act(Act::Relu6);
    let mut units = vec![Unit::new(
        "stem",
        vec![Layer::Conv(Conv::new("conv_stem", 3, channels, 32, 2).padded(Pad::Same)), bn("bn1", 32, EPS, false), relu6()],
    )];
    let mut inputs = 32;
    let stages =
        [(1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)];
    for (stage, (expansion, c, count, first_stride, k)) in stages.into_iter().enumerate() {
        for i in 0..count {
            let name = format!("blocks.{stage}.{i}");
            let stride = if i == 0 { first_stride } else { 1 };
            let wide = expansion * inputs;
            let names = if expansion == 1 { ["", "conv_dw", "conv_pw"] } else { ["conv_pw", "conv_dw", "conv_pwl"] };
            let mut number = 0;
            let mut norm = |c| {
                number += 1;
                bn(format!("{name}.bn{number}"), c, EPS, false)
            };
            let mut body = Vec::new();
            if expansion > 1 {
                body.extend([Layer::Conv(Conv::new(format!("{name}.{}", names[0]), 1, inputs, wide, 1)), norm(wide), relu6()]);
            }
            let middle = Conv::depthwise(format!("{name}.{}", names[1]), k, wide, stride).padded(Pad::Same);
            body.extend([Layer::Conv(middle), norm(wide), relu6()]);
            body.extend([Layer::Conv(Conv::new(format!("{name}.{}", names[2]), 1, wide, c, 1)), norm(c)]);
            let layers = if stride == 1 && inputs == c { vec![Layer::Residual { body, shortcut: Vec::new(), relu: false }] } else { body };
            units.push(Unit::new(name, layers));
            inputs = c;
        }
    }
    let last = vec![Layer::Conv(Conv::new("conv_head", 1, inputs, 1280, 1)), bn("bn2", 1280, EPS, false), relu6(), Layer::Average];
    units.push(Unit::new("conv_head", last));
    units.push(Unit::new(HEAD, vec![linear("classifier", 1280, classes)]));
    units
}

/// A block of MobileNetV3: kernel, expanded and resulting channels, squeeze-and-excite, hard swish (or ReLU), stride.
type Mobile = (usize, usize, usize, bool, bool, usize);

const MOBILE_LARGE: [Mobile; 15] = [
    (3, 16, 16, false, false, 1),
    (3, 64, 24, false, false, 2),
    (3, 72, 24, false, false, 1),
    (5, 72, 40, true, false, 2),
    (5, 120, 40, true, false, 1),
    (5, 120, 40, true, false, 1),
    (3, 240, 80, false, true, 2),
    (3, 200, 80, false, true, 1),
    (3, 184, 80, false, true, 1),
    (3, 184, 80, false, true, 1),
    (3, 480, 112, true, true, 1),
    (3, 672, 112, true, true, 1),
    (5, 672, 160, true, true, 2),
    (5, 960, 160, true, true, 1),
    (5, 960, 160, true, true, 1),
];

const MOBILE_SMALL: [Mobile; 11] = [
    (3, 16, 16, true, false, 2),
    (3, 72, 24, false, false, 2),
    (3, 88, 24, false, false, 1),
    (5, 96, 40, true, true, 2),
    (5, 240, 40, true, true, 1),
    (5, 240, 40, true, true, 1),
    (5, 120, 48, true, true, 1),
    (5, 144, 48, true, true, 1),
    (5, 288, 96, true, true, 2),
    (5, 576, 96, true, true, 1),
    (5, 576, 96, true, true, 1),
];

/// Whether block `at` widens before its depthwise convolution, and whether it has squeeze-and-excite.
pub fn mobile_block(large: bool, at: usize) -> (bool, bool) {
    let blocks: &[Mobile] = if large { &MOBILE_LARGE } else { &MOBILE_SMALL };
    let inputs = at.checked_sub(1).and_then(|before| blocks.get(before)).map_or(16, |block| block.2);
    blocks.get(at).map_or((false, false), |&(_, wide, _, excite, ..)| (wide != inputs, excite))
}

/// MobileNetV3 (Howard et al. 2019), large or small, as torchvision has it, without its dropout.
pub fn mobilenet_v3(channels: usize, large: bool, classes: usize) -> Vec<Unit> {
    const EPS: f32 = 1e-3;
    let (blocks, hidden): (&[Mobile], usize) = if large { (&MOBILE_LARGE, 1280) } else { (&MOBILE_SMALL, 1024) };
    let conv = |conv: Conv, act: Option<Act>| {
        let (name, c) = (conv.name.clone(), conv.shape[3]);
        let mut layers =
            vec![Layer::Conv(Conv { name: format!("{name}.0"), ..conv }), bn(format!("{name}.1"), c, EPS, act == Some(Act::Relu))];
        layers.extend(act.filter(|act| *act != Act::Relu).map(Layer::Act));
        layers
    };
    let mut units = vec![Unit::new("stem", conv(Conv::new("features.0", 3, channels, 16, 2), Some(Act::HardSwish)))];
    let mut inputs = 16;
    for (i, &(k, wide, c, excite, swish, stride)) in blocks.iter().enumerate() {
        let name = format!("features.{}", i + 1);
        let act = Some(if swish { Act::HardSwish } else { Act::Relu });
        let mut number = 0;
        let mut next = || {
            number += 1;
            format!("{name}.block.{}", number - 1)
        };
        let mut body = Vec::new();
        if wide != inputs {
            body.extend(conv(Conv::new(next(), 1, inputs, wide, 1), act));
        }
        body.extend(conv(Conv::depthwise(next(), k, wide, stride), act));
        if excite {
            let part = next();
            let names = [format!("{part}.fc1"), format!("{part}.fc2")];
            body.push(Layer::SqueezeExcite { names, c: wide, squeezed: divisible(wide / 4), act: Act::Relu, gate: Act::HardSigmoid });
        }
        body.extend(conv(Conv::new(next(), 1, wide, c, 1), None));
        let layers = if stride == 1 && inputs == c { vec![Layer::Residual { body, shortcut: Vec::new(), relu: false }] } else { body };
        units.push(Unit::new(name, layers));
        inputs = c;
    }
    let name = format!("features.{}", blocks.len() + 1);
    let mut last = conv(Conv::new(&name, 1, inputs, 6 * inputs, 1), Some(Act::HardSwish));
    last.push(Layer::Average);
    units.push(Unit::new(name, last));
    units.push(Unit::new("classifier.0", vec![linear("classifier.0", 6 * inputs, hidden), Layer::Act(Act::HardSwish)]));
    units.push(Unit::new(HEAD, vec![linear("classifier.3", hidden, classes)]));
    units
}

/// The multiple of 8 nearest to `c`, at least 8 and not more than a tenth below it, as MobileNet counts channels.
fn divisible(c: usize) -> usize {
    let near = ((c + 4) / 8 * 8).max(8);
    if near * 10 < c * 9 { near + 8 } else { near }
}

/// ConvNeXt-T (Liu et al. 2022) as torchvision has it, without its stochastic depth.
pub fn convnext_tiny(channels: usize, classes: usize) -> Vec<Unit> {
    let stem = Conv::new("features.0.0", 4, channels, 96, 4).padded(Pad::Zeros(0)).biased();
    let mut units = vec![Unit::new("stem", vec![Layer::Conv(stem), ln("features.0.1", 96)])];
    let mut inputs = 96;
    for (stage, count) in [3, 3, 9, 3].into_iter().enumerate() {
        let c = 96 << stage;
        if stage > 0 {
            let name = format!("features.{}", 2 * stage);
            let halve = Conv::new(format!("{name}.1"), 2, inputs, c, 2).padded(Pad::Zeros(0)).biased();
            units.push(Unit::new(name.clone(), vec![ln(format!("{name}.0"), inputs), Layer::Conv(halve)]));
        }
        for i in 0..count {
            let name = format!("features.{}.{i}", 2 * stage + 1);
            let body = vec![
                Layer::Conv(Conv::depthwise(format!("{name}.block.0"), 7, c, 1).biased()),
                ln(format!("{name}.block.2"), c),
                linear(format!("{name}.block.3"), c, 4 * c),
                Layer::Act(Act::Gelu),
                linear(format!("{name}.block.5"), 4 * c, c),
                Layer::Scale { name: format!("{name}.layer_scale"), c, start: 1e-6 },
            ];
            units.push(Unit::new(name, vec![Layer::Residual { body, shortcut: Vec::new(), relu: false }]));
        }
        inputs = c;
    }
    units.push(Unit::new(HEAD, vec![Layer::Average, ln("classifier.0", inputs), linear("classifier.2", inputs, classes)]));
    units
}
