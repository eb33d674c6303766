#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use super::decode::decode;
use super::*;
use crate::data::{Images, Stored};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data").join(name)
}

fn bytes_of(name: &str) -> Vec<u8> {
    fs::read(fixture(name)).unwrap()
}

fn refusal(name: &str) -> String {
    decode(&bytes_of(name), None).unwrap_err()
}

#[test]
fn what_pictures_say_beyond_rgb() {
    let plain = decode(&bytes_of("rgb.png"), None).unwrap();
    assert_eq!((plain.size, &plain.pixels[..3]), ((6, 4), &[200, 10, 10][..]));
    assert_eq!(decode(&bytes_of("palette.png"), None).unwrap(), plain);
    assert_eq!(decode(&bytes_of("opaque.png"), None).unwrap(), plain);
    let deep = decode(&bytes_of("deep.png"), None).unwrap();
    assert!(deep.grey && deep.pixels[..3] == [200; 3], "16 bits become 8");
    assert!(refusal("transparent.png").contains("set `background`"));
    let white = decode(&bytes_of("transparent.png"), Some([255, 0, 9])).unwrap();
    assert_eq!(white.pixels[..6], [255, 0, 9, 200, 10, 10]);
    // EXIF's 6: what was the left column from below is the first row.
    let (upright, turned) = (decode(&bytes_of("rgb.jpg"), None).unwrap(), decode(&bytes_of("turned.jpg"), None).unwrap());
    assert_eq!((upright.size, turned.size), ((48, 32), (32, 48)));
    let at = |image: &decode::Decoded, y: usize, x: usize| image.pixels[(y * image.size.1 + x) * 3..][..3].to_vec();
    assert_eq!(at(&turned, 2, 45), at(&upright, 2, 2));
    assert_eq!(at(&turned, 2, 2), at(&upright, 45, 2));
}

#[test]
fn what_is_cut_or_has_no_colours_is_refused() {
    assert!(refusal("cut.jpg").contains("its end is missing"));
    assert!(refusal("cut.png").contains("no readable PNG"));
    assert!(refusal("cmyk.jpg").contains("CMYK"));
    let jpeg = bytes_of("rgb.jpg");
    for length in 0..jpeg.len() - 1 {
        assert!(decode(&jpeg[..length], None).is_err(), "{length} of {} bytes", jpeg.len());
    }
    let mut rubbish = jpeg.clone();
    rubbish.extend([0; 7]);
    assert_eq!(decode(&rubbish, None).unwrap(), decode(&jpeg, None).unwrap());
    assert!(decode(b"GIF89a", None).is_err());
}

#[test]
fn shards_and_parquet_hold_the_same_set() {
    let shard = read(&fixture("shard-000000.tar"), None, &Options::default()).unwrap();
    let parquet = read(&fixture("train-00000-of-00001.parquet"), None, &Options::default()).unwrap();
    assert_eq!(shard.images, parquet.images);
    assert_eq!((&shard.labels[..], &parquet.labels[..]), (&[0, 1, 2, 0, 1, 2][..], &[0, 1, 2, 0, 1, 2][..]));
    assert_eq!(
        (&shard.meta.classes[..], &parquet.meta.classes[..]),
        (&["0", "1", "2"].map(String::from)[..], &["ant", "bee", "cat"].map(String::from)[..])
    );
    assert_eq!([0, 3, 5].map(|i| shard.image(i)[..3].to_vec()), [vec![0, 255, 7], vec![60, 195, 7], vec![100, 155, 7]]);
    let json = Options { label_key: Some("json.kind".into()), ..Options::default() };
    let set = read(&fixture("shard-000000.tar"), None, &json).unwrap();
    assert_eq!((&set.labels[..], &set.meta.classes[..]), (&[0, 1, 0, 1, 0, 1][..], &["a", "b"].map(String::from)[..]));
}

/// The message of reading `bytes` as a file of that name.
fn refused(name: &str, bytes: &[u8], options: &Options) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    let message = read(&path, None, options).unwrap_err().to_string();
    assert!(message.contains(name), "{message}");
    message
}

