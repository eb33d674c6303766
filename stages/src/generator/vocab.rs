//! Prompts as rows of numbers.

use std::collections::BTreeMap;

use crate::data::words::words;
use crate::error::{Error, Result};

/// The word that stands for a learned style; it belongs to no vocabulary.
pub const STYLE_TOKEN: &str = "s*";
/// The number that fills up short prompts; a prompt of nothing else is the empty one of classifier-free guidance.
pub const PAD: u32 = 0;
/// Fills the first place, so that numbers and places agree.
const PAD_WORD: &str = "<pad>";

/// The words that a generator knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocab {
    words: Vec<String>,
    numbers: BTreeMap<String, u32>,
    /// Names of the styles that it was trained with; each is one word or several.
    pub styles: Vec<String>,
    /// Words of a prompt at most.
    pub length: usize,
}

impl Vocab {
    /// The vocabulary of all words of these prompts, in which images have these styles; long enough for the longest of them.
    ///
    /// # Errors
    /// If a prompt uses the style token, which is never trained with.
    pub fn from_prompts<'p>(prompts: impl IntoIterator<Item = &'p str>, styles: &[String]) -> Result<Self> {
        let mut found = BTreeMap::new();
        let mut length = 0;
        for prompt in prompts {
            let words = words(prompt);
            length = length.max(words.len());
            for word in words {
                if word == STYLE_TOKEN {
                    return Err(Error::argument(format!("the caption `{prompt}` uses `S*`, which is kept for learned styles")));
                }
                found.insert(word, ());
            }
        }
        Ok(Self::new(found.into_keys().collect(), styles.to_vec(), length))
    }

    /// A vocabulary of these words, without the padding.
    pub fn new(known: Vec<String>, styles: Vec<String>, length: usize) -> Self {
        let words: Vec<String> = std::iter::once(PAD_WORD.to_owned()).chain(known).collect();
        let numbers = words.iter().enumerate().map(|(i, word)| (word.clone(), i as u32)).collect();
        Self { words, numbers, styles, length }
    }

    /// Its words, without the padding.
    pub fn known(&self) -> &[String] {
        &self.words[1..]
    }

    /// The numbers of the words that styles are called by, each once.
    pub fn style_words(&self) -> Vec<u32> {
        let mut numbers: Vec<u32> = self.styles.iter().flat_map(|style| words(style)).filter_map(|word| self.number(&word)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// Rows that the table of words has.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether it knows no word.
    pub fn is_empty(&self) -> bool {
        self.words.len() == 1
    }

    /// The number of the style token: one past the known words.
    pub fn style(&self) -> u32 {
        self.words.len() as u32
    }

    /// The number of a known word.
    pub fn number(&self, word: &str) -> Option<u32> {
        self.numbers.get(&word.to_lowercase()).copied()
    }

    /// A prompt as [`length`](Self::length) numbers.
    ///
    /// # Errors
    /// If it is too long, has an unknown word, or uses the style token without a style.
    pub fn encode(&self, prompt: &str, with_style: bool) -> Result<Vec<u32>> {
        let words = words(prompt);
        if words.len() > self.length {
            return Err(Error::argument(format!("the prompt `{prompt}` has {} words, the generator takes {}", words.len(), self.length)));
        }
        let mut numbers = Vec::with_capacity(self.length);
        for word in &words {
            numbers.push(match self.numbers.get(word) {
                Some(number) => *number,
                None if word == STYLE_TOKEN && with_style => self.style(),
                None if word == STYLE_TOKEN => {
                    return Err(Error::argument(format!(
                        "the prompt `{prompt}` uses `S*`, but no style is connected (add `style:` to the stage's inputs)"
                    )));
                }
                None => {
                    let known = self.known().join(", ");
                    return Err(Error::argument(format!(
                        "the prompt `{prompt}` uses the word `{word}`, which the generator has never seen; it knows: {known}"
                    )));
                }
            });
        }
        numbers.resize(self.length, PAD);
        Ok(numbers)
    }

    /// The empty prompt.
    pub fn empty(&self) -> Vec<u32> {
        vec![PAD; self.length]
    }
}
