//! The stages that train and judge classifiers, run as the engine runs them, on the digits of this repository.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;
use trestle_engine::stage::{Context, Input, Progress, Sink, StageError};
use trestle_stages::data::ImageSet;
use trestle_stages::registry;

#[derive(Default)]
struct Notes {
    steps: Vec<Progress>,
    metrics: BTreeMap<String, f64>,
    notes: Vec<String>,
}

impl Sink for Notes {
    fn progress(&mut self, progress: Progress) {
        self.steps.push(progress);
    }
    fn metric(&mut self, name: &str, value: f64) {
        self.metrics.insert(name.to_owned(), value);
    }
    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }
}

struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// Runs a stage into the folder `to`.
    fn run(&self, kind: &str, to: &str, with: Value, inputs: &[(&str, &[&Path])]) -> Result<Notes, StageError> {
        let registry = registry();
        let kind = registry.get(kind).unwrap();
        let params = kind.check(&with).unwrap().params;
        let path = |path: &&Path| Input { path: path.to_path_buf(), labels: BTreeMap::new() };
        let inputs = inputs.iter().map(|(name, paths)| ((*name).to_owned(), paths.iter().map(path).collect())).collect();
        let out = self.dir.path().join(to);
        fs::create_dir_all(&out).unwrap();
        let outputs = kind.outputs.iter().map(|port| (port.name.to_owned(), out.join(port.path))).collect();
        let mut notes = Notes::default();
        kind.run(&params, &mut Context::new(inputs, outputs, 2, &mut notes))?;
        Ok(notes)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn scores(&self, to: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.at(to).join("scores/scores.json")).unwrap()).unwrap()
    }

    /// Few real digits to learn from, many to judge by, and digits of typefaces.
    fn digits(&self) {
        let data = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../pipelines/data").join(name);
        let real = json!({"shots": 5, "limit_test": 500, "seed": 1, "size": 16});
        self.run("dataset", "real", real, &[("source", &[&data("optdigits.safetensors")])]).unwrap();
        self.run("dataset", "fonts", json!({"size": 16, "shots": 60}), &[("source", &[&data("fontdigits.safetensors")])]).unwrap();
    }
}

