//! A writer of the little SVG that our figures need.

use std::fmt::Write as _;

use trestle_engine::xml::escape;

/// Where a line of text starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// How a line of text looks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Font {
    size: f64,
    fill: &'static str,
    anchor: Anchor,
}

impl Font {
    /// Near black, from the left.
    pub(super) fn of(size: f64) -> Self {
        Self { size, fill: INK, anchor: Anchor::Start }
    }

    pub(super) fn fill(self, fill: &'static str) -> Self {
        Self { fill, ..self }
    }

    pub(super) fn anchor(self, anchor: Anchor) -> Self {
        Self { anchor, ..self }
    }
}

/// Text.
pub(super) const INK: &str = "#1a1a1a";
/// Text of less weight.
pub(super) const MUTED: &str = "#5a5a5a";

/// An SVG document in the making; numbers have at most two decimals.
pub(super) struct Svg {
    body: String,
    width: f64,
    height: f64,
}

impl Svg {
    /// An empty white document of `width` × `height` pixels.
    pub(super) fn new(width: f64, height: f64) -> Self {
        let mut svg = Self { body: String::new(), width, height };
        svg.rect(0.0, 0.0, width, height, "#ffffff", 0.0);
        svg
    }

    /// A filled rectangle with corners of radius `r`.
    pub(super) fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str, r: f64) {
        let round = if r > 0.0 { format!(" rx=\"{}\"", num(r)) } else { String::new() };
        self.line_out(&format!(
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\"{round} fill=\"{fill}\"/>",
            num(x),
            num(y),
            num(width),
            num(height)
        ));
    }

    /// A straight line; `dash` as in `stroke-dasharray`, empty for a whole one.
    pub(super) fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), stroke: &str, width: f64, dash: &str) {
        let dash = if dash.is_empty() { String::new() } else { format!(" stroke-dasharray=\"{dash}\"") };
        self.line_out(&format!(
            "<line x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\" stroke=\"{stroke}\" stroke-width=\"{}\"{dash}/>",
            num(x1),
            num(y1),
            num(x2),
            num(y2),
            num(width)
        ));
    }

    /// A disc with a rim.
    pub(super) fn dot(&mut self, x: f64, y: f64, r: f64, fill: &str, rim: &str) {
        self.line_out(&format!(
            "<circle cx=\"{}\" cy=\"{}\" r=\"{}\" fill=\"{fill}\" stroke=\"{rim}\" stroke-width=\"1.2\"/>",
            num(x),
            num(y),
            num(r)
        ));
    }

    /// One line of text with its baseline at `y`.
    pub(super) fn text(&mut self, x: f64, y: f64, text: &str, font: Font) {
        let anchor = match font.anchor {
            Anchor::Start => "",
            Anchor::Middle => " text-anchor=\"middle\"",
            Anchor::End => " text-anchor=\"end\"",
        };
        self.line_out(&format!(
            "<text x=\"{}\" y=\"{}\" font-size=\"{}\" fill=\"{}\"{anchor}>{}</text>",
            num(x),
            num(y),
            num(font.size),
            font.fill,
            escape(text)
        ));
    }

    /// The document as text.
    pub(super) fn finish(self) -> String {
        let (width, height) = (num(self.width), num(self.height));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" font-family=\"{}\">\n{}</svg>\n",
            super::font::FAMILY,
            self.body
        )
    }

    fn line_out(&mut self, element: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.body, "{element}");
    }
}

/// At most two decimals, no trailing zeros, no minus zero.
pub(super) fn num(value: f64) -> String {
    let rounded = format!("{value:.2}");
    let short = rounded.trim_end_matches('0').trim_end_matches('.');
    if short == "-0" { "0".to_owned() } else { short.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.0, -0.001, 1.0, 10.0, 0.5, 2.345, 100.0].map(num), ["0", "0", "1", "10", "0.5", "2.35", "100"]);
    }
}
