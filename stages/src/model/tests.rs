#![allow(clippy::unwrap_used)]

use super::*;
use crate::data::ImageSet;
use crate::nn::gradcheck;
use crate::nn::ops::cross_entropy;

fn set(side: usize) -> ImageSet {
    let mut stream = Stream::new(1, "pixels");
    let images = (0..4 * side * side).map(|_| stream.below(256) as u8).collect();
    ImageSet::new(images, vec![0, 1, 2, 0], (side, side, 1), vec!["a".into(), "b".into(), "c".into()], "test").unwrap()
}

fn model() -> Model {
    Model::new(Config::for_images(Arch::SmallCnn, 8, &set(8)).unwrap(), 1).unwrap()
}

fn input() -> Tensor {
    set(8).to_f32(&[0, 1, 2, 3], Normalisation::Signed).unwrap()
}

#[test]
fn every_tensor_has_a_right_gradient() {
    let model = model();
    let targets = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.1, 0.1, 0.8, 0.5, 0.5, 0.0];
    let findings = gradcheck::check(&model.params, |p| Ok(cross_entropy(&model.logits(p, &input())?, &targets)?)).unwrap();
    assert_eq!(findings.len(), 3 * model.params.iter().count());
}

#[test]
fn the_usual_width_has_the_documented_size() {
    let images = ImageSet::new(vec![0; 256], vec![0], (16, 16, 1), (0..10).map(|i| i.to_string()).collect(), "test").unwrap();
    let count = Model::new(Config::for_images(Arch::SmallCnn, 32, &images).unwrap(), 1).unwrap().params.count();
    assert!((93_500..94_500).contains(&count), "{count}");
}

#[test]
fn a_frozen_unit_gets_no_gradient() {
    let model = model();
    let weights = model.frozen(&["conv1".into(), "conv2".into()]).unwrap();
    let grads = model.logits(&weights, &input()).unwrap().sum_all().unwrap().backward().unwrap();
    for (name, var) in model.params.iter() {
        assert_eq!(grads.get(var).is_some(), matches!(model.unit_of(name), "conv3" | HEAD), "{name}");
    }
    let message = model.frozen(&["conv9".into()]).unwrap_err().to_string();
    assert_eq!(message, "the model has no unit `conv9`; its units are conv1, conv2, conv3, head");
}

#[test]
fn a_prefix_is_the_start_of_the_model() {
    let model = model();
    let dims = |units| model.prefix(&model.params, &input(), units).unwrap().dims().to_vec();
    assert_eq!([dims(0), dims(1), dims(2), dims(3)], [vec![4, 8, 8, 1], vec![4, 4, 4, 8], vec![4, 2, 2, 16], vec![4, 2, 2, 32]]);
    assert_eq!(dims(4), [4, 3]);
    assert!(model.prefix(&model.params, &input(), 5).is_err());
}

#[test]
fn a_new_head_leaves_the_rest() {
    let mut model = model();
    let names: Vec<String> = model.params.iter().map(|(name, _)| name.clone()).collect();
    let values = |model: &Model| names.iter().map(|name| model.params.values(name).unwrap()).collect::<Vec<_>>();
    let before = values(&model);
    // The same seed as the model's own: still another head.
    model.reinit_head(&model.config.classes.clone(), 1).unwrap();
    for ((name, old), new) in names.iter().zip(&before).zip(values(&model)) {
        assert_eq!(*old != new, name == "head.weight", "{name}");
    }
    model.reinit_head(&["x".into(), "y".into()], 1).unwrap();
    assert_eq!(model.logits(&model.params, &input()).unwrap().dims(), [4, 2]);
}

