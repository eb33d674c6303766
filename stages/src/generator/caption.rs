//! Captions of training images: templates filled with the image's class and style.

use super::vocab::Vocab;
use crate::error::{Error, Result};
use crate::rng::Stream;

/// Place of the class in a template.
pub const CLASS: &str = "{class}";
/// Place of the style in a template.
pub const STYLE: &str = "{style}";

/// What is wrong with the places of a template.
pub fn complaint(template: &str) -> Option<String> {
    let rest = template.replace(CLASS, "").replace(STYLE, "");
    if rest.contains(['{', '}']) {
        return Some(format!("`{template}` has braces other than {{class}} and {{style}}, which are the places that are filled in"));
    }
    (!template.contains(CLASS)).then(|| format!("`{template}` lacks {{class}}: every class would get the same prompt"))
}

/// A template with its places filled in.
pub fn fill(template: &str, class: &str, style: &str) -> String {
    // The style first: a class called `{style}` would otherwise be taken for a place.
    template.replace(STYLE, style).replace(CLASS, class)
}

/// The captions of every class and style, as rows of numbers.
pub struct Captions {
    /// By class and style, one a template.
    numbers: Vec<Vec<Vec<Vec<u32>>>>,
    empty: Vec<u32>,
    dropout: f64,
}

impl Captions {
    /// The vocabulary of all captions of these classes and styles, and the captions. Without styles, templates with `{style}` are left
    /// out. A caption is replaced by the empty one with probability `dropout`, from which the network learns what images look like
    /// without a prompt (Ho and Salimans 2022).
    ///
    /// # Errors
    /// If no template is left, or a caption uses the style token.
    pub fn new(templates: &[String], classes: &[String], styles: &[String], dropout: f64) -> Result<(Vocab, Self)> {
        let usable: Vec<&String> = templates.iter().filter(|template| !(styles.is_empty() && template.contains(STYLE))).collect();
        if usable.is_empty() {
            return Err(Error::argument("every template has {style}, but the images have no styles: give a template without it"));
        }
        let names = if styles.is_empty() { &[String::new()][..] } else { styles };
        let texts = |class: &str, style: &str| -> Vec<String> { usable.iter().map(|template| fill(template, class, style)).collect() };
        let all: Vec<String> = classes.iter().flat_map(|class| names.iter().flat_map(|style| texts(class, style))).collect();
        let vocab = Vocab::from_prompts(all.iter().map(String::as_str), styles)?;
        let encode = |class: &String, style: &String| texts(class, style).iter().map(|text| vocab.encode(text, false)).collect();
        let numbers = classes.iter().map(|class| names.iter().map(|style| encode(class, style)).collect()).collect::<Result<_>>()?;
        let empty = vocab.empty();
        Ok((vocab, Self { numbers, empty, dropout }))
    }

    /// A caption for an image of `class` and `style`; two numbers are drawn for each.
    pub fn draw(&self, class: u32, style: u32, random: &mut Stream) -> Vec<u32> {
        let dropped = random.uniform() < self.dropout;
        let captions = &self.numbers[class as usize][style as usize];
        let caption = &captions[random.below(captions.len())];
        if dropped { self.empty.clone() } else { caption.clone() }
    }
}
