//! What flows between stages: sets of labelled images, class names, prompts.

mod classes;
mod image_set;
mod resize;
pub mod words;

pub use classes::{ClassPrompts, Classes, Prompts};
pub use image_set::{FILE, ImageSet, META, Meta, Normalisation};
pub use resize::Filter;
