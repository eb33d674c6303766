//! The text encoder: a table of words, places, and transformer blocks (pre-norm, as in CLIP's).

use candle_core::Tensor;

use super::artifact::Config;
use crate::error::Result;
use crate::nn::ops::{attention, bias_add, embedding, gelu, global_avg_pool, layer_norm, linear};
use crate::nn::params::{Params, Weights};
use crate::nn::tape::{add, join, reshape};
use crate::rng::Stream;

const EPS: f32 = 1e-5;

/// What a batch of prompts says: every word in its context, and all of them together.
pub struct Context {
    /// `[b, length, text_width]`.
    pub words: Tensor,
    /// `[b, text_width]`.
    pub pooled: Tensor,
}

/// Name of the table of words.
pub const TABLE: &str = "text.token_embedding.weight";

/// Adds the encoder's tensors to `params`.
pub fn init(params: &mut Params, config: &Config, rows: usize, length: usize, stream: &Stream) -> Result<()> {
    let d = config.text_width;
    params.normal(TABLE, &[rows, d], 1, 0.02, stream)?;
    params.normal("text.position_embedding.weight", &[length, d], 1, 0.02, stream)?;
    for i in 0..config.text_blocks {
        let name = |part: &str| format!("text.blocks.{i}.{part}");
        for part in ["norm1", "norm2"] {
            params.constant(&name(&format!("{part}.weight")), &[d], 1.0)?;
            params.constant(&name(&format!("{part}.bias")), &[d], 0.0)?;
        }
        for part in ["q", "k", "v", "out"] {
            params.normal(&name(&format!("{part}.weight")), &[d, d], d, 1.0, stream)?;
        }
        params.normal(&name("mlp1.weight"), &[d, 2 * d], d, 1.0, stream)?;
        params.constant(&name("mlp1.bias"), &[2 * d], 0.0)?;
        params.normal(&name("mlp2.weight"), &[2 * d, d], 2 * d, 1.0, stream)?;
        params.constant(&name("mlp2.bias"), &[d], 0.0)?;
    }
    params.constant("text.norm.weight", &[d], 1.0)?;
    params.constant("text.norm.bias", &[d], 0.0)
}

/// Encodes prompts of equal length. `style` `[1, text_width]` is the row of the style token.
pub fn encode(w: &dyn Weights, config: &Config, prompts: &[Vec<u32>], style: Option<&Tensor>) -> Result<Context> {
    let (b, length, d) = (prompts.len(), prompts.first().map_or(0, Vec::len), config.text_width);
    let numbers: Vec<u32> = prompts.concat();
    let table = match style {
        Some(style) => join(&[w.weight(TABLE)?, style], false)?,
        None => w.weight(TABLE)?.clone(),
    };
    let words = reshape(&embedding(&table, &numbers)?, (b, length, d))?;
    let mut x = bias_add(&words, w.weight("text.position_embedding.weight")?)?;
    for i in 0..config.text_blocks {
        let get = |part: &str| w.weight(&format!("text.blocks.{i}.{part}"));
        let h = layer_norm(&x, get("norm1.weight")?, get("norm1.bias")?, EPS)?;
        let project = |part: &str| -> Result<Tensor> { Ok(linear(&h, get(part)?, None)?) };
        let mixed = attention(&project("q.weight")?, &project("k.weight")?, &project("v.weight")?, config.text_heads)?;
        x = add(&x, &linear(&mixed, get("out.weight")?, None)?)?;
        let h = layer_norm(&x, get("norm2.weight")?, get("norm2.bias")?, EPS)?;
        let h = gelu(&linear(&h, get("mlp1.weight")?, Some(get("mlp1.bias")?))?)?;
        x = add(&x, &linear(&h, get("mlp2.weight")?, Some(get("mlp2.bias")?))?)?;
    }
    let words = layer_norm(&x, w.weight("text.norm.weight")?, w.weight("text.norm.bias")?, EPS)?;
    let pooled = global_avg_pool(&reshape(&words, (b, length, 1, d))?)?;
    Ok(Context { words, pooled })
}
