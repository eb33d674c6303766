//! The stage `style-inversion`: one token learns the style of a whole data set.
//!
//! Dataset style inversion (arXiv 2403.19866), after textual inversion (Gal et al. 2022): v* = argmin_v E‖target − network(noisy image, t, prompt(v))‖², over the
//! images of all classes together. Class names stay in the prompt, so that the one token learns what the images share: their style.
//! Text encoder and network are frozen.

use candle_core::{Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trestle_engine::stage::{Arity, Context, InPort, OutPort, ParamError, Progress, Stage, StageError, Threads};

use crate::data::words::{bad_place, words};
use crate::data::{Filter, ImageSet};
use crate::error::{Error, Result};
use crate::formats::{GENERATOR, IMAGE_SET, METRICS, STYLE};
use crate::generator::artifact::StyleMeta;
use crate::generator::diffusion::{Batch, Order};
use crate::generator::vocab::STYLE_TOKEN;
use crate::generator::{Generator, Style, text};
use crate::metrics::Metrics;
use crate::nn::compute::{Compute, DeviceKind, Place, Precision};
use crate::nn::optim::{AdamW, cosine};
use crate::nn::params::{Frozen, Params as Tensors};
use crate::nn::tape;
use crate::rng::Stream;

/// Batches of the held-out images on which the losses before and after are compared.
const HELD_OUT_BATCHES: usize = 8;
/// Images of such a batch.
const HELD_OUT_BATCH: usize = 64;
/// Name of the trained tensor.
const EMBEDDING: &str = "embedding";

/// Learns a style token.
pub struct StyleInversion;

/// Parameters of `style-inversion`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// The prompt with {class} and the token.
    pub template: String,
    /// The prompt without a style that the held-out loss is compared with.
    pub plain: String,
    /// The word that the token begins as; the mean of the words that name the generator's styles (of all words, if it has no styles) if none is given.
    pub init: Option<String>,
    /// Training steps.
    pub steps: usize,
    /// Images a step.
    pub batch: usize,
    /// Highest learning rate (AdamW without decay, a cosine down to 0).
    pub lr: f64,
    /// Seed of batches and noise.
    pub seed: u64,
    /// Where it is computed: `cpu` or `cuda`.
    #[serde(skip_serializing_if = "crate::nn::compute::is_usual")]
    pub device: DeviceKind,
    /// What activations are computed in: `f32`, or with `device: cuda` also `bf16`.
    #[serde(skip_serializing_if = "crate::nn::compute::is_usual")]
    pub precision: Precision,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            template: "A {class} photo in the style of S*".to_owned(),
            plain: "A good photo of the {class}".to_owned(),
            init: None,
            steps: 300,
            batch: 50,
            lr: 0.02,
            seed: 0,
            device: DeviceKind::default(),
            precision: Precision::default(),
        }
    }
}

impl Params {
    fn compute(&self) -> Compute {
        Compute { device: self.device, precision: self.precision }
    }
}

impl Stage for StyleInversion {
    const KIND: &'static str = "style-inversion";
    const VERSION: u32 = 4;
    const ABOUT: &'static str = "Learn one token for the style of a whole image set, all else frozen";
    type Params = Params;

    fn inputs() -> Vec<InPort> {
        vec![
            InPort { name: "generator", format: GENERATOR, arity: Arity::One, doc: "the frozen model" },
            InPort { name: "images", format: IMAGE_SET, arity: Arity::One, doc: "the images whose style is learned" },
            InPort {
                name: "heldout",
                format: IMAGE_SET,
                arity: Arity::Optional,
                doc: "other images of that style, only to compare losses on",
            },
        ]
    }

    fn outputs() -> Vec<OutPort> {
        vec![
            OutPort { name: "style", format: STYLE, path: "style", doc: "the learned token" },
            OutPort { name: "metrics", format: METRICS, path: "metrics.csv", doc: "loss and learning rate by step" },
        ]
    }

