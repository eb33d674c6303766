//! No code of this crate draws from a random number generator without a seed.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

/// candle's CPU generator has no seed; its random initialisers and dropout draw from it. The rest is `rand` seeded by the system.
const FORBIDDEN: [&str; 15] = [
    "Tensor::rand(",
    "Tensor::randn(",
    "Var::rand",
    "rand_like(",
    "randn_like(",
    ".rand_uniform(",
    "ops::dropout",
    "Dropout::new",
    "Init::Randn",
    "Init::Uniform",
    "Init::Kaiming",
    "DEFAULT_KAIMING",
    "thread_rng",
    "rand::rng(",
    "from_os_rng",
];

fn offences(dir: &Path, out: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            offences(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.extend(in_text(&fs::read_to_string(&path).unwrap()).map(|(line, text)| format!("{}:{line}: {text}", path.display())));
        }
    }
}

fn in_text(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let code = text.lines().enumerate().map(|(i, line)| (i + 1, line.trim())).filter(|(_, line)| !line.starts_with("//"));
    code.filter(|(_, line)| FORBIDDEN.iter().any(|word| line.contains(word)))
}

#[test]
fn nothing_draws_without_a_seed() {
    let mut out = Vec::new();
    offences(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut out);
    assert!(out.is_empty(), "use crate::rng::Stream instead:\n{}", out.join("\n"));
}

#[test]
fn the_search_finds_what_it_looks_for() {
    let text = "let a = 1;\n// Tensor::randn( in a comment\n    let x = Tensor::randn(0f32, 1., 4, &dev)?;";
    assert_eq!(in_text(text).map(|(line, _)| line).collect::<Vec<_>>(), [3]);
}
