//! Networks whose tensors timm and torchvision call otherwise than we do: their logits from `fixtures/names.safetensors` (made by
//! `fixtures/weights.py`), ours from a file with their names.
#![allow(clippy::unwrap_used)]

mod formula;

use std::path::Path;

use candle_core::{Device, Tensor};
use formula::uniform;
use safetensors::tensor::{Dtype, TensorView};
use trestle_stages::model::weights::File;
use trestle_stages::model::{Arch, Config, Import, Model, Names, Variant};

/// A tensor by the rule of weights.py.
fn filled(name: &str, shape: &[usize]) -> Vec<u8> {
    let width: usize = shape[1..].iter().product();
    let value = |u: f32| match name {
        _ if ["running_var", "layer_scale", "gamma"].iter().any(|end| name.ends_with(end)) => 1.0 + u,
        _ if name.ends_with("running_mean") || name.ends_with("bias") => 0.2 * u,
        "class_token" | "encoder.pos_embedding" => 0.4 * u,
        _ if shape.len() == 1 => 1.0 + 0.4 * u,
        _ => u * (12.0 / width as f64).sqrt() as f32,
    };
    uniform(name, shape.iter().product()).into_iter().flat_map(|u| value(u).to_le_bytes()).collect()
}

/// A file with the tensors of `arch` as others write them.
fn write(path: &Path, arch: Arch, size: usize, names: Names) {
    let config = Config::new(arch, 0, [size, size], 3, (0..10).map(|i| i.to_string()).collect()).unwrap();
    let model = Model::new(config, 0).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = model
        .params
        .iter()
        .map(|(ours, var)| {
            let theirs = names.theirs(arch, ours).remove(0);
            let shape = match *var.dims() {
                [kh, kw, c, o] => vec![o, c, kh, kw],
                // timm's MobileNetV3 keeps this layer as a convolution.
                [i, o] if theirs.starts_with("conv_head") => vec![o, i, 1, 1],
                [i, o] => vec![o, i],
                _ => var.dims().to_vec(),
            };
            let bytes = filled(&theirs, &shape);
            (theirs, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn holds(arch: Arch, size: usize, names: Names) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    write(&path, arch, size, names);
    let file = File::open(&path, None).unwrap();
    assert_eq!(Names::detect(arch, [size, size], &file).unwrap(), names);
    // The images of the fixture are what the first layer takes.
    let variant = Variant { input: None, ..names.variant(arch) };
    let model = Import { arch, size: [size, size], variant: Some(variant), ..Import::default() }.read(&file).unwrap().exact();
    let images = uniform("images", 4 * size * size * 3).iter().map(|u| 4.0 * u).collect();
    let images = Tensor::from_vec(images, (4, size, size, 3), &Device::Cpu).unwrap();
    let got = model.logits(&model.params, &images).unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/names.safetensors");
    let want = &candle_core::safetensors::load(fixtures, &Device::Cpu).unwrap()[&arch.name()];
    let gap = (got - want).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(gap <= 1e-4, "{}: {gap}", arch.name());
}

#[test]
fn torchvisions_vit() {
    holds(Arch::VitBase, 32, Names::Torchvision);
}

#[test]
fn timms_mobilenets() {
    holds(Arch::MobileNetV3Large, 64, Names::Timm);
    holds(Arch::MobileNetV3Small, 64, Names::Timm);
}

#[test]
fn timms_convnext() {
    holds(Arch::ConvNextTiny, 64, Names::Timm);
}
