//! The stage `generator-pretrain`: a text-conditional diffusion model learns the style of a source.

use candle_core::Device;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trestle_engine::stage::{Arity, Context, InPort, OutPort, ParamError, Progress, Stage, StageError, Threads};

use crate::data::ImageSet;
use crate::data::words::bad_place;
use crate::error::{Error, Result};
use crate::formats::{GENERATOR, IMAGE_SET, METRICS};
use crate::generator::diffusion::{Batch, Order};
use crate::generator::{Config, Generator, Vocab};
use crate::metrics::Metrics;
use crate::nn::compute::{Compute, DeviceKind, Precision};
use crate::nn::ema::Ema;
use crate::nn::optim::{AdamW, clip, cosine};
use crate::nn::tape;
use crate::rng::Stream;

/// Trains a generator from nothing.
pub struct GeneratorPretrain;

/// Parameters of `generator-pretrain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Captions of the training images, with {class} and, for sets that have styles, {style}; one is drawn for each image of a batch.
    pub templates: Vec<String>,
    /// Training steps.
    pub steps: usize,
    /// Images a step.
    pub batch: usize,
    /// Highest learning rate (AdamW, warm-up, then a cosine down to 0).
    pub lr: f64,
    /// Steps of the warm-up.
    pub warmup: usize,
    /// Decay of weights.
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm.
    pub clip: f64,
    /// Share of captions that are left empty, for classifier-free guidance.
    pub caption_dropout: f64,
    /// Decay of the moving average of the weights, which is what is kept.
    pub ema: f64,
    /// Channels of the network's upper level; a multiple of 8.
    pub width: usize,
    /// Heads of the attention to the words.
    pub heads: usize,
    /// Width of the text encoder.
    pub text_width: usize,
    /// Blocks of the text encoder.
    pub text_blocks: usize,
    /// Seed of weights, batches, captions and noise.
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
            templates: [
                "A good photo of the {class}",
                "A photo of the {class}",
                "A {style} {class}",
                "A {class} photo in the style of {style}",
                "A photo of the {class} in the style of {style}",
            ]
            .map(str::to_owned)
            .to_vec(),
            steps: 1500,
            batch: 64,
            lr: 2e-3,
            warmup: 50,
            weight_decay: 0.01,
            clip: 1.0,
            caption_dropout: 0.1,
            ema: 0.995,
            width: 32,
            heads: 4,
            text_width: 64,
            text_blocks: 1,
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

    fn config(&self, set: &ImageSet) -> Result<Config> {
        if set.meta.height != set.meta.width {
            return Err(Error::argument(format!("the images are {}×{}; the generator takes square ones", set.meta.height, set.meta.width)));
        }
        Ok(Config {
            size: set.meta.height,
            channels: set.meta.channels,
            width: self.width,
            heads: self.heads,
            text_width: self.text_width,
            text_heads: self.heads,
            text_blocks: self.text_blocks,
        })
    }
}

impl Stage for GeneratorPretrain {
    const KIND: &'static str = "generator-pretrain";
    const VERSION: u32 = 4;
    const ABOUT: &'static str = "Train a small text-conditional diffusion model on images with classes and styles";
    type Params = Params;

    fn inputs() -> Vec<InPort> {
        vec![InPort { name: "data", format: IMAGE_SET, arity: Arity::One, doc: "images to learn from, best with a style for each" }]
    }

    fn outputs() -> Vec<OutPort> {
        vec![
            OutPort { name: "generator", format: GENERATOR, path: "generator", doc: "the trained model" },
            OutPort { name: "metrics", format: METRICS, path: "metrics.csv", doc: "loss, gradient norm and learning rate by step" },
        ]
    }

    fn check(params: &Params) -> Vec<ParamError> {
        let mut errors = params.compute().complaints();
        if params.templates.is_empty() {
            errors.push(ParamError::new("templates", "at least one caption is needed"));
        }
        for (i, template) in params.templates.iter().enumerate() {
            let missing = (!template.contains("{class}")).then(|| format!("`{template}` has no {{class}}"));
            let complaint = bad_place(template, &["class", "style"]).or(missing);
            errors.extend(complaint.map(|message| ParamError::new(format!("templates.{i}"), message)));
        }
        for (name, value) in [("steps", params.steps), ("batch", params.batch)] {
            if value == 0 {
                errors.push(ParamError::new(name, "it must be at least 1"));
            }
        }
        for (name, value) in [("caption_dropout", params.caption_dropout), ("ema", params.ema)] {
            if !(0.0..1.0).contains(&value) {
                errors.push(ParamError::new(name, format!("{value} is not in [0, 1)")));
            }
        }
        for (name, value) in [("lr", params.lr), ("clip", params.clip)] {
            if !(value.is_finite() && value > 0.0) {
                errors.push(ParamError::new(name, format!("{value} is not above 0")));
            }
        }
        if !(params.weight_decay.is_finite() && params.weight_decay >= 0.0) {
            errors.push(ParamError::new("weight_decay", format!("{} is below 0", params.weight_decay)));
        }
        let config = Config {
            size: 4,
            channels: 1,
            width: params.width,
            heads: params.heads,
            text_width: params.text_width,
            text_heads: params.heads,
            text_blocks: params.text_blocks,
        };
        errors.extend(config.check().err().map(|e| ParamError::new("width", e.to_string())));
        errors
    }

    fn threads(_: &Params) -> Threads {
        Threads::MANY
    }

    fn gpus(params: &Params) -> u32 {
        params.compute().gpus()
    }

    fn run(params: &Params, cx: &mut Context<'_>) -> Result<(), StageError> {
        let set = ImageSet::read(cx.input("data")?)?;
        let (generator, metrics) = train(params, &set, &mut |progress| cx.progress(progress))?;
        generator.write(cx.output("generator")?)?;
        Ok(metrics.write(cx.output("metrics")?)?)
    }
}

