//! A plot of scores: one row a method, every measured value as a dot, on bars from zero or on an axis cut to the values.

use super::scale::Scale;
use super::svg::{Anchor, Font, MUTED, Svg};
use super::{Error, font};

const WIDTH: f64 = 760.0;
const MARGIN: f64 = 20.0;
const INNER: f64 = WIDTH - 2.0 * MARGIN;
const ROW: f64 = 38.0;
const BAR: f64 = 26.0;
/// Dots lie in the upper part of a row and the whisker in the lower, or they would hide each other.
const DOTS: (f64, f64) = (-8.5, 2.5);
const WHISKER: f64 = 8.5;
const NAME_WIDTH: f64 = 250.0;
const TITLE: f64 = 17.0;
const TEXT: f64 = 13.5;
const SMALL: f64 = 12.0;
const DOT: f64 = 3.4;
const GRID: &str = "#dcdcdc";
const STRIPE: &str = "#f4f6f8";

/// A light colour for areas and a dark one for marks. Blue against grey is told apart with every colour vision and in print.
struct Colours {
    area: &'static str,
    mark: &'static str,
}
const BLUE: Colours = Colours { area: "#a9cfe8", mark: "#00568a" };
const GREY: Colours = Colours { area: "#d2d2d2", mark: "#555555" };

/// Where the axis of a [`Chart`] starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// At zero: bars, whose lengths may be compared.
    Zero,
    /// Near the smallest value: no bars, and the label of the axis says that it is cut.
    Cut,
}

/// One row of a [`Chart`].
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Name at the left.
    pub name: String,
    /// Every measured value.
    pub values: Vec<f64>,
    /// Their mean.
    pub mean: f64,
    /// Half the length of the whisker, if there is one.
    pub spread: Option<f64>,
    /// Text at the right, such as `85.2 ± 0.4`.
    pub label: String,
    /// Whether the others are compared to this row; it is grey and a dashed line marks its mean.
    pub baseline: bool,
}

/// A plot of scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Line above the plot; may be empty.
    pub title: String,
    /// What the axis shows, with its unit.
    pub measure: String,
    /// Smaller lines below the plot that say what the marks are.
    pub notes: Vec<String>,
    /// From top to bottom.
    pub rows: Vec<Row>,
    /// Where the axis starts.
    pub axis: Axis,
}

impl Chart {
    /// The plot as an SVG document.
    ///
    /// # Errors
    /// If there is no row, or a value is infinite or not a number.
    pub fn svg(&self) -> Result<String, Error> {
        let (low, high) = self.range()?;
        let names = self.rows.iter().map(|row| font::width(&row.name, TEXT).min(NAME_WIDTH)).fold(0.0, f64::max);
        let labels = self.rows.iter().map(|row| font::width(&row.label, TEXT)).fold(0.0, f64::max);
        let left = MARGIN + names + 14.0;
        // A reader without our font may have a wider one.
        let width = WIDTH - left - labels * 1.06 - 18.0 - MARGIN;
        let top = MARGIN + if self.title.is_empty() { 0.0 } else { TITLE + 16.0 };
        let frame = Frame { scale: Scale::covering(low, high, 6).over(left, width), left, width, top };
        Ok(self.draw(&frame))
    }

    /// The least and the greatest value that the axis must show.
    fn range(&self) -> Result<(f64, f64), Error> {
        let mut range: Option<(f64, f64)> = (self.axis == Axis::Zero).then_some((0.0, 0.0));
        for row in &self.rows {
            let spread = row.spread.unwrap_or(0.0);
            for value in row.values.iter().copied().chain([row.mean - spread, row.mean + spread]) {
                if !value.is_finite() {
                    return Err(Error::NotFinite { row: row.name.clone(), value: value.to_string() });
                }
                range = Some(range.map_or((value, value), |(low, high)| (low.min(value), high.max(value))));
            }
        }
        match range {
            Some(range) if !self.rows.is_empty() => Ok(range),
            _ => Err(Error::Empty("a plot")),
        }
    }

    fn draw(&self, frame: &Frame) -> String {
        let bottom = frame.top + ROW * self.rows.len() as f64;
        let notes: Vec<String> = self.notes.iter().flat_map(|note| font::wrap(note, SMALL, INNER)).collect();
        let height = bottom + 50.0 + 17.0 * notes.len() as f64 + MARGIN - 6.0;
        let mut svg = Svg::new(WIDTH, height);
        svg.text(MARGIN, MARGIN + TITLE * 0.8, &font::fit(&self.title, TITLE, INNER), Font::of(TITLE));
        let middle = |i: usize| frame.top + ROW * (i as f64 + 0.5);
        for i in 0..self.rows.len() {
            svg.rect(frame.left, middle(i) - BAR / 2.0, frame.width, BAR, STRIPE, 0.0);
        }
        self.draw_axis(&mut svg, frame, bottom);
        if self.axis == Axis::Zero {
            for (i, row) in self.rows.iter().enumerate() {
                draw_bar(&mut svg, frame.scale.at(0.0), frame.scale.at(row.mean), middle(i), &row.colours());
            }
        }
        self.draw_baselines(&mut svg, frame, bottom);
        self.rows.iter().enumerate().for_each(|(i, row)| self.draw_row(&mut svg, frame, row, middle(i)));
        for (i, note) in notes.iter().enumerate() {
            svg.text(MARGIN, bottom + 64.0 + 17.0 * i as f64, note, Font::of(SMALL).fill(MUTED));
        }
        svg.finish()
    }

