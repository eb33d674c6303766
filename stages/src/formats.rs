//! The formats of what flows between stages.
//!
//! | format | what | files |
//! |---|---|---|
//! | `image-set` | labelled images | `data.safetensors`, `meta.json` |
//! | `classes` | class names | a JSON file |
//! | `prompts` | prompts of each class | a JSON file |
//! | `generator` | a text-conditional diffusion model | `weights.safetensors`, `config.json`, `vocab.json` |
//! | `style` | a learned style token | `token.safetensors`, `meta.json` |
//! | `model` | a classifier | `model.safetensors`, `config.json` |
//! | `features` | what the beginning of a model makes of images | `features.safetensors`, `meta.json` |
//! | `metrics` | figures by step | a CSV file |
//! | `scores` | an evaluation | `scores.json`, `confusion.csv`, `per_class.csv` |
//! | `sheet` | a contact sheet | a PNG file |

use trestle_engine::stage::Format;

/// Labelled images.
pub const IMAGE_SET: Format = Format("image-set");
/// Class names.
pub const CLASSES: Format = Format("classes");
/// Prompts of each class.
pub const PROMPTS: Format = Format("prompts");
/// A text-conditional diffusion model.
pub const GENERATOR: Format = Format("generator");
/// A learned style token.
pub const STYLE: Format = Format("style");
/// A classifier.
pub const MODEL: Format = Format("model");
/// What the beginning of a model makes of images.
pub const FEATURES: Format = Format("features");
/// Figures by step.
pub const METRICS: Format = Format("metrics");
/// An evaluation.
pub const SCORES: Format = Format("scores");
/// A contact sheet.
pub const SHEET: Format = Format("sheet");
