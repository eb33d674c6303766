//! Accuracy and time of the transfer recipes on the digits of this repository, with typefaces in the place of generated images:
//! `cargo run --release -p trestle-stages --example classify -- pipelines/data [key=value]…`
//!
//! Keys and their defaults: `shots=5 per_class=100 seeds=3 width=32 batch=64 lr=0.002 adapt=200 pretrain=300 mixup=0.2 shift=0 scale=0 noise=0`. One
//! thread, as the stages of a pipeline that fills the machine with stages have it. Typefaces are real pictures, so the figures bound from above what
//! images of a generator of typefaces can give.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "an example prints, and stops at the first problem")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use trestle_stages::data::source::{Options, read};
use trestle_stages::data::split::{Share, split};
use trestle_stages::data::{ImageSet, Images};
use trestle_stages::model::{Arch, Config, Model};
use trestle_stages::train::{Augment, Length, Recipe, Row, Source, argmax, train};

/// What the command line sets.
struct Settings(BTreeMap<String, f64>);

impl Settings {
    fn read() -> Self {
        let defaults =
            [("shots", 5.0), ("per_class", 100.0), ("seeds", 3.0), ("width", 32.0), ("batch", 64.0), ("lr", 2e-3), ("adapt", 200.0)];
        let more = [("pretrain", 300.0), ("mixup", 0.2), ("shift", 0.0), ("scale", 0.0), ("noise", 0.0)];
        let mut values: BTreeMap<String, f64> = defaults.into_iter().chain(more).map(|(k, v)| (k.to_owned(), v)).collect();
        for pair in std::env::args().skip(2) {
            let (key, value) = pair.split_once('=').unwrap_or_else(|| panic!("`{pair}` is not key=value"));
            let known = values.get_mut(key).unwrap_or_else(|| panic!("unknown key `{key}`"));
            *known = value.parse().unwrap();
        }
        Self(values)
    }

    fn get(&self, key: &str) -> f64 {
        self.0[key]
    }

    fn recipe(&self, steps: &str, mixup: f64) -> Recipe {
        let augment = Augment { shift: self.get("shift"), scale: self.get("scale"), noise: self.get("noise"), ..Augment::default() };
        let (batch, lr) = (self.get("batch") as usize, self.get("lr"));
        Recipe { length: Length::Steps(self.get(steps) as usize), batch, lr, mixup, augment, ..Recipe::default() }
    }
}

/// The images of one seed.
struct Task {
    fonts: ImageSet,
    shots: ImageSet,
    test: ImageSet,
    seed: u64,
}

/// Steps and seconds of all training so far.
#[derive(Default)]
struct Clock {
    steps: usize,
    seconds: f64,
}

impl Clock {
    fn train(&mut self, model: &mut Model, sources: &[Source<'_>], recipe: &Recipe, seed: u64) -> Vec<Row> {
        let start = Instant::now();
        let rows = train(model, sources, recipe, seed, |_, _| ()).unwrap().steps;
        self.seconds += start.elapsed().as_secs_f64();
        self.steps += rows.len();
        rows
    }
}

fn only(set: &ImageSet) -> [Source<'_>; 1] {
    [Source { set, share: 1.0 }]
}

fn accuracy(model: &Model, test: &ImageSet) -> f64 {
    let indices: Vec<usize> = (0..test.len()).collect();
    let right = |part: &[usize]| {
        let logits = model.logits(&model.params.frozen().unwrap(), &test.to_f32(part, model.config.normalisation).unwrap()).unwrap();
        logits.to_vec2::<f32>().unwrap().iter().zip(part).filter(|(row, i)| argmax(row) == test.labels[**i] as usize).count()
    };
    indices.chunks(256).map(right).sum::<usize>() as f64 / test.len() as f64
}

/// The accuracy of every recipe on one task.
fn recipes(task: &Task, settings: &Settings, clock: &mut Clock) -> Vec<(&'static str, f64)> {
    let fresh = || Model::new(Config::for_images(Arch::SmallCnn, settings.get("width") as usize, &task.shots).unwrap(), task.seed).unwrap();
    let alpha = settings.get("mixup");
    let (plain, mixed) = (settings.recipe("adapt", 0.0), settings.recipe("adapt", alpha));
    let mut out = Vec::new();
    let mut judge = |name, model: &Model| out.push((name, accuracy(model, &task.test)));
    for (name, recipe) in [("vanilla", &plain), ("vanilla, mixup", &mixed)] {
        let mut model = fresh();
        clock.train(&mut model, &only(&task.shots), recipe, task.seed);
        judge(name, &model);
    }
    let union = task.fonts.len() as f64 / (task.fonts.len() + task.shots.len()) as f64;
    for (name, share) in [("mixed, half and half", 0.5), ("mixed, union", union)] {
        let mut model = fresh();
        let sources = [Source { set: &task.shots, share: 1.0 - share }, Source { set: &task.fonts, share }];
        clock.train(&mut model, &sources, &plain, task.seed);
        judge(name, &model);
    }
    let stages = [("synthetic only", "bridged", "bridged, new head", 0.0), ("synthetic only, mixup", "bridged, mixup", "bridged++", alpha)];
    for (first, second, third, alpha) in stages {
        let mut start = fresh();
        clock.train(&mut start, &only(&task.fonts), &settings.recipe("pretrain", alpha), task.seed);
        judge(first, &start);
        for (name, reinit) in [(second, false), (third, true)] {
            let mut model = start.with_params(start.params.copied().unwrap());
            if reinit {
                model.reinit_head(&task.shots.meta.classes, task.seed).unwrap();
            }
            clock.train(&mut model, &only(&task.shots), &plain, task.seed);
            judge(name, &model);
        }
    }
    out
}

fn main() {
    let data = std::env::args().nth(1).expect("the folder pipelines/data");
    let settings = Settings::read();
    let load = |name: &str| read(&Path::new(&data).join(name), None, &Options { size: Some(16), ..Options::default() }).unwrap();
    let (real, fonts) = (load("optdigits.safetensors"), load("fontdigits.safetensors"));
    let few = |set: &ImageSet, key: &str, seed| split(set, Share::Shots(settings.get(key) as usize), seed).unwrap();
    let mut clock = Clock::default();
    let mut scores: Vec<(&str, Vec<f64>)> = Vec::new();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for seed in 0..settings.get("seeds") as u64 {
        let parts = few(&real, "shots", seed);
        let fonts = fonts.subset(&few(&fonts, "per_class", 0).train).unwrap();
        let task = Task { fonts, shots: real.subset(&parts.train).unwrap(), test: real.subset(&parts.test).unwrap(), seed };
        for (i, (name, score)) in pool.install(|| recipes(&task, &settings, &mut clock)).into_iter().enumerate() {
            if scores.len() == i {
                scores.push((name, Vec::new()));
            }
            scores[i].1.push(100.0 * score);
        }
    }
    println!("{}", settings.0.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" "));
    for (name, values) in scores {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (values.len() as f64 - 1.0).max(1.0);
        println!("{name:<24} {mean:5.1} ± {:.1} %", variance.sqrt());
    }
    println!("{} steps, {:.1} s, {:.2} ms a step on one thread", clock.steps, clock.seconds, clock.seconds * 1e3 / clock.steps as f64);
}
