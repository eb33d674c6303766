//! Training steps of trestle's models, to be compared with PyTorch's:
//!
//! ```text
//! cargo build --release -p trestle-stages --example against_pytorch
//! python stages/examples/against_pytorch.py target/release/examples/against_pytorch
//! ```
//!
//! The script runs both sides in turns and prints the table. Alone, `against_pytorch MODEL THREADS STEPS` prints one line: wall and
//! processor milliseconds of the fastest step and of the median one. Words behind: `infer` for forward passes without gradients, `profile` for
//! what each op took as well; `cuda` for a GPU (in a build for one), `bf16` for half precision, `composed` for the form of the ops that a GPU
//! takes, on the CPU; `batch=N` for another number of images.
#![allow(clippy::print_stdout, reason = "it prints its measurements")]
#![allow(unsafe_code, reason = "the allocator's options are set by a call of C")]

use std::time::Instant;

use candle_core::{Device, Tensor};
use trestle_stages::Result;
use trestle_stages::error::Error;
use trestle_stages::generator::diffusion::Batch;
use trestle_stages::generator::{self, Config as GeneratorConfig, Generator, Vocab, text};
use trestle_stages::model::{Arch, Config, Model};
use trestle_stages::nn::compute::{Compute, DeviceKind, Place, Precision};
use trestle_stages::nn::ops::{Window, conv, cross_entropy, linear, max_pool2, one_hot, relu};
use trestle_stages::nn::optim::AdamW;
use trestle_stages::nn::parallel::form_team;
use trestle_stages::nn::params::Weights;
use trestle_stages::nn::profile;
use trestle_stages::nn::tape;
use trestle_stages::nn::{Params, composed};
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
fn plain(weights: &dyn Weights, x: &Tensor) -> Result<Tensor> {
    let block = |x: &Tensor, i: usize| -> Result<Tensor> {
        let (w, b) = (weights.weight(&format!("conv{i}.weight"))?, weights.weight(&format!("conv{i}.bias"))?);
        // Pooling before ReLU: the result is the same, for a quarter of the work.
        Ok(relu(&max_pool2(&conv(x, w, Some(b), Window::new(1, 1).fast())?)?)?)
    };
    let x = tape::reshape(&block(&block(x, 1)?, 2)?, (x.dim(0)?, 3136))?;
    let dense = |x: &Tensor, i: usize| -> Result<Tensor> {
        Ok(linear(x, weights.weight(&format!("fc{i}.weight"))?, Some(weights.weight(&format!("fc{i}.bias"))?))?)
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

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Train,
    Infer,
}

/// Wall and processor seconds of every step but the first three; a GPU has done all of a step by its end.
fn timed(device: &Device, steps: usize, mut step: impl FnMut() -> Result<()>) -> Result<Vec<(f64, f64)>> {
    let mut times = Vec::new();
    for i in 0..steps + 3 {
        if i == 3 && asked("profile") {
            profile::begin();
        }
        let (start, begin) = (Instant::now(), cpu());
        step()?;
        device.synchronize()?;
        if i >= 3 {
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

/// Training steps: forward, backward, AdamW.
fn train(params: &Params, steps: usize, mut loss: impl FnMut() -> Result<Tensor>) -> Result<Vec<(f64, f64)>> {
    let mut adam = AdamW::new(0.01);
    let device = params.iter().next().map_or(Device::Cpu, |(_, var)| var.device().clone());
    timed(&device, steps, || {
        let (loss, tape) = tape::record(&mut loss)?;
        let grads = tape.backward(&loss)?;
        adam.step(params, &grads, 1e-3, |_| true)
    })
}

/// Whether a word stands behind the numbers on the command line.
fn asked(word: &str) -> bool {
    std::env::args().skip(4).any(|argument| argument == word)
}

/// Where and in which precision, by the words on the command line.
fn place() -> Result<Place> {
    let device = if asked("cuda") { DeviceKind::Cuda } else { DeviceKind::Cpu };
    let precision = if asked("bf16") { Precision::Bf16 } else { Precision::F32 };
    Compute { device, precision }.open()
}

/// The number of images: another one if the command line says so.
fn batch(usual: usize) -> usize {
    std::env::args().find_map(|argument| argument.strip_prefix("batch=")?.parse().ok()).unwrap_or(usual)
}

/// A diffusion UNet of 4.7 million parameters with its text encoder.
fn unet(way: Way, steps: usize) -> Result<Vec<(f64, f64)>> {
    const BATCH: usize = 16;
    let config = GeneratorConfig { size: 32, channels: 3, width: 112, heads: 4, text_width: 64, text_heads: 4, text_blocks: 1 };
    let vocab = Vocab::from_prompts(["a photo of the one in the style of bold"], &[])?;
    let generator = Generator::new(config, vocab, &Stream::new(1, "init"))?;
    let prompts = vec![generator.vocab.encode("a photo of the one in the style of bold", false)?; BATCH];
    let draw = |name: &str| {
        let values = Stream::new(1, name).normals(BATCH * 32 * 32 * 3);
        Ok::<_, Error>(Tensor::from_vec(values, (BATCH, 32, 32, 3), &Device::Cpu)?)
    };
    let times = (0..BATCH).map(|i| (i as f64 + 0.5) / BATCH as f64).collect();
    let batch = Batch { noisy: draw("noisy")?, target: draw("target")?, times };
    if way == Way::Train {
        return train(&generator.params, steps, || batch.loss(&generator.params, &generator.config, &prompts, None));
    }
    let frozen = generator.params.frozen()?;
    timed(&Device::Cpu, steps, || {
        let context = text::encode(&frozen, &generator.config, &prompts, None)?;
        generator::unet::forward(&frozen, &generator.config, &batch.noisy, &batch.times, &context)?;
        Ok(())
    })
}

fn run(name: &str, way: Way, steps: usize) -> Result<Vec<(f64, f64)>> {
    let (arch, batch, side, channels) = match name {
        "unet" => return unet(way, steps),
        "plain" | "small-cnn" => (Arch::SmallCnn, BATCH, 28, 1),
        "resnet-18-32px" => (Arch::ResNet18Small, BATCH, 32, 3),
        "resnet-18-224px" => (Arch::ResNet18, 8, 224, 3),
        "vit-ti-4" => (Arch::VitTinySmall, BATCH, 32, 3),
        "squeezenet" => (Arch::SqueezeNet, BATCH, 64, 3),
        "resnet-50-224px" => (Arch::ResNet50, BATCH, 224, 3),
        "vit-b-16" => (Arch::VitBase, BATCH, 224, 3),
        _ => return Err(Error::argument(format!("there is no model `{name}`"))),
    };
    let (batch, place) = (self::batch(batch), place()?);
    let images = Stream::new(1, "images").normals(batch * side * side * channels);
    let x = place.bring(&Tensor::from_vec(images, (batch, side, side, channels), &Device::Cpu)?)?;
    let targets = one_hot(&(0..batch as u32).map(|i| i % 10).collect::<Vec<_>>(), 10, 0.0)?;
    if name == "plain" {
        let params = plain_params()?.on(&place.device)?;
        let frozen = params.frozen()?;
        return match way {
            Way::Train => train(&params, steps, || Ok(cross_entropy(&plain(&params, &x)?, &targets)?)),
            Way::Infer => timed(&place.device, steps, || plain(&frozen, &x).map(drop)),
        };
    }
    let classes = (0..10).map(|i| i.to_string()).collect();
    let mut model = Model::new(Config::new(arch, 32, [side, side], channels, classes)?, 1)?;
    model.params = model.params.on(&place.device)?;
    let frozen = model.params.frozen()?;
    match way {
        Way::Infer => timed(&place.device, steps, || model.logits(&frozen, &x).map(drop)),
        Way::Train => train(&model.params, steps, || {
            let (logits, statistics) = model.training_logits(&model.params, &x, &[])?;
            model.move_statistics(&statistics, 0.1)?;
            Ok(cross_entropy(&logits, &targets)?)
        }),
    }
}

fn main() -> Result<()> {
    // As `trestle job` does: freed memory is kept (option 15, `purge_delay`).
    // SAFETY: any option can be set at any time.
    unsafe { libmimalloc_sys::mi_option_set(15, -1) };
    let arguments: Vec<String> = std::env::args().collect();
    let usage = || Error::argument("against_pytorch MODEL THREADS STEPS [infer] [profile] [cuda] [bf16] [composed] [batch=N]");
    let number = |i: usize| arguments.get(i).and_then(|text| text.parse::<usize>().ok()).ok_or_else(usage);
    let (name, threads, steps) = (arguments.get(1).ok_or_else(usage)?, number(2)?, number(3)?);
    // As `trestle job` does.
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(|e| Error::argument(e.to_string()))?;
    form_team(threads).map_err(|e| Error::argument(e.to_string()))?;
    let way = if asked("infer") { Way::Infer } else { Way::Train };
    let _forced = asked("composed").then(composed::forced);
    let times = run(name, way, steps)?;
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
