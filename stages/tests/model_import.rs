//! The stage `model-import`: what it makes of files, and what it says about those that lie.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;
use trestle_engine::stage::{Context, Input, Kind, Silent};
use trestle_stages::data::ImageSet;
use trestle_stages::model::{Arch, Config, FILE, Model};
use trestle_stages::model_import::ModelImport;
use trestle_stages::real_adaptation::RealAdaptation;

/// The tensors of a random model under PyTorch's shapes.
fn tensors(arch: Arch, side: usize, classes: usize) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let config = Config::new(arch, 0, [side, side], 3, (0..classes).map(|i| i.to_string()).collect()).unwrap();
    let model = Model::new(config, 1).unwrap();
    let turned = |name: &str| {
        let tensor = model.params.get(name).unwrap().detach();
        let turned = match tensor.rank() {
            4 => tensor.permute((3, 2, 0, 1)).unwrap(),
            2 => tensor.t().unwrap(),
            _ => tensor,
        };
        (name.to_owned(), turned.dims().to_vec(), turned.contiguous().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap())
    };
    model.params.iter().map(|(name, _)| turned(name)).collect()
}

fn save(path: &Path, tensors: &[(String, Vec<usize>, Vec<f32>)]) {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, _, values)| values.iter().flat_map(|v| v.to_le_bytes()).collect()).collect();
    let views =
        tensors.iter().zip(&bytes).map(|((name, shape, _), data)| (name, TensorView::new(Dtype::F32, shape.clone(), data).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn run(weights: &Path, with: &Value) -> Result<(TempDir, Model), String> {
    let dir = tempfile::tempdir().unwrap();
    let inputs = [("weights".to_owned(), vec![Input { path: weights.to_path_buf(), labels: BTreeMap::new() }])].into();
    let outputs = [("model".to_owned(), dir.path().join("model"))].into();
    let kind = Kind::of::<ModelImport>();
    let params = kind.check(with).unwrap().params;
    let done = kind.run(&params, &mut Context::new(inputs, outputs, 1, &mut Silent));
    if let Err(error) = done {
        assert!(!dir.path().join("model").exists(), "a failed import leaves a model");
        return Err(error.to_string());
    }
    let model = Model::read(&dir.path().join("model")).unwrap();
    Ok((dir, model))
}

#[test]
fn a_model_in_and_out() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    save(&path, &tensors(Arch::ResNet18Small, 32, 5));
    let (out, model) = run(&path, &json!({"arch": "resnet-18-32px"})).unwrap();
    assert_eq!((model.config.classes.len(), model.config.height), (5, 32));
    // torchvision's range of values, in an op of the stem.
    let text = std::fs::read_to_string(out.path().join("model/config.json")).unwrap();
    assert!(text.contains("123.675"), "{text}");
    let (_, plain) = run(&path, &json!({"arch": "resnet-18-32px", "input": "signed", "classes": ["a", "b", "c", "d", "e"]})).unwrap();
    assert_eq!(plain.config.classes[4], "e");
    let own = Model::new(plain.config.clone(), 1).unwrap();
    let dir = tempfile::tempdir().unwrap();
    own.write(dir.path()).unwrap();
    plain.write(&dir.path().join("again")).unwrap();
    assert_eq!(std::fs::read(dir.path().join(FILE)).unwrap(), std::fs::read(dir.path().join("again").join(FILE)).unwrap());
    let refused = run(&path, &json!({"arch": "resnet-18-32px", "classes": ["a", "b"]})).unwrap_err();
    assert!(refused.contains("its head has 5 classes, 2 are named; `reinit_head: true`"), "{refused}");
    let (_, new) = run(&path, &json!({"arch": "resnet-18-32px", "classes": ["a", "b"], "reinit_head": true})).unwrap();
    assert_eq!(new.config.classes, ["a", "b"]);
}

#[test]
fn weights_that_lie_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    let good = tensors(Arch::ResNet18Small, 32, 5);
    let check = |tensors: &[(String, Vec<usize>, Vec<f32>)], with: Value, words: &[&str]| {
        save(&path, tensors);
        let message = run(&path, &with).unwrap_err();
        assert!(message.contains("w.safetensors"), "{message}");
        words.iter().for_each(|words| assert!(message.contains(words), "{message} / {words}"));
    };
    let with = || json!({"arch": "resnet-18-32px"});
    let mut nan = good.clone();
    nan.iter_mut().find(|t| t.0 == "layer2.0.conv1.weight").unwrap().2[7] = f32::NAN;
    check(&nan, with(), &["value 7 of tensor `layer2.0.conv1.weight` is NaN"]);
    let missing: Vec<_> = good.iter().filter(|t| !t.0.starts_with("layer3.1.")).cloned().collect();
    check(&missing, with(), &["`layer3.1.", "and 7 more of the architecture are missing"]);
    let mut extra = good.clone();
    extra.push(("teacher.weight".into(), vec![1], vec![0.0]));
    check(&extra, with(), &["`teacher.weight` are not part of the architecture"]);
    let mut shape = good.clone();
    shape.iter_mut().find(|t| t.0 == "bn1.bias").unwrap().1 = vec![2, 32];
    check(&shape, with(), &["tensor `bn1.bias` has the shape [2, 32], the architecture wants [64]"]);
    // Other architectures, known by their tensors.
    check(&good, json!({"arch": "resnet-34-32px"}), &["are missing", "its tensors are those of `resnet-18-32px`"]);
    check(
        &good,
        json!({"arch": "resnet-18"}),
        &["conv1.weight", "has the shape [64, 3, 3, 3], the architecture wants [64, 3, 7, 7]", "`resnet-18-32px`"],
    );
    check(&tensors(Arch::SqueezeNet, 224, 3), json!({"arch": "mobilenet-v3-small"}), &["its tensors are those of `squeezenet-1.1`"]);
}

