#![allow(clippy::unwrap_used)]

mod checkpoints;
mod composed;
mod draws;

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::batch::{Batch, Maker};
use super::draws::Draws;
use super::*;
use crate::data::{ImageSet, Images, Stored};
use crate::model::{Arch, Config};
use crate::nn::compute::{Compute, Place, Precision};
use crate::nn::ops::cross_entropy;
use crate::nn::tape;
use crate::rng::Stream;

/// Images of class k have a bright column k, in noise.
fn bars(n: usize, seed: u64) -> ImageSet {
    let mut stream = Stream::new(seed, "bars");
    let mut images = Vec::new();
    let labels: Vec<u32> = (0..n).map(|i| i as u32 % 4).collect();
    for label in &labels {
        for pixel in 0..64 {
            let bright = if pixel % 8 / 2 == *label as usize { 120 } else { 0 };
            images.push((bright + stream.below(130)) as u8);
        }
    }
    ImageSet::new(images, labels, (8, 8, 1), (0..4).map(|k| format!("bar {k}")).collect(), "bars").unwrap()
}

fn model(set: &ImageSet) -> Model {
    Model::new(Config::for_images(Arch::SmallCnn, 8, set).unwrap(), 3).unwrap()
}

fn recipe(steps: usize) -> Recipe {
    let augment = Augment { shift: 0.5, scale: 0.05, noise: 0.02, ..Augment::default() };
    Recipe { length: Length::Steps(steps), batch: 32, lr: 1e-2, mixup: 0.2, label_smoothing: 0.1, augment, ..Recipe::default() }
}

fn run(set: &ImageSet, recipe: &Recipe) -> (Model, Log) {
    let mut model = model(set);
    let log = train(&mut model, &[Source { set, share: 1.0 }], recipe, 7, |_, _| {}).unwrap();
    (model, log)
}

fn refused(mut model: Model, set: &ImageSet, recipe: &Recipe) -> String {
    train(&mut model, &[Source { set, share: 1.0 }], recipe, 1, |_, _| {}).unwrap_err().to_string()
}

fn bytes_of(model: &Model, log: &Log) -> [blake3::Hash; 3] {
    let dir = tempfile::tempdir().unwrap();
    model.write(dir.path()).unwrap();
    log.write_steps(&dir.path().join("metrics.csv")).unwrap();
    log.write_epochs(&dir.path().join("epochs.csv")).unwrap();
    ["model.safetensors", "metrics.csv", "epochs.csv"].map(|file| blake3::hash(&std::fs::read(dir.path().join(file)).unwrap()))
}

fn differs(a: &Model, b: &Model, name: &str) -> bool {
    a.params.values(name).unwrap() != b.params.values(name).unwrap()
}

/// One batch of a set.
fn batch(sources: &[Source<'_>], recipe: &Recipe, config: &Config) -> Batch {
    let mut draws = Draws::new(sources, recipe, 1).unwrap();
    Maker::new(sources, None, recipe, config, 1).make(&draws.draw()).unwrap()
}

#[test]
fn it_learns_and_generalises() {
    let (set, test) = (bars(128, 1), bars(200, 2));
    let (model, log) = run(&set, &recipe(60));
    let rows = log.steps;
    assert!(rows[59].loss < 0.75 * rows[0].loss, "{} to {}", rows[0].loss, rows[59].loss);
    let indices: Vec<usize> = (0..200).collect();
    let logits = model.logits(&model.params, &test.to_f32(&indices, model.config.normalisation).unwrap()).unwrap();
    let hits = logits.to_vec2::<f32>().unwrap().iter().zip(&test.labels).filter(|(l, t)| argmax(l) == **t as usize).count();
    assert!(hits >= 190, "{hits} of 200");
}

/// With one thread batches are made when they are wanted, with more ahead, on threads of their own.
#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let set = bars(64, 1);
    let everything = Recipe {
        accumulate: 2,
        batch: 16,
        cutmix: 1.0,
        clip: Some(0.5),
        ema: Some(0.9),
        balanced: true,
        lr_scale: [("conv1".to_owned(), 0.1)].into(),
        augment: Augment {
            crop: 1,
            flip: 0.5,
            resized_crop: Some(ResizedCrop::default()),
            jitter: Some(Jitter { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1 }),
            rand_augment: Some(RandAugment::default()),
            erase: 0.25,
            ..recipe(8).augment
        },
        ..recipe(8)
    };
    for recipe in [recipe(12), everything] {
        let trained = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (model, log) = run(&set, &recipe);
                bytes_of(&model, &log)
            })
        };
        let one = trained(1);
        assert_eq!(one, trained(2));
        assert_eq!(one, trained(3));
    }
}

