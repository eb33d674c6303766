//! What flows between stages: sets of labelled images, class names, prompts.

mod classes;
mod image_set;
mod resize;
pub mod source;
pub mod split;
mod stored;
mod view;
pub mod words;

pub(crate) use classes::check_names;
pub use classes::{ClassPrompts, Classes, Prompts};
pub(crate) use classes::{read_json, write_json};
pub use image_set::{FILE, ImageSet, META, Meta, Normalisation};
pub use resize::Filter;
pub use stored::{Images, Stored, Writer};
pub use view::View;