#[test]
fn params_without_sense() {
    let kind = Kind::of::<ModelImport>();
    for (with, path) in [
        (json!({}), "arch"),
        (json!({"arch": "convnext-t", "names": "keras-squeezenet"}), "names"),
        (json!({"arch": "convnext-t", "input": {"mean": [0, 0, 0], "std": [1, 0, 1]}}), "input"),
        (json!({"arch": "convnext-t", "norm_eps": 0.0}), "norm_eps"),
        (json!({"arch": "convnext-t", "classes": ["a", "a"]}), "classes"),
    ] {
        let complaints = kind.check(&with).unwrap_err();
        assert_eq!(complaints.iter().map(|c| c.path.as_str()).collect::<Vec<_>>(), [path], "{complaints:?}");
    }
}

#[test]
fn training_starts_from_what_was_imported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    save(&path, &tensors(Arch::SqueezeNet, 32, 7));
    let (out, imported) = run(&path, &json!({"arch": "squeezenet-1.1", "size": 32})).unwrap();
    let images = (0..4 * 32 * 32 * 3).map(|i| (i * 7 % 256) as u8).collect();
    let set = ImageSet::new(images, vec![0, 1, 0, 1], (32, 32, 3), vec!["a".into(), "b".into()], "test").unwrap();
    set.write(&dir.path().join("data")).unwrap();
    let input = |path: &Path| vec![Input { path: path.to_path_buf(), labels: BTreeMap::new() }];
    let inputs = [("data".to_owned(), input(&dir.path().join("data"))), ("model".to_owned(), input(&out.path().join("model")))].into();
    let outputs = ["model", "metrics", "epochs"].map(|name| (name.to_owned(), dir.path().join(name))).into();
    let kind = Kind::of::<RealAdaptation>();
    let frozen: Vec<String> = imported.config.units.iter().filter(|unit| *unit != "head").cloned().collect();
    let params = kind.check(&json!({"reinit_head": true, "steps": 2, "batch": 4, "freeze": frozen})).unwrap().params;
    kind.run(&params, &mut Context::new(inputs, outputs, 1, &mut Silent)).unwrap();
    let adapted = Model::read(&dir.path().join("model")).unwrap();
    assert_eq!((adapted.config.variant, &adapted.config.classes[..]), (imported.config.variant, &["a".to_owned(), "b".to_owned()][..]));
    let values = |model: &Model, name: &str| model.params.values(name).unwrap();
    assert_eq!(values(&adapted, "features.0.weight"), values(&imported, "features.0.weight"));
}
