//! All texts that a pipeline is read from, laid end to end: a [`Span`] tells by its numbers which text it lies in.

use std::sync::Arc;

use crate::problem::Span;

/// One text: a file, or the value of a `--set`.
#[derive(Debug, Clone)]
pub struct Source {
    /// What it is called in messages.
    pub name: String,
    /// The text.
    pub text: Arc<String>,
    /// Place of its first byte.
    pub base: usize,
}

/// All texts in the order in which they were met.
#[derive(Debug, Clone, Default)]
pub struct Files(Vec<Source>);

impl Files {
    /// No text yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a text in.
    pub fn add(&mut self, name: impl Into<String>, text: impl Into<Arc<String>>) -> &Source {
        // One byte between two texts: the end of one is not the beginning of the next.
        let base = self.0.last().map_or(0, |last| last.base + last.text.len() + 1);
        self.0.push(Source { name: name.into(), text: text.into(), base });
        &self.0[self.0.len() - 1]
    }

    /// The text in which `span` lies, and the place inside of it.
    pub fn locate(&self, span: Span) -> Option<(&Source, Span)> {
        let after = self.0.partition_point(|source| source.base <= span.start());
        let source = self.0.get(after.checked_sub(1)?)?;
        let inside = |at: usize| (at - source.base).min(source.text.len());
        Some((source, Span::new(inside(span.start()), inside(span.end().max(span.start())))))
    }

    /// What is written at `span`; empty if that is nowhere.
    pub fn text(&self, span: Span) -> &str {
        self.locate(span).and_then(|(source, inside)| source.text.get(inside.start()..inside.end())).unwrap_or_default()
    }

    /// The place of `written` inside of a value; the whole value where it cannot be found, such as in a folded text.
    pub fn narrow(&self, span: Span, written: &str) -> Span {
        let found = self.text(span).find(written).filter(|_| !written.is_empty());
        found.map_or(span, |at| Span::new(span.start() + at, span.start() + at + written.len()))
    }

    /// The first text: the pipeline file itself.
    pub fn first(&self) -> Option<&Source> {
        self.0.first()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_place_lies_in_one_text() {
        let mut files = Files::new();
        files.add("empty", String::new());
        let base = files.add("a", "one two".to_owned()).base;
        let other = files.add("b", "three".to_owned()).base;
        let two = files.narrow(Span::new(base, base + 7), "two");
        assert_eq!(files.text(two), "two");
        assert_eq!(files.locate(two).unwrap().0.name, "a");
        assert_eq!(files.text(Span::new(other, other + 5)), "three");
        assert_eq!(files.locate(Span::new(0, 0)).unwrap().0.name, "empty");
        assert_eq!(files.locate(Span::new(base + 7, base + 7)).unwrap().0.name, "a", "the end of a text belongs to it");
    }
}
