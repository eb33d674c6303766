//! The stage `generation`: images from prompts.

use candle_core::{DType, Device, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trestle_engine::stage::{Arity, Context, InPort, OutPort, ParamError, Progress, Stage, StageError, Threads};

use crate::data::words::words;
use crate::data::{ImageSet, Normalisation, Prompts};
use crate::draw::{self, Image};
use crate::error::{Error, Result};
use crate::formats::{GENERATOR, IMAGE_SET, PROMPTS, SHEET, STYLE};
use crate::generator::sampler::{Sampler, step};
use crate::generator::schedule::times;
use crate::generator::vocab::STYLE_TOKEN;
use crate::generator::{Config, Generator, Style, text, unet};
use crate::nn::compute::{Compute, DeviceKind, Place, Precision};
use crate::nn::params::{Frozen, Weights};
use crate::rng::Stream;

/// Images of each class on the contact sheet.
const ON_SHEET: usize = 16;

/// Generates labelled images.
pub struct Generation;

/// Parameters of `generation`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// Images of each class; a class with several prompts takes them in turn.
    pub images_per_class: usize,
    /// How noise becomes an image.
    pub sampler: Sampler,
    /// Fresh noise in each step of `ddim`, 0 (none) to 1 (as `ddpm`).
    pub eta: f64,
    /// Steps of the sampler.
    pub steps: usize,
    /// Guidance scale w: v = v(empty) + w·(v(prompt) − v(empty)); 1 is no guidance.
    pub guidance: f64,
    /// Images that are made together.
    pub batch: usize,
    /// Title of the contact sheet.
    pub title: String,
    /// Seed of the noise; the noise of an image depends on it, on the class's name and on the image's number alone.
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
            images_per_class: 100,
            sampler: Sampler::Ddim,
            eta: 0.0,
            steps: 20,
            guidance: 2.0,
            batch: 100,
            title: "Generated images".to_owned(),
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

impl Stage for Generation {
    const KIND: &'static str = "generation";
    const VERSION: u32 = 4;
    const ABOUT: &'static str = "Generate labelled images from prompts, with or without a learned style";
    type Params = Params;

    fn inputs() -> Vec<InPort> {
        vec![
            InPort { name: "generator", format: GENERATOR, arity: Arity::One, doc: "the model that generates" },
            InPort { name: "prompts", format: PROMPTS, arity: Arity::One, doc: "prompts of each class" },
            InPort { name: "style", format: STYLE, arity: Arity::Optional, doc: "what `S*` in a prompt stands for" },
        ]
    }

    fn outputs() -> Vec<OutPort> {
        vec![
            OutPort { name: "images", format: IMAGE_SET, path: "images", doc: "the generated images, labelled with their classes" },
            OutPort { name: "sheet", format: SHEET, path: "sheet.png", doc: "some of each class" },
        ]
    }

    fn check(params: &Params) -> Vec<ParamError> {
        let mut errors = params.compute().complaints();
        for (name, value) in [("images_per_class", params.images_per_class), ("steps", params.steps), ("batch", params.batch)] {
            if value == 0 {
                errors.push(ParamError::new(name, "it must be at least 1"));
            }
        }
        if !(0.0..=1.0).contains(&params.eta) {
            errors.push(ParamError::new("eta", format!("{} is not in [0, 1]", params.eta)));
        }
        if !params.guidance.is_finite() || params.guidance < 0.0 {
            errors.push(ParamError::new("guidance", format!("{} is not a scale of at least 0", params.guidance)));
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
        let prompts = Prompts::read(cx.input("prompts")?)?;
        let style = cx.optional("style").map(|dir| Style::read(dir, &generator.config)).transpose()?;
        let images = generate(params, &generator, &prompts, style.as_ref(), &mut |progress| cx.progress(progress))?;
        images.write(cx.output("images")?)?;
        let sheet = sheet(&params.title, &images)?;
        let path = cx.output("sheet")?;
        Ok(std::fs::write(path, sheet).map_err(Error::io(path))?)
    }
}

/// One image to make.
struct Wish {
    class: usize,
    prompt: Vec<u32>,
    noise: Stream,
}

fn wishes(params: &Params, generator: &Generator, prompts: &Prompts, with_style: bool) -> Result<Vec<Wish>> {
    let mut wishes = Vec::new();
    let noise = Stream::new(params.seed, "generation");
    for (class, entry) in prompts.classes.iter().enumerate() {
        let encoded: Vec<Vec<u32>> =
            entry.prompts.iter().map(|prompt| generator.vocab.encode(prompt, with_style)).collect::<Result<_>>()?;
        for i in 0..params.images_per_class {
            wishes.push(Wish { class, prompt: encoded[i % encoded.len()].clone(), noise: noise.child(&format!("{}/{i}", entry.name)) });
        }
    }
    Ok(wishes)
}

/// Generates `images_per_class` images of every class, in the order of the classes.
///
/// # Errors
/// If a prompt has a word that the generator does not know, or uses `S*` without a style, or none uses the style.
pub fn generate(
    params: &Params,
    generator: &Generator,
    prompts: &Prompts,
    style: Option<&Style>,
    progress: &mut dyn FnMut(Progress),
) -> Result<ImageSet> {
    let names_style = |prompt: &String| words(prompt).iter().any(|word| word == STYLE_TOKEN);
    if style.is_some() && !prompts.classes.iter().flat_map(|class| &class.prompts).any(names_style) {
        return Err(Error::argument("a style is connected, but no prompt uses `S*`: put it into a template, or take `style:` out"));
    }
    let mut wishes = wishes(params, generator, prompts, style.is_some())?;
    let config = &generator.config;
    let place = params.compute().open()?;
    let weights = generator.params.frozen_on(&place.device)?;
    let style = style.map(|style| style.embedding.to_device(&place.device)).transpose()?;
    let total = (wishes.len().div_ceil(params.batch) * params.steps) as u64;
    let mut done = 0;
    let mut bytes = Vec::with_capacity(wishes.len() * config.size * config.size * config.channels);
    for batch in wishes.chunks_mut(params.batch) {
        let mut tick = || {
            done += 1;
            progress(Progress { step: done, total, loss: None, note: None });
        };
        let pixels = sample(params, config, (&weights, &place), &generator.vocab.empty(), style.as_ref(), batch, &mut tick)?;
        bytes.extend(pixels.iter().map(|v| Normalisation::Signed.byte(*v)));
    }
    let labels = wishes.iter().map(|wish| wish.class as u32).collect();
    let classes = prompts.classes.iter().map(|class| class.name.clone()).collect();
    let mut set = ImageSet::new(bytes, labels, (config.size, config.size, config.channels), classes, "generated")?;
    set.meta.seed = Some(params.seed);
    Ok(set)
}

/// The images of one batch, in [−1, 1].
fn sample(
    params: &Params,
    config: &Config,
    (weights, place): (&Frozen, &Place),
    empty: &[u32],
    style: Option<&Tensor>,
    batch: &mut [Wish],
    tick: &mut dyn FnMut(),
) -> Result<Vec<f32>> {
    let size = config.size * config.size * config.channels;
    let mut x: Vec<f32> = batch.iter_mut().flat_map(|wish| wish.noise.normals(size)).collect();
    let eta = params.sampler.eta(params.eta);
    let times = times(params.steps);
    let guided = (params.guidance - 1.0).abs() > f64::EPSILON;
    // The words do not change from step to step.
    let mut prompts: Vec<Vec<u32>> = batch.iter().map(|wish| wish.prompt.clone()).collect();
    if guided {
        prompts.extend(std::iter::repeat_n(empty.to_vec(), batch.len()));
    }
    let context = text::encode(weights as &dyn Weights, config, &prompts, style)?;
    for pair in times.windows(2) {
        let (t, s) = (pair[0], pair[1]);
        let mut images = x.clone();
        if guided {
            images.extend_from_slice(&x);
        }
        let images = Tensor::from_vec(images, (prompts.len(), config.size, config.size, config.channels), &Device::Cpu)?;
        let v = unet::forward(weights, config, &place.bring(&images)?, &vec![t; prompts.len()], &context)?;
        let mut v: Vec<f32> = v.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
        if guided {
            let (with, without) = v.split_at_mut(x.len());
            with.iter_mut().zip(without).for_each(|(with, without)| *with = *without + params.guidance as f32 * (*with - *without));
        }
        let noise: Option<Vec<f32>> = (eta > 0.0).then(|| batch.iter_mut().flat_map(|wish| wish.noise.normals(size)).collect());
        step(&mut x, &v, noise.as_deref(), t, s, eta);
        tick();
    }
    Ok(x)
}

/// A contact sheet of the first images of every class, as PNG.
///
/// # Errors
/// If the set has no image.
pub fn sheet(title: &str, set: &ImageSet) -> Result<Vec<u8>> {
    let image =
        |index: usize| Image { pixels: set.image(index), height: set.meta.height, width: set.meta.width, channels: set.meta.channels };
    let rows: Vec<(String, Vec<Image<'_>>)> = set
        .meta
        .classes
        .iter()
        .enumerate()
        .map(|(class, name)| {
            (name.clone(), (0..set.len()).filter(|&i| set.labels[i] as usize == class).take(ON_SHEET).map(image).collect())
        })
        .collect();
    draw::sheet(title, &rows).map_err(|e| Error::argument(e.to_string()))
}
