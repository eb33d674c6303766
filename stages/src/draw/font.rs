//! The one font of all figures, and how wide text is in it.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use resvg::usvg;

/// What an SVG asks for: our font where it is installed, else a similar one of the reader's.
pub(super) const FAMILY: &str = "Inter, 'Helvetica Neue', Helvetica, Arial, sans-serif";

const NAME: &str = "Inter";
const DATA: &[u8] = include_bytes!("../../assets/inter/Inter-Regular-subset.ttf");

/// Every character of the embedded font.
const CHARACTERS: &str = include_str!("../../assets/inter/characters.txt");
/// What stands for a character that is not in the font.
const UNKNOWN: char = '□';

/// Text with a mark for every character that the embedded font cannot show, which the renderer would leave out without a word.
pub(super) fn shown(text: &str) -> String {
    static KNOWN: OnceLock<BTreeSet<char>> = OnceLock::new();
    let known = KNOWN.get_or_init(|| CHARACTERS.chars().chain(['\n']).collect());
    text.chars().map(|c| if known.contains(&c) { c } else { UNKNOWN }).collect()
}

/// Options of a parser that knows the embedded font and no other.
pub(super) fn options() -> usvg::Options<'static> {
    static FONTS: OnceLock<Arc<usvg::fontdb::Database>> = OnceLock::new();
    let fonts = FONTS.get_or_init(|| {
        let mut fonts = usvg::fontdb::Database::new();
        fonts.load_font_data(DATA.to_vec());
        fonts.set_sans_serif_family(NAME);
        Arc::new(fonts)
    });
    usvg::Options { font_family: NAME.to_owned(), fontdb: Arc::clone(fonts), ..usvg::Options::default() }
}

/// Width of one line of text in pixels at `size` pixels an em; 0 for text without ink.
pub(super) fn width(text: &str, size: f64) -> f64 {
    let mut svg = super::svg::Svg::new(10.0, 10.0);
    svg.text(0.0, 0.0, &shown(text), super::svg::Font::of(size));
    // Without a single glyph the tree is empty or the box has no width, which is the answer.
    usvg::Tree::from_str(&svg.finish(), &options()).map_or(0.0, |tree| widest(tree.root()))
}

fn widest(group: &usvg::Group) -> f64 {
    group.children().iter().fold(0.0, |most: f64, node| {
        let width = match node {
            usvg::Node::Text(text) => f64::from(text.bounding_box().width()),
            usvg::Node::Group(group) => widest(group),
            _ => 0.0,
        };
        most.max(width)
    })
}

/// `text`, cut with an ellipsis so that it is at most `most` pixels wide at `size` pixels an em.
pub(super) fn fit(text: &str, size: f64, most: f64) -> String {
    if width(text, size) <= most {
        return text.to_owned();
    }
    let chars: Vec<char> = text.chars().collect();
    let cut = |n: usize| chars[..n].iter().collect::<String>().trim_end().to_owned() + "…";
    // The width grows with the number of characters: bisect for the most that fit.
    let (mut fits, mut over) = (0, chars.len());
    while over - fits > 1 {
        let middle = usize::midpoint(fits, over);
        if width(&cut(middle), size) <= most { fits = middle } else { over = middle }
    }
    cut(fits)
}

/// `text` in lines of at most `most` pixels, broken between words; a word wider than that is cut.
pub(super) fn wrap(text: &str, size: f64, most: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let longer = lines.last().map(|line| format!("{line} {word}")).filter(|line| width(line, size) <= most);
        match (longer, lines.last_mut()) {
            (Some(longer), Some(line)) => *line = longer,
            _ => lines.push(fit(word, size, most)),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn width_grows_with_text_and_size() {
        assert_eq!(width("", 12.0), 0.0);
        assert!(width("mm", 12.0) > width("ii", 12.0));
        let (one, two) = (width("bridged", 12.0), width("bridged", 24.0));
        assert!((two / one - 2.0).abs() < 0.01, "{one} {two}");
    }

    #[test]
    fn the_signs_that_figures_use_have_glyphs() {
        let missing = width("\u{4e2d}", 20.0);
        assert!(missing > 0.0 && missing == width("□", 20.0));
        for sign in ["±", "−", "Δ", "·", "–", "…", "×", "²", "ε", "→"] {
            let wide = width(sign, 20.0);
            assert!(wide > 0.0 && shown(sign) == sign, "{sign} is not in the font");
        }
    }

    #[test]
    fn long_text_is_cut() {
        let long = "a class name that goes on and on";
        let cut = fit(long, 13.0, 80.0);
        assert!(cut.ends_with('…') && width(&cut, 13.0) <= 80.0, "{cut}");
        assert_eq!(fit("zero", 13.0, 80.0), "zero");
    }

    #[test]
    fn notes_are_broken_between_words() {
        let note = "Dots: one seed each. Bars: mean of 3 seeds.";
        let lines = wrap(note, 12.0, 120.0);
        assert!(lines.len() > 1 && lines.iter().all(|line| width(line, 12.0) <= 120.0), "{lines:?}");
        assert_eq!(lines.join(" "), note);
    }
}