#[test]
fn a_model_survives_a_folder_and_lies_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let model = model();
    model.write(dir).unwrap();
    let bytes = fs::read(dir.join(FILE)).unwrap();
    let read = Model::read(dir).unwrap();
    assert_eq!(read.config, model.config);
    read.write(dir).unwrap();
    assert_eq!(fs::read(dir.join(FILE)).unwrap(), bytes);

    let config = fs::read_to_string(dir.join(CONFIG)).unwrap();
    fs::write(dir.join(CONFIG), config.replace("\"width\": 8", "\"width\": 16")).unwrap();
    let message = Model::read(dir).unwrap_err().to_string();
    assert!(message.contains(FILE) && message.contains("conv1.norm.bias") && message.contains("shape"), "{message}");
    fs::write(dir.join(CONFIG), config.replace("small-cnn", "resnet-7")).unwrap();
    let message = Model::read(dir).unwrap_err().to_string();
    assert!(message.contains(CONFIG) && message.contains("resnet-7"), "{message}");
}

#[test]
fn images_that_do_not_fit_are_refused() {
    assert!(Config::for_images(Arch::SmallCnn, 8, &set(10)).unwrap_err().to_string().contains("multiples of 4, not 10x10"));
    assert!(Config::for_images(Arch::SmallCnn, 9, &set(8)).unwrap_err().to_string().contains("not a multiple of 8"));
    let message = model().config.expect_size(&set(12), Path::new("data")).unwrap_err().to_string();
    assert!(message.contains("data: images of 12x12 with 1 channels, yet the model takes 8x8"), "{message}");
    let mut other = set(8);
    other.meta.classes[2] = "z".into();
    let message = model().config.expect_classes(&other, Path::new("data")).unwrap_err().to_string();
    assert!(message.contains("label 2 is `z`, for the model it is `c`"), "{message}");
    other.meta.classes.push("d".into());
    assert!(model().config.expect_classes(&other, Path::new("data")).unwrap_err().to_string().contains("4 classes, yet the model has 3"));
}

#[test]
fn statistics_of_frozen_units_stay_and_the_others_adapt() {
    let model = Model::new(Config::for_images(Arch::ResNet18Small, 32, &set(8)).unwrap(), 1).unwrap();
    let frozen: Vec<String> = model.config.units[..8].to_vec();
    assert_eq!((frozen[0].as_str(), frozen[7].as_str()), ("stem", "layer4.0"));
    let weights = model.frozen(&frozen).unwrap();
    let (loss, tape) = crate::nn::tape::record(|| {
        let (logits, statistics) = model.training_logits(&weights, &input(), &frozen)?;
        model.move_statistics(&statistics, 0.1)?;
        Ok::<_, Error>(cross_entropy(&logits, &[0.25; 12])?)
    })
    .unwrap();
    let grads = tape.backward(&loss).unwrap();
    let fresh = Model::new(model.config.clone(), 1).unwrap();
    for (name, var) in model.params.iter() {
        let late = matches!(model.unit_of(name), "layer4.1" | HEAD);
        let statistic = crate::nn::params::is_statistic(name);
        assert_eq!(grads.get(var).is_some(), late && !statistic, "{name}");
        let moved = model.params.values(name).unwrap() != fresh.params.values(name).unwrap();
        assert_eq!(moved, late && statistic, "{name}");
    }
    let (without, _) = crate::nn::tape::record(|| model.logits(&model.params, &input())).unwrap();
    assert_eq!(without.dims(), [4, 3]);
}

#[test]
fn another_architectures_head_and_folder() {
    let mut model = Model::new(Config::for_images(Arch::ResNet18Small, 32, &set(8)).unwrap(), 1).unwrap();
    let old = model.params.copied().unwrap();
    model.reinit_head(&["x".into(), "y".into()], 2).unwrap();
    assert_eq!(model.logits(&model.params, &input()).unwrap().dims(), [4, 2]);
    for (name, _) in old.iter().filter(|(name, _)| !name.starts_with("fc.")) {
        assert_eq!(model.params.values(name).unwrap(), old.values(name).unwrap(), "{name}");
    }
    let dir = tempfile::tempdir().unwrap();
    model.write(dir.path()).unwrap();
    let read = Model::read(dir.path()).unwrap();
    assert_eq!(read.config, model.config);
    let logits = |model: &Model| model.logits(&model.params, &input()).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(logits(&read), logits(&model));
    let refused = Config::new(Arch::VitTiny, 32, [40, 32], 3, vec!["a".into()]).unwrap_err().to_string();
    assert!(refused.contains("multiples of 16"), "{refused}");
    let named = Model::from_pytorch(model.config.clone(), &dir.path().join(FILE)).unwrap_err().to_string();
    assert!(named.contains("shape"), "{named}");
}