    fn draw_axis(&self, svg: &mut Svg, frame: &Frame, bottom: f64) {
        for (value, text) in frame.scale.ticks() {
            let x = frame.scale.at(value);
            svg.line((x, frame.top), (x, bottom), GRID, 1.0, "");
            svg.text(x, bottom + 17.0, &text, Font::of(SMALL).fill(MUTED).anchor(Anchor::Middle));
        }
        let cut = self.axis == Axis::Cut && frame.scale.start() != 0.0;
        let measure = if cut { format!("{} (the axis does not start at zero)", self.measure) } else { self.measure.clone() };
        svg.text(frame.left + frame.width / 2.0, bottom + 38.0, &measure, Font::of(TEXT).anchor(Anchor::Middle));
    }

    /// A dashed line at the mean of each row that others are compared to.
    fn draw_baselines(&self, svg: &mut Svg, frame: &Frame, bottom: f64) {
        for row in self.rows.iter().filter(|row| row.baseline) {
            let x = frame.scale.at(row.mean);
            svg.line((x, frame.top), (x, bottom), GREY.mark, 1.0, "4 3");
        }
    }

    fn draw_row(&self, svg: &mut Svg, frame: &Frame, row: &Row, y: f64) {
        let colours = row.colours();
        if let Some(spread) = row.spread {
            let (from, to) = (frame.scale.at(row.mean - spread), frame.scale.at(row.mean + spread));
            draw_whisker(svg, from, to, y + WHISKER, &colours);
        }
        if self.axis == Axis::Cut {
            let mean = frame.scale.at(row.mean);
            svg.line((mean, y + WHISKER - 5.5), (mean, y + WHISKER + 5.5), colours.mark, 2.6, "");
        }
        for (i, value) in row.values.iter().enumerate() {
            svg.dot(frame.scale.at(*value), y + lane(i, row.values.len()), DOT, colours.mark, "#ffffff");
        }
        svg.text(frame.left - 12.0, y + 0.36 * TEXT, &font::fit(&row.name, TEXT, NAME_WIDTH), Font::of(TEXT).anchor(Anchor::End));
        svg.text(WIDTH - MARGIN, y + 0.36 * TEXT, &row.label, Font::of(TEXT).anchor(Anchor::End));
    }
}

impl Row {
    fn colours(&self) -> Colours {
        if self.baseline { GREY } else { BLUE }
    }
}

/// Where the plot lies in the figure, in pixels.
struct Frame {
    scale: Scale,
    left: f64,
    width: f64,
    top: f64,
}

fn draw_bar(svg: &mut Svg, zero: f64, mean: f64, y: f64, colours: &Colours) {
    svg.rect(zero.min(mean), y - BAR / 2.0, (mean - zero).abs(), BAR, colours.area, 0.0);
}

fn draw_whisker(svg: &mut Svg, from: f64, to: f64, y: f64, colours: &Colours) {
    svg.line((from, y), (to, y), colours.mark, 1.6, "");
    for x in [from, to] {
        svg.line((x, y - 3.0), (x, y + 3.0), colours.mark, 1.6, "");
    }
}

/// How far below the middle of its row the dot of value `i` of `n` lies: equal values must not hide each other.
fn lane(i: usize, n: usize) -> f64 {
    let (top, bottom) = DOTS;
    if n < 2 { (top + bottom) / 2.0 } else { top + (bottom - top) * i as f64 / (n - 1) as f64 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn chart(axis: Axis) -> Chart {
        let row = |name: &str, values: &[f64], mean, spread, baseline| Row {
            name: name.to_owned(),
            values: values.to_vec(),
            mean,
            spread,
            label: format!("{mean:.1}"),
            baseline,
        };
        let rows = vec![row("vanilla", &[70.0, 72.0], 71.0, Some(1.4), true), row("a <b> & c", &[80.0], 80.0, None, false)];
        let (title, measure) = ("Methods".to_owned(), "top-1 accuracy (%)".to_owned());
        Chart { title, measure, notes: vec!["Dots: one seed each.".to_owned()], rows, axis }
    }

    #[test]
    fn every_value_is_a_dot_and_every_name_is_escaped() {
        let svg = chart(Axis::Zero).svg().unwrap();
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains(">a &lt;b&gt; &amp; c</text>"), "{svg}");
        // The axis of bars starts at zero and both bars stand on it.
        let zero = svg.split(">0</text>").next().unwrap().rsplit("x=\"").next().unwrap().split('"').next().unwrap();
        for fill in [GREY.area, BLUE.area] {
            let bar = svg.lines().find(|line| line.contains(fill)).unwrap();
            assert!(bar.starts_with(&format!("<rect x=\"{zero}\"")), "{bar}");
        }
        assert!(!svg.contains("does not start at zero"));
    }

    #[test]
    fn a_cut_axis_says_so() {
        let svg = chart(Axis::Cut).svg().unwrap();
        assert!(svg.contains("top-1 accuracy (%) (the axis does not start at zero)"), "{svg}");
        assert!(svg.contains(">68</text>") && !svg.contains(">0</text>"), "{svg}");
    }

    #[test]
    fn the_same_chart_has_the_same_bytes() {
        let (one, two) = (chart(Axis::Zero).svg().unwrap(), chart(Axis::Zero).svg().unwrap());
        assert_eq!(one, two);
        assert_eq!(super::super::png(&one, 2.0).unwrap(), super::super::png(&two, 2.0).unwrap());
    }

    #[test]
    fn what_cannot_be_shown_is_refused() {
        let mut broken = chart(Axis::Zero);
        broken.rows[1].mean = f64::NAN;
        assert_eq!(broken.svg(), Err(Error::NotFinite { row: "a <b> & c".to_owned(), value: "NaN".to_owned() }));
        broken.rows.clear();
        assert_eq!(broken.svg(), Err(Error::Empty("a plot")));
    }
}
