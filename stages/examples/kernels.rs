//! Speed of the kernels: `cargo run --release -p trestle-stages --example kernels`.
//!
//! Prints GFLOP a processor second of convolutions of the quickstart's shapes and of a ViT's linear layers, forward and with both backward passes, on one
//! thread and on all.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use trestle_stages::nn::ops::{conv2d, linear};
use trestle_stages::rng::Stream;

fn tensor(shape: &[usize]) -> Tensor {
    Tensor::from_vec(Stream::new(1, "x").normals(shape.iter().product()), shape, &Device::Cpu).unwrap()
}

/// Processor seconds of this process so far, all threads together; other programs' load does not count.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// Processor seconds of one run, over enough runs for the clock's ticks of 10 ms.
fn seconds(mut f: impl FnMut()) -> f64 {
    f();
    let (start, begin) = (cpu(), Instant::now());
    let mut runs = 0;
    while cpu() - start < 0.4 && begin.elapsed().as_secs() < 5 {
        f();
        runs += 1;
    }
    (cpu() - start) / f64::from(runs)
}

fn main() {
    println!("{:>24} {:>9} {:>9} {:>12}", "n×h×w×c→o k, or rows×c→o", "threads", "forward", "fwd+bwd");
    for (n, h, c, o, k) in [
        (64, 8, 32, 32, 3),
        (64, 8, 64, 64, 3),
        (64, 8, 48, 48, 3),
        (64, 4, 64, 64, 3),
        (64, 4, 128, 128, 3),
        (64, 8, 64, 64, 1),
        (64, 16, 32, 32, 3),
    ] {
        let x = Var::from_tensor(&tensor(&[n, h, h, c])).unwrap();
        let w = Var::from_tensor(&tensor(&[k, k, c, o])).unwrap();
        let flops = 2.0 * (n * h * h * k * k * c * o) as f64;
        compare(
            &format!("{n}×{h}×{h}×{c}→{o} {k}"),
            flops,
            || conv2d(&x.as_detached_tensor(), &w.as_detached_tensor(), None, 1, k / 2).unwrap(),
            || conv2d(&x, &w, None, 1, k / 2).unwrap(),
        );
    }
    for (rows, c, o) in [(4160, 192, 576), (4160, 192, 192), (4160, 192, 768), (4160, 768, 192), (4160, 384, 1536), (788, 768, 3072)] {
        let (x, w, b) = (Var::from_tensor(&tensor(&[rows, c])).unwrap(), tensor(&[c, o]), tensor(&[o]));
        let (w, b) = (Var::from_tensor(&w).unwrap(), Var::from_tensor(&b).unwrap());
        let detached = [&x, &w, &b].map(|v| v.as_detached_tensor());
        compare(
            &format!("{rows}×{c}→{o}"),
            2.0 * (rows * c * o) as f64,
            || linear(&detached[0], &detached[1], Some(&detached[2])).unwrap(),
            || linear(&x, &w, Some(&b)).unwrap(),
        );
    }
}

/// Prints a line of the table: `plain` has nothing to derive, `tracked` has.
fn compare(name: &str, flops: f64, plain: impl Fn() -> Tensor + Send + Sync, tracked: impl Fn() -> Tensor + Send + Sync) {
    for threads in [1, rayon::current_num_threads()] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let forward = seconds(|| drop(plain()));
            let both = seconds(|| drop(tracked().sum_all().unwrap().backward().unwrap()));
            println!("{name:>24} {threads:>9} {:>9.1} {:>12.1}", flops / forward / 1e9, 3.0 * flops / both / 1e9);
        });
    }
}