fn bytes(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

#[test]
fn bridged_transfer_from_typefaces_to_handwriting() {
    let bench = Bench::new();
    bench.digits();
    let (fonts, real, test) = (bench.at("fonts/train"), bench.at("real/train"), bench.at("real/test"));
    let augment = json!({"shift": 1.0, "scale": 0.1});
    let pretrain = json!({"width": 16, "steps": 60, "mixup": 0.2, "augment": augment, "seed": 1});
    let notes = bench.run("synthetic-pretrain", "pre", pretrain, &[("data", &[&fonts])]).unwrap();
    assert_eq!((notes.steps.len(), notes.steps[0].step, notes.steps[0].total), (60, 1, 60));
    assert!(notes.steps[59].loss.unwrap() < notes.steps[0].loss.unwrap());
    let metrics = fs::read_to_string(bench.at("pre/metrics.csv")).unwrap();
    assert_eq!((metrics.lines().next(), metrics.lines().count()), (Some("step,loss,accuracy,lr"), 61));

    let adapt = |to: &str, extra: Value, inputs: &[(&str, &[&Path])]| {
        let mut with = json!({"width": 16, "steps": 120, "augment": augment, "seed": 1});
        with.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        bench.run("real-adaptation", to, with, inputs).unwrap();
        let model = bench.at(to).join("model");
        let notes = bench.run("evaluation", to, json!({}), &[("model", &[&model]), ("data", &[&test])]).unwrap();
        assert_eq!(notes.metrics["top1"], bench.scores(to)["top1"].as_f64().unwrap());
        notes.metrics["top1"]
    };
    let pre = bench.at("pre/model");
    let vanilla = adapt("vanilla", json!({}), &[("data", &[&real])]);
    let mixed = adapt("mixed", json!({"mix": 0.5}), &[("data", &[&real]), ("extra", &[&fonts])]);
    let bridged = adapt("bridged", json!({}), &[("data", &[&real]), ("model", &[&pre])]);
    let plus = adapt("plus", json!({"reinit_head": true, "freeze": ["conv1"]}), &[("data", &[&real]), ("model", &[&pre])]);
    for (name, top1) in [("vanilla", vanilla), ("mixed", mixed), ("bridged", bridged), ("bridged++", plus)] {
        assert!(top1 > 0.5, "{name} {top1}; vanilla {vanilla} mixed {mixed} bridged {bridged} bridged++ {plus}");
    }
    // The same again gives the same bytes.
    let first = bytes(&bench.at("plus/model"));
    adapt("again", json!({"reinit_head": true, "freeze": ["conv1"]}), &[("data", &[&real]), ("model", &[&pre])]);
    assert_eq!(first, bytes(&bench.at("again/model")));

    let confusion = fs::read_to_string(bench.at("bridged/scores/confusion.csv")).unwrap();
    let total: usize =
        confusion.lines().skip(1).flat_map(|line| line.split(',').skip(1).map(|v| v.parse::<usize>().unwrap()).collect::<Vec<_>>()).sum();
    assert_eq!((total as u64, confusion.lines().count()), (bench.scores("bridged")["count"].as_u64().unwrap(), 11));
}

fn plain(classes: &[&str], side: usize) -> ImageSet {
    let labels: Vec<u32> = (0..classes.len() as u32).collect();
    let images = (0..labels.len() * side * side).map(|i| (i % 251) as u8).collect();
    ImageSet::new(images, labels, (side, side, 1), classes.iter().map(|c| (*c).to_owned()).collect(), "plain").unwrap()
}

#[test]
fn what_does_not_fit_is_refused_with_place_and_way_out() {
    let bench = Bench::new();
    for (name, set) in
        [("ab", plain(&["a", "b"], 8)), ("abc", plain(&["a", "b", "c"], 8)), ("ax", plain(&["a", "x"], 8)), ("big", plain(&["a", "b"], 16))]
    {
        set.write(&bench.at(name)).unwrap();
    }
    let short = json!({"width": 8, "steps": 2});
    bench.run("synthetic-pretrain", "pre", short.clone(), &[("data", &[&bench.at("ab")])]).unwrap();
    let model = bench.at("pre/model");
    let adapt = |with: Value, data: &str| {
        bench.run("real-adaptation", "adapted", with, &[("data", &[&bench.at(data)]), ("model", &[&model])]).map(|_| ())
    };
    let error = adapt(short.clone(), "abc").unwrap_err();
    assert!(error.message.contains("abc: 3 classes, yet the model has 2") && error.help.unwrap().contains("reinit_head"));
    assert!(adapt(short.clone(), "ax").unwrap_err().message.contains("label 1 is `x`, for the model it is `b`"));
    assert!(adapt(short.clone(), "big").unwrap_err().message.contains("images of 16x16 with 1 channels, yet the model takes 8x8"));
    adapt(json!({"steps": 2, "reinit_head": true}), "abc").unwrap();
    assert!(adapt(json!({"steps": 2, "freeze": ["conv7"]}), "ab").unwrap_err().message.contains("no unit `conv7`"));
    let error = bench
        .run("real-adaptation", "x", json!({"steps": 2, "freeze": ["conv1"]}), &[("data", &[&bench.at("ab")])])
        .map(|_| ())
        .unwrap_err();
    assert!(error.message.contains("random weights"), "{}", error.message);
    let error = bench
        .run("synthetic-pretrain", "y", json!({"width": 8, "steps": 30, "lr": 1e30}), &[("data", &[&bench.at("ab")])])
        .map(|_| ())
        .unwrap_err();
    assert!(error.message.contains("the loss is"), "{}", error.message);
    assert!(!bench.at("y/model").exists(), "a diverged training leaves no output");
    let error = bench.run("evaluation", "z", json!({}), &[("model", &[&model]), ("data", &[&bench.at("abc")])]).map(|_| ()).unwrap_err();
    assert!(error.message.contains("3 classes"), "{}", error.message);

    // A wrong byte in the weights.
    let file = model.join("model.safetensors");
    let mut damaged = fs::read(&file).unwrap();
    let n = damaged.len();
    damaged[n - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&file, damaged).unwrap();
    let error = bench.run("evaluation", "z", json!({}), &[("model", &[&model]), ("data", &[&bench.at("ab")])]).map(|_| ()).unwrap_err();
    assert!(error.message.contains("model.safetensors: value") && error.message.contains("is not finite"), "{}", error.message);
}

#[test]
fn several_sets_of_real_images_go_into_one() {
    let bench = Bench::new();
    plain(&["a", "b"], 8).write(&bench.at("one")).unwrap();
    plain(&["a", "b"], 8).write(&bench.at("two")).unwrap();
    plain(&["a", "c"], 8).write(&bench.at("other")).unwrap();
    let run = |second: &str| {
        bench.run(
            "real-adaptation",
            "out",
            json!({"width": 8, "epochs": 2, "batch": 2}),
            &[("data", &[&bench.at("one"), &bench.at(second)])],
        )
    };
    assert_eq!(run("two").unwrap().steps.len(), 4);
    assert!(run("other").map(|_| ()).unwrap_err().message.contains("other: sets with the classes"));
}

#[test]
fn extra_images_are_a_share_of_each_batch_or_of_one_set() {
    let bench = Bench::new();
    plain(&["a", "b"], 8).write(&bench.at("real")).unwrap();
    let many = plain(&["a", "b"], 8);
    let many = (0..7).fold(many.clone(), |all, _| all.concat(&many).unwrap());
    many.write(&bench.at("made")).unwrap();
    plain(&["a", "c"], 8).write(&bench.at("other")).unwrap();
    let run = |with: Value, extra: &str| {
        let mut all = json!({"width": 8, "epochs": 1, "batch": 2});
        all.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
        bench.run("real-adaptation", "out", all, &[("data", &[&bench.at("real")]), ("extra", &[&bench.at(extra)])])
    };
    // One pass over 2 + 16 images, and one over the 2 that `mix` leaves to count.
    assert_eq!(run(json!({}), "made").unwrap().steps.len(), 9);
    assert_eq!(run(json!({"mix": 0.5}), "made").unwrap().steps.len(), 1);
    let error = run(json!({}), "other").map(|_| ()).unwrap_err();
    assert!(error.message.contains("other: label 1 is `c`, for the model it is `b`"), "{}", error.message);
    let error = run(json!({"mix": 0.01}), "made").map(|_| ()).unwrap_err();
    assert!(error.message.contains("gives no image to a batch of 2"), "{}", error.message);
}

#[test]
fn params_that_make_no_sense_name_their_path() {
    let registry = registry();
    let paths = |kind: &str, with: Value| -> Vec<String> {
        registry.get(kind).unwrap().check(&with).unwrap_err().iter().map(|e| e.path.clone()).collect()
    };
    assert_eq!(paths("synthetic-pretrain", json!({"epochs": 1, "steps": 5, "lr": 0})), ["lr", "steps"]);
    assert_eq!(paths("real-adaptation", json!({"mix": 0, "augment": {"scale": 2}})), ["augment.scale", "mix"]);
    assert_eq!(paths("real-adaptation", json!({"augment": {"shfit": 2}})), ["augment.shfit"]);
    assert_eq!(paths("evaluation", json!({"batch": 0, "top_k": 0})), ["batch", "top_k"]);
    assert_eq!(paths("evaluation", json!({"topk": 1})), ["topk"]);
}

#[test]
fn any_architecture_is_trained_adapted_and_judged() {
    let bench = Bench::new();
    plain(&["a", "b"], 8).write(&bench.at("ab")).unwrap();
    plain(&["a", "b", "c"], 8).write(&bench.at("abc")).unwrap();
    for (arch, first) in [("resnet-18-32px", "stem"), ("vit-ti-4", "stem")] {
        let short = json!({"arch": arch, "steps": 1, "batch": 2});
        bench.run("synthetic-pretrain", arch, short, &[("data", &[&bench.at("ab")])]).unwrap();
        let config: Value = serde_json::from_str(&fs::read_to_string(bench.at(arch).join("model/config.json")).unwrap()).unwrap();
        assert_eq!((&config["arch"], &config["units"][0]), (&json!(arch), &json!(first)));
        let with = json!({"steps": 1, "batch": 2, "reinit_head": true, "freeze": [first], "lr_scale": {"head": 2.0}});
        let model = bench.at(arch).join("model");
        let adapted = format!("{arch}-adapted");
        bench.run("real-adaptation", &adapted, with, &[("data", &[&bench.at("abc")]), ("model", &[&model])]).unwrap();
        let model = bench.at(&adapted).join("model");
        bench.run("evaluation", arch, json!({}), &[("model", &[&model]), ("data", &[&bench.at("abc")])]).unwrap();
        assert_eq!(bench.scores(arch)["count"], 3);
    }
    let error = |arch: &str| {
        let with = json!({"arch": arch, "steps": 1});
        bench.run("synthetic-pretrain", "no", with, &[("data", &[&bench.at("ab")])]).map(|_| ()).unwrap_err().message
    };
    assert!(
        error("vit-ti-16").ends_with("ab: vit-ti-16 takes images whose sides are multiples of 16 from 16 on, not 8x8"),
        "{}",
        error("vit-ti-16")
    );
    assert!(error("squeezenet-1.1").contains("from 32 on, not 8x8"), "{}", error("squeezenet-1.1"));
}

#[test]
fn every_param_of_the_trainer_reaches_it() {
    let bench = Bench::new();
    let two = plain(&["a", "b"], 8);
    (0..9).fold(two.clone(), |all, _| all.concat(&two).unwrap()).write(&bench.at("ab")).unwrap();
    let model = |name: &str, with: Value| {
        let mut all = json!({"width": 8, "steps": 4, "batch": 8, "warmup": 0.25, "seed": 1});
        all.as_object_mut().unwrap().extend(with.as_object().unwrap().clone());
        bench.run("synthetic-pretrain", name, all, &[("data", &[&bench.at("ab")])]).unwrap();
        fs::read(bench.at(name).join("model/model.safetensors")).unwrap()
    };
    let variants = [
        json!({}),
        json!({"optimiser": "sgd"}),
        json!({"optimiser": "sgd", "momentum": 0.5}),
        json!({"optimiser": "sgd", "nesterov": true}),
        json!({"optimiser": "lamb"}),
        json!({"schedule": "constant"}),
        json!({"schedule": "step"}),
        json!({"schedule": "step", "milestones": [0.75]}),
        json!({"schedule": "step", "gamma": 0.5}),
        json!({"schedule": "one-cycle"}),
        json!({"accumulate": 2}),
        json!({"clip": 1e-3}),
        json!({"ema": 0.5}),
        json!({"lr_scale": {"conv1": 0.1}}),
        json!({"weight_decay": 0.5}),
        json!({"mixup": 0.2}),
        json!({"cutmix": 1.0}),
        json!({"label_smoothing": 0.1}),
        json!({"balanced": true}),
        json!({"early_stopping": {"holdout": 0.3}}),
        json!({"augment": {"crop": 1}}),
        json!({"augment": {"resized_crop": {}}}),
        json!({"augment": {"flip": 0.5}}),
        json!({"augment": {"jitter": {"contrast": 0.4}}}),
        json!({"augment": {"rand_augment": {}}}),
        json!({"augment": {"erase": 0.5}}),
    ];
    let models: Vec<Vec<u8>> = variants.iter().enumerate().map(|(i, with)| model(&i.to_string(), with.clone())).collect();
    for (i, a) in models.iter().enumerate() {
        assert!(models[..i].iter().all(|b| a != b), "{}", variants[i]);
    }
    assert_eq!(model("again", json!({"checkpoint_every": 1})), models[0]);
    let epochs = fs::read_to_string(bench.at("19/epochs.csv")).unwrap();
    assert!(epochs.starts_with("epoch,step,loss,accuracy,lr,held_out_loss,held_out_accuracy\n"), "{epochs}");
    assert!(fs::read_to_string(bench.at("11/metrics.csv")).unwrap().starts_with("step,loss,accuracy,lr,grad_norm\n"));
}

/// What says how the work is done stays out of the key.
#[test]
fn how_often_a_checkpoint_is_written_is_set_aside() {
    let registry = registry();
    for kind in ["synthetic-pretrain", "real-adaptation"] {
        let checked = registry.get(kind).unwrap().check(&json!({"checkpoint_every": 5})).unwrap();
        assert_eq!(Value::Object(checked.aside), json!({"checkpoint_every": 5}));
        assert!(checked.params.get("checkpoint_every").is_none() && checked.params.get("lr").is_some());
    }
}

/// Training on what a frozen beginning makes of the images is training with that beginning frozen.
#[test]
fn features_stand_in_for_a_frozen_beginning() {
    let bench = Bench::new();
    bench.digits();
    let (fonts, real) = (bench.at("fonts/train"), bench.at("real/train"));
    let pretrain = json!({"width": 16, "steps": 20, "batch": 16});
    bench.run("synthetic-pretrain", "pre", pretrain, &[("data", &[&fonts])]).unwrap();
    let pre = bench.at("pre/model");
    let of = |data: &Path, to: &str| {
        bench.run("features", to, json!({"until": "conv2", "batch": 32}), &[("model", &[&pre]), ("data", &[data])]).unwrap();
        bench.at(to).join("features")
    };
    let (features, others) = (of(&real, "features"), of(&fonts, "others"));
    let adapt = |to: &str, change: Value, features: Option<&Path>| {
        let mut with = json!({"steps": 30, "batch": 16, "freeze": ["conv1", "conv2"], "early_stopping": {"holdout": 0.2}});
        with.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let data = [real.as_path()];
        let model = [pre.as_path()];
        let features: Vec<&Path> = features.into_iter().collect();
        let mut inputs: Vec<(&str, &[&Path])> = vec![("data", &data), ("model", &model)];
        if !features.is_empty() {
            inputs.push(("features", &features));
        }
        bench.run("real-adaptation", to, with, &inputs).map(|notes| notes.metrics)
    };
    let (plain, given) = (adapt("plain", json!({}), None).unwrap(), adapt("given", json!({}), Some(&features)).unwrap());
    for name in ["loss", "held_out_loss", "held_out_accuracy"] {
        assert!((plain[name] - given[name]).abs() < 1e-4, "{name}: {} {}", plain[name], given[name]);
    }
    let weights = |to: &str| {
        let bytes = fs::read(bench.at(to).join("model/model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            file.tensor(name).unwrap().data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        ["conv1.weight", "conv3.weight", "head.weight"].map(floats)
    };
    for (a, b) in weights("plain").iter().flatten().zip(weights("given").iter().flatten()) {
        assert!((a - b).abs() < 1e-3, "{a} {b}");
    }
    let refused = |change: Value, features: &Path| adapt("no", change, Some(features)).unwrap_err().message;
    assert_eq!(refused(json!({}), &others), "`features`: they are of other images than `data`");
    assert!(refused(json!({"freeze": ["conv1"]}), &features).contains("they are of `conv2` among others, which is to be trained"));
    assert!(refused(json!({"augment": {"flip": 0.5}}), &features).contains("leave out `augment`"));
    let error = bench.run("features", "x", json!({"until": "head"}), &[("model", &[&pre]), ("data", &[&real])]).map(|_| ()).unwrap_err();
    assert_eq!(error.message, "`until`: `head` is the last unit, nothing would be left to train");
    bench.run("synthetic-pretrain", "pre2", json!({"width": 16, "steps": 1, "seed": 5}), &[("data", &[&fonts])]).unwrap();
    let (model, data) = (bench.at("pre2/model"), [real.as_path()]);
    let inputs: [(&str, &[&Path]); 3] = [("data", &data), ("model", &[&model]), ("features", &[&features])];
    let with = json!({"steps": 1, "freeze": ["conv1", "conv2"]});
    let error = bench.run("real-adaptation", "y", with, &inputs).map(|_| ()).unwrap_err();
    assert_eq!(error.message, "`features`: they are of another `model`");
}

#[test]
fn where_it_is_computed_is_no_part_of_a_key_unless_it_is_said() {
    let registry = registry();
    for (kind, with) in [
        ("synthetic-pretrain", json!({"epochs": 1})),
        ("real-adaptation", json!({})),
        ("evaluation", json!({})),
        ("features", json!({"until": "conv1"})),
        ("generator-pretrain", json!({})),
        ("style-inversion", json!({})),
        ("generation", json!({})),
    ] {
        let check = |device: Option<&str>, precision: Option<&str>| {
            let mut with = with.clone();
            device.iter().for_each(|device| with["device"] = json!(device));
            precision.iter().for_each(|precision| with["precision"] = json!(precision));
            registry.get(kind).unwrap().check(&with)
        };
        let plain = check(None, None).unwrap();
        let names: Vec<&String> = plain.params.as_object().unwrap().keys().collect();
        assert!(!names.iter().any(|name| *name == "device" || *name == "precision"), "{kind}: {names:?}");
        // As text: the order counts too.
        assert_eq!(check(Some("cpu"), Some("f32")).unwrap().params.to_string(), plain.params.to_string());
        assert_eq!(plain.gpus, 0);
        let half = check(None, Some("bf16")).unwrap_err();
        assert_eq!((half[0].path.as_str(), half.len()), ("precision", 1));
        assert_eq!(half[0].message, "`bf16` is for `device: cuda`; the kernels for the CPU are `f32`");
        match check(Some("cuda"), Some("bf16")) {
            Ok(checked) => {
                assert!(trestle_stages::nn::compute::has_cuda());
                assert_eq!((checked.gpus, &checked.params["device"], &checked.params["precision"]), (1, &json!("cuda"), &json!("bf16")));
            }
            Err(complaints) => {
                assert!(!trestle_stages::nn::compute::has_cuda());
                assert_eq!((complaints[0].path.as_str(), complaints.len()), ("device", 1));
                assert!(complaints[0].message.contains("was built without CUDA"), "{}", complaints[0].message);
            }
        }
    }
}
