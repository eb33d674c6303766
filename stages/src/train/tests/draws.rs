//! What batches are made of: draws, shares and mixtures.

use super::super::draws::Drawn;
use super::*;

#[test]
fn every_class_is_drawn_equally_often() {
    let whole = bars(64, 1);
    // One image of class 0, and 15 of each other.
    let kept: Vec<usize> = (0..64).filter(|&i| whole.labels[i] != 0 || i == 0).collect();
    let set = whole.subset(&kept).unwrap();
    let count = |balanced: bool| {
        let recipe = Recipe { balanced, batch: 8, ..recipe(1) };
        let mut draws = Draws::new(&[Source { set: &set, share: 1.0 }], &recipe, 1).unwrap();
        let mut counts = [0; 4];
        let mut seen = std::collections::BTreeSet::new();
        for (_, index) in (0..16).flat_map(|_| draws.draw().images) {
            counts[set.labels[index] as usize] += 1;
            seen.insert(index);
        }
        (counts, seen.len())
    };
    assert_eq!(count(true), ([32; 4], 49));
    assert!(count(false).0[0] < 5);
}

#[test]
fn batches_hold_the_shares_and_every_image_once_a_pass() {
    let (a, b) = (bars(40, 1), bars(8, 2));
    let config = Config::for_images(Arch::SmallCnn, 8, &a).unwrap();
    let sources = [Source { set: &a, share: 0.75 }, Source { set: &b, share: 0.25 }];
    let recipe = Recipe { batch: 16, ..Recipe::default() };
    let mut draws = Draws::new(&sources, &recipe, 1).unwrap();
    let maker = Maker::new(&sources, None, &recipe, &config, 1);
    let bytes =
        |batch: &Batch, i: usize| -> Vec<u8> { batch.pixels[i * 64..(i + 1) * 64].iter().map(|v| config.normalisation.byte(*v)).collect() };
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..2 {
        let batch = maker.make(&draws.draw()).unwrap();
        assert_eq!(batch.count, 16);
        (0..12).for_each(|i| assert!((0..40).any(|k| a.image(k) == bytes(&batch, i))));
        (12..16).for_each(|i| assert!(seen.insert(bytes(&batch, i))));
    }
    assert_eq!(seen.len(), 8);
    let none = [Source { set: &a, share: 1.0 }, Source { set: &b, share: 0.0 }];
    assert!(Draws::new(&none, &recipe, 1).is_err());
}

#[test]
fn draws_that_are_skipped_are_those_that_would_have_come() {
    let set = bars(40, 1);
    let recipe = Recipe { batch: 8, accumulate: 2, mixup: 0.2, cutmix: 1.0, balanced: true, ..Recipe::default() };
    let new = || Draws::new(&[Source { set: &set, share: 1.0 }], &recipe, 1).unwrap();
    let (mut all, mut late) = (new(), new());
    late.skip_steps(3);
    (0..6).for_each(|_| drop(all.draw()));
    for place in [(3, 0), (3, 1), (4, 0)] {
        let (a, b) = (all.draw(), late.draw());
        assert_eq!((a.step, a.part), place);
        assert_eq!(a, b);
    }
}

/// One draw more for one purpose must not change what comes of the others.
#[test]
fn purposes_do_not_shift_each_other() {
    let set = bars(40, 1);
    let drawn = |recipe: Recipe| {
        let mut draws = Draws::new(&[Source { set: &set, share: 1.0 }], &recipe, 1).unwrap();
        (0..8).map(|_| draws.draw()).collect::<Vec<_>>()
    };
    let images = |drawn: &[Drawn]| drawn.iter().map(|d| d.images.clone()).collect::<Vec<_>>();
    let plain = Recipe { batch: 8, ..Recipe::default() };
    let (none, mixup) = (drawn(plain.clone()), drawn(Recipe { mixup: 0.2, ..plain.clone() }));
    let both = drawn(Recipe { mixup: 0.2, cutmix: 1.0, ..plain });
    assert!(images(&none) == images(&mixup) && images(&none) == images(&both));
    let first = |drawn: &[Drawn]| drawn.iter().filter_map(|d| d.mix.clone()).find(|mix| mix.centre.is_none()).unwrap();
    assert_eq!(first(&mixup), first(&both));
}

#[test]
fn mixing_is_a_weighted_mean_of_images_and_targets() {
    let set = bars(4, 1);
    let config = Config::for_images(Arch::SmallCnn, 8, &set).unwrap();
    let recipe = Recipe { batch: 4, ..Recipe::default() };
    let mut batch = batch(&[Source { set: &set, share: 1.0 }], &recipe, &config);
    let old = batch.clone();
    mix::Mix { partners: vec![1, 0, 2, 3], weight: 0.75, centre: None }.apply(&mut batch, (8, 8, 1));
    assert_eq!(batch.pixels[0], 0.75 * old.pixels[0] + 0.25 * old.pixels[64]);
    assert_eq!(batch.targets[..4].iter().sum::<f32>(), 1.0);
    assert_eq!(batch.targets[8..], old.targets[8..]);
}

/// Zhang et al. 2018 and arXiv 2403.19866: the loss of a mixed target is λCE(yᵢ) + (1 − λ)CE(yⱼ).
#[test]
fn the_loss_of_mixed_and_smoothed_targets_is_that_of_the_paper() {
    let row = [1.0f32, -0.5, 0.25, 2.0];
    let logits = Tensor::from_vec(row.to_vec(), (1, 4), &Device::Cpu).unwrap();
    let log_sum = row.iter().map(|v| f64::from(*v).exp()).sum::<f64>().ln();
    let ce = |label: usize| log_sum - f64::from(row[label]);
    let loss = |targets: &[f32]| f64::from(cross_entropy(&logits, targets).unwrap().to_scalar::<f32>().unwrap());
    assert!((loss(&[0.0, 0.7, 0.0, 0.3]) - (0.7 * ce(1) + 0.3 * ce(3))).abs() < 1e-6);

    // Label smoothing (Szegedy et al. 2016): (1 − ε)CE(y) + ε times the mean of CE over all classes.
    let set = bars(4, 1);
    let config = Config::for_images(Arch::SmallCnn, 8, &set).unwrap();
    let recipe = Recipe { batch: 1, label_smoothing: 0.1, ..Recipe::default() };
    let batch = batch(&[Source { set: &set, share: 1.0 }], &recipe, &config);
    let label = argmax(&batch.targets);
    let mean = (0..4).map(ce).sum::<f64>() / 4.0;
    assert!((loss(&batch.targets) - (0.9 * ce(label) + 0.1 * mean)).abs() < 1e-6);
}