#[test]
fn frozen_units_stay() {
    let set = bars(64, 1);
    let before = model(&set);
    let (after, _) = run(&set, &Recipe { freeze: vec!["conv1".into(), "conv3".into()], ..recipe(3) });
    for (name, _) in before.params.iter() {
        assert_eq!(!differs(&before, &after, name), name.starts_with("conv1") || name.starts_with("conv3"), "{name}");
    }
    let all = Recipe { freeze: before.config.units.clone(), ..recipe(1) };
    assert!(refused(before.clone(), &set, &all).contains("nothing to train"));
    let unknown = Recipe { freeze: vec!["conv9".into()], ..recipe(1) };
    assert_eq!(refused(before, &set, &unknown), "`freeze`: the model has no unit `conv9`; its units are conv1, conv2, conv3, head");
}

/// What is written down for the way back of a model with a frozen prefix is what follows that prefix, and nothing else.
#[test]
fn nothing_goes_back_through_a_frozen_prefix() {
    let set = bars(8, 1);
    let model = resnet(&set);
    let images = set.to_f32(&[0, 1, 2, 3], model.config.normalisation).unwrap();
    let ops = |frozen: usize, norms: &[String]| {
        let weights = model.frozen(&model.config.units[..frozen]).unwrap();
        let (_, tape) = tape::record(|| model.training_logits(&weights, &images, norms)).unwrap();
        tape.len()
    };
    let units = &model.config.units;
    let counts: Vec<usize> = (0..=units.len()).map(|frozen| ops(frozen, &units[..frozen])).collect();
    assert!(counts.windows(2).all(|pair| pair[0] > pair[1]), "{counts:?}");
    // The head alone: a mean over the pixels, and a product with its bias.
    assert_eq!(counts[units.len() - 1..], [2, 0]);
    // Normalisations that adapt write down nothing either.
    assert_eq!(ops(units.len() - 1, &[]), 2);
}

fn resnet(set: &ImageSet) -> Model {
    Model::new(Config::for_images(Arch::ResNet18Small, 32, set).unwrap(), 3).unwrap()
}

#[test]
fn normalisations_of_frozen_units_are_frozen_or_adapt() {
    let set = bars(16, 1);
    let trained = |norms| {
        let mut model = resnet(&set);
        let freeze = model.config.units[..8].to_vec();
        let recipe = Recipe { freeze, frozen_norms: norms, batch: 4, ..recipe(1) };
        train(&mut model, &[Source { set: &set, share: 1.0 }], &recipe, 7, |_, _| {}).unwrap();
        model
    };
    let (fresh, frozen, adapting) = (resnet(&set), trained(Norms::Frozen), trained(Norms::Adapting));
    assert!(!differs(&fresh, &frozen, "bn1.running_mean") && differs(&fresh, &adapting, "bn1.running_mean"));
    assert!(differs(&fresh, &frozen, "layer4.1.bn2.running_mean"));
    assert!(!differs(&fresh, &adapting, "conv1.weight") && !differs(&fresh, &adapting, "bn1.weight"));
}

