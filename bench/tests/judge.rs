//! The judge is not fooled: a binary that says that it ran everything, and did not, has no valid figure.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A folder that goes with this.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("trestle-bench-test-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The row of a full run by a shell script that stands for trestle.
fn judged(folder: &Path, script: &str, limit: &str) -> Value {
    let (fake, out, work) = (folder.join("fake"), folder.join("results.json"), folder.join("work"));
    fs::write(&fake, format!("#!/bin/sh\ncase $* in --version) echo fake 1; exit;; *--help) exit;; esac\n{script}\n")).unwrap();
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    let mut bench = Command::new(env!("CARGO_BIN_EXE_trestle-bench"));
    bench.args(["--sizes", "20", "--shapes", "chain", "--phases", "full", "--peers", "make", "--repeat", "1", "--limit", limit]);
    let output = bench.arg("--trestle").arg(fake).arg("--out").arg(&out).arg("--work").arg(work).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results: Value = serde_json::from_str(&fs::read_to_string(out).unwrap()).unwrap();
    let rows = results["rows"].as_array().unwrap();
    let of = |tool: &str| rows.iter().find(|row| row["tool"] == tool).unwrap().clone();
    assert_eq!(of("make")["invalid"], Value::Null, "{results:#}");
    of("trestle")
}

fn why(row: &Value) -> &str {
    row["invalid"].as_str().unwrap_or_else(|| panic!("{row:#}"))
}

#[test]
fn too_few_stages_are_noticed() {
    let scratch = Scratch::new("few");
    let row = judged(&scratch.0, "echo '19 executed, 1 cached in 1 ms'", "20");
    assert_eq!(why(&row), "19 stages ran, not 20");
}

#[test]
fn missing_outputs_are_noticed() {
    let scratch = Scratch::new("missing");
    let row = judged(&scratch.0, "case $1 in run) echo '20 executed, 0 cached in 1 ms';; *) echo no such output >&2; exit 2;; esac", "20");
    assert!(why(&row).contains("no such output"), "{row:#}");
}

#[test]
fn wrong_outputs_are_noticed() {
    let scratch = Scratch::new("wrong");
    let row = judged(&scratch.0, "case $1 in run) echo '20 executed, 0 cached in 1 ms';; out) echo src/0.txt;; esac", "20");
    assert!(why(&row).contains("is not what its inputs give"), "{row:#}");
}

#[test]
fn failures_and_long_runs_are_noticed() {
    let scratch = Scratch::new("fails");
    assert_eq!(why(&judged(&scratch.0, "echo went wrong >&2; exit 1", "20")), "exit code 1; went wrong");
    assert!(why(&judged(&scratch.0, "sleep 60", "0.5")).starts_with("ended after 0.5 s"));
}