#[test]
fn damaged_shards_are_named() {
    let plain = Options::default();
    let tar = bytes_of("shard-000000.tar");
    assert!(refused("x.tar", &tar[..512 + 30], &plain).contains("it is cut: `set/0000.png` has"));
    // Between two files, and within a header.
    for length in [512 * 6, 512 * 6 + 100, 512 * 36] {
        let message = refused("x.tar", &tar[..length], &plain);
        assert!(message.contains("it is cut: behind `set/000") || message.contains("damaged behind `set/0000.json`"), "{message}");
    }
    let mut flipped = tar.clone();
    flipped[512 * 2 + 3] ^= 1;
    assert!(refused("x.tar", &flipped, &plain).contains("damaged behind `set/0000.png`"));
    let other = Options { label_key: Some("txt".into()), ..Options::default() };
    assert!(refused("x.tar", &tar, &other).contains("sample 0 (`set/0000`) has no label: no member `txt`"));
    let other = Options { image_key: Some("webp".into()), ..Options::default() };
    assert!(refused("x.tar", &tar, &other).contains("has a label and no image"));
    let two = Options { classes: Some(vec!["a".into(), "b".into()]), ..Options::default() };
    assert!(refused("x.tar", &tar, &two).contains("image 2 has label 2, yet there are 2 classes"));
    let mut image = tar.clone();
    image[512 * 7 + 30] ^= 0xff;
    let message = refused("x.tar", &image, &plain);
    assert!(message.contains("image 1 (set/0001.png of"), "{message}");
    let dir = tempfile::tempdir().unwrap();
    let packed = Options { format: SourceFormat::Webdataset, ..Options::default() };
    fs::write(dir.path().join("x.tar.gz"), b"x").unwrap();
    assert!(read(dir.path(), None, &packed).unwrap_err().to_string().contains("must be unpacked"));
}

#[test]
fn damaged_tables_are_named() {
    let plain = Options::default();
    let parquet = bytes_of("train-00000-of-00001.parquet");
    assert!(refused("x.parquet", &parquet[..parquet.len() - 9], &plain).to_lowercase().contains("parquet"));
    let message = refused("x.parquet", &bytes_of("none.parquet"), &plain);
    assert!(message.contains("row group 1: among the rows 0 to 2 one has no image"), "{message}");
    let other = Options { image_key: Some("img".into()), ..Options::default() };
    assert!(
        refused("x.parquet", &parquet, &other)
            .contains("no column `img` of images (`image_key`); its columns are image.bytes, image.path, label")
    );
    let other = Options { label_key: Some("image.path".into()), ..Options::default() };
    let set = read(&fixture("train-00000-of-00001.parquet"), None, &other).unwrap();
    assert_eq!(set.meta.classes[5], "5.png");
    for at in (4..parquet.len()).step_by(7) {
        let mut damaged = parquet.clone();
        damaged[at] ^= 0x55;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        fs::write(&path, damaged).unwrap();
        // No damage panics; what is not seen is in a part that says nothing about pixels.
        let _ = read(&path, None, &plain);
    }
}

#[test]
fn streamed_and_collected_sets_are_the_same_bytes() {
    for (source, channels) in [("shard-000000.tar", None), ("shard-000000.tar", Some(1)), ("train-00000-of-00001.parquet", Some(3))] {
        let options = Options { channels, size: Some(5), ..Options::default() };
        let mut set = read(&fixture(source), None, &options).unwrap();
        set.meta.seed = Some(4);
        let dir = tempfile::tempdir().unwrap();
        let (whole, streamed) = (dir.path().join("whole"), dir.path().join("streamed"));
        set.write(&whole).unwrap();
        let Opened::Samples(mut samples) = open(&fixture(source), None, &options).unwrap() else { panic!("not streamed") };
        let parts = [Part { dir: streamed.clone(), indices: (0..6).collect(), seed: Some(4) }];
        write(samples.as_mut(), &fixture(source), &parts, &options).unwrap();
        for file in [FILE, META] {
            assert_eq!(fs::read(whole.join(file)).unwrap(), fs::read(streamed.join(file)).unwrap(), "{source} {file}");
        }
        let stored = Stored::open(&streamed).unwrap();
        assert_eq!((stored.meta(), stored.labels()), (&set.meta, &set.labels[..]));
        let mut image = vec![0; stored.pixels()];
        for i in (0..6).rev() {
            stored.copy(i, &mut image).unwrap();
            assert_eq!(image, set.image(i));
        }
        assert!(stored.copy(6, &mut image).is_err());
        let bytes = fs::read(streamed.join(FILE)).unwrap();
        fs::write(streamed.join(FILE), &bytes[..bytes.len() - 1]).unwrap();
        assert!(Stored::open(&streamed).unwrap_err().to_string().contains("its header tells of"));
    }
}
