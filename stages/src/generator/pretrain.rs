//! The stage `generator-pretrain`: a text-conditional diffusion model from captioned images.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trestle_engine::stage::{Arity, Context, Format, InPort, OutPort, ParamError, Progress, Stage, StageError, Threads};

use super::artifact::{Config, Generator};
use super::caption::{self, Captions};
use super::diffusion::{Batch, Order};
use super::history::History;
use crate::data::ImageSet;
use crate::error::{Error, Result};
use crate::nn::ema::Ema;
use crate::nn::optim::{AdamW, clip, cosine};
use crate::rng::Stream;

/// Trains a generator.
pub struct GeneratorPretrain;

/// Parameters of `generator-pretrain`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// Training steps.
    pub steps: usize,
    /// Images a step.
    pub batch: usize,
    /// Highest learning rate: it warms up to it and then falls along a half cosine to 0.
    pub lr: f64,
    /// Steps of the warm-up.
    pub warmup: usize,
    /// Weight decay of AdamW.
    pub weight_decay: f64,
    /// The norm that the gradient is cut to.
    pub clip: f64,
    /// Decay of the moving average of the weights, which is what the stage writes.
    pub ema: f64,
    /// Channels of the network's upper level (the lower has twice as many); a multiple of 8.
    pub width: usize,
    /// Heads of the attention to the words.
    pub heads: usize,
    /// Width of the text encoder.
    pub text_width: usize,
    /// Its heads.
    pub text_heads: usize,
    /// Its blocks.
    pub depth: usize,
    /// Captions, with `{class}` and, for images with styles, `{style}`; one is drawn for each image and step.
    pub templates: Vec<String>,
    /// Share of captions that are replaced by the empty one, for guidance.
    pub caption_dropout: f64,
    /// Seed of weights, order, captions and noise.
    pub seed: u64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            steps: 1200,
            batch: 64,
            lr: 2e-3,
            warmup: 50,
            weight_decay: 0.01,
            clip: 1.0,
            ema: 0.995,
            width: 48,
            heads: 4,
            text_width: 64,
            text_heads: 4,
            depth: 2,
            templates: vec!["A good photo of the {class}".into(), "A {class} photo in the style of {style}".into()],
            caption_dropout: 0.1,
            seed: 0,
        }
    }
}

impl Params {
    fn config(&self, set: &ImageSet) -> Result<Config> {
        if set.meta.height != set.meta.width {
            let (height, width) = (set.meta.height, set.meta.width);
            return Err(Error::argument(format!("images of {height}x{width} pixels are not square: set `size` in the `dataset` stage")));
        }
        Ok(Config {
            size: set.meta.height,
            channels: set.meta.channels,
            width: self.width,
            heads: self.heads,
            text_width: self.text_width,
            text_heads: self.text_heads,
            text_blocks: self.depth,
        })
    }
}

/// Trains a generator on captioned images; `on_step` gets every step, counted from 1, and its loss.
///
/// # Errors
/// If there are no images, they do not fit the architecture, or the training diverges.
pub fn train(params: &Params, set: &ImageSet, mut on_step: impl FnMut(usize, f64)) -> Result<Generator> {
    if set.is_empty() {
        return Err(Error::argument("there are no images to train on"));
    }
    let styles = set.meta.styles.clone().unwrap_or_default();
    let (vocab, captions) = Captions::new(&params.templates, &set.meta.classes, &styles, params.caption_dropout)?;
    let root = Stream::new(params.seed, "generator-pretrain");
    let mut generator = Generator::new(params.config(set)?, vocab, &root.child("init"))?;
    let (mut order, mut words, mut noise) = (Order::new(set.len(), root.child("order")), root.child("captions"), root.child("noise"));
    let (mut optimiser, mut ema) = (AdamW::new(params.weight_decay), Ema::new(&generator.params, params.ema)?);
    for step in 0..params.steps {
        let images = order.take(params.batch);
        let style = |i: usize| set.styles.as_ref().map_or(0, |styles| styles[i]);
        let prompts: Vec<Vec<u32>> = images.iter().map(|&i| captions.draw(set.labels[i], style(i), &mut words)).collect();
        let batch = Batch::draw(set, &images, &mut noise)?;
        let loss = batch.loss(&generator.params, &generator.config, &prompts, None)?;
        let mut grads = loss.backward()?;
        let loss = f64::from(loss.to_scalar::<f32>()?);
        if !loss.is_finite() {
            return Err(Error::argument(format!("the training diverged at step {}: lower `lr` (now {})", step + 1, params.lr)));
        }
        clip(&generator.params, &mut grads, params.clip)?;
        optimiser.step(&generator.params, &grads, cosine(params.lr, step, params.steps, params.warmup), |_| true)?;
        ema.update(&generator.params)?;
        on_step(step + 1, loss);
    }
    generator.params = ema.params(&generator.params)?;
    Ok(generator)
}

