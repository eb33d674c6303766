//! Training, inversion and generation give the same bytes again, with one thread and with two, and images do not depend on their batch.
#![allow(clippy::unwrap_used)]

use std::fs;

use trestle_stages::data::{ClassPrompts, ImageSet, Prompts};
use trestle_stages::generation::{self, generate};
use trestle_stages::generator::sampler::Sampler;
use trestle_stages::generator::{Generator, Style};
use trestle_stages::nn::composed::forced;
use trestle_stages::nn::compute::Precision;
use trestle_stages::rng::Stream;
use trestle_stages::{generator_pretrain, style_inversion};

const TEMPLATE: &str = "A {class} photo in the style of S*";

fn images() -> ImageSet {
    let mut random = Stream::new(5, "pixels");
    let bytes = (0..40 * 256).map(|_| random.below(256) as u8).collect();
    let labels = (0..40).map(|i| i % 2).collect();
    let set = ImageSet::new(bytes, labels, (16, 16, 1), vec!["one".into(), "two".into()], "test").unwrap();
    set.with_styles((0..40).map(|i| i / 20).collect(), vec!["bold".into(), "thin".into()]).unwrap()
}

fn trained() -> Generator {
    let params = generator_pretrain::Params { steps: 4, batch: 24, width: 16, text_width: 16, ..Default::default() };
    generator_pretrain::train(&params, &images(), &mut |_| ()).unwrap().0
}

fn inverted(generator: &Generator) -> Style {
    let params = style_inversion::Params { steps: 4, batch: 24, ..Default::default() };
    style_inversion::invert(&params, generator, &images(), &mut |_| ()).unwrap().0
}

fn prompts(template: &str) -> Prompts {
    let class = |name: &str| ClassPrompts { name: name.to_owned(), prompts: vec![template.replace("{class}", name)] };
    Prompts { templates: vec![template.to_owned()], classes: ["one", "two"].map(class).to_vec() }
}

fn painted(generator: &Generator, style: &Style, params: generation::Params) -> Vec<u8> {
    generate(&params, generator, &prompts(TEMPLATE), Some(style), &mut |_| ()).unwrap().images
}

/// Everything that the three stages write, by `threads` threads.
fn everything(threads: usize) -> Vec<Vec<u8>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    pool.install(|| {
        let dir = tempfile::tempdir().unwrap();
        let generator = trained();
        let style = inverted(&generator);
        generator.write(&dir.path().join("generator")).unwrap();
        style.write(&dir.path().join("style")).unwrap();
        let params = generation::Params { images_per_class: 7, steps: 3, eta: 0.5, ..Default::default() };
        let mut all = vec![painted(&generator, &style, params)];
        let files = [
            "generator/weights.safetensors",
            "generator/config.json",
            "generator/vocab.json",
            "style/token.safetensors",
            "style/meta.json",
        ];
        all.extend(files.map(|file| fs::read(dir.path().join(file)).unwrap()));
        all
    })
}

#[test]
fn the_same_bytes_again_and_with_any_number_of_threads() {
    let one = everything(1);
    assert_eq!(one, everything(1), "again");
    assert_eq!(one, everything(2), "two threads");
}

#[test]
fn an_image_depends_on_its_seed_class_and_number_alone() {
    let generator = trained();
    let style = inverted(&generator);
    for sampler in [Sampler::Ddim, Sampler::Ddpm] {
        let of = |images_per_class, batch, seed| {
            painted(&generator, &style, generation::Params { images_per_class, batch, seed, sampler, steps: 4, ..Default::default() })
        };
        let size = 256;
        let whole = of(9, 100, 0);
        assert_eq!(whole, of(9, 1, 0), "one at a time");
        assert_eq!(whole, of(9, 4, 0), "four at a time");
        let fewer = of(3, 100, 0);
        assert_eq!(whole[..3 * size], fewer[..3 * size], "fewer of the first class");
        assert_eq!(whole[9 * size..12 * size], fewer[3 * size..], "fewer of the second class");
        assert_ne!(whole, of(9, 100, 1), "another seed");
    }
}

#[test]
fn a_style_and_the_prompts_must_go_together() {
    let generator = trained();
    let style = inverted(&generator);
    let says = |template: &str, style: Option<&Style>| {
        generate(&generation::Params::default(), &generator, &prompts(template), style, &mut |_| ()).unwrap_err().to_string()
    };
    assert!(says(TEMPLATE, None).contains("no style is connected"));
    assert!(says("A good photo of the {class}", Some(&style)).contains("no prompt uses `S*`"));
    assert!(says("A {class} on the moon", None).contains("the word `on`"));
}

/// Largest gaps of the generator's weights and of the images' bytes to those that the kernels give.
fn gaps(precision: Precision, kernels: &(Generator, Style, Vec<u8>)) -> (f32, u8) {
    let got = painted_by(precision);
    let weights = kernels.0.params.iter().map(|(name, _)| {
        let (got, want) = (got.0.params.values(name).unwrap(), kernels.0.params.values(name).unwrap());
        got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max)
    });
    (weights.fold(0.0, f32::max), got.2.iter().zip(&kernels.2).map(|(g, w)| g.abs_diff(*w)).max().unwrap())
}

fn painted_by(precision: Precision) -> (Generator, Style, Vec<u8>) {
    let params = generator_pretrain::Params { steps: 3, batch: 8, width: 16, text_width: 16, precision, ..Default::default() };
    let generator = generator_pretrain::train(&params, &images(), &mut |_| ()).unwrap().0;
    let params = style_inversion::Params { steps: 3, batch: 8, precision, ..Default::default() };
    let style = style_inversion::invert(&params, &generator, &images(), &mut |_| ()).unwrap().0;
    let params = generation::Params { images_per_class: 3, steps: 3, precision, ..Default::default() };
    let images = painted(&generator, &style, params);
    (generator, style, images)
}

#[test]
fn the_form_for_other_devices_gives_nearly_the_same() {
    let kernels = painted_by(Precision::F32);
    let half = gaps(Precision::Bf16, &kernels);
    let composed = {
        let _forced = forced();
        gaps(Precision::F32, &kernels)
    };
    assert!(composed.0 < 1e-3 && composed.1 <= 2, "{composed:?}");
    assert!(half.0 < 0.02 && half.1 <= 16, "{half:?}");
}
