//! PNG and JPEG bytes become RGB.
//!
//! What is decided here, since a picture can say more than three bytes a pixel:
//! palettes and bits of less than a byte are expanded; 16 bits a channel are rounded to 8; the turn that EXIF asks for is done;
//! transparency needs a background (`background`), if there is any; CMYK is refused, for lack of a colour profile; a JPEG without its end is
//! refused, although a decoder would fill the rest with grey.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageReader};

/// One decoded image, RGB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decoded {
    /// `[h, w, 3]`.
    pub pixels: Vec<u8>,
    /// Height and width.
    pub size: (usize, usize),
    /// Whether the channels are equal everywhere.
    pub grey: bool,
}

/// Largest side of a picture; more is damage, or a bomb.
const SIDE: u32 = 1 << 15;
/// Memory that decoding one picture may take.
const MEMORY: u64 = 1 << 30;

pub(super) fn decode(bytes: &[u8], background: Option<[u8; 3]>) -> Result<Decoded, String> {
    let wrong = |e: image::ImageError| format!("no readable PNG or JPEG: {e}");
    if bytes.starts_with(&[0xff, 0xd8]) {
        check_jpeg(bytes)?;
    }
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string())?;
    let mut limits = image::Limits::default();
    (limits.max_image_width, limits.max_image_height, limits.max_alloc) = (Some(SIDE), Some(SIDE), Some(MEMORY));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(wrong)?;
    let orientation = decoder.orientation().map_err(wrong)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(wrong)?;
    image.apply_orientation(orientation);
    let rgb = if image.color().has_alpha() { flattened(&image, background)? } else { image.into_rgb8() };
    let size = (rgb.height() as usize, rgb.width() as usize);
    let pixels = rgb.into_raw();
    let grey = pixels.as_chunks::<3>().0.iter().all(|[r, g, b]| r == g && g == b);
    Ok(Decoded { pixels, size, grey })
}

/// The picture on a background.
fn flattened(image: &DynamicImage, background: Option<[u8; 3]>) -> Result<image::RgbImage, String> {
    let rgba = image.to_rgba8();
    if background.is_none() && rgba.pixels().any(|pixel| pixel.0[3] != 255) {
        return Err("it is transparent: set `background`, for example [255, 255, 255]".into());
    }
    let under = background.unwrap_or_default();
    let mut rgb = image::RgbImage::new(rgba.width(), rgba.height());
    for (out, pixel) in rgb.pixels_mut().zip(rgba.pixels()) {
        let alpha = u32::from(pixel.0[3]);
        out.0 = [0, 1, 2].map(|c| ((u32::from(pixel.0[c]) * alpha + u32::from(under[c]) * (255 - alpha) + 127) / 255) as u8);
    }
    Ok(rgb)
}

/// Walks over the segments of a JPEG (ITU-T T.81, annex B) to the first scan.
fn check_jpeg(bytes: &[u8]) -> Result<(), String> {
    let ends = || "the JPEG is cut: it ends within its header".to_owned();
    let mut at = 2;
    loop {
        let [0xff, marker] = *bytes.get(at..at + 2).ok_or_else(ends)? else {
            return Err(format!("the JPEG is damaged at byte {at}"));
        };
        // Fill bytes.
        if marker == 0xff {
            at += 1;
            continue;
        }
        let length = bytes.get(at + 2..at + 4).ok_or_else(ends)?;
        let length = usize::from(length[0]) << 8 | usize::from(length[1]);
        let frame = (0xc0..=0xcf).contains(&marker) && !matches!(marker, 0xc4 | 0xc8 | 0xcc);
        if frame && *bytes.get(at + 9).ok_or_else(ends)? == 4 {
            return Err("it is a JPEG in CMYK: convert it to RGB with its colour profile".into());
        }
        at += 2 + length.max(2);
        if marker == 0xda {
            break;
        }
    }
    // Within a scan every 0xff is followed by another byte than this; behind the end some programs leave rubbish.
    let end = bytes.get(at..).unwrap_or_default().windows(2).rev().any(|pair| pair == [0xff, 0xd9]);
    if end { Ok(()) } else { Err("the JPEG is cut: its end is missing".into()) }
}