    fn check(params: &Params) -> Vec<ParamError> {
        let mut errors = params.compute().complaints();
        for (name, template, wants_token) in [("template", &params.template, true), ("plain", &params.plain, false)] {
            let has_token = words(template).iter().any(|word| word == STYLE_TOKEN);
            let complaint = bad_place(template, &["class"]).or_else(|| {
                let complaint = match (template.contains("{class}"), wants_token, has_token) {
                    (false, ..) => "has no {class}",
                    (_, true, false) => "does not use the token S*",
                    (_, false, true) => "uses the token S*, but it is the prompt without a style",
                    _ => return None,
                };
                Some(format!("`{template}` {complaint}"))
            });
            errors.extend(complaint.map(|message| ParamError::new(name, message)));
        }
        for (name, value) in [("steps", params.steps), ("batch", params.batch)] {
            if value == 0 {
                errors.push(ParamError::new(name, "it must be at least 1"));
            }
        }
        if !(params.lr.is_finite() && params.lr > 0.0) {
            errors.push(ParamError::new("lr", format!("{} is not above 0", params.lr)));
        }
        errors
    }

    fn threads(_: &Params) -> Threads {
        Threads::MANY
    }

    fn gpus(params: &Params) -> u32 {
        params.compute().gpus()
    }

    fn run(params: &Params, cx: &mut Context<'_>) -> Result<(), StageError> {
        let generator = Generator::read(cx.input("generator")?)?;
        let images = fitted(ImageSet::read(cx.input("images")?)?, &generator)?;
        let heldout = cx.optional("heldout").map(|dir| fitted(ImageSet::read(dir)?, &generator)).transpose()?;
        let (style, metrics) = invert(params, &generator, &images, &mut |progress| cx.progress(progress))?;
        if let Some(heldout) = heldout {
            for (name, loss) in compare(params, &generator, &style, &heldout)? {
                cx.metric(name, loss);
            }
        }
        style.write(cx.output("style")?)?;
        Ok(metrics.write(cx.output("metrics")?)?)
    }
}

/// Images in the size of the generator.
fn fitted(set: ImageSet, generator: &Generator) -> Result<ImageSet> {
    let config = &generator.config;
    if set.is_empty() {
        return Err(Error::argument("the set has no images"));
    }
    if set.meta.channels != config.channels {
        return Err(Error::argument(format!("the images have {} channels, the generator {}", set.meta.channels, config.channels)));
    }
    if (set.meta.height, set.meta.width) == (config.size, config.size) {
        Ok(set)
    } else {
        set.resized(config.size, config.size, Filter::Bilinear)
    }
}

/// The prompt of every class of a set.
fn prompts(template: &str, generator: &Generator, set: &ImageSet) -> Result<Vec<Vec<u32>>> {
    set.meta.classes.iter().map(|class| generator.vocab.encode(&template.replace("{class}", class), true)).collect()
}

/// The row that the token begins with.
fn beginning(params: &Params, generator: &Generator) -> Result<Vec<f32>> {
    let width = generator.config.text_width;
    let table = generator.params.values(text::TABLE)?;
    let row = |number: usize| table[number * width..][..width].to_vec();
    match &params.init {
        Some(word) => {
            let number = generator
                .vocab
                .number(word)
                .ok_or_else(|| Error::argument(format!("the generator does not know the word `{word}` of `init`")))?;
            Ok(row(number as usize))
        }
        None => {
            let styles = generator.vocab.style_words();
            // Row 0 is the padding.
            let all = 1..generator.vocab.len();
            let rows: Vec<Vec<f32>> =
                if styles.is_empty() { all.map(row).collect() } else { styles.into_iter().map(|n| row(n as usize)).collect() };
            Ok((0..width).map(|i| rows.iter().map(|row| row[i]).sum::<f32>() / rows.len() as f32).collect())
        }
    }
}

