//! Trainings that are interrupted.

use super::*;

/// What a training with checkpoints is tested with.
struct Case {
    set: ImageSet,
    held_out: ImageSet,
    recipe: Recipe,
}

impl Case {
    fn new(recipe: Recipe) -> Self {
        let recipe = Recipe { early_stopping: Some(EarlyStopping { holdout: 0.25, patience: 50 }), ..recipe };
        let (set, stopping) = (bars(64, 1), recipe.early_stopping.unwrap());
        let split = hold_out(&set, stopping, 1).unwrap();
        Self { set: set.subset(&split.train).unwrap(), held_out: set.subset(&split.test).unwrap(), recipe }
    }

    /// Trains, and stops like a killed process after `until` steps. Gives what came of it, all steps that were done, and the notes.
    fn train(&self, folder: &std::path::Path, threads: usize, until: usize) -> (Option<[blake3::Hash; 3]>, usize, Vec<String>) {
        let (mut steps, mut notes) = (0, Vec::new());
        let checkpoints = Checkpoints::new(folder, Every::Steps(4));
        let sources = [Source { set: &self.set, share: 1.0 }];
        let (held_out, checkpoints) = (Some(&self.held_out as &dyn Images), Some(&checkpoints));
        let training = Training { held_out, checkpoints, ..Training::new(&sources, &self.recipe, 7) };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            pool.install(|| {
                let mut model = model(&self.set);
                let log = training.run(&mut model, |said| match said {
                    Said::Note(note) => notes.push(note),
                    Said::Step(row, _) if row.step == until => std::panic::panic_any("killed"),
                    Said::Step(..) => steps += 1,
                });
                bytes_of(&model, &log.unwrap())
            })
        }));
        (result.ok(), steps, notes)
    }
}

#[test]
fn a_training_that_was_killed_goes_on_and_gives_the_same_bytes() {
    let base = Recipe { batch: 16, ..recipe(14) };
    let variants = [
        base.clone(),
        Recipe { ema: Some(0.9), accumulate: 2, cutmix: 1.0, clip: Some(0.3), ..base.clone() },
        Recipe { optimiser: Optimiser::Sgd, balanced: true, schedule: Shape::OneCycle, cycle_momentum: Some([0.8, 0.95]), ..base.clone() },
        Recipe { optimiser: Optimiser::Lamb, freeze: vec!["conv1".into()], lr_scale: [("head".to_owned(), 2.0)].into(), ..base },
    ];
    for recipe in variants {
        let case = Case::new(recipe);
        let [never, killed] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let (whole, steps, _) = case.train(never.path(), 1, 0);
        assert_eq!(steps, 14);
        assert!(case.train(killed.path(), 2, 11).0.is_none());
        let (resumed, steps, notes) = case.train(killed.path(), 1, 0);
        assert_eq!(notes, ["goes on after step 8 of 14, from its checkpoint"]);
        assert_eq!((resumed, steps), (whole, 6), "{:?}", case.recipe);
    }
}

#[test]
fn a_checkpoint_that_is_damaged_or_of_another_training_is_not_used() {
    let case = Case::new(Recipe { batch: 16, ..recipe(6) });
    let folder = tempfile::tempdir().unwrap();
    let (whole, _, _) = case.train(&folder.path().join("never"), 1, 0);
    let path = folder.path().join("training");
    assert!(case.train(folder.path(), 1, 5).0.is_none());
    let good = std::fs::read(&path).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    let other = Case::new(Recipe { lr: 1e-3, ..case.recipe.clone() });
    assert!(other.train(&folder.path().join("other"), 1, 5).0.is_none());
    let other = std::fs::read(folder.path().join("other/training")).unwrap();
    let damages: [(&str, &[u8]); 5] =
        [("damaged", &good[..good.len() - 1]), ("damaged", &[]), ("damaged", b"x"), ("damaged", &flipped), ("another training", &other)];
    for (word, bytes) in damages {
        std::fs::write(&path, bytes).unwrap();
        let (anew, steps, notes) = case.train(folder.path(), 1, 0);
        assert!(notes.len() == 1 && notes[0].starts_with("warning: a checkpoint is not used, training begins anew"), "{notes:?}");
        assert!(notes[0].contains(word) && notes[0].contains("training:"), "{notes:?}");
        assert_eq!((anew, steps), (whole, 6));
    }
    // Of another architecture.
    std::fs::write(&path, &good).unwrap();
    let mut model = Model::new(Config::for_images(Arch::SmallCnn, 16, &case.set).unwrap(), 3).unwrap();
    let checkpoints = Checkpoints::new(folder.path(), Every::Steps(0));
    let sources = [Source { set: &case.set, share: 1.0 }];
    let training = Training { checkpoints: Some(&checkpoints), ..Training::new(&sources, &case.recipe, 7) };
    let mut notes = Vec::new();
    let log = training
        .run(&mut model, |said| {
            if let Said::Note(note) = said {
                notes.push(note)
            }
        })
        .unwrap();
    assert!(notes[0].contains("another model") && log.steps.len() == 6, "{notes:?}");
    // A folder that cannot be written costs no training.
    std::fs::write(folder.path().join("file"), "").unwrap();
    let (anew, _, notes) = case.train(&folder.path().join("file"), 1, 0);
    assert!(anew == whole && notes.iter().any(|note| note.contains("no checkpoint was written after step 4")), "{notes:?}");
}
