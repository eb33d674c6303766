#![allow(clippy::unwrap_used)]

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use image::{GrayImage, RgbImage};
use tempfile::TempDir;

use super::*;

fn scratch() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn idx(dims: &[u32], data: &[u8]) -> Vec<u8> {
    let dims_bytes = dims.iter().flat_map(|d| d.to_be_bytes());
    [0, 0, 8, dims.len() as u8].into_iter().chain(dims_bytes).chain(data.iter().copied()).collect()
}

/// The message of reading `file` (and `labels`), which must fail and name `culprit`.
fn refusal(file: &Path, labels: Option<&Path>, options: &Options, culprit: &str) -> String {
    let message = read(file, labels, options).unwrap_err().to_string();
    assert!(message.contains(culprit), "{message}");
    message
}

fn csv(text: &str, options: &Options) -> Result<ImageSet> {
    let dir = scratch();
    let path = dir.path().join("t.csv");
    fs::write(&path, text).unwrap();
    read(&path, None, options)
}

fn csv_refusal(text: &str, options: &Options) -> String {
    let message = csv(text, options).unwrap_err().to_string();
    assert!(message.contains("t.csv"), "{message}");
    message
}

fn names(names: &[&str]) -> Option<Vec<String>> {
    Some(names.iter().map(|name| (*name).to_owned()).collect())
}

#[test]
fn idx_is_read_plain_and_packed() {
    let dir = scratch();
    let (images, labels) = (idx(&[2, 1, 2], &[1, 2, 3, 4]), idx(&[2], &[1, 0]));
    let mut sets = Vec::new();
    for (suffix, pack) in [("", false), (".gz", true)] {
        let files = [("images-idx3-ubyte", &images), ("labels-idx1-ubyte", &labels)].map(|(name, data)| {
            let path = dir.path().join(format!("{name}{suffix}"));
            fs::write(&path, if pack { gzip(data) } else { data.clone() }).unwrap();
            path
        });
        sets.push(read(&files[0], Some(&files[1]), &Options::default()).unwrap());
    }
    assert_eq!(sets[0], sets[1]);
    assert_eq!((&sets[0].images[..], &sets[0].labels[..]), (&[1, 2, 3, 4][..], &[1, 0][..]));
    assert_eq!(sets[0].meta.classes, ["0", "1"]);
    assert_eq!((sets[0].meta.height, sets[0].meta.width), (1, 2));
}

#[test]
fn bad_idx_is_refused() {
    let dir = scratch();
    let (file, labels) = (dir.path().join("a-idx3"), dir.path().join("b-idx1"));
    let two = Options { classes: names(&["a", "b"]), ..Options::default() };
    let check = |images: Vec<u8>, label: Vec<u8>, culprit: &str, want: &str| {
        fs::write(&file, images).unwrap();
        fs::write(&labels, label).unwrap();
        let message = refusal(&file, Some(&labels), &two, culprit);
        assert!(message.contains(want), "{message}");
    };
    let good = idx(&[2, 1, 2], &[1, 2, 3, 4]);
    check(
        good[..good.len() - 1].to_vec(),
        idx(&[2], &[0, 1]),
        "a-idx3",
        "[2, 1, 2], yet 3 bytes follow: the file ends or goes on at item 1",
    );
    check([&good[..], &[9]].concat(), idx(&[2], &[0, 1]), "a-idx3", "yet 5 bytes follow");
    check(good[..9].to_vec(), idx(&[2], &[0, 1]), "a-idx3", "ends within its header of 16 bytes");
    check(vec![1, 2, 3, 4, 5], idx(&[2], &[0, 1]), "a-idx3", "no IDX file");
    check(vec![0, 0, 8], idx(&[2], &[0, 1]), "a-idx3", "ends within its header, after 3 bytes");
    check(idx(&[1, u32::MAX, u32::MAX, u32::MAX], &[1]), idx(&[2], &[0, 1]), "a-idx3", "yet 1 bytes follow");
    check(good.clone(), idx(&[3], &[0, 1, 0]), "b-idx1", "3 labels for 2 images");
    check(good.clone(), idx(&[2], &[0, 2]), "a-idx3", "image 1 has label 2, yet there are 2 names");
    check(good.clone(), idx(&[1, 2], &[0, 1]), "b-idx1", "labels have 1 dimension");
    check(idx(&[4], &[1, 2, 3, 4]), idx(&[2], &[0, 1]), "a-idx3", "3 or 4 dimensions");
    check(gzip(&good)[..12].to_vec(), idx(&[2], &[0, 1]), "a-idx3", "gzip");
    check([&[0, 0, 13][..], &good[3..]].concat(), idx(&[2], &[0, 1]), "a-idx3", "type 0x0d");
    assert!(refusal(&labels, None, &two, "b-idx1").contains("connect the input `labels`"));
}