impl Stage for GeneratorPretrain {
    const KIND: &'static str = "generator-pretrain";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Trains a small text-conditional diffusion model on captioned images";
    type Params = Params;

    fn inputs() -> Vec<InPort> {
        vec![InPort { name: "data", format: Format("image-set"), arity: Arity::One, doc: "images with classes and, if they have, styles" }]
    }

    fn outputs() -> Vec<OutPort> {
        vec![
            OutPort { name: "generator", format: Format("generator"), path: "generator", doc: "the trained model" },
            OutPort { name: "metrics", format: Format("metrics"), path: "metrics.csv", doc: "the loss of each step" },
        ]
    }

    fn check(params: &Params) -> Vec<ParamError> {
        let mut out = Vec::new();
        let mut complain = |wrong: bool, path: &str, message: &str| {
            if wrong {
                out.push(ParamError::new(path, message));
            }
        };
        let positive = |value: f64| value.is_finite() && value > 0.0;
        complain(params.steps == 0, "steps", "train for at least 1 step");
        complain(params.batch == 0, "batch", "take at least 1 image a step");
        complain(!positive(params.lr), "lr", "it must be above 0");
        complain(!positive(params.clip), "clip", "it must be above 0");
        complain(!(params.weight_decay.is_finite() && params.weight_decay >= 0.0), "weight_decay", "it must be 0 or more");
        complain(!(0.0..1.0).contains(&params.ema), "ema", "it must be at least 0 and below 1");
        complain(!(0.0..1.0).contains(&params.caption_dropout), "caption_dropout", "it must be at least 0 and below 1");
        complain(params.width == 0 || !params.width.is_multiple_of(8), "width", "it must be a multiple of 8");
        complain(params.heads == 0 || !(2 * params.width).is_multiple_of(params.heads), "heads", "it must divide twice the width");
        complain(
            params.text_heads == 0 || !params.text_width.is_multiple_of(params.text_heads),
            "text_heads",
            "it must divide `text_width`",
        );
        complain(params.text_width == 0, "text_width", "it must be at least 1");
        complain(params.templates.is_empty(), "templates", "give at least one template with {class}");
        for (i, template) in params.templates.iter().enumerate() {
            out.extend(caption::complaint(template).map(|message| ParamError::new(format!("templates.{i}"), message)));
        }
        out
    }

    fn threads(_: &Params) -> Threads {
        Threads::MANY
    }

    fn run(params: &Params, cx: &mut Context<'_>) -> Result<(), StageError> {
        let set = ImageSet::read(cx.input("data")?)?;
        let mut history = History::default();
        let total = params.steps as u64;
        let generator = train(params, &set, |step, loss| {
            history.push(step, loss);
            cx.progress(Progress { step: step as u64, total, loss: Some(loss), note: None });
        })?;
        generator.write(cx.output("generator")?)?;
        history.write(cx.output("metrics")?)?;
        cx.metric("loss", history.last(100));
        cx.metric("parameters", generator.params.count() as f64);
        Ok(())
    }
}
