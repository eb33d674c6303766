//! The quickstart's pipeline with tiny figures: native stages in child processes.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{files, text, trestle};

fn pipeline() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/quickstart.yaml")
}

const TINY: [&str; 14] = [
    "--set",
    "seeds=[0, 1]",
    "--set",
    "images_per_class=3",
    "--set",
    "generator_steps=4",
    "--set",
    "inversion_steps=3",
    "--set",
    "pretrain_steps=3",
    "--set",
    "adapt_steps=3",
    "--set",
    "judge_steps=3",
];

fn quickstart(cache: &Path, args: &[&str]) -> Command {
    let mut command = trestle(cache);
    command.arg(args[0]).arg(pipeline()).args(TINY).arg("--cache").arg(cache).args(&args[1..]);
    command
}

/// Names of blobs are digests of their bytes: equal names are equal outputs.
fn outputs(cache: &Path) -> Vec<PathBuf> {
    ["blobs", "trees"].iter().flat_map(|shelf| files(&cache.join(shelf))).map(|path| path.strip_prefix(cache).unwrap().to_owned()).collect()
}

#[test]
fn the_same_bytes_with_one_and_two_threads_and_again() {
    let caches = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let run = |cache: &Path, threads: &str| text(quickstart(cache, &["run", "-j", threads, "--format", "json"]).output().unwrap());
    let first = run(caches[0].path(), "1");
    assert_eq!(first.code, Some(0), "{}{}", first.out, first.err);
    let second = run(caches[1].path(), "2");
    assert_eq!(second.code, Some(0), "{}{}", second.out, second.err);
    let (one, two) = (outputs(caches[0].path()), outputs(caches[1].path()));
    assert!(one.len() > 40);
    assert_eq!(one, two);
    let again = run(caches[0].path(), "2");
    assert!(again.out.contains("\"executed\":0"), "{}", again.out);
    one_changed_param_of_the_evaluation_runs_one_stage(caches[0].path());
}

/// The last stage but the table: `batch` of one evaluation changes no score, so the table does not run either.
fn one_changed_param_of_the_evaluation_runs_one_stage(cache: &Path) {
    let text = std::fs::read_to_string(pipeline()).unwrap();
    let judge = "in: { model: judge.model, data: synthetic.images }";
    assert!(text.contains(judge));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("quickstart.yaml");
    std::fs::write(
        &file,
        text.replace(judge, &format!("{judge}\n    with: {{ batch: 7 }}"))
            .replace("./data/", &format!("{}/pipelines/data/", env!("CARGO_MANIFEST_DIR"))),
    )
    .unwrap();
    let output =
        trestle(folder.path()).arg("run").arg(&file).args(TINY).arg("--cache").arg(cache).args(["--format", "json"]).output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    let done: Vec<&str> = out.lines().filter(|line| line.contains("\"event\":\"done\"")).collect();
    assert_eq!(done.len(), 1, "{out}");
    assert!(done[0].contains("\"stage\":\"recognition\""), "{out}");
}

#[test]
fn a_stage_that_is_killed_takes_only_itself() {
    let folder = tempfile::tempdir().unwrap();
    let data = format!("{}/pipelines/data/fontdigits.safetensors", env!("CARGO_MANIFEST_DIR"));
    std::fs::write(
        folder.path().join("trestle.yaml"),
        format!("stages:\n  fonts: {{ uses: dataset, in: {{ source: {data} }} }}\n  long: {{ uses: generator-pretrain, in: {{ data: fonts.train }}, with: {{ steps: 100000 }} }}\n"),
    )
    .unwrap();
    let child = trestle(folder.path()).args(["run", "--format", "json"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let start = std::time::Instant::now();
    // The job's process is a child of the engine's.
    let job = loop {
        assert!(start.elapsed().as_secs() < 60, "the stage did not start");
        let found = Command::new("pgrep").args(["-P", &child.id().to_string(), "-f", "long"]).output().unwrap();
        if let Some(id) = String::from_utf8(found.stdout).unwrap().lines().next() {
            break id.to_owned();
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    };
    Command::new("kill").args(["-KILL", &job]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{out}");
    assert!(out.contains("was killed (signal 9)") && out.contains("\"executed\":1") && out.contains("\"failed\":1"), "{out}");
}