#[test]
fn csv_takes_labels_where_they_are() {
    let last = csv("1,2,3,4,0\n5,6,7,8,1\n", &Options::default()).unwrap();
    let named = Options { header: true, label_column: Column::Name("y".into()), ..Options::default() };
    let middle = csv("a,b,y,c,d\n1,2,0,3,4\n5, 6,1,7,8\n", &named).unwrap();
    let first = csv("0,1,2,3,4\n1.0,5e0,6,7,8\n", &Options { label_column: Column::Index(0), ..Options::default() }).unwrap();
    assert_eq!((&last.images, &last.labels), (&middle.images, &middle.labels));
    assert_eq!(last, first);
    assert_eq!(last.labels, [0, 1]);
    let words = csv("16,0,8,1,one\n", &Options { classes: names(&["zero", "one"]), value_max: Some(16.0), ..Options::default() }).unwrap();
    assert_eq!((&words.images[..], words.labels[0]), (&[255, 0, 128, 16][..], 1));
    let wide = csv("1,2,0\n", &Options { shape: Some([1, 2]), ..Options::default() }).unwrap();
    assert_eq!((wide.meta.height, wide.meta.width), (1, 2));
}

#[test]
fn packed_csv_is_the_same() {
    let dir = scratch();
    let path = dir.path().join("t.csv.gz");
    let text = "1,2,3,4,0\n5,6,7,8,1\n";
    fs::write(&path, gzip(text.as_bytes())).unwrap();
    assert_eq!(read(&path, None, &Options::default()).unwrap(), csv(text, &Options::default()).unwrap());
}

#[test]
fn bad_csv_is_refused_with_its_row() {
    let plain = Options::default();
    let two = Options { classes: names(&["a", "b"]), ..Options::default() };
    let cases = [
        ("1,2,3,4,0\n1,2,3,0\n", &plain, "row 2 has 4 columns, the rows before have 5"),
        ("1,2,3,4,0\n1,2,x,4,0\n", &plain, "row 2, column 2: `x` is not a number"),
        ("a,b,c,d,0\n1,2,3,4,0\n", &plain, "set `header: true`"),
        ("1,2,3,300,0\n", &plain, "row 1, column 3: 300 is not in 0 to 255"),
        ("1,2,3,-1,0\n", &plain, "row 1, column 3: -1"),
        ("1,2,NaN,1,0\n", &plain, "row 1, column 2: NaN"),
        ("1,2,3,4,0.5\n", &plain, "row 1: the label `0.5`"),
        ("1,2,3,4,0\n1,2,3,4,2\n", &two, "row 2: label 2, yet `classes` names 2"),
        ("1,2,3,4,c\n", &two, "row 1: the label `c`"),
        ("1,2,3,0\n", &Options { shape: Some([2, 2]), ..Options::default() }, "3 values a row are no image of 2x2"),
        ("1,2,0\n", &plain, "2 values a row are no square image: set `shape"),
        ("", &plain, "no rows"),
        ("0\n", &plain, "0 values a row"),
        ("1,0\n", &Options { label_column: Column::Index(2), ..Options::default() }, "no column 2"),
        ("1,0\n", &Options { label_column: Column::Index(-3), ..Options::default() }, "no column -3"),
        ("1,0\n", &Options { label_column: Column::Name("y".into()), ..Options::default() }, "needs a header"),
    ];
    for (text, options, want) in cases {
        let message = csv_refusal(text, options);
        assert!(message.contains(want), "{message} / {want}");
    }
}

fn folder_of(dir: &Path) {
    for (class, name, level) in [("cat", "b.png", 9), ("cat", "a.png", 7), ("ant", "c.png", 5)] {
        fs::create_dir_all(dir.join(class)).unwrap();
        GrayImage::from_pixel(3, 2, image::Luma([level])).save(dir.join(class).join(name)).unwrap();
    }
    fs::write(dir.join("cat/.hidden"), "x").unwrap();
}

#[test]
fn a_folder_is_read_by_name() {
    let dir = scratch();
    folder_of(dir.path());
    let set = read(dir.path(), None, &Options::default()).unwrap();
    assert_eq!((&set.meta.classes[..], &set.labels[..]), (&["ant".to_owned(), "cat".into()][..], &[0, 1, 1][..]));
    assert_eq!([0, 1, 2].map(|i| set.image(i)[0]), [5, 7, 9]);
    assert_eq!((set.meta.height, set.meta.width, set.meta.channels), (2, 3, 1));
    let asked = Options { classes: names(&["cat", "ant"]), channels: Some(3), size: Some(4), ..Options::default() };
    let set = read(dir.path(), None, &asked).unwrap();
    assert_eq!((&set.labels[..], set.pixels(), set.image(2)[0]), (&[0, 0, 1][..], 48, 5));
    RgbImage::from_pixel(3, 2, image::Rgb([1, 2, 3])).save(dir.path().join("ant/d.png")).unwrap();
    assert_eq!(read(dir.path(), None, &Options::default()).unwrap().meta.channels, 3);
}

