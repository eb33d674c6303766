//! The generator's parts.
#![allow(clippy::unwrap_used)]

use candle_core::Tensor;

use super::diffusion::Batch;
use super::sampler::{Sampler, step};
use super::schedule::{alpha, sigma, times};
use super::{Config, Generator, Vocab};
use crate::data::ImageSet;
use crate::nn::gradcheck;
use crate::nn::params::Params;
use crate::rng::Stream;

fn tiny() -> Generator {
    let config = Config { size: 8, channels: 1, width: 16, heads: 2, text_width: 8, text_heads: 2, text_blocks: 1 };
    let vocab = Vocab::from_prompts(["a photo of the one in the style of bold", "a two photo"], &["bold".into()]).unwrap();
    Generator::new(config, vocab, &Stream::new(1, "init")).unwrap()
}

fn images(n: usize) -> ImageSet {
    let bytes = (0..n * 64).map(|i| (i * 37 % 256) as u8).collect();
    ImageSet::new(bytes, vec![0; n], (8, 8, 1), vec!["one".into(), "two".into()], "test").unwrap()
}

fn prompts(generator: &Generator, with_style: bool) -> Vec<Vec<u32>> {
    // Every word, so that every row of the table has a gradient; the padding comes with the shorter prompt.
    let style = if with_style { "S*" } else { "bold" };
    let first = generator.vocab.encode(&format!("a photo of the one in the style of {style}"), with_style).unwrap();
    vec![first, generator.vocab.encode("a two photo", false).unwrap(), generator.vocab.empty()]
}

#[test]
fn every_tensor_of_text_encoder_and_network_has_a_right_gradient() {
    let generator = tiny();
    let batch = Batch::draw(&images(3), &[0, 1, 2], &mut Stream::new(2, "noise")).unwrap();
    let prompts = prompts(&generator, false);
    let findings = gradcheck::check(&generator.params, |p| batch.loss(p, &generator.config, &prompts, None)).unwrap();
    assert_eq!(findings.len(), 3 * generator.params.iter().count());
}

#[test]
fn the_style_token_alone_has_a_gradient_and_it_is_right() {
    let generator = tiny();
    let batch = Batch::draw(&images(3), &[0, 1, 2], &mut Stream::new(2, "noise")).unwrap();
    let prompts = prompts(&generator, true);
    let frozen = generator.params.frozen().unwrap();
    let mut token = Params::new();
    token.normal("embedding", &[1, 8], 1, 0.1, &Stream::new(3, "token")).unwrap();
    let loss = |p: &Params| batch.loss(&frozen, &generator.config, &prompts, Some(p.get("embedding")?));
    gradcheck::check(&token, loss).unwrap();
    let grads = loss(&token).unwrap().backward().unwrap();
    for (name, var) in generator.params.iter() {
        assert!(grads.get(var).is_none(), "`{name}` has a gradient although it is frozen");
    }
}

/// With a perfect network for data that is one known Gaussian, DDIM must turn standard noise into that Gaussian.
#[test]
fn ddim_reaches_a_known_gaussian() {
    let (mean, deviation) = (0.2f64, 0.1f64);
    for (sampler, steps) in [(Sampler::Ddim, 500), (Sampler::Ddpm, 500)] {
        let mut random = Stream::new(4, "x");
        let mut x = random.normals(4000);
        let times = times(steps);
        for pair in times.windows(2) {
            let (t, s) = (pair[0], pair[1]);
            let (a, d) = (alpha(t), sigma(t));
            // E[x₀ | x] of a Gaussian, and the v that goes with it.
            let gain = a * deviation * deviation / (a * a * deviation * deviation + d * d);
            let v: Vec<f32> = x
                .iter()
                .map(|x| {
                    let image = mean + gain * (f64::from(*x) - a * mean);
                    ((a * f64::from(*x) - image) / d) as f32
                })
                .collect();
            let noise = random.normals(x.len());
            step(&mut x, &v, Some(&noise), t, s, sampler.eta(0.0));
        }
        let m = x.iter().map(|v| f64::from(*v)).sum::<f64>() / 4000.0;
        let s = (x.iter().map(|v| (f64::from(*v) - m).powi(2)).sum::<f64>() / 4000.0).sqrt();
        assert!((m - mean).abs() < 0.01 && (s - deviation).abs() < 0.01, "{sampler:?}: mean {m}, deviation {s}");
    }
}

#[test]
fn prompts_outside_of_the_vocabulary_are_errors() {
    let vocab = tiny().vocab;
    let says = |prompt: &str, style: bool| vocab.encode(prompt, style).unwrap_err().to_string();
    assert!(says("a cat", true).contains("the word `cat`, which the generator has never seen"));
    assert!(says("a S* photo", false).contains("no style is connected"));
    assert!(says(&"a ".repeat(20), true).contains("has 20 words"));
    assert_eq!(vocab.encode("A S* photo", true).unwrap()[1], vocab.style());
}

#[test]
fn a_generator_survives_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    let generator = tiny();
    generator.write(dir.path()).unwrap();
    let back = Generator::read(dir.path()).unwrap();
    assert_eq!(back.config, generator.config);
    assert_eq!(back.vocab, generator.vocab);
    let context = |g: &Generator| -> Vec<f32> {
        let context = super::text::encode(&g.params, &g.config, &prompts(g, false), None).unwrap();
        context.words.flatten_all().unwrap().to_vec1().unwrap()
    };
    assert_eq!(context(&generator), context(&back));
    let wider = Config { width: 32, ..generator.config };
    std::fs::write(dir.path().join("config.json"), serde_json::to_string(&wider).unwrap()).unwrap();
    let error = Generator::read(dir.path()).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("the architecture wants"), "{error}");
}

#[test]
fn unfolding_into_blocks_and_back_is_the_identity() {
    let generator = tiny();
    let x = Tensor::from_vec(Stream::new(1, "x").normals(2 * 64), (2, 8, 8, 1), &candle_core::Device::Cpu).unwrap();
    let context =
        super::text::encode(&generator.params, &generator.config, &[generator.vocab.empty(), generator.vocab.empty()], None).unwrap();
    let v = super::unet::forward(&generator.params, &generator.config, &x, &[0.1, 0.9], &context).unwrap();
    assert_eq!(v.dims(), x.dims());
}
