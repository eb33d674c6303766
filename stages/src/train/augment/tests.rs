#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;

/// Written by `stages/tests/fixtures/pillow.py`.
#[derive(Deserialize)]
struct Pillow {
    size: (usize, usize, usize),
    image: Vec<u8>,
    ops: BTreeMap<String, Vec<u8>>,
    large: Vec<u8>,
    equalized: Vec<u8>,
}

fn pillow() -> Pillow {
    serde_json::from_str(include_str!("../../../tests/fixtures/pillow.json")).unwrap()
}

#[test]
fn every_change_is_pillows_to_the_byte() {
    let pillow = pillow();
    for (name, wanted) in &pillow.ops {
        let mut picture = Picture::new(&pillow.image, pillow.size);
        let mut words = name.split(' ');
        let (op, figures): (_, Vec<f64>) = (words.next().unwrap(), words.clone().map(|word| word.parse().unwrap()).collect());
        match (op, figures.as_slice()) {
            ("brightness", [f]) => picture.brightness(*f),
            ("contrast", [f]) => picture.contrast(*f),
            ("saturation", [f]) => picture.saturation(*f),
            ("sharpness", [f]) => picture.sharpness(*f),
            ("hue", [f]) => picture.hue(*f),
            ("posterize", [f]) => picture.posterize(*f as u32),
            ("solarize", [f]) => picture.solarize(*f),
            ("autocontrast", []) => picture.autocontrast(),
            ("flip", []) => picture.flip(),
            ("rotate", [f]) => picture = picture.rotated(*f),
            ("shear_x", [f]) => picture = picture.warped(|y, x| (y, x + f * y)),
            ("shear_y", [f]) => picture = picture.warped(|y, x| (y + f * x, x)),
            ("translate_x", [f]) => picture = picture.warped(|y, x| (y, x - f)),
            ("translate_y", [f]) => picture = picture.warped(|y, x| (y - f, x)),
            ("resize", [h, w]) => picture = picture.resized((*h as usize, *w as usize)),
            other => panic!("{other:?}"),
        }
        let differ = picture.bytes.iter().zip(wanted).filter(|(a, b)| a != b).count();
        assert!(picture.bytes == *wanted, "{name}: {differ} of {} bytes differ", wanted.len());
    }
    assert_eq!(pillow.ops.len(), 33);
    let mut large = Picture::new(&pillow.large, (3 * pillow.size.0, 3 * pillow.size.1, 3));
    large.equalize();
    assert_eq!(large.bytes, pillow.equalized);
}

fn sample() -> (Vec<u8>, (usize, usize, usize)) {
    let pillow = pillow();
    (pillow.image, pillow.size)
}

/// The bytes of an image changed under a seed.
fn changed(augment: &Augment, seed: u64) -> Vec<u8> {
    let (bytes, size) = sample();
    let mut out = vec![0.0; bytes.len()];
    augment.image(&bytes, &mut out, size, Normalisation::Signed, || Stream::new(seed, "image"));
    out.iter().map(|v| Normalisation::Signed.byte(*v)).collect()
}

fn kinds() -> Vec<Augment> {
    let none = Augment::default;
    let jitter = |brightness, contrast, saturation, hue| Some(Jitter { brightness, contrast, saturation, hue });
    let weak = Some(RandAugment { ops: 2, magnitude: 9 });
    vec![
        none(),
        Augment { crop: 2, ..none() },
        Augment { resized_crop: Some(ResizedCrop::default()), ..none() },
        Augment { resized_crop: Some(ResizedCrop { area: [0.5, 0.6], ..ResizedCrop::default() }), ..none() },
        Augment { resized_crop: Some(ResizedCrop { ratio: [2.0, 3.0], ..ResizedCrop::default() }), ..none() },
        Augment { flip: 1.0, ..none() },
        Augment { jitter: jitter(0.4, 0.0, 0.0, 0.0), ..none() },
        Augment { jitter: jitter(0.0, 0.4, 0.0, 0.0), ..none() },
        Augment { jitter: jitter(0.0, 0.0, 0.4, 0.0), ..none() },
        Augment { jitter: jitter(0.0, 0.0, 0.0, 0.3), ..none() },
        Augment { rand_augment: weak, ..none() },
        Augment { rand_augment: Some(RandAugment { ops: 4, magnitude: 9 }), ..none() },
        Augment { rand_augment: Some(RandAugment { ops: 2, magnitude: 25 }), ..none() },
        Augment { shift: 2.0, ..none() },
        Augment { scale: 0.3, ..none() },
        Augment { noise: 0.2, ..none() },
        Augment { erase: 1.0, ..none() },
    ]
}

