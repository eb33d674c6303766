//! Splitting a set into two parts that share no image.

use super::ImageSet;
use crate::error::{Error, Result};
use crate::rng::Stream;

/// How many images of each class go into the first part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Share {
    /// All.
    All,
    /// That many.
    Shots(usize),
    /// All but that fraction, rounded to whole images.
    AllBut(f64),
}

/// Indices of the two parts, ascending; each image is in exactly one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// What a model may learn from.
    pub train: Vec<usize>,
    /// What it is judged by.
    pub test: Vec<usize>,
}

/// Draws class by class. Under one seed a draw of more shots holds every image of a draw of fewer.
///
/// # Errors
/// If a class has fewer images than shots are asked for.
pub fn split(set: &ImageSet, share: Share, seed: u64) -> Result<Split> {
    split_labels(&set.labels, &set.meta.classes, share, seed)
}

/// The same, of labels alone.
///
/// # Errors
/// As [`split`].
pub fn split_labels(labels: &[u32], classes: &[String], share: Share, seed: u64) -> Result<Split> {
    let root = Stream::new(seed, "split");
    let mut split = Split { train: Vec::new(), test: Vec::new() };
    let mut by_class = vec![Vec::new(); classes.len()];
    for (i, label) in labels.iter().enumerate() {
        by_class[*label as usize].push(i);
    }
    for (label, (name, members)) in classes.iter().zip(by_class).enumerate() {
        let take = match share {
            Share::All => members.len(),
            Share::Shots(shots) if shots > members.len() => {
                let message = format!("class `{name}` has {} images, fewer than {shots} shots", members.len());
                return Err(Error::argument(message));
            }
            Share::Shots(shots) => shots,
            Share::AllBut(fraction) => members.len() - (members.len() as f64 * fraction).round() as usize,
        };
        let order = root.child(&format!("class {label}")).permutation(members.len());
        let (train, test) = order.split_at(take);
        split.train.extend(train.iter().map(|&i| members[i]));
        split.test.extend(test.iter().map(|&i| members[i]));
    }
    split.train.sort_unstable();
    split.test.sort_unstable();
    Ok(split)
}

/// A random draw of at most `count` of `indices`, ascending.
pub fn limit(indices: &[usize], count: usize, seed: u64) -> Vec<usize> {
    let mut kept: Vec<usize> = Stream::new(seed, "limit").permutation(indices.len()).into_iter().take(count).map(|i| indices[i]).collect();
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn set(labels: Vec<u32>) -> ImageSet {
        let names = (0..4).map(|i| format!("c{i}")).collect();
        ImageSet::new(vec![0; labels.len()], labels, (1, 1, 1), names, "test").unwrap()
    }

    proptest! {
        #[test]
        fn parts_share_no_image_and_lose_none(labels in prop::collection::vec(0u32..4, 0..80), seed: u64, fraction in 0.0..=1.0, shots in 0usize..8) {
            let set = set(labels);
            for share in [Share::All, Share::Shots(shots), Share::AllBut(fraction)] {
                let Ok(split) = split(&set, share, seed) else {
                    prop_assert!(set.class_counts().iter().any(|&count| count < shots));
                    continue;
                };
                let mut all = [split.train.clone(), split.test].concat();
                all.sort_unstable();
                prop_assert_eq!(all, (0..set.len()).collect::<Vec<_>>());
                if let Share::Shots(_) = share {
                    prop_assert_eq!(set.subset(&split.train).unwrap().class_counts(), vec![shots; 4]);
                }
            }
        }
    }

    #[test]
    fn fewer_shots_are_part_of_more_and_seeds_differ() {
        let set = set((0..80).map(|i| i % 4).collect());
        let draw = |shots, seed| split(&set, Share::Shots(shots), seed).unwrap().train;
        let five = draw(5, 1);
        assert!(draw(2, 1).iter().all(|i| five.contains(i)));
        assert_eq!(five, draw(5, 1));
        assert_ne!(five, draw(5, 2));
    }

    #[test]
    fn too_many_shots_name_the_class() {
        let message = split(&set(vec![0, 0, 1, 1, 2, 2, 3]), Share::Shots(2), 0).unwrap_err().to_string();
        assert_eq!(message, "class `c3` has 1 images, fewer than 2 shots");
    }

    #[test]
    fn a_limit_keeps_a_random_part() {
        let indices: Vec<usize> = (100..200).collect();
        let kept = limit(&indices, 10, 3);
        assert_eq!(kept.len(), 10);
        assert!(kept.iter().all(|i| indices.contains(i)) && kept.is_sorted());
        assert_ne!(kept, (100..110).collect::<Vec<_>>());
        assert_eq!(limit(&indices, 1000, 3), indices);
    }
}
