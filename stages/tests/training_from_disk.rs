//! A training on a set that is larger than the memory it may take: `synthetic-pretrain` and `evaluation` on 24,000 images.
#![allow(clippy::unwrap_used, clippy::print_stdout)]
#![cfg(target_os = "linux")]

mod stage;

use std::path::Path;

use serde_json::json;
use trestle_engine::stage::Kind;
use trestle_stages::data::{Meta, Writer};
use trestle_stages::evaluation::Evaluation;
use trestle_stages::synthetic_pretrain::SyntheticPretrain;

use stage::{peak, run};

const COUNT: usize = 24_000;
const SIDE: usize = 64;

/// Images of class k have a red of their own, in a pattern.
fn write(dir: &Path) {
    let classes: Vec<String> = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
    let (layout, source) = ("NHWC".to_owned(), "test".to_owned());
    let meta = Meta { count: COUNT, height: SIDE, width: SIDE, channels: 3, layout, classes, source, seed: None, styles: None };
    let labels = (0..COUNT).map(|i| i as u32 % 4).collect();
    let mut writer = Writer::create(dir, meta, labels).unwrap();
    for i in 0..COUNT {
        let pixels: Vec<u8> = (0..SIDE * SIDE).flat_map(|p| [(i % 4 * 60) as u8, (p + i) as u8, (p / SIDE) as u8]).collect();
        writer.push(&pixels).unwrap();
    }
    writer.finish(3).unwrap();
}

#[test]
fn memory_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (data, model) = (path("data"), path("model"));
    write(&data);
    let whole = COUNT * SIDE * SIDE * 3 / (1 << 20);
    // Every image is drawn once; a part is held out and looked at.
    let with = json!({
        "width": 8, "epochs": 1, "batch": 64, "augment": {"crop": 4, "flip": 0.5},
        "early_stopping": {"holdout": 0.1, "patience": 5},
    });
    let outputs = [("model", model.as_path()), ("metrics", &path("metrics.csv")), ("epochs", &path("epochs.csv"))];
    run(&Kind::of::<SyntheticPretrain>(), &with, &[("data", &data)], &outputs);
    let trained = peak();
    run(&Kind::of::<Evaluation>(), &json!({"batch": 64}), &[("data", &data), ("model", &model)], &[("scores", &path("scores"))]);
    println!("{whole} MB of images: {trained} MB of memory at most in training, {} MB with evaluation", peak());
    assert!(peak() < whole / 2, "{} MB for {whole} MB of images", peak());
}