/// AdamW's first step is the learning rate in every value, whatever the gradient.
#[test]
fn a_unit_can_have_its_own_learning_rate() {
    let set = bars(64, 1);
    let plain = Recipe { weight_decay: 0.0, schedule: Shape::Constant, warmup: 0.0, ..recipe(1) };
    let recipe = Recipe { lr_scale: [("conv1".to_owned(), 0.25), ("head".to_owned(), 2.0)].into(), ..plain };
    let (before, (after, _)) = (model(&set), run(&set, &recipe));
    for (name, share) in [("conv1.weight", 0.25), ("conv2.weight", 1.0), ("head.weight", 2.0)] {
        let (old, new) = (before.params.values(name).unwrap(), after.params.values(name).unwrap());
        let mut moves: Vec<f32> = old.iter().zip(&new).map(|(a, b)| (a - b).abs()).collect();
        moves.sort_by(f32::total_cmp);
        assert!((moves[moves.len() / 2] / (0.01 * share) - 1.0).abs() < 0.02, "{name}: {}", moves[moves.len() / 2]);
    }
    let unknown = Recipe { lr_scale: [("stem".to_owned(), 0.1)].into(), ..self::recipe(1) };
    assert_eq!(refused(before, &set, &unknown), "`lr_scale`: the model has no unit `stem`; its units are conv1, conv2, conv3, head");
}

/// Every option on its own makes another model of the same start.
#[test]
fn no_option_is_without_effect() {
    let set = bars(64, 1);
    let plain = Recipe { augment: Augment::default(), mixup: 0.0, batch: 16, warmup: 0.25, ..recipe(4) };
    let sgd = Recipe { optimiser: Optimiser::Sgd, ..plain.clone() };
    let variants = [
        plain.clone(),
        sgd.clone(),
        Recipe { momentum: Some(0.5), ..sgd.clone() },
        Recipe { nesterov: true, ..sgd.clone() },
        Recipe { optimiser: Optimiser::Lamb, ..plain.clone() },
        Recipe { schedule: Shape::Constant, ..plain.clone() },
        Recipe { schedule: Shape::Step, ..plain.clone() },
        Recipe { schedule: Shape::Step, milestones: vec![0.75], ..plain.clone() },
        Recipe { schedule: Shape::Step, gamma: 0.5, ..plain.clone() },
        Recipe { schedule: Shape::OneCycle, ..plain.clone() },
        Recipe { schedule: Shape::OneCycle, cycle_momentum: Some([0.85, 0.95]), ..plain.clone() },
        Recipe { schedule: Shape::OneCycle, ..sgd.clone() },
        Recipe { schedule: Shape::OneCycle, cycle_momentum: Some([0.85, 0.95]), ..sgd.clone() },
        Recipe { warmup: 0.5, ..plain.clone() },
        Recipe { weight_decay: 0.5, ..plain.clone() },
        Recipe { clip: Some(1e-3), ..plain.clone() },
        Recipe { accumulate: 2, ..plain.clone() },
        Recipe { ema: Some(0.5), ..plain.clone() },
        Recipe { mixup: 0.2, ..plain.clone() },
        Recipe { cutmix: 1.0, ..plain.clone() },
        Recipe { mixup: 0.2, cutmix: 1.0, ..plain.clone() },
        Recipe { label_smoothing: 0.0, ..plain.clone() },
        Recipe { balanced: true, ..plain.clone() },
        Recipe { augment: Augment { noise: 0.1, ..Augment::default() }, ..plain.clone() },
    ];
    let weights: Vec<Vec<f32>> = variants.iter().map(|recipe| run(&set, recipe).0.params.values("conv2.weight").unwrap()).collect();
    for (i, a) in weights.iter().enumerate() {
        let same = weights[..i].iter().position(|b| a == b);
        assert!(same.is_none(), "{:?} and {:?}", variants[i], same.map(|j| &variants[j]));
    }
    assert!(variants.iter().all(|recipe| recipe.check().is_empty()));
}

/// The small CNN normalises each image by itself, so two batches of half the size have the gradient of the whole.
#[test]
fn accumulated_batches_are_one_large_batch() {
    let set = bars(64, 1);
    let whole = Recipe { optimiser: Optimiser::Sgd, mixup: 0.0, augment: Augment::default(), batch: 32, ..recipe(3) };
    let halves = Recipe { batch: 8, accumulate: 4, ..whole.clone() };
    let ((a, rows_a), (b, rows_b)) = (run(&set, &whole), run(&set, &halves));
    for (name, _) in a.params.iter() {
        let close = |(a, b): (f32, f32)| (a - b).abs() < 1e-5;
        assert!(a.params.values(name).unwrap().into_iter().zip(b.params.values(name).unwrap()).all(close), "{name}");
    }
    assert!((rows_a.steps[2].loss - rows_b.steps[2].loss).abs() < 1e-5);
    assert_eq!(rows_a.steps[2].accuracy, rows_b.steps[2].accuracy);
}