#[test]
fn bad_folders_are_refused_with_the_file() {
    let plain = Options::default();
    let dir = scratch();
    assert!(refusal(dir.path(), None, &plain, "").contains("hold no images"));
    folder_of(dir.path());
    let more = Options { classes: names(&["ant", "bee", "cat"]), ..Options::default() };
    assert!(refusal(dir.path(), None, &more, "").contains("no folder for the class `bee`"));
    let fewer = Options { classes: names(&["ant"]), ..Options::default() };
    assert!(refusal(dir.path(), None, &fewer, "").contains("does not name the folder `cat`"));
    GrayImage::new(4, 4).save(dir.path().join("cat/z.png")).unwrap();
    assert!(refusal(dir.path(), None, &plain, "z.png").contains("set `size`"));
    fs::write(dir.path().join("cat/y.png"), "not an image").unwrap();
    assert!(refusal(dir.path(), None, &plain, "y.png").contains("no readable PNG or JPEG"));
    fs::write(dir.path().join("note.txt"), "x").unwrap();
    assert!(refusal(dir.path(), None, &plain, "note.txt").contains("not a folder"));
}

#[test]
fn safetensors_are_read_with_names_and_styles() {
    let set = read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/data/fontdigits.safetensors")), None, &Options::default())
        .unwrap();
    assert_eq!((set.len(), set.pixels(), set.meta.channels), (6600, 256, 1));
    assert_eq!(set.class_counts(), [660; 10]);
    assert_eq!(set.meta.styles, names(&["crisp", "soft", "bold", "thin", "slanted", "small"]));
    let set = read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../pipelines/data/optdigits.safetensors")), None, &Options::default())
        .unwrap();
    assert_eq!(set.class_counts(), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
    assert_eq!(set.meta.classes[3], "three");
}

#[test]
fn bad_safetensors_are_refused() {
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;
    let dir = scratch();
    let path = dir.path().join("t.safetensors");
    let check = |images: (Dtype, Vec<usize>), labels: (Dtype, Vec<u8>), options: &Options, want: &str| {
        let pixels = vec![7u8; images.1.iter().product::<usize>() * images.0.bitsize() / 8];
        let images = TensorView::new(images.0, images.1, &pixels).unwrap();
        let count = labels.1.len() * 8 / labels.0.bitsize();
        let labels = TensorView::new(labels.0, vec![count], &labels.1).unwrap();
        fs::write(&path, safetensors::serialize([("images", images), ("labels", labels)], None).unwrap()).unwrap();
        let message = refusal(&path, None, options, "t.safetensors");
        assert!(message.contains(want), "{message}");
    };
    let plain = Options::default();
    check((Dtype::F32, vec![1, 2, 2]), (Dtype::U8, vec![0]), &plain, "only U8");
    check((Dtype::U8, vec![1, 4]), (Dtype::U8, vec![0]), &plain, "3 or 4 dimensions");
    check((Dtype::U8, vec![1, 2, 2]), (Dtype::U8, vec![0, 1]), &plain, "4 bytes for 2 images");
    check((Dtype::U8, vec![1, 2, 2]), (Dtype::I32, (-1i32).to_le_bytes().to_vec()), &plain, "`labels` of image 0 is -1");
    check((Dtype::U8, vec![1, 2, 2]), (Dtype::F32, vec![0; 4]), &plain, "U8, U32, I32 and I64 are read");
    check(
        (Dtype::U8, vec![1, 2, 2]),
        (Dtype::U8, vec![3]),
        &Options { classes: names(&["a"]), ..Options::default() },
        "image 0 has label 3",
    );
    check(
        (Dtype::U8, vec![1, 2, 2]),
        (Dtype::U8, vec![0]),
        &Options { value_max: Some(6.0), ..Options::default() },
        "image 0 has the value 7",
    );
    fs::write(&path, b"junk").unwrap();
    refusal(&path, None, &plain, "t.safetensors");
}

#[test]
fn what_another_stage_wrote_is_read() {
    let dir = scratch();
    let set = csv("1,2,3,4,0\n5,6,7,8,1\n", &Options::default()).unwrap();
    set.write(dir.path()).unwrap();
    assert_eq!(read(dir.path(), None, &Options::default()).unwrap(), set);
    let renamed = read(dir.path(), None, &Options { classes: names(&["a", "b"]), ..Options::default() }).unwrap();
    assert_eq!(renamed.meta.classes, ["a", "b"]);
    assert!(refusal(dir.path(), None, &Options { classes: names(&["a"]), ..Options::default() }, "").contains("`classes` names 1"));
}

#[test]
fn an_unknown_name_asks_for_the_format() {
    let dir = scratch();
    let path = dir.path().join("t.bin");
    fs::write(&path, "1,2,3,4,0\n").unwrap();
    assert!(refusal(&path, None, &Options::default(), "t.bin").contains("set `format`"));
    read(&path, None, &Options { format: SourceFormat::Csv, ..Options::default() }).unwrap();
    let message = refusal(&path, Some(&path), &Options { format: SourceFormat::Csv, ..Options::default() }, "t.bin");
    assert!(message.contains("`labels` belongs to IDX"), "{message}");
    refusal(&dir.path().join("none.csv"), None, &Options::default(), "none.csv");
}
