//! A set that is larger than the memory it may take: WebDataset to the outputs of `dataset`.
#![allow(clippy::unwrap_used, clippy::print_stdout)]
#![cfg(target_os = "linux")]

mod stage;

use std::io::Cursor;
use std::path::Path;

use serde_json::json;
use trestle_engine::stage::Kind;
use trestle_stages::data::{Images, Stored};
use trestle_stages::dataset::Dataset;

use stage::{peak, run};

const COUNT: usize = 1500;
const SIDE: u32 = 256;

/// A shard of `COUNT` pictures, which take 295 MB decoded.
fn shard(path: &Path) {
    let mut tar = tar::Builder::new(std::io::BufWriter::new(std::fs::File::create(path).unwrap()));
    let pictures: Vec<Vec<u8>> = (0..10u8)
        .map(|class| {
            let mut bytes = Cursor::new(Vec::new());
            image::RgbImage::from_fn(SIDE, SIDE, |x, y| image::Rgb([class * 20, x as u8, y as u8]))
                .write_to(&mut bytes, image::ImageFormat::Png)
                .unwrap();
            bytes.into_inner()
        })
        .collect();
    let mut add = |name: String, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    for i in 0..COUNT {
        add(format!("{i:06}.png"), &pictures[i % 10]);
        add(format!("{i:06}.cls"), (i % 10).to_string().as_bytes());
    }
    tar.into_inner().unwrap();
}

#[test]
fn memory_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.tar");
    shard(&path);
    let [train, test, classes] = ["train", "test", "classes.json"].map(|name| dir.path().join(name));
    let outputs = [("train", train.as_path()), ("test", &test), ("classes", &classes)];
    run(&Kind::of::<Dataset>(), &json!({"test_fraction": 0.2}), &[("source", &path)], &outputs);
    let (train, test) = (Stored::open(&train).unwrap(), Stored::open(&test).unwrap());
    let mut image = vec![0; train.pixels()];
    for i in 0..train.labels().len() {
        train.copy(i, &mut image).unwrap();
        assert_eq!(u32::from(image[0]), 20 * train.labels()[i], "image {i}");
    }
    let whole = COUNT * (SIDE * SIDE * 3) as usize / (1 << 20);
    assert_eq!(train.labels().len() + test.labels().len(), COUNT);
    println!("{whole} MB of images, {} MB of memory at most", peak());
    assert!(peak() < 100, "{} MB", peak());
}
