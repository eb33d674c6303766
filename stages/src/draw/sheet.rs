//! Contact sheets: a row of small images for each class, with its name.

use super::raster::Canvas;
use super::svg::{Anchor, Font, MUTED, Svg};
use super::{Error, font};

/// Device pixels for each pixel of the layout, so that text is crisp on dense screens.
const DENSITY: usize = 2;
/// Side in device pixels that a small image is enlarged to, by a whole factor so that its pixels stay squares of one size.
const CELL: usize = 96;
/// Device pixels between images.
const GAP: usize = 8;
/// Device pixels between panels.
const PANEL_GAP: usize = 40;
/// Device pixels around everything.
const MARGIN: usize = 32;
/// Device pixels between the names and the images.
const NAME_GAP: usize = 20;
/// Widest name in layout pixels.
const NAME_WIDTH: f64 = 220.0;
/// Em sizes in layout pixels.
const TITLE: f64 = 17.0;
const NAME: f64 = 14.0;
/// Device pixels that a line of the title or of the headings takes.
const TITLE_LINE: usize = 60;
const HEADING_LINE: usize = 44;

/// A borrowed picture: `height × width × channels` bytes, channels last; one channel is grey, three are RGB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image<'a> {
    /// The bytes, row by row.
    pub pixels: &'a [u8],
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// 1 or 3.
    pub channels: usize,
}

/// Columns of a sheet that belong together, such as those made with a learned style.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panel<'a> {
    /// What the columns have in common; may be empty.
    pub heading: String,
    /// The images of each row, as many rows as the sheet has names.
    pub rows: Vec<Vec<Image<'a>>>,
}

