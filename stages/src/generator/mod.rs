//! A small text-conditional diffusion model: words → a text encoder → a UNet that removes noise from images.
//!
//! | part | module |
//! |---|---|
//! | prompts to word numbers | [`vocab`] |
//! | word numbers to vectors | [`text`] |
//! | noise levels, and the steps of a sampler | [`schedule`], [`sampler`] |
//! | the network | [`unet`] |
//! | the model as an artifact | [`artifact`] |
//!
//! The network predicts v = αε − σx (Salimans and Ho 2022) on a cosine schedule (Nichol and Dhariwal 2021), with classifier-free guidance
//! (Ho and Salimans 2022). A learned style token (textual inversion, Gal et al. 2022; one for a whole data set in arXiv 2403.19866) is one
//! more row of the table of words.

pub mod artifact;
pub mod diffusion;
pub mod sampler;
pub mod schedule;
pub mod text;
pub mod unet;
pub mod vocab;

pub use artifact::{Config, Generator, Style};
pub use vocab::{STYLE_TOKEN, Vocab};

#[cfg(test)]
mod tests;
