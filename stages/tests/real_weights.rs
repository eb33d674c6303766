//! Real ImageNet weights on 20 labelled photos. The packages are fetched by `fixtures/fetch_weights.sh FOLDER`; then
//! `TRESTLE_WEIGHTS=FOLDER cargo test -p trestle-stages --test real_weights -- --ignored`.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::PathBuf;

use candle_core::Tensor;
use trestle_stages::data::{Filter, ImageSet, Images, Normalisation};
use trestle_stages::model::weights::File;
use trestle_stages::model::{Arch, Import, Model};

fn folder() -> PathBuf {
    std::env::var_os("TRESTLE_WEIGHTS").expect("TRESTLE_WEIGHTS names the folder that fetch_weights.sh filled").into()
}

/// The photos at 224 pixels, and their labels.
fn photos() -> (Tensor, Vec<usize>) {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder().join("photos")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let photo = |path: &PathBuf| {
        let rgb = image::open(path).unwrap().to_rgb8();
        let size = (rgb.height() as usize, rgb.width() as usize, 3);
        let set = ImageSet::new(rgb.into_raw(), vec![0], size, vec!["photo".into()], "foolbox").unwrap();
        set.resized(224, 224, Filter::Bilinear).unwrap().to_f32(&[0], Normalisation::Signed).unwrap()
    };
    let label = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().rsplit('_').next().unwrap().parse().unwrap();
    let images: Vec<Tensor> = files.iter().map(photo).collect();
    (Tensor::cat(&images, 0).unwrap(), files.iter().map(label).collect())
}

/// How many photos have their class first, and among the first five.
fn counts(model: &Model) -> (usize, usize) {
    let (images, labels) = photos();
    let logits = model.logits(&model.params, &images).unwrap().to_vec2::<f32>().unwrap();
    let rank = |(row, label): (&Vec<f32>, &usize)| row.iter().filter(|v| **v > row[*label]).count();
    let ranks: Vec<usize> = logits.iter().zip(&labels).map(rank).collect();
    (ranks.iter().filter(|rank| **rank == 0).count(), ranks.iter().filter(|rank| **rank < 5).count())
}

fn imported(arch: Arch, file: &str) -> Model {
    let file = File::open(&folder().join(file), None).unwrap();
    Import { arch, size: [224, 224], ..Import::default() }.read(&file).unwrap()
}

#[test]
#[ignore = "needs packages that are fetched: see the head of this file"]
fn squeezenet_of_ndf() {
    let model = imported(Arch::SqueezeNet, "squeezenet.pkl");
    assert_eq!(counts(&model), (11, 19));
}

#[test]
#[ignore = "needs packages that are fetched: see the head of this file"]
fn efficientnet_lite0_of_its_package() {
    let model = imported(Arch::EfficientNetLite0, "efficientnet-lite0.pth");
    assert_eq!(counts(&model), (17, 20));
}