/// A contact sheet as PNG: one row a class with its name on the left, small images enlarged without smoothing.
///
/// Images may differ in size; each is enlarged by the largest whole factor that fits its cell. Rows may differ in length.
///
/// # Errors
/// If there is no image at all, an image's bytes do not fit its size, it is neither grey nor RGB, or the sheet is too large.
pub fn sheet(title: &str, rows: &[(String, Vec<Image<'_>>)]) -> Result<Vec<u8>, Error> {
    let names: Vec<String> = rows.iter().map(|(name, _)| name.clone()).collect();
    let rows = rows.iter().map(|(_, images)| images.clone()).collect();
    panels(title, &names, &[Panel { heading: String::new(), rows }])
}

/// A contact sheet with several groups of columns side by side, for example real, generated, and generated with a learned style.
///
/// # Errors
/// As [`sheet`], and if a panel does not have one row of images for every name.
pub fn panels(title: &str, names: &[String], panels: &[Panel<'_>]) -> Result<Vec<u8>, Error> {
    check(names, panels)?;
    let layout = Layout::of(title, names, panels);
    let mut canvas = Canvas::of(&layout.text(title, names, panels), DENSITY as f32)?;
    for (panel, columns) in panels.iter().zip(&layout.columns) {
        for (y, row) in panel.rows.iter().enumerate() {
            for (x, image) in row.iter().enumerate() {
                let (left, top) = (columns.left + x * (columns.width + GAP), layout.top + y * (layout.cell + GAP));
                paint(&mut canvas, *image, (left, top), (columns.width, layout.cell), layout.cell);
            }
        }
    }
    canvas.png()
}

fn check(names: &[String], panels: &[Panel<'_>]) -> Result<(), Error> {
    for panel in panels {
        if panel.rows.len() != names.len() {
            return Err(Error::Rows { heading: panel.heading.clone(), found: panel.rows.len(), names: names.len() });
        }
        for (name, row) in names.iter().zip(&panel.rows) {
            row.iter().enumerate().try_for_each(|(column, image)| check_image(name, column, *image))?;
        }
    }
    match panels.iter().flat_map(|panel| &panel.rows).any(|row| !row.is_empty()) {
        true => Ok(()),
        false => Err(Error::Empty("a contact sheet")),
    }
}

fn check_image(row: &str, column: usize, image: Image<'_>) -> Result<(), Error> {
    let Image { pixels, height, width, channels } = image;
    let row = row.to_owned();
    if !matches!(channels, 1 | 3) || height == 0 || width == 0 {
        return Err(Error::Shape { row, column, height, width, channels });
    }
    let needed = height.saturating_mul(width).saturating_mul(channels);
    if pixels.len() != needed {
        return Err(Error::Size { row, column, found: pixels.len(), needed, height, width, channels });
    }
    Ok(())
}

/// Places in device pixels.
struct Layout {
    /// Height of a row, and the side that images are enlarged to.
    cell: usize,
    columns: Vec<Columns>,
    top: usize,
    width: usize,
    height: usize,
}

/// Where the columns of a panel lie.
struct Columns {
    left: usize,
    /// Of one column: images of 28 pixels grow to 84, and a column of 96 would leave gaps between them.
    width: usize,
}

impl Layout {
    fn of(title: &str, names: &[String], panels: &[Panel<'_>]) -> Self {
        let images = panels.iter().flat_map(|panel| panel.rows.iter().flatten());
        let cell = images.map(|image| image.height.max(image.width)).fold(CELL, usize::max);
        let name_width = names.iter().map(|name| device(font::width(name, NAME).min(NAME_WIDTH))).max().unwrap_or(0);
        let mut left = MARGIN + name_width + NAME_GAP;
        let mut columns = Vec::with_capacity(panels.len());
        for panel in panels {
            let width = panel.rows.iter().flatten().map(|image| image.width * factor(*image, cell)).max().unwrap_or(0);
            columns.push(Columns { left, width });
            let count = panel.rows.iter().map(Vec::len).max().unwrap_or(0);
            // A heading may be wider than its images.
            left += (count * (width + GAP)).max(device(font::width(&panel.heading, NAME)) + GAP) - GAP + PANEL_GAP;
        }
        let headings = panels.iter().any(|panel| !panel.heading.is_empty());
        let title_width = device(font::width(title, TITLE)) + 2 * MARGIN;
        let top = MARGIN + if title.is_empty() { 0 } else { TITLE_LINE } + if headings { HEADING_LINE } else { 0 };
        let width = (left - PANEL_GAP + MARGIN).max(title_width);
        Self { cell, columns, top, width, height: top + names.len() * (cell + GAP) - GAP + MARGIN }
    }

    /// Everything but the images.
    fn text(&self, title: &str, names: &[String], panels: &[Panel<'_>]) -> String {
        let mut svg = Svg::new(layout(self.width), layout(self.height));
        svg.text(layout(MARGIN), layout(MARGIN) + TITLE * 0.8, title, Font::of(TITLE));
        for (panel, columns) in panels.iter().zip(&self.columns) {
            svg.text(layout(columns.left), layout(self.top) - 9.0, &panel.heading, Font::of(NAME).fill(MUTED));
        }
        let right = self.columns.first().map_or(0, |columns| columns.left - NAME_GAP);
        for (y, name) in names.iter().enumerate() {
            // The middle of the letters, which is about 0.36 em above the baseline, on the middle of the row.
            let baseline = layout(self.top + y * (self.cell + GAP) + self.cell / 2) + 0.36 * NAME;
            svg.text(layout(right), baseline, &font::fit(name, NAME, NAME_WIDTH), Font::of(NAME).anchor(Anchor::End));
        }
        svg.finish()
    }
}

/// Layout pixels as device pixels, rounded up.
fn device(length: f64) -> usize {
    (length * DENSITY as f64).ceil() as usize
}

/// Device pixels as layout pixels.
fn layout(length: usize) -> f64 {
    length as f64 / DENSITY as f64
}

/// The largest whole factor by which an image fits a square of side `cell`.
fn factor(image: Image<'_>, cell: usize) -> usize {
    (cell / image.height.max(image.width)).max(1)
}

/// Paints an image into the middle of the box at (`left`, `top`), each of its pixels as a square.
fn paint(canvas: &mut Canvas, image: Image<'_>, (left, top): (usize, usize), (across, down): (usize, usize), cell: usize) {
    let factor = factor(image, cell);
    let (height, width) = (image.height * factor, image.width * factor);
    let (top, left) = (top + (down - height) / 2, left + (across - width) / 2);
    for y in 0..height {
        for x in 0..width {
            let at = (y / factor * image.width + x / factor) * image.channels;
            // A grey pixel has one byte for all three.
            let channel = |c: usize| image.pixels[at + c.min(image.channels - 1)];
            canvas.set(left + x, top + y, [channel(0), channel(1), channel(2)]);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn grey(pixels: &[u8], side: usize) -> Image<'_> {
        Image { pixels, height: side, width: side, channels: 1 }
    }

    fn open(png: &[u8]) -> image::RgbImage {
        image::load_from_memory(png).unwrap().to_rgb8()
    }

    #[test]
    fn every_pixel_becomes_a_square() {
        let pixels = [0, 80, 160, 240];
        let picture = open(&sheet("", &[(String::new(), vec![grey(&pixels, 2)])]).unwrap());
        let (left, top, half) = ((MARGIN + NAME_GAP) as u32, MARGIN as u32, (CELL / 2) as u32);
        for (i, value) in pixels.iter().enumerate() {
            let (x, y) = (left + half * (i as u32 % 2), top + half * (i as u32 / 2));
            for (dx, dy) in [(0, 0), (half - 1, 0), (half - 1, half - 1)] {
                assert_eq!(picture.get_pixel(x + dx, y + dy).0, [*value; 3], "pixel {i}");
            }
        }
        assert_eq!(picture.get_pixel(left - 1, top).0, [255; 3]);
        assert_eq!(picture.get_pixel(left, top + CELL as u32).0, [255; 3]);
    }

    #[test]
    fn colour_and_size_may_differ() {
        let (red, dark) = ([255, 0, 0].repeat(4), vec![9; 9]);
        let row = vec![Image { pixels: &red, height: 2, width: 2, channels: 3 }, grey(&dark, 3)];
        let picture = open(&sheet("t", &[(String::new(), row)]).unwrap());
        let middle = ((MARGIN + NAME_GAP + CELL / 2) as u32, (MARGIN + TITLE_LINE + CELL / 2) as u32);
        assert_eq!(picture.get_pixel(middle.0, middle.1).0, [255, 0, 0]);
        assert_eq!(picture.get_pixel(middle.0 + (CELL + GAP) as u32, middle.1).0, [9; 3]);
    }

    #[test]
    fn the_same_sheet_has_the_same_bytes() {
        let pixels: Vec<u8> = (0..64).map(|i| i * 4).collect();
        let rows = vec![("zero".to_owned(), vec![grey(&pixels, 8); 3]), ("one".to_owned(), vec![grey(&pixels, 8)])];
        assert_eq!(sheet("Digits", &rows).unwrap(), sheet("Digits", &rows).unwrap());
    }

    #[test]
    fn mistakes_name_the_image() {
        let pixels = [0; 4];
        let row = |image| [("zero".to_owned(), vec![grey(&pixels, 2), image])];
        let short = sheet("", &row(grey(&pixels, 3))).unwrap_err();
        assert_eq!(short.to_string(), "image 1 of row `zero` has 4 bytes, 3×3×1 needs 9");
        let two = sheet("", &row(Image { pixels: &pixels, height: 2, width: 1, channels: 2 })).unwrap_err();
        assert!(matches!(two, Error::Shape { column: 1, channels: 2, .. }), "{two}");
        assert_eq!(sheet("", &[("zero".to_owned(), Vec::new())]), Err(Error::Empty("a contact sheet")));
        let uneven = panels("", &["zero".to_owned()], &[Panel { heading: "real".to_owned(), rows: Vec::new() }]);
        assert_eq!(uneven, Err(Error::Rows { heading: "real".to_owned(), found: 0, names: 1 }));
    }
}
