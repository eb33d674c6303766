//! The stage `generation`: images from prompts.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trestle_engine::stage::{Arity, Context, Format, InPort, OutPort, ParamError, Progress, Stage, StageError, Threads};

use super::artifact::{Generator, Style};
use super::generate::{Order, Painter, Sampling};
use super::sampler::Sampler;
use super::vocab::STYLE_TOKEN;
use crate::data::words::words;
use crate::data::{ImageSet, Prompts};
use crate::draw::{Image, sheet};
use crate::error::{Error, Result};
use crate::rng::Stream;

/// Images of a row of the contact sheet.
const COLUMNS: usize = 10;

/// Generates images.
pub struct Generation;

/// Parameters of `generation`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// Images of each class; they take the class's prompts in turn.
    pub images_per_class: usize,
    /// Which sampler: `ddim` or `ddpm`.
    pub sampler: Sampler,
    /// Steps of the sampler.
    pub steps: usize,
    /// DDIM: share of fresh noise in each step, 0 (none) to 1 (as DDPM).
    pub eta: f64,
    /// Guidance scale: 1 follows the prompt alone, more exaggerates it, 0 ignores it.
    pub guidance: f64,
    /// Images that are made together; the images do not depend on it.
    pub batch: usize,
    /// Seed of the noise; an image's noise depends on it, the class and the image's number in the class alone.
    pub seed: u64,
}

impl Default for Params {
    fn default() -> Self {
        Self { images_per_class: 100, sampler: Sampler::Ddim, steps: 25, eta: 0.0, guidance: 2.0, batch: 50, seed: 0 }
    }
}

impl Params {
    fn sampling(&self) -> Sampling {
        let Self { sampler, eta, steps, guidance, batch, .. } = *self;
        Sampling { sampler, eta, steps, guidance, batch }
    }
}

/// Generates images for every class of `prompts`, class by class; `on_batch` gets the number of images that are done.
///
/// # Errors
/// If a prompt has a word that the generator does not know or the style token without a style, or a style is never used.
pub fn generate(
    params: &Params,
    generator: &Generator,
    prompts: &Prompts,
    style: Option<&Style>,
    on_batch: impl FnMut(usize),
) -> Result<ImageSet> {
    let uses_style = prompts.classes.iter().flat_map(|class| &class.prompts).any(|prompt| words(prompt).iter().any(|w| w == STYLE_TOKEN));
    if style.is_some() && !uses_style {
        return Err(Error::argument("a style is connected, but no prompt uses `S*`: put it into a template, or take `style:` out"));
    }
    let root = Stream::new(params.seed, "generation");
    let (mut orders, mut labels) = (Vec::new(), Vec::new());
    for (label, class) in prompts.classes.iter().enumerate() {
        let numbers: Vec<Vec<u32>> =
            class.prompts.iter().map(|prompt| generator.vocab.encode(prompt, style.is_some())).collect::<Result<_>>()?;
        let noise = root.child(&class.name);
        for i in 0..params.images_per_class {
            orders.push(Order { prompt: numbers[i % numbers.len()].clone(), noise: noise.child(&i.to_string()) });
            labels.push(label as u32);
        }
    }
    let painter = Painter::new(generator, style.map(|style| style.embedding.clone()))?;
    let bytes = painter.paint(&params.sampling(), orders, on_batch)?;
    let (size, channels) = (generator.config.size, generator.config.channels);
    let source = format!("generated from {}", prompts.templates.iter().map(|t| format!("`{t}`")).collect::<Vec<_>>().join(", "));
    let mut set = ImageSet::new(bytes, labels, (size, size, channels), prompts.classes().names, &source)?;
    set.meta.seed = Some(params.seed);
    Ok(set)
}

/// The first images of each class as a contact sheet.
///
/// # Errors
/// If there is no image.
pub fn contact_sheet(set: &ImageSet, title: &str) -> Result<Vec<u8>> {
    let image = |i: usize| Image { pixels: set.image(i), height: set.meta.height, width: set.meta.width, channels: set.meta.channels };
    let row = |label: u32| (0..set.len()).filter(|&i| set.labels[i] == label).take(COLUMNS).map(image).collect();
    let rows: Vec<_> = set.meta.classes.iter().enumerate().map(|(label, name)| (name.clone(), row(label as u32))).collect();
    sheet(title, &rows).map_err(|e| Error::argument(format!("contact sheet: {e}")))
}

impl Stage for Generation {
    const KIND: &'static str = "generation";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "Images from prompts, with a contact sheet";
    type Params = Params;

    fn inputs() -> Vec<InPort> {
        vec![
            InPort { name: "generator", format: Format("generator"), arity: Arity::One, doc: "the model" },
            InPort { name: "prompts", format: Format("prompts"), arity: Arity::One, doc: "the prompts of each class" },
            InPort { name: "style", format: Format("style"), arity: Arity::Optional, doc: "the learned style that `S*` stands for" },
        ]
    }

    fn outputs() -> Vec<OutPort> {
        vec![
            OutPort { name: "images", format: Format("image-set"), path: "images", doc: "the images, class by class" },
            OutPort { name: "sheet", format: Format("sheet"), path: "sheet.png", doc: "ten images of each class" },
        ]
    }

    fn check(params: &Params) -> Vec<ParamError> {
        let mut out = Vec::new();
        let mut complain = |wrong: bool, path: &str, message: &str| {
            if wrong {
                out.push(ParamError::new(path, message));
            }
        };
        complain(params.images_per_class == 0, "images_per_class", "make at least 1 image");
        complain(params.steps == 0, "steps", "take at least 1 step");
        complain(!(0.0..=1.0).contains(&params.eta), "eta", "it must be in 0 to 1");
        complain(params.sampler == Sampler::Ddpm && params.eta != 0.0, "eta", "`ddpm` has no eta: leave it out, or take `ddim`");
        complain(!(params.guidance.is_finite() && params.guidance >= 0.0), "guidance", "it must be 0 or more");
        complain(params.batch == 0, "batch", "make at least 1 image at a time");
        out
    }

    fn threads(_: &Params) -> Threads {
        Threads::MANY
    }

    fn run(params: &Params, cx: &mut Context<'_>) -> Result<(), StageError> {
        let generator = Generator::read(cx.input("generator")?)?;
        let prompts = Prompts::read(cx.input("prompts")?)?;
        let style = cx.optional("style").map(|dir| Style::read(dir, &generator.config)).transpose()?;
        let total = (params.images_per_class * prompts.classes.len()) as u64;
        let set = generate(params, &generator, &prompts, style.as_ref(), |done| {
            cx.progress(Progress { step: done as u64, total, loss: None, note: Some("images".into()) });
        })?;
        set.write(cx.output("images")?)?;
        let path = cx.output("sheet")?;
        std::fs::write(path, contact_sheet(&set, &prompts.templates.join(" · "))?).map_err(Error::io(path))?;
        Ok(())
    }
}
