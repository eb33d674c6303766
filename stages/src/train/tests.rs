#![allow(clippy::unwrap_used)]

use super::*;
use crate::data::ImageSet;
use crate::model::{Arch, Config};

/// Images of class k have a bright column k, in noise.
fn bars(n: usize, seed: u64) -> ImageSet {
    let mut stream = Stream::new(seed, "bars");
    let mut images = Vec::new();
    let labels: Vec<u32> = (0..n).map(|i| i as u32 % 4).collect();
    for label in &labels {
        for pixel in 0..64 {
            let bright = if pixel % 8 / 2 == *label as usize { 120 } else { 0 };
            images.push((bright + stream.below(130)) as u8);
        }
    }
    ImageSet::new(images, labels, (8, 8, 1), (0..4).map(|k| format!("bar {k}")).collect(), "bars").unwrap()
}

fn model(set: &ImageSet) -> Model {
    Model::new(Config::for_images(Arch::SmallCnn, 8, set).unwrap(), 3).unwrap()
}

fn recipe(steps: usize) -> Recipe {
    let augment = Augment { shift: 0.5, scale: 0.05, noise: 0.02 };
    Recipe { length: Length::Steps(steps), batch: 32, lr: 1e-2, mixup: 0.2, label_smoothing: 0.1, augment, ..Recipe::default() }
}

fn run(set: &ImageSet, frozen: &[String], recipe: &Recipe) -> (Model, Vec<Row>) {
    let mut model = model(set);
    let rows = train(&mut model, &[Source { set, share: 1.0 }], frozen, recipe, 7, |_, _| {}).unwrap();
    (model, rows)
}

#[test]
fn it_learns_and_generalises() {
    let (set, test) = (bars(128, 1), bars(200, 2));
    let (model, rows) = run(&set, &[], &recipe(60));
    assert!(rows[59].loss < 0.75 * rows[0].loss, "{} to {}", rows[0].loss, rows[59].loss);
    let indices: Vec<usize> = (0..200).collect();
    let logits = model.logits(&model.params, &test.to_f32(&indices, model.config.normalisation).unwrap()).unwrap();
    let hits = logits.to_vec2::<f32>().unwrap().iter().zip(&test.labels).filter(|(l, t)| argmax(l) == **t as usize).count();
    assert!(hits >= 190, "{hits} of 200");
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let set = bars(64, 1);
    let trained = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        pool.install(|| {
            let (model, rows) = run(&set, &[], &recipe(12));
            model.write(dir.path()).unwrap();
            write_metrics(&dir.path().join("metrics.csv"), &rows).unwrap();
        });
        ["model.safetensors", "metrics.csv"].map(|file| blake3::hash(&std::fs::read(dir.path().join(file)).unwrap()))
    };
    let one = trained(1);
    assert_eq!(one, trained(2));
    assert_eq!(one, trained(3));
}

#[test]
fn frozen_units_stay() {
    let set = bars(64, 1);
    let before = model(&set);
    let (after, _) = run(&set, &["conv1".into(), "conv3".into()], &recipe(3));
    for (name, _) in before.params.iter() {
        let same = before.params.values(name).unwrap() == after.params.values(name).unwrap();
        assert_eq!(same, name.starts_with("conv1") || name.starts_with("conv3"), "{name}");
    }
    let all = before.config.units.clone();
    let error = train(&mut before.clone(), &[Source { set: &set, share: 1.0 }], &all, &recipe(1), 1, |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("nothing to train"));
}

#[test]
fn a_loss_that_is_not_finite_ends_the_training() {
    let set = bars(64, 1);
    let mut model = model(&set);
    let recipe = Recipe { lr: 1e30, ..recipe(20) };
    let error = train(&mut model, &[Source { set: &set, share: 1.0 }], &[], &recipe, 1, |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("the loss is") && error.contains("`lr`"), "{error}");
}

#[test]
fn batches_hold_the_shares_and_every_image_once_a_pass() {
    let (a, b) = (bars(40, 1), bars(8, 2));
    let config = Config::for_images(Arch::SmallCnn, 8, &a).unwrap();
    let sources = [Source { set: &a, share: 0.75 }, Source { set: &b, share: 0.25 }];
    let mut batches = Batches::new(&sources, 16, 1).unwrap();
    let bytes = |batch: &batches::Batch, i: usize| -> Vec<u8> {
        batch.pixels[i * 64..(i + 1) * 64].iter().map(|v| config.normalisation.byte(*v)).collect()
    };
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let batch = batches.next(&config, 0.0).unwrap();
        assert_eq!(batch.len(), 16);
        (0..12).for_each(|i| assert!((0..40).any(|k| a.image(k) == bytes(&batch, i))));
        (12..16).for_each(|i| assert!(seen.insert(bytes(&batch, i))));
    }
    assert_eq!(seen.len(), 8);
    let none = [Source { set: &a, share: 1.0 }, Source { set: &b, share: 0.0 }];
    assert!(Batches::new(&none, 16, 1).is_err());
}

#[test]
fn mixing_is_a_weighted_mean_of_images_and_targets() {
    let set = bars(4, 1);
    let config = Config::for_images(Arch::SmallCnn, 8, &set).unwrap();
    let mut batch = Batches::new(&[Source { set: &set, share: 1.0 }], 4, 1).unwrap().next(&config, 0.0).unwrap();
    let old = batch.clone();
    batch.mix(0.75, &[1, 0, 2, 3]);
    assert_eq!(batch.pixels[0], 0.75 * old.pixels[0] + 0.25 * old.pixels[64]);
    assert_eq!(batch.targets[..4].iter().sum::<f32>(), 1.0);
    assert_eq!(batch.targets[8..], old.targets[8..]);
}

#[test]
fn senseless_recipes_are_refused_with_their_path() {
    let bad = Recipe { batch: 0, lr: -1.0, mixup: f64::NAN, label_smoothing: 1.0, length: Length::Epochs(0.0), ..Recipe::default() };
    let paths: Vec<String> = bad.check().into_iter().map(|e| e.path).collect();
    assert_eq!(paths, ["epochs", "batch", "lr", "mixup", "label_smoothing"]);
    assert!(Recipe::default().check().is_empty());
    assert_eq!((Length::Epochs(2.0).steps(100, 64), Length::Epochs(0.1).steps(1, 64), Length::Steps(5).steps(1, 1)), (4, 1, 5));
}