/// The captions that an image can have.
struct Captions {
    /// By class and style.
    texts: Vec<Vec<Vec<Vec<u32>>>>,
    empty: Vec<u32>,
    dropout: f64,
}

/// Every text of one class and style. Templates that want a style are passed over in sets that have none.
fn texts(params: &Params, class: &str, style: Option<&str>) -> Vec<String> {
    let fitting = params.templates.iter().filter(|template| style.is_some() || !template.contains("{style}"));
    fitting.map(|template| template.replace("{class}", class).replace("{style}", style.unwrap_or_default())).collect()
}

impl Captions {
    fn new(params: &Params, set: &ImageSet) -> Result<(Self, Vocab)> {
        let styles: Vec<Option<&str>> = match &set.meta.styles {
            Some(names) => names.iter().map(|name| Some(name.as_str())).collect(),
            None => vec![None],
        };
        let all: Vec<Vec<Vec<String>>> =
            set.meta.classes.iter().map(|class| styles.iter().map(|style| texts(params, class, *style)).collect()).collect();
        if all.iter().flatten().any(Vec::is_empty) {
            return Err(Error::argument("every template wants a {style}, but the images have no styles"));
        }
        let names = set.meta.styles.as_deref().unwrap_or_default();
        let vocab = Vocab::from_prompts(all.iter().flatten().flatten().map(String::as_str), names)?;
        let encode = |texts: &Vec<String>| texts.iter().map(|text| vocab.encode(text, false)).collect::<Result<Vec<_>>>();
        let texts = all.iter().map(|by_style| by_style.iter().map(encode).collect()).collect::<Result<_>>()?;
        Ok((Self { texts, empty: vocab.empty(), dropout: params.caption_dropout }, vocab))
    }

    fn draw(&self, set: &ImageSet, index: usize, random: &mut Stream) -> Vec<u32> {
        let style = set.styles.as_ref().map_or(0, |styles| styles[index] as usize);
        let texts = &self.texts[set.labels[index] as usize][style];
        // Both are drawn whatever comes of them, so that the dropout does not shift the rest.
        let (text, dropped) = (random.below(texts.len()), random.uniform() < self.dropout);
        if dropped { self.empty.clone() } else { texts[text].clone() }
    }
}

/// Trains a generator on a set.
///
/// # Errors
/// If the loss stops being finite, or the set does not fit.
pub fn train(params: &Params, set: &ImageSet, progress: &mut dyn FnMut(Progress)) -> Result<(Generator, Metrics)> {
    if set.is_empty() {
        return Err(Error::argument("the set has no images to learn from"));
    }
    let (captions, vocab) = Captions::new(params, set)?;
    let mut generator = Generator::new(params.config(set)?, vocab, &Stream::new(params.seed, "init"))?;
    let place = params.compute().open()?;
    generator.params = generator.params.on(&place.device)?;
    let mut order = Order::new(set.len(), Stream::new(params.seed, "order"));
    let (mut noise, mut words) = (Stream::new(params.seed, "noise"), Stream::new(params.seed, "captions"));
    let mut optimiser = AdamW::new(params.weight_decay);
    let mut ema = Ema::new(&generator.params, params.ema)?;
    let mut metrics = Metrics::new(&["loss", "grad_norm", "lr"]);
    for step in 0..params.steps {
        let indices = order.take(params.batch);
        let batch = Batch::draw(set, &indices, &mut noise)?.on(&place)?;
        let prompts: Vec<Vec<u32>> = indices.iter().map(|&i| captions.draw(set, i, &mut words)).collect();
        let (loss, tape) = tape::record(|| batch.loss(&generator.params, &generator.config, &prompts, None))?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        if !value.is_finite() {
            return Err(Error::argument(format!("the loss is {value} at step {step}; a lower `lr` may help")));
        }
        let mut grads = tape.backward(&loss)?;
        let norm = clip(&generator.params, &mut grads, params.clip)?;
        let lr = cosine(params.lr, step, params.steps, params.warmup);
        optimiser.step(&generator.params, &grads, lr, |_| true)?;
        ema.update(&generator.params)?;
        metrics.push(step, &[value, norm, lr]);
        progress(Progress { step: step as u64 + 1, total: params.steps as u64, loss: Some(value), note: None });
    }
    let averaged = ema.params(&generator.params)?.on(&Device::Cpu)?;
    Ok((Generator { params: averaged, ..generator }, metrics))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;
    use trestle_engine::stage::Kind;

    use super::*;

    #[test]
    fn params_without_sense_are_found_before_a_run() {
        let kind = Kind::of::<GeneratorPretrain>();
        let cases = [
            (json!({"templates": []}), "templates"),
            (json!({"templates": ["a {class}", "a photo"]}), "templates.1"),
            (json!({"templates": ["a {klass} {class}"]}), "templates.0"),
            (json!({"steps": 0}), "steps"),
            (json!({"batch": 0}), "batch"),
            (json!({"caption_dropout": 1.0}), "caption_dropout"),
            (json!({"ema": -0.1}), "ema"),
            (json!({"lr": 0.0}), "lr"),
            (json!({"clip": -1.0}), "clip"),
            (json!({"weight_decay": -0.01}), "weight_decay"),
            (json!({"width": 12}), "width"),
        ];
        for (with, path) in cases {
            let complaints = kind.check(&with).unwrap_err();
            assert_eq!(complaints.iter().map(|c| c.path.as_str()).collect::<Vec<_>>(), [path], "{complaints:?}");
        }
        assert!(kind.check(&json!({})).is_ok(), "the defaults");
    }
}
