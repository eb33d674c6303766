//! From SVG to pixels to PNG.

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use resvg::{tiny_skia, usvg};

use super::{Error, font};

/// A side longer than this is a mistake rather than a figure, and few programs open it.
const MAX_SIDE: u64 = 32_000;

/// Renders an SVG document at `scale` times its size and encodes it as PNG.
///
/// Text is set in the embedded font, with □ for characters that it lacks; external images and fonts are not looked up.
///
/// # Errors
/// [`Error::Backend`] if `svg` is not SVG, [`Error::TooLarge`] if a side has more than 32,000 pixels.
pub fn png(svg: &str, scale: f32) -> Result<Vec<u8>, Error> {
    Canvas::of(svg, scale)?.png()
}

/// An opaque RGB picture.
pub(super) struct Canvas {
    pixels: Vec<u8>,
    width: usize,
    height: usize,
}

impl Canvas {
    /// The picture of an SVG document at `scale` times its size, on white.
    pub(super) fn of(svg: &str, scale: f32) -> Result<Self, Error> {
        let tree = usvg::Tree::from_str(&font::shown(svg), &font::options()).map_err(|e| Error::Backend(e.to_string()))?;
        let side = |length: f32| (f64::from(length) * f64::from(scale)).ceil() as u64;
        let (width, height) = (side(tree.size().width()), side(tree.size().height()));
        let too_large = Error::TooLarge { width, height };
        if width > MAX_SIDE || height > MAX_SIDE {
            return Err(too_large);
        }
        let mut pixmap = tiny_skia::Pixmap::new(width as u32, height as u32).ok_or(too_large)?;
        pixmap.fill(tiny_skia::Color::WHITE);
        resvg::render(&tree, tiny_skia::Transform::from_scale(scale, scale), &mut pixmap.as_mut());
        // White lies under everything, so that every pixel is opaque and premultiplication changes nothing.
        let pixels = pixmap.data().chunks_exact(4).flat_map(|rgba| [rgba[0], rgba[1], rgba[2]]).collect();
        Ok(Self { pixels, width: width as usize, height: height as usize })
    }

    /// Sets one pixel; a place outside is left alone.
    pub(super) fn set(&mut self, x: usize, y: usize, rgb: [u8; 3]) {
        if x < self.width && y < self.height {
            let at = (y * self.width + x) * 3;
            self.pixels[at..at + 3].copy_from_slice(&rgb);
        }
    }

    pub(super) fn png(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        PngEncoder::new_with_quality(&mut bytes, CompressionType::Best, FilterType::Adaptive)
            .write_image(&self.pixels, self.width as u32, self.height as u32, ExtendedColorType::Rgb8)
            .map_err(|e| Error::Backend(e.to_string()))?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_document_is_drawn_at_its_scale() {
        let mut svg = super::super::svg::Svg::new(10.0, 4.0);
        svg.rect(0.0, 0.0, 5.0, 4.0, "#ff0000", 0.0);
        let bytes = png(&svg.finish(), 2.0).unwrap();
        let picture = image::load_from_memory(&bytes).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), (20, 8));
        assert_eq!((picture.get_pixel(2, 2).0, picture.get_pixel(15, 2).0), ([255, 0, 0], [255, 255, 255]));
    }

    #[test]
    fn what_is_not_svg_or_too_large_is_refused() {
        assert!(matches!(png("no svg", 1.0), Err(Error::Backend(_))));
        let svg = super::super::svg::Svg::new(20_000.0, 4.0).finish();
        assert_eq!(png(&svg, 2.0), Err(Error::TooLarge { width: 40_000, height: 8 }));
    }
}