/// Learns the token.
///
/// # Errors
/// If a prompt has an unknown word or the loss stops being finite.
pub fn invert(params: &Params, generator: &Generator, images: &ImageSet, progress: &mut dyn FnMut(Progress)) -> Result<(Style, Metrics)> {
    let prompts = prompts(&params.template, generator, images)?;
    let place = params.compute().open()?;
    let frozen = generator.params.frozen_on(&place.device)?;
    let mut token = Tensors::new();
    token.insert(EMBEDDING, &[1, generator.config.text_width], beginning(params, generator)?)?;
    let token = token.on(&place.device)?;
    let mut order = Order::new(images.len(), Stream::new(params.seed, "order"));
    let mut noise = Stream::new(params.seed, "noise");
    let mut optimiser = AdamW::new(0.0);
    let mut metrics = Metrics::new(&["loss", "lr"]);
    for step in 0..params.steps {
        let indices = order.take(params.batch);
        let batch = Batch::draw(images, &indices, &mut noise)?.on(&place)?;
        let texts: Vec<Vec<u32>> = indices.iter().map(|&i| prompts[images.labels[i] as usize].clone()).collect();
        let (loss, tape) = tape::record(|| batch.loss(&frozen, &generator.config, &texts, Some(token.get(EMBEDDING)?)))?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        if !value.is_finite() {
            return Err(Error::argument(format!("the loss is {value} at step {step}; a lower `lr` may help")));
        }
        let lr = cosine(params.lr, step, params.steps, 0);
        optimiser.step(&token, &tape.backward(&loss)?, lr, |_| true)?;
        metrics.push(step, &[value, lr]);
        progress(Progress { step: step as u64 + 1, total: params.steps as u64, loss: Some(value), note: None });
    }
    let meta = StyleMeta { token: "S*".to_owned(), template: params.template.clone(), steps: params.steps, seed: params.seed };
    Ok((Style { embedding: token.get(EMBEDDING)?.detach().to_device(&Device::Cpu)?, meta }, metrics))
}

/// Losses on held-out images, on the same images, times and noise: with a prompt that names no style, with the token as it began, with the learned one.
///
/// # Errors
/// If a prompt has an unknown word.
pub fn compare(params: &Params, generator: &Generator, style: &Style, heldout: &ImageSet) -> Result<[(&'static str, f64); 3]> {
    let place = params.compute().open()?;
    let frozen = generator.params.frozen_on(&place.device)?;
    let untrained = Tensor::from_vec(beginning(params, generator)?, (1, generator.config.text_width), &Device::Cpu)?;
    let loss = |template: &str, token: &Tensor| {
        let (prompts, token) = (prompts(template, generator, heldout)?, token.to_device(&place.device)?);
        held_out_loss(params, generator, (&frozen, &place), heldout, &prompts, &token)
    };
    Ok([
        ("heldout_loss_plain", loss(&params.plain, &untrained)?),
        ("heldout_loss_untrained", loss(&params.template, &untrained)?),
        ("heldout_loss_learned", loss(&params.template, &style.embedding)?),
    ])
}

fn held_out_loss(
    params: &Params,
    generator: &Generator,
    (frozen, place): (&Frozen, &Place),
    set: &ImageSet,
    prompts: &[Vec<u32>],
    token: &Tensor,
) -> Result<f64> {
    let mut order = Order::new(set.len(), Stream::new(params.seed, "held-out order"));
    let mut noise = Stream::new(params.seed, "held-out noise");
    let mut total = 0.0;
    for _ in 0..HELD_OUT_BATCHES {
        let indices = order.take(HELD_OUT_BATCH);
        let batch = Batch::draw(set, &indices, &mut noise)?.on(place)?;
        let texts: Vec<Vec<u32>> = indices.iter().map(|&i| prompts[set.labels[i] as usize].clone()).collect();
        total += f64::from(batch.loss(frozen, &generator.config, &texts, Some(token))?.to_scalar::<f32>()?);
    }
    Ok(total / HELD_OUT_BATCHES as f64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;
    use trestle_engine::stage::Kind;

    use super::*;

    #[test]
    fn params_without_sense_are_found_before_a_run() {
        let kind = Kind::of::<StyleInversion>();
        let cases = [
            (json!({"template": "A photo in the style of S*"}), "template", "has no {class}"),
            (json!({"template": "A {class} photo"}), "template", "does not use the token"),
            (json!({"template": "A {class} photo in the {style} of S*"}), "template", "only {class} is filled in"),
            (json!({"plain": "A photo"}), "plain", "has no {class}"),
            (json!({"plain": "A {class} in the style of S*"}), "plain", "without a style"),
            (json!({"steps": 0}), "steps", "at least 1"),
            (json!({"batch": 0}), "batch", "at least 1"),
            (json!({"lr": -0.02}), "lr", "not above 0"),
        ];
        for (with, path, want) in cases {
            let complaints = kind.check(&with).unwrap_err();
            assert_eq!(complaints.len(), 1, "{complaints:?}");
            assert!(complaints[0].path == path && complaints[0].message.contains(want), "{complaints:?}");
        }
        assert!(kind.check(&json!({})).is_ok(), "the defaults");
    }
}
