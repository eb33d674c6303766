#![allow(clippy::unwrap_used)]

use super::*;

#[path = "../../../tests/formula/mod.rs"]
mod formula;

use formula::uniform;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights").join(name)
}

fn open(name: &str) -> File {
    File::open(&path(name), None).unwrap()
}

fn refusal(name: &str) -> String {
    let message = File::open(&path(name), None).unwrap_err().to_string();
    assert!(message.contains(name), "{message}");
    message
}

fn names(file: &File) -> Vec<&str> {
    file.names().collect()
}

#[test]
fn both_formats_of_pytorch() {
    for name in ["zip.pth", "legacy.pth"] {
        let file = open(name);
        assert_eq!(names(&file), ["a", "b", "n"]);
        assert_eq!(file.tensor("a").unwrap(), (vec![2, 3], uniform("a", 6)));
        assert_eq!(file.tensor("b").unwrap(), (vec![4], uniform("b", 4)));
        let message = file.tensor("n").unwrap_err().to_string();
        assert!(message.contains(name) && message.contains("`n` holds values of type I64"), "{message}");
        assert!(file.tensor("c").unwrap_err().to_string().contains("no tensor `c`"));
    }
}

#[test]
fn views_are_read_as_they_are_seen() {
    for name in ["views.pth", "views-legacy.pth"] {
        let file = open(name);
        let wide = uniform("wide", 12);
        let turned: Vec<f32> = (0..12).map(|i| wide[i % 3 * 4 + i / 3]).collect();
        assert_eq!(file.tensor("turned").unwrap(), (vec![4, 3], turned));
        assert_eq!(file.tensor("part").unwrap(), (vec![2, 2], vec![wide[5], wide[6], wide[9], wide[10]]));
        assert_eq!(file.tensor("tied").unwrap(), (vec![3, 4], wide));
    }
}

#[test]
fn other_types_of_floats() {
    let (file, a) = (open("types.pth"), uniform("a", 6));
    assert_eq!(file.tensor("f64").unwrap(), (vec![2, 3], a.clone()));
    assert_eq!(file.tensor("parameter").unwrap(), (vec![2, 3], a.clone()));
    assert_eq!(file.tensor("f16").unwrap().1, a.iter().map(|v| half::f16::from_f32(*v).to_f32()).collect::<Vec<_>>());
    assert_eq!(file.tensor("bf16").unwrap().1, a.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect::<Vec<_>>());
}

#[test]
fn the_weights_of_a_checkpoint() {
    let file = open("checkpoint.pth");
    assert_eq!(names(&file), ["bias", "weight"]);
    assert_eq!(file.tensor("weight").unwrap(), (vec![2, 3], uniform("a", 6)));
    let ema = File::open(&path("checkpoint.pth"), Some("ema.model")).unwrap();
    assert_eq!(ema.tensor("a").unwrap().1, uniform("a", 6).iter().map(|v| 2.0 * v).collect::<Vec<_>>());
    let message = File::open(&path("checkpoint.pth"), Some("weights")).unwrap_err().to_string();
    assert!(message.contains("no part `weights`; the keys of the file are epoch, state_dict, ema, optimizer, best"), "{message}");
}

#[test]
fn pickled_arrays_of_every_protocol() {
    for protocol in 2..=5 {
        let file = open(&format!("numpy-{protocol}.pkl"));
        assert_eq!(names(&file), ["big", "conv.0", "conv.1"], "protocol {protocol}");
        assert_eq!(file.tensor("conv.0").unwrap(), (vec![2, 3], uniform("a", 6)));
        assert_eq!(file.tensor("conv.1").unwrap(), (vec![2, 3], uniform("a", 6)), "in Fortran's order");
        assert_eq!(file.tensor("big").unwrap(), (vec![4], uniform("b", 4)), "big-endian f64");
    }
}

#[test]
fn safetensors_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    let bytes: Vec<u8> = uniform("a", 6).iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, vec![2, 3], &bytes).unwrap();
    std::fs::write(&path, safetensors::serialize([("module.a", view)], None).unwrap()).unwrap();
    let file = File::open(&path, None).unwrap();
    assert_eq!(file.tensor("a").unwrap().1, uniform("a", 6).iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect::<Vec<_>>());
}

#[test]
fn what_wants_to_run_is_refused_by_name() {
    for name in ["evil.pth", "evil.pkl"] {
        let message = refusal(name);
        assert!(message.contains("wants to call `posix.system`") && message.contains("nothing was run"), "{message}");
    }
    assert!(!Path::new("/tmp/trestle-was-here").exists());
    let message = refusal("module.pth");
    assert!(message.contains("`torch.nn.modules.linear.Linear`") && message.contains("state_dict()"), "{message}");
}

#[test]
fn what_is_not_a_number_is_found() {
    let message = open("nan.pth").tensor("a").unwrap_err().to_string();
    assert!(message.contains("nan.pth: value 1 of tensor `a` is NaN"), "{message}");
}

#[test]
fn damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.pth");
    let check = |bytes: &[u8], words: &str| {
        std::fs::write(&path, bytes).unwrap();
        let message = File::open(&path, None).unwrap_err().to_string();
        assert!(message.contains("w.pth") && message.contains(words), "{message} / {words}");
    };
    let legacy = std::fs::read(super::tests::path("legacy.pth")).unwrap();
    check(&legacy[..legacy.len() - 1], "the file ends within storage");
    check(&legacy[..60], "what wrote it at byte");
    let zip = std::fs::read(super::tests::path("zip.pth")).unwrap();
    check(&zip[..zip.len() - 30], "a PyTorch file is a zip file");
    let mut damaged = zip.clone();
    let at = zip.windows(8).position(|w| w == b"OrderedD").unwrap();
    damaged[at] = b'X';
    check(&damaged, "data.pkl");
    check(b"\x89HDF\r\n", "HDF5");
    check(b"", "neither safetensors");
    check(b"\x80\x02}.", "no tensor");
}
