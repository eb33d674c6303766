//! Data that lies: each names the file and the place in it, and leaves no output.

use std::path::PathBuf;

use crate::support::{Project, text, trestle};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("stages/tests/fixtures").join(name)
}

fn fails(project: &Project, words: &[&str]) {
    let done = text(trestle(project.path()).args(["run", "--format", "json"]).output().unwrap());
    assert_eq!(done.code, Some(1), "{}{}", done.out, done.err);
    words.iter().for_each(|words| assert!(done.out.contains(words), "{} / {words}", done.out));
    assert_eq!(project.blobs().len(), 0, "a failed stage left an output");
}

fn dataset(source: &str, with: &str) -> Project {
    Project::new(&format!("stages:\n  data: {{ uses: dataset, in: {{ source: ./{source} }}, with: {{ {with} }} }}\n"))
}

#[test]
fn pictures() {
    for (name, words) in
        [("cut.jpg", "its end is missing"), ("cut.png", "no readable PNG"), ("cmyk.jpg", "CMYK"), ("transparent.png", "background")]
    {
        let project = dataset("set", "size: 4");
        std::fs::create_dir_all(project.path().join("set/a")).unwrap();
        std::fs::copy(fixture("data/rgb.png"), project.path().join("set/a/0.png")).unwrap();
        std::fs::copy(fixture("data").join(name), project.path().join("set/a").join(name)).unwrap();
        fails(&project, &["image 1", name, words]);
    }
}

#[test]
fn shards_and_tables() {
    for (name, words) in [("shard-000000.tar", "it is cut"), ("train-00000-of-00001.parquet", "arquet")] {
        let project = dataset(name, "");
        let bytes = std::fs::read(fixture("data").join(name)).unwrap();
        std::fs::write(project.path().join(name), &bytes[..if name.ends_with("tar") { 512 * 6 } else { bytes.len() - 9 }]).unwrap();
        fails(&project, &[name, words]);
    }
}

#[test]
fn labels() {
    let project = Project::new("stages:\n  data: { uses: dataset, in: { source: ./i-idx3, labels: ./l-idx1 } }\n");
    std::fs::write(project.path().join("i-idx3"), [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 7, 8]).unwrap();
    std::fs::write(project.path().join("l-idx1"), [0, 0, 8, 1, 0, 0, 0, 3, 0, 1, 0]).unwrap();
    fails(&project, &["l-idx1", "3 labels for 2 images"]);
}

#[test]
fn weights() {
    for (name, words) in [
        ("nan.pth", "missing"),
        ("evil.pth", "wants to call `posix.system`"),
        ("module.pth", "`torch.nn.modules.linear.Linear`"),
        ("zip.pth", "the tensor `fc.weight` of the head is missing"),
    ] {
        let project = Project::new(&format!(
            "stages:\n  model: {{ uses: model-import, in: {{ weights: ./{name} }}, with: {{ arch: resnet-18 }} }}\n"
        ));
        std::fs::copy(fixture("weights").join(name), project.path().join(name)).unwrap();
        fails(&project, &[name, words]);
    }
}