/// With plain gradient descent the first step is as long as the gradient, times the learning rate.
#[test]
fn clipped_gradients_have_the_limit_as_their_norm() {
    let set = bars(64, 1);
    let sgd = Recipe { optimiser: Optimiser::Sgd, momentum: Some(0.0), weight_decay: 0.0, warmup: 0.0, ..recipe(1) };
    let length = |recipe: &Recipe| {
        let (before, (after, log)) = (model(&set), run(&set, recipe));
        let values = |model: &Model| before.params.iter().flat_map(|(name, _)| model.params.values(name).unwrap()).collect::<Vec<_>>();
        let squares = values(&before).iter().zip(values(&after)).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        (squares.sqrt() / recipe.lr, log.steps[0].grad_norm)
    };
    let (free, none) = length(&sgd);
    assert!(none.is_none());
    let (clipped, norm) = length(&Recipe { clip: Some(free / 3.0), ..sgd.clone() });
    assert!((clipped / (free / 3.0) - 1.0).abs() < 1e-3 && (norm.unwrap() / free - 1.0).abs() < 1e-3, "{free} {clipped} {norm:?}");
    let (loose, _) = length(&Recipe { clip: Some(free * 2.0), ..sgd });
    assert!((loose / free - 1.0).abs() < 1e-6);
}

/// With a decay d the average after one step is a mean of the weights before and after: at first the decay is 2/11.
#[test]
fn the_average_of_the_weights_is_what_comes_out() {
    let set = bars(64, 1);
    let plain = Recipe { warmup: 0.0, ..recipe(1) };
    let (start, (last, _)) = (model(&set), run(&set, &plain));
    let (average, _) = run(&set, &Recipe { ema: Some(0.999), ..plain });
    for name in ["conv1.weight", "head.weight"] {
        let [a, b, m] = [&start, &last, &average].map(|model| model.params.values(name).unwrap());
        assert!((0..a.len()).all(|i| (a[i] + (b[i] - a[i]) * 9.0 / 11.0 - m[i]).abs() < 1e-6), "{name}");
    }
}

#[test]
fn a_loss_that_is_not_finite_ends_the_training() {
    let set = bars(64, 1);
    let error = refused(model(&set), &set, &Recipe { lr: 1e30, ..recipe(20) });
    assert!(error.contains("the loss is") && error.contains("at step") && error.contains("`lr`"), "{error}");
}

#[test]
fn epochs_are_passes_and_have_the_means_of_their_steps() {
    let set = bars(40, 1);
    let (_, log) = run(&set, &Recipe { batch: 16, ..recipe(6) });
    // 16, 32, 48 | 64, 80 | 96, broken off.
    let places: Vec<(usize, usize)> = log.epochs.iter().map(|epoch| (epoch.epoch, epoch.step)).collect();
    assert_eq!(places, [(1, 3), (2, 5), (3, 6)]);
    let mean = (f64::from(log.steps[3].loss) + f64::from(log.steps[4].loss)) / 2.0;
    assert_eq!((log.epochs[1].loss, log.epochs[1].lr), (mean, log.steps[4].lr));
    let dir = tempfile::tempdir().unwrap();
    let text = |write: &dyn Fn(&std::path::Path)| {
        write(&dir.path().join("m.csv"));
        std::fs::read_to_string(dir.path().join("m.csv")).unwrap()
    };
    let epochs = text(&|path| log.write_epochs(path).unwrap());
    assert!(epochs.starts_with(&format!("epoch,step,loss,accuracy,lr\n1,3,{:.6},", log.epochs[0].loss)), "{epochs}");
    assert_eq!(text(&|path| log.write_steps(path).unwrap()).lines().next(), Some("step,loss,accuracy,lr"));
}

