//! Milliseconds of one training step of the small CNN, with one and with two threads:
//! `cargo run --release -p trestle-stages --example training_speed`.
#![allow(clippy::print_stdout, reason = "it prints its measurements")]

use std::time::Instant;

use candle_core::{Device, Tensor};
use trestle_stages::Result;
use trestle_stages::data::{ImageSet, Images};
use trestle_stages::model::{Arch, Config, Model};
use trestle_stages::nn::Params;
use trestle_stages::nn::ops::{conv2d, cross_entropy, mse, relu};
use trestle_stages::nn::optim::AdamW;
use trestle_stages::rng::Stream;

/// A chain of 3×3 convolutions of 32 channels at 16×16: what a small UNet spends its time in.
fn stack(params: &Params, x: &Tensor) -> Result<Tensor> {
    (0..4).try_fold(x.clone(), |x, i| Ok(relu(&conv2d(&x, params.get(&format!("conv{i}"))?, None, 1, 1)?)?))
}

/// Medians of forward, backward and optimiser in ms.
fn measure(params: &Params, steps: usize, loss: impl Fn() -> Result<Tensor>) -> Result<[f64; 3]> {
    let mut adam = AdamW::new(0.01);
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..steps {
        let start = Instant::now();
        let loss = loss()?;
        let forward = Instant::now();
        let grads = loss.backward()?;
        let backward = Instant::now();
        adam.step(params, &grads, 1e-3, |_| true)?;
        let end = Instant::now();
        for (list, (a, b)) in times.iter_mut().zip([(start, forward), (forward, backward), (backward, end)]) {
            list.push((b - a).as_secs_f64() * 1e3);
        }
    }
    Ok(times.map(|mut list| {
        list.sort_by(f64::total_cmp);
        list[list.len() / 2]
    }))
}

fn report(what: &str, threads: usize, [forward, backward, step]: [f64; 3]) {
    let total = forward + backward + step;
    println!("{what:<34} {threads} threads: {total:6.2} ms a step (forward {forward:.2}, backward {backward:.2}, AdamW {step:.2})");
}

fn main() -> Result<()> {
    let (batch, side) = (64, 16);
    let pixels = Stream::new(1, "pixels").permutation(batch * side * side).into_iter().map(|v| (v % 256) as u8).collect();
    let names = (0..10).map(|k| k.to_string()).collect();
    let set = ImageSet::new(pixels, (0..batch as u32).map(|i| i % 10).collect(), (side, side, 1), names, "noise")?;
    let x = set.to_f32(&(0..batch).collect::<Vec<_>>(), Default::default())?;
    let targets: Vec<f32> = (0..batch * 10).map(|i| if i % 10 == i / 10 % 10 { 1.0 } else { 0.0 }).collect();
    for threads in [1, 2] {
        let pool =
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| trestle_stages::Error::argument(e.to_string()))?;
        pool.install(|| -> Result<()> {
            let model = Model::new(Config::for_images(Arch::SmallCnn, 32, &set)?, 1)?;
            let times = measure(&model.params, 200, || Ok(cross_entropy(&model.logits(&model.params, &x)?, &targets)?))?;
            report("small CNN, width 32, 16×16, batch 64", threads, times);
            let mut params = Params::new();
            for i in 0..4 {
                params.normal(&format!("conv{i}"), &[3, 3, 32, 32], 288, 2.0, &Stream::new(1, "stack"))?;
            }
            let input = Tensor::from_vec(Stream::new(2, "input").normals(batch * side * side * 32), (batch, side, side, 32), &Device::Cpu)?;
            let target = input.affine(0.5, 0.0)?;
            report("4 convolutions, 32 channels, 16×16", threads, measure(&params, 60, || Ok(mse(&stack(&params, &input)?, &target)?))?);
            Ok(())
        })?;
    }
    Ok(())
}
