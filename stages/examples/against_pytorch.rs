//! Training steps of trestle's models, to be compared with PyTorch's:
//!
//! ```text
//! cargo build --release -p trestle-stages --example against_pytorch
//! python stages/examples/against_pytorch.py target/release/examples/against_pytorch
//! ```
//!
//! The script runs both sides in turns and prints the table. Alone, `against_pytorch MODEL THREADS STEPS` prints one line: wall and
//! processor milliseconds of the fastest step and of the median one;
//! `against_pytorch MODEL THREADS STEPS profile` the milliseconds of every op as well.
#![allow(clippy::print_stdout, reason = "it prints its measurements")]
#![allow(unsafe_code, reason = "the allocator's options are set by a call of C")]

use std::time::Instant;

use candle_core::{Device, Tensor};
use trestle_stages::Result;
use trestle_stages::error::Error;
use trestle_stages::model::{Arch, Config, Model};
use trestle_stages::nn::Params;
use trestle_stages::nn::ops::{bias_add, conv2d, cross_entropy, linear, max_pool2, one_hot, relu};
use trestle_stages::nn::optim::AdamW;
use trestle_stages::nn::profile;
use trestle_stages::nn::tape;
use trestle_stages::rng::Stream;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 64;

/// Processor seconds of this process so far, all threads together; other programs' load does not count.
fn cpu() -> f64 {
    let schedstat = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("schedstat")).ok()?.split(' ').next()?.parse::<f64>().ok();
    schedstat.filter_map(of).sum::<f64>() / 1e9
}

/// The CNN of PyTorch's tutorials: two convolutions with pooling, two linear layers.
fn plain(params: &Params, x: &Tensor) -> Result<Tensor> {
    let block = |x: &Tensor, i: usize| -> Result<Tensor> {
        let (w, b) = (params.get(&format!("conv{i}.weight"))?, params.get(&format!("conv{i}.bias"))?);
        // Pooling before ReLU: the result is the same, for a quarter of the work.
        Ok(relu(&max_pool2(&conv2d(x, w, Some(b), 1, 1)?)?)?)
    };
    let x = tape::reshape(&block(&block(x, 1)?, 2)?, (BATCH, 3136))?;
    let dense = |x: &Tensor, i: usize| -> Result<Tensor> {
        Ok(bias_add(&linear(x, params.get(&format!("fc{i}.weight"))?, None)?, params.get(&format!("fc{i}.bias"))?)?)
    };
    dense(&relu(&dense(&x, 1)?)?, 2)
}

fn plain_params() -> Result<Params> {
    let (mut params, stream) = (Params::new(), Stream::new(1, "plain"));
    let sizes: [(&str, &[usize], usize); 4] =
        [("conv1", &[3, 3, 1, 32], 9), ("conv2", &[3, 3, 32, 64], 288), ("fc1", &[3136, 128], 3136), ("fc2", &[128, 10], 128)];
    for (name, shape, fan) in sizes {
        params.normal(&format!("{name}.weight"), shape, fan, 2.0, &stream)?;
        params.constant(&format!("{name}.bias"), &shape[shape.len() - 1..], 0.0)?;
    }
    Ok(params)
}

/// Wall and processor seconds of every step but the first three.
fn measure(params: &Params, steps: usize, mut loss: impl FnMut() -> Result<Tensor>) -> Result<Vec<(f64, f64)>> {
    let mut adam = AdamW::new(0.01);
    let mut times = Vec::new();
    for step in 0..steps + 3 {
        if step == 3 && profiled() {
            profile::begin();
        }
        let (start, begin) = (Instant::now(), cpu());
        let (loss, tape) = tape::record(&mut loss)?;
        let grads = tape.backward(&loss)?;
        adam.step(params, &grads, 1e-3, |_| true)?;
        drop((loss, grads));
        if step >= 3 {
            times.push((start.elapsed().as_secs_f64(), cpu() - begin));
        }
    }
    let mut parts: Vec<_> = profile::end().into_iter().collect();
    parts.sort_by_key(|(_, (time, _))| std::cmp::Reverse(*time));
    for ((way, op), (time, calls)) in parts {
        println!("{:9.3} ms, {:4} × {way} {op}", time.as_secs_f64() * 1e3 / steps as f64, calls / steps);
    }
    Ok(times)
}

/// Whether the times of the ops are asked for.
fn profiled() -> bool {
    std::env::args().nth(4).as_deref() == Some("profile")
}

fn run(name: &str, steps: usize) -> Result<Vec<(f64, f64)>> {
    let (arch, side, channels) = match name {
        "plain" | "small-cnn" => (Arch::SmallCnn, 28, 1),
        "resnet-18-32px" => (Arch::ResNet18Small, 32, 3),
        "vit-ti-4" => (Arch::VitTinySmall, 32, 3),
        "squeezenet" => (Arch::SqueezeNet, 64, 3),
        _ => return Err(Error::argument(format!("there is no model `{name}`"))),
    };
    let images = Stream::new(1, "images").normals(BATCH * side * side * channels);
    let x = Tensor::from_vec(images, (BATCH, side, side, channels), &Device::Cpu)?;
    let targets = one_hot(&(0..BATCH as u32).map(|i| i % 10).collect::<Vec<_>>(), 10, 0.0)?;
    if name == "plain" {
        let params = plain_params()?;
        return measure(&params, steps, || Ok(cross_entropy(&plain(&params, &x)?, &targets)?));
    }
    let classes = (0..10).map(|i| i.to_string()).collect();
    let model = Model::new(Config::new(arch, 32, [side, side], channels, classes)?, 1)?;
    measure(&model.params, steps, || {
        let (logits, statistics) = model.training_logits(&model.params, &x, &[])?;
        model.move_statistics(&statistics, 0.1)?;
        Ok(cross_entropy(&logits, &targets)?)
    })
}

fn main() -> Result<()> {
    // As `trestle job` does: freed memory is kept (option 15, `purge_delay`).
    // SAFETY: any option can be set at any time.
    unsafe { libmimalloc_sys::mi_option_set(15, -1) };
    let arguments: Vec<String> = std::env::args().collect();
    let usage = || Error::argument("against_pytorch MODEL THREADS STEPS [profile]");
    let number = |i: usize| arguments.get(i).and_then(|text| text.parse::<usize>().ok()).ok_or_else(usage);
    let (name, threads, steps) = (arguments.get(1).ok_or_else(usage)?, number(2)?, number(3)?);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| Error::argument(e.to_string()))?;
    let times = pool.install(|| run(name, steps))?;
    let of = |pick: fn(&(f64, f64)) -> f64| {
        let mut list: Vec<f64> = times.iter().map(pick).collect();
        list.sort_by(f64::total_cmp);
        (list[0] * 1e3, list[list.len() / 2] * 1e3)
    };
    let (wall, processor) = (of(|t| t.0), of(|t| t.1));
    let peak = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak =
        peak.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().split(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0;
    println!(
        r#"{{"wall_min": {:.2}, "wall_median": {:.2}, "cpu_min": {:.2}, "cpu_median": {:.2}, "peak_mb": {peak:.0}}}"#,
        wall.0, wall.1, processor.0, processor.1
    );
    Ok(())
}