/// Labels by chance: what is learnt of the images does not hold for those held out, so their loss soon rises.
#[test]
fn training_stops_when_held_out_images_gain_nothing_and_gives_the_best_weights() {
    let mut set = bars(80, 1);
    let mut stream = Stream::new(1, "labels");
    set.labels.iter_mut().for_each(|label| *label = stream.below(4) as u32);
    let stopping = EarlyStopping { holdout: 0.25, patience: 3 };
    let recipe = Recipe { early_stopping: Some(stopping), mixup: 0.0, label_smoothing: 0.0, batch: 20, ..recipe(300) };
    let split = hold_out(&set, stopping, 5).unwrap();
    let (learnt, held_out) = (set.subset(&split.train).unwrap(), set.subset(&split.test).unwrap());
    assert!(held_out.len() >= 18 && learnt.len() + held_out.len() == 80);
    assert!((0..held_out.len()).all(|i| (0..learnt.len()).all(|k| held_out.image(i) != learnt.image(k))));
    let sources = [Source { set: &learnt, share: 1.0 }];
    let mut model = model(&set);
    let training = Training { held_out: Some(&held_out), ..Training::new(&sources, &recipe, 7) };
    let log = training.run(&mut model, |_| {}).unwrap();
    let losses: Vec<f64> = log.epochs.iter().map(|epoch| epoch.held_out.unwrap().loss).collect();
    let best = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert!(losses.len() < 60, "it did not stop: {losses:?}");
    assert_eq!(losses.iter().position(|loss| *loss == best), Some(losses.len() - 4));
    let now = held_out::score(&model, (&model.params.frozen().unwrap(), &Place::cpu()), &held_out, None, 20).unwrap();
    assert_eq!(now.loss, best);
    let none = EarlyStopping { holdout: 0.001, ..stopping };
    assert!(hold_out(&set, none, 5).unwrap_err().to_string().contains("early_stopping.holdout"));
}

#[test]
fn senseless_recipes_are_refused_with_their_path() {
    let bad = Recipe { batch: 0, lr: -1.0, mixup: f64::NAN, label_smoothing: 1.0, length: Length::Epochs(0.0), ..Recipe::default() };
    let paths: Vec<String> = bad.check().into_iter().map(|e| e.path).collect();
    assert_eq!(paths, ["epochs", "batch", "lr", "mixup", "label_smoothing"]);
    assert!(Recipe::default().check().is_empty());
    assert_eq!((Length::Epochs(2.0).steps(100, 64), Length::Epochs(0.1).steps(1, 64), Length::Steps(5).steps(1, 1)), (4, 1, 5));
    let paths = |recipe: Recipe| recipe.check().into_iter().map(|e| e.path).collect::<Vec<_>>();
    let default = Recipe::default;
    assert_eq!(paths(Recipe { momentum: Some(0.9), nesterov: true, ..default() }), ["momentum", "nesterov"]);
    assert_eq!(paths(Recipe { optimiser: Optimiser::Sgd, momentum: Some(1.0), ..default() }), ["momentum"]);
    assert_eq!(paths(Recipe { milestones: vec![0.3], gamma: 2.0, ..default() }), ["gamma", "milestones", "gamma"]);
    let step = Recipe { schedule: Shape::Step, milestones: vec![0.5, 0.2, 1.5], ..default() };
    assert_eq!(paths(step), ["milestones[2]", "milestones"]);
    let scales = [("a".to_owned(), 0.0), ("b".to_owned(), 1.0)].into();
    assert_eq!(paths(Recipe { lr_scale: scales, freeze: vec!["b".into()], ..default() }), ["lr_scale.a", "lr_scale.b"]);
    let cycle = |limits| Recipe { cycle_momentum: Some(limits), ..default() };
    assert_eq!(paths(cycle([0.85, 0.95])), ["cycle_momentum"]);
    let one = |limits| Recipe { schedule: Shape::OneCycle, ..cycle(limits) };
    assert_eq!(paths(one([0.9, 0.8])), ["cycle_momentum"]);
    assert_eq!(paths(one([0.0, 0.8])), ["cycle_momentum"]);
    assert_eq!(paths(Recipe { optimiser: Optimiser::Sgd, momentum: Some(0.9), ..one([0.8, 0.9]) }), ["momentum"]);
    let odd = Recipe { accumulate: 0, clip: Some(0.0), ema: Some(1.0), cutmix: -1.0, ..default() };
    assert_eq!(paths(odd), ["accumulate", "clip", "ema", "cutmix"]);
    let stopping = Some(EarlyStopping { holdout: 1.0, patience: 0 });
    assert_eq!(paths(Recipe { early_stopping: stopping, ..default() }), ["early_stopping.holdout", "early_stopping.patience"]);
}