#[test]
fn each_kind_of_change_does_something_of_its_own_and_depends_on_the_stream() {
    let results: Vec<Vec<Vec<u8>>> = kinds().iter().map(|augment| (0..8).map(|seed| changed(augment, seed)).collect()).collect();
    assert_eq!(results[0], vec![sample().0; 8]);
    for (i, result) in results.iter().enumerate() {
        assert!(results[..i].iter().all(|other| other != result), "{:?}", kinds()[i]);
        let distinct: std::collections::BTreeSet<&Vec<u8>> = result.iter().collect();
        assert!(i == 0 || i == 5 || distinct.len() > 4, "{:?}: {}", kinds()[i], distinct.len());
        assert!(result.iter().zip(0..8).all(|(bytes, seed)| *bytes == changed(&kinds()[i], seed)));
    }
}

/// Turning one change on must not change what another one draws.
#[test]
fn one_change_does_not_shift_another() {
    let flip = Augment { flip: 0.5, ..Augment::default() };
    let both = Augment { crop: 1, jitter: Some(Jitter { hue: 1e-9, ..Jitter::default() }), ..flip };
    let flipped = |augment: &Augment| (0..40).map(|seed| changed(augment, seed)).collect::<Vec<_>>();
    let mirror = |bytes: Vec<u8>| {
        let mut picture = Picture::new(&bytes, sample().1);
        picture.flip();
        picture.bytes
    };
    let only_crop = flipped(&Augment { flip: 0.0, ..both });
    let is_flipped: Vec<bool> = flipped(&flip).iter().map(|bytes| *bytes == mirror(sample().0)).collect();
    let count = is_flipped.iter().filter(|is| **is).count();
    assert!((10..30).contains(&count), "{count}");
    for ((bytes, cropped), is_flipped) in flipped(&both).into_iter().zip(only_crop).zip(is_flipped) {
        assert_eq!(bytes, if is_flipped { mirror(cropped) } else { cropped });
    }
}

#[test]
fn a_crop_moves_by_whole_pixels_and_fills_with_black() {
    let picture = Picture::new(&[1, 2, 3, 4], (2, 2, 1));
    assert_eq!(picture.crop_padded(1, (1, 1)).bytes, [1, 2, 3, 4]);
    assert_eq!(picture.crop_padded(1, (0, 1)).bytes, [0, 0, 1, 2]);
    assert_eq!(picture.crop_padded(1, (2, 2)).bytes, [4, 0, 0, 0]);
    // Every place is drawn.
    let crop = Augment { crop: 1, ..Augment::default() };
    let distinct: std::collections::BTreeSet<Vec<u8>> = (0..80).map(|seed| changed(&crop, seed)).collect();
    assert_eq!(distinct.len(), 9);
}

#[test]
fn windows_have_the_area_and_the_ratio_that_were_asked_for() {
    let mut stream = Stream::new(1, "windows");
    for _ in 0..200 {
        let ((y, x), (h, w)) = window((200, 300), [0.1, 0.2], [0.5, 2.0], &mut stream).unwrap();
        let (area, ratio) = ((h * w) as f64 / 60_000.0, w as f64 / h as f64);
        assert!((0.098..0.202).contains(&area) && (0.49..2.03).contains(&ratio) && y + h <= 200 && x + w <= 300);
    }
    assert_eq!(window((4, 400), [1.0, 1.0], [1.0, 1.0], &mut stream), None);
}

#[test]
fn an_erased_rectangle_is_grey_and_the_rest_stays() {
    let (bytes, size) = sample();
    let mut out = vec![0.0; bytes.len()];
    Augment { erase: 1.0, ..Augment::default() }.image(&bytes, &mut out, size, Normalisation::Signed, || Stream::new(3, "image"));
    let erased = out.iter().zip(&bytes).filter(|(v, byte)| **v != Normalisation::Signed.float(**byte)).count();
    assert!(erased > 0 && out.iter().filter(|v| **v == 0.0).count() >= erased, "{erased}");
    assert!(erased as f64 / bytes.len() as f64 <= 0.4);
}

#[test]
fn senseless_figures_are_refused_with_their_path() {
    let bad = Augment {
        flip: 1.5,
        erase: -0.1,
        resized_crop: Some(ResizedCrop { area: [0.5, 0.1], ratio: [0.0, 1.0] }),
        jitter: Some(Jitter { brightness: -1.0, contrast: 0.0, saturation: f64::NAN, hue: 0.6 }),
        rand_augment: Some(RandAugment { ops: 0, magnitude: 31 }),
        ..Augment::default()
    };
    let mut paths = Vec::new();
    bad.check(&mut |ok, path, _| {
        if !ok {
            paths.push(path.trim_start_matches("augment.").to_owned());
        }
    });
    let wanted = ["flip", "erase", "resized_crop.area", "resized_crop.ratio"];
    assert_eq!(paths[..4], wanted);
    assert_eq!(paths[4..], ["jitter.brightness", "jitter.saturation", "jitter.hue", "rand_augment.ops", "rand_augment.magnitude"]);
    for augment in kinds() {
        augment.check(&mut |ok, path, message| assert!(ok, "{path}: {message}"));
    }
}
