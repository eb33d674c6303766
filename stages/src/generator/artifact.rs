//! A generator and a style as folders.

use std::path::Path;

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::vocab::Vocab;
use super::{text, unet};
use crate::error::{Error, Result};
use crate::nn::params::Params;
use crate::rng::Stream;

const WEIGHTS: &str = "weights.safetensors";
const CONFIG: &str = "config.json";
const VOCAB: &str = "vocab.json";
const TOKEN: &str = "token.safetensors";
const STYLE: &str = "meta.json";
/// Name of the style's tensor.
const EMBEDDING: &str = "embedding";

/// The architecture of a generator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Side of the images, in pixels: a multiple of 4.
    pub size: usize,
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// Channels of the upper level; the lower one has twice as many. A multiple of 8.
    pub width: usize,
    /// Heads of the attention to the words.
    pub heads: usize,
    /// Width of the text encoder.
    pub text_width: usize,
    /// Its heads.
    pub text_heads: usize,
    /// Its blocks.
    pub text_blocks: usize,
}

impl Config {
    /// Width of the vector of time and text.
    pub fn embedding(&self) -> usize {
        2 * self.width
    }

    /// Complains about widths that do not fit together.
    ///
    /// # Errors
    /// In one sentence.
    pub fn check(&self) -> Result<()> {
        let complaint = if self.size == 0 || !self.size.is_multiple_of(4) {
            format!("images of side {} cannot be halved twice; the side must be a multiple of 4", self.size)
        } else if self.width == 0 || !self.width.is_multiple_of(unet::GROUPS) {
            format!("width {} is not a multiple of {}", self.width, unet::GROUPS)
        } else if self.heads == 0 || !(2 * self.width).is_multiple_of(self.heads) {
            format!("{} heads do not divide {} channels", self.heads, 2 * self.width)
        } else if self.text_heads == 0 || !self.text_width.is_multiple_of(self.text_heads) {
            format!("{} heads do not divide the text width {}", self.text_heads, self.text_width)
        } else {
            return Ok(());
        };
        Err(Error::Argument(complaint))
    }
}

/// A text-conditional diffusion model.
pub struct Generator {
    /// Architecture.
    pub config: Config,
    /// Words.
    pub vocab: Vocab,
    /// Weights of text encoder and network.
    pub params: Params,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VocabFile {
    length: usize,
    styles: Vec<String>,
    words: Vec<String>,
}

impl Generator {
    /// An untrained one.
    ///
    /// # Errors
    /// If the widths do not fit together.
    pub fn new(config: Config, vocab: Vocab, stream: &Stream) -> Result<Self> {
        config.check()?;
        let mut params = Params::new();
        text::init(&mut params, &config, vocab.len(), vocab.length, stream)?;
        unet::init(&mut params, &config, stream)?;
        Ok(Self { config, vocab, params })
    }

    /// Reads a `generator` folder.
    ///
    /// # Errors
    /// If a file cannot be read, or the weights are not of the architecture.
    pub fn read(dir: &Path) -> Result<Self> {
        let config: Config = crate::data::read_json(&dir.join(CONFIG))?;
        let VocabFile { length, styles, words } = crate::data::read_json(&dir.join(VOCAB))?;
        let params = Params::load(&dir.join(WEIGHTS))?;
        let like = Self::new(config, Vocab::new(words, styles, length), &Stream::new(0, "shapes"))?;
        params.expect_like(&like.params, &dir.join(WEIGHTS))?;
        Ok(Self { params, ..like })
    }

    fn vocab_file(&self) -> VocabFile {
        VocabFile { length: self.vocab.length, styles: self.vocab.styles.clone(), words: self.vocab.known().to_vec() }
    }

    /// Writes a `generator` folder.
    ///
    /// # Errors
    /// If a weight is not finite, or a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        self.params.save(&dir.join(WEIGHTS))?;
        crate::data::write_json(&dir.join(CONFIG), &self.config)?;
        crate::data::write_json(&dir.join(VOCAB), &self.vocab_file())
    }
}

/// What is known about a learned style.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StyleMeta {
    /// How prompts call it.
    pub token: String,
    /// The prompt that it was learned with.
    pub template: String,
    /// Steps of the inversion.
    pub steps: usize,
    /// Seed of the inversion.
    pub seed: u64,
}

/// One learned row of the table of words.
pub struct Style {
    /// `[1, text_width]`.
    pub embedding: Tensor,
    /// How it was learned.
    pub meta: StyleMeta,
}

impl Style {
    /// Reads a `style` folder that fits a generator.
    ///
    /// # Errors
    /// If a file cannot be read, or the token has another width.
    pub fn read(dir: &Path, config: &Config) -> Result<Self> {
        let path = dir.join(TOKEN);
        let params = Params::load(&path)?;
        let embedding = params.get(EMBEDDING).map_err(|_| Error::data(&path, format!("there is no tensor `{EMBEDDING}`")))?.detach();
        if embedding.dims() != [1, config.text_width] {
            let message = format!(
                "the style has the shape {:?}, the generator wants [1, {}]: it was learned with another generator",
                embedding.dims(),
                config.text_width
            );
            return Err(Error::data(&path, message));
        }
        Ok(Self { embedding, meta: crate::data::read_json(&dir.join(STYLE))? })
    }

    /// Writes a `style` folder.
    ///
    /// # Errors
    /// If a value is not finite, or a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(Error::io(dir))?;
        let mut params = Params::new();
        params.insert(EMBEDDING, self.embedding.dims(), self.embedding.flatten_all()?.to_vec1()?)?;
        params.save(&dir.join(TOKEN))?;
        crate::data::write_json(&dir.join(STYLE), &self.meta)
    }
}