/// Six steps under gradients of our own, and what PyTorch's optimisers make of them under its `OneCycleLR` (`tests/fixtures/one_cycle.py`).
#[test]
fn momentum_that_goes_with_the_cycle_is_pytorchs() {
    let base = Recipe { schedule: Shape::OneCycle, lr: 0.1, warmup: 0.5, weight_decay: 0.0, cycle_momentum: Some([0.6, 0.9]), ..recipe(6) };
    let sgd = Recipe { optimiser: Optimiser::Sgd, ..base.clone() };
    let nesterov = Recipe { nesterov: true, ..sgd.clone() };
    for (recipe, wanted) in [(sgd, [0.290_173_4, -1.723_833_7]), (nesterov, [0.095_571_2, -1.725_068_4]), (base, [0.746_406_6, -1.859_702])]
    {
        let mut params = crate::nn::Params::new();
        params.insert("w", &[1, 2], vec![1.0, -2.0]).unwrap();
        let (schedule, mut optimiser) = (recipe.schedule(), recipe.optimiser());
        for step in 0..6 {
            let gradient = Tensor::new(&[[0.5 * (step as f32 + 1.0), -1.0 / (step as f32 + 1.0)]], &Device::Cpu).unwrap();
            let grads = (params.get("w").unwrap() * gradient).unwrap().sum_all().unwrap().backward().unwrap();
            optimiser.set_momentum(schedule.momentum_at(step, 6).unwrap());
            optimiser.step_scaled(&params, &grads, schedule.at(step, 6), &|_| 1.0).unwrap();
        }
        let found = params.values("w").unwrap();
        assert!(found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 2e-6), "{:?}: {found:?}", recipe.optimiser);
    }
}

/// Images that stay on disk are trained on as those in memory are, to the bit: with one thread and two, with a part held out, and with a second set.
#[test]
fn stored_images_give_the_same_bytes_as_those_in_memory() {
    let (a, b) = (bars(64, 1), bars(16, 2));
    let folders = [&a, &b].map(|set| {
        let folder = tempfile::tempdir().unwrap();
        set.write(folder.path()).unwrap();
        folder
    });
    let [stored_a, stored_b] = folders.each_ref().map(|folder| -> Arc<dyn Images> { Arc::new(Stored::open(folder.path()).unwrap()) });
    let recipe = Recipe {
        batch: 16,
        cutmix: 1.0,
        balanced: true,
        early_stopping: Some(EarlyStopping { holdout: 0.25, patience: 50 }),
        augment: Augment { crop: 1, flip: 0.5, ..recipe(8).augment },
        ..recipe(8)
    };
    let trained = |a: Arc<dyn Images>, b: Arc<dyn Images>, threads: usize| {
        let parts = Parts::new(a, None, &recipe, 1).unwrap();
        let sources = [Source { set: parts.train.0.as_ref(), share: 0.75 }, Source { set: b.as_ref(), share: 0.25 }];
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut model = model(&bars(64, 1));
            let log = parts.training(&sources, &recipe, 7).run(&mut model, |_| {}).unwrap();
            bytes_of(&model, &log)
        })
    };
    let memory = trained(Arc::new(a), Arc::new(b), 1);
    assert_eq!(memory, trained(stored_a.clone(), stored_b.clone(), 1));
    assert_eq!(memory, trained(stored_a, stored_b, 2));
}
