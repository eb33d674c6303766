//! Bad pipelines and what they print: `tests/ui/*.yaml` beside `*.stderr`. `UPDATE=1 cargo test ui` writes the latter anew; then read them.

use std::path::Path;

use crate::support::{text, trestle};

#[test]
fn every_bad_pipeline_prints_what_it_should() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ui");
    let update = std::env::var_os("UPDATE").is_some();
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    names.sort();
    assert!(names.len() >= 25, "only {} bad pipelines", names.len());
    let mut wrong = Vec::new();
    for name in &names {
        let printed = printed(&folder, name);
        let expected = folder.join(name.replace(".yaml", ".stderr"));
        if update {
            std::fs::write(&expected, &printed).unwrap();
        } else if std::fs::read_to_string(&expected).unwrap_or_default() != printed {
            wrong.push(format!("{name} prints:\n{printed}"));
        }
    }
    assert!(wrong.is_empty(), "{}\nread them, and if they are right: UPDATE=1 cargo test ui", wrong.join("\n"));
}

fn printed(folder: &Path, name: &str) -> String {
    let cache = tempfile::tempdir().unwrap();
    // A line `# set: a=b` gives a `--set`, a line `# args: …` any words.
    let yaml = std::fs::read_to_string(folder.join(name)).unwrap();
    let sets = yaml.lines().filter_map(|line| line.strip_prefix("# set: ")).flat_map(|set| ["--set".to_owned(), set.to_owned()]);
    let args = yaml.lines().filter_map(|line| line.strip_prefix("# args: ")).flat_map(str::split_whitespace);
    let done = text(trestle(folder).args(["plan", name, "--cache"]).arg(cache.path()).args(sets).args(args).output().unwrap());
    assert_eq!(done.code, Some(2), "{name}: {}{}", done.out, done.err);
    assert_eq!(done.out, "", "{name} printed to standard output");
    done.err.replace(&folder.display().to_string(), "…")
}