/// The root of the mean squared gap between two tensors, relative to that of the second.
fn gap(got: &Tensor, want: &Tensor) -> f64 {
    assert_eq!(got.dims(), want.dims());
    let floats = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (got, want) = (floats(got), floats(want));
    let gaps: f64 = got.iter().zip(&want).map(|(g, w)| f64::from(g - w).powi(2)).sum();
    (gaps / want.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().max(1e-16)).sqrt()
}

/// The same of all gradients of a model.
fn gradient_gap(model: &Model, got: &candle_core::backprop::GradStore, want: &candle_core::backprop::GradStore) -> f64 {
    let all = |grads: &candle_core::backprop::GradStore| {
        let each: Vec<Tensor> = model.params.trainable().map(|(_, var)| grads.get(var).unwrap().flatten_all().unwrap()).collect();
        Tensor::cat(&each, 0).unwrap()
    };
    gap(&all(got), &all(want))
}

/// The two largest ViTs are left out: they are the same code as the others, and have 390 million values.
#[test]
fn every_architecture_is_the_same_in_its_composed_form() {
    use crate::nn::{composed, ops, tape};
    for arch in Arch::ALL.into_iter().filter(|arch| !matches!(arch, Arch::VitBase | Arch::VitLarge)) {
        // Twice the least side, so that the last normalisations see more than one pixel of each image.
        let side = 2 * arch.sides().1;
        let names: Vec<String> = (0..3).map(|i| format!("class {i}")).collect();
        let model = Model::new(Config::new(arch, 8, [side, side], 3, names).unwrap(), 1).unwrap().exact();
        let x = Stream::new(2, "x").normals(2 * side * side * 3);
        let x = Tensor::from_vec(x, (2, side, side, 3), &candle_core::Device::Cpu).unwrap();
        let weights = model.frozen(&[]).unwrap();
        let run = |x: &Tensor| {
            let plain = model.logits(&model.params.frozen().unwrap(), x).unwrap();
            let ((logits, loss), tape) = tape::record(|| {
                let logits = model.training_logits(&weights, x, &[])?.0;
                let loss = ops::cross_entropy(&logits, &[1.0, 0.0, 0.0, 0.0, 0.0, 1.0])?;
                Ok::<_, Error>((logits, loss))
            })
            .unwrap();
            (plain, logits, tape.backward(&loss).unwrap())
        };
        let want = run(&x);
        let got = {
            let _forced = composed::forced();
            run(&x)
        };
        for (what, off) in [("logits", gap(&got.0, &want.0)), ("logits in training", gap(&got.1, &want.1))] {
            assert!(off < 1e-4, "{arch:?}: the {what} are {off} apart");
        }
        // A value on the other side of a kink, by rounding, moves the gradients of a deep net of random weights: how much, the kernels
        // themselves say when the images change in their last digits.
        let moved = run(&x.affine(1.0 + 1e-5, 0.0).unwrap());
        let (off, usual) = (gradient_gap(&model, &got.2, &want.2), gradient_gap(&model, &moved.2, &want.2));
        assert!(off < 3.0 * usual + 1e-5, "{arch:?}: the gradients are {off} apart, and {usual} by the last digits of the images");
        // Half precision takes the composed form by itself.
        let (plain, _, grads) = run(&x.to_dtype(candle_core::DType::BF16).unwrap());
        let off = gap(&plain.to_dtype(candle_core::DType::F32).unwrap(), &want.0);
        assert!(off < 0.1, "{arch:?}: logits in bf16 are {off} apart");
        for (name, var) in model.params.trainable() {
            let values = crate::nn::optim::gradient_values(&grads, var).unwrap().unwrap();
            assert!(values.iter().all(|v| v.is_finite()), "{arch:?}, {name}");
        }
    }
}
