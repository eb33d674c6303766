//! Figures: contact sheets of images and plots of scores, as SVG and PNG.
//!
//! Every byte is a function of the arguments. Text is set in one embedded font, never in the system's, numbers are written with a
//! fixed number of decimals, and nothing depends on the time or the machine's locale.

mod chart;
mod error;
mod font;
mod raster;
mod scale;
mod sheet;
mod svg;

pub use chart::{Axis, Chart, Row};
pub use error::Error;
pub use raster::png;
pub use sheet::{Image, Panel, panels, sheet};
