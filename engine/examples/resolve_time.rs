//! How long a large pipeline file takes to be read and resolved: `cargo run --release -p trestle-engine --example resolve_time -- 100000`.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::fmt::Write;
use std::time::Instant;

use trestle_engine::resolve::{self, Choices};
use trestle_engine::source::{Files, parse};
use trestle_engine::stage::Registry;

/// As the program has it: half of the time goes into memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `count` stages in layers of a hundred; each reads two of the layer before.
fn layered(count: usize) -> String {
    let mut text = String::from("stages:\n");
    for i in 0..count {
        let (layer, place) = (i / 100, i % 100);
        let name = |layer: usize, place: usize| format!("s{layer}_{}", place % 100);
        let inputs = if layer == 0 {
            "{ a: ./source.txt }".to_owned()
        } else {
            format!("{{ a: {}, b: {}.x }}", name(layer - 1, place), name(layer - 1, place + 1))
        };
        writeln!(text, "  {}:\n    in: {inputs}\n    run: cat {{in.a}} > {{out.x}}\n    out: {{ x: x.txt }}", name(layer, place)).unwrap();
    }
    text
}

fn main() {
    let count = std::env::args().nth(1).map_or(100_000, |count| count.parse().unwrap());
    let n = (count as f64).sqrt() as usize;
    let list = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
    let matrix = format!(
        "stages:\n  a: {{ matrix: {{ i: [{}], j: [{}] }}, run: 'echo ${{i}} ${{j}} > {{out.x}}', out: {{ x: x }} }}\n  b: {{ in: {{ x: a }}, run: 'cat {{in.x}} > {{out.x}}', out: {{ x: x }} }}\n  c: {{ in: {{ x: b, y: a }}, run: 'cat {{in.x}} > {{out.x}}', out: {{ x: x }} }}\n",
        list(n),
        list(n / 3)
    );
    let folder = std::env::temp_dir();
    std::fs::write(folder.join("source.txt"), "x").unwrap();
    for (name, text) in [("layers", layered(count)), ("matrix", matrix)] {
        let start = Instant::now();
        parse(&text, 0).unwrap();
        let parsed = start.elapsed();
        let mut files = Files::new();
        files.add("trestle.yaml", text.clone());
        let choices = Choices { profile: None, params: Vec::new(), overrides: Vec::new(), environment: &|_| None, known: &|_, _| None };
        let registry = Registry::default();
        let start = Instant::now();
        let pipeline = resolve::pipeline(&mut files, &folder, "time", &choices, &registry).unwrap();
        let all = start.elapsed();
        println!(
            "{name}: {} stages, {} KiB; parsed in {parsed:.2?}, parsed and resolved in {all:.2?}",
            pipeline.stages.len(),
            text.len() >> 10
        );
    }
}
