//! Trainings in the form that runs on a GPU, on the CPU.

use super::*;
use crate::nn::composed::forced;

/// Trains with all that a recipe can ask for.
fn trained(recipe: &Recipe, compute: Compute) -> (Model, Log) {
    let (set, held_out) = (bars(64, 1), bars(20, 2));
    let mut model = model(&set);
    let sources = [Source { set: &set, share: 1.0 }];
    let training = Training { held_out: Some(&held_out), compute, ..Training::new(&sources, recipe, 7) };
    let log = training.run(&mut model, |_| {}).unwrap();
    (model, log)
}

fn recipes() -> [Recipe; 3] {
    let base = Recipe { batch: 16, early_stopping: Some(EarlyStopping { holdout: 0.25, patience: 50 }), ..recipe(12) };
    [
        Recipe { ema: Some(0.9), accumulate: 2, cutmix: 1.0, clip: Some(0.3), ..base.clone() },
        Recipe { optimiser: Optimiser::Sgd, nesterov: true, schedule: Shape::OneCycle, cycle_momentum: Some([0.8, 0.95]), ..base.clone() },
        Recipe { optimiser: Optimiser::Lamb, freeze: vec!["conv1".into()], lr_scale: [("head".to_owned(), 2.0)].into(), ..base },
    ]
}

/// Rows of two logs, their figures no further apart than `within`.
fn compare(got: &Log, want: &Log, within: f64) {
    assert_eq!((got.steps.len(), got.epochs.len()), (want.steps.len(), want.epochs.len()));
    for (got, want) in got.steps.iter().zip(&want.steps) {
        assert!(f64::from(got.loss - want.loss).abs() < within, "{got:?}, not {want:?}");
        assert_eq!((got.lr, got.grad_norm.is_some()), (want.lr, want.grad_norm.is_some()));
    }
    for (got, want) in got.epochs.iter().zip(&want.epochs) {
        let gap = got.held_out.unwrap().loss - want.held_out.unwrap().loss;
        assert!(gap.abs() < within, "{got:?}, not {want:?}");
    }
}

#[test]
fn the_composed_form_learns_as_the_kernels_do() {
    for recipe in recipes() {
        let (want_model, want) = trained(&recipe, Compute::default());
        let _forced = forced();
        let (model, got) = trained(&recipe, Compute::default());
        compare(&got, &want, 1e-4);
        for (name, _) in model.params.iter() {
            let (got, want) = (model.params.values(name).unwrap(), want_model.params.values(name).unwrap());
            let gap = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(gap < 2e-3, "{name}: {gap}");
        }
    }
}

#[test]
fn half_precision_learns_nearly_as_single_precision_does() {
    for recipe in recipes() {
        let want = trained(&recipe, Compute::default()).1;
        let half = Compute { precision: Precision::Bf16, ..Compute::default() };
        compare(&trained(&recipe, half).1, &want, 0.05);
    }
}

#[test]
fn a_composed_training_that_was_killed_goes_on() {
    let _forced = forced();
    for recipe in recipes() {
        let (set, folder) = (bars(64, 1), tempfile::tempdir().unwrap());
        let sources = [Source { set: &set, share: 1.0 }];
        let checkpoints = Checkpoints::new(folder.path(), Every::Steps(4));
        let run = |checkpoints: Option<&Checkpoints>, until: usize, notes: &mut Vec<String>| {
            let training = Training { checkpoints, ..Training::new(&sources, &recipe, 7) };
            let mut model = model(&set);
            let log = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                training.run(&mut model, |said| match said {
                    Said::Note(note) => notes.push(note),
                    Said::Step(row, _) if row.step == until => std::panic::panic_any("killed"),
                    Said::Step(..) => {}
                })
            }));
            log.ok().map(|log| bytes_of(&model, &log.unwrap()))
        };
        let mut notes = Vec::new();
        let whole = run(None, 0, &mut notes);
        assert!(run(Some(&checkpoints), 11, &mut notes).is_none());
        assert_eq!(run(Some(&checkpoints), 0, &mut notes), whole);
        assert_eq!(notes, ["goes on after step 8 of 12, from its checkpoint"]);
    }
}
