//! YAML text to a tree of [`Node`]s with their places: the only module that parses YAML.
//!
//! `saphyr-parser` gives the events with their places; `serde_yaml` decides what a plain scalar is (`1e3` a number, `no` a string),
//! so that its rules hold and not rules of ours. What makes YAML treacherous is refused here: duplicate keys, aliases and merge
//! keys, tags, several documents, and documents over a budget of size and depth.

use std::collections::HashMap;

use compact_str::CompactString;
use saphyr_parser::{Event, Parser, ScalarStyle};

use super::{Data, Key, Node, Number, Scalar};
use crate::problem::{Problem, Problems, Span};

/// Largest pipeline file, in bytes.
pub const MAX_BYTES: usize = 64 << 20;
/// Deepest nesting.
pub const MAX_DEPTH: usize = 64;

/// Parses one document, whose first byte has the place `base`.
///
/// # Errors
/// Every refusal, or the first error of syntax (after which nothing can be trusted).
pub fn parse(text: &str, base: usize) -> Result<Node, Problems> {
    if text.len() > MAX_BYTES {
        let message = format!("the file has {} MiB; a pipeline may have at most {} MiB", text.len() >> 20, MAX_BYTES >> 20);
        return Err(Problem::new("yaml::too-large", message).at(Span::new(base, base + 1), "in this file").into());
    }
    if u32::try_from(base.saturating_add(text.len())).is_err() {
        let message = "the files of this pipeline have more than 4 GiB together";
        return Err(Problem::new("yaml::too-large", message).into());
    }
    Builder::new(text, base).run()
}

/// A plain scalar by the rules of `serde_yaml`.
fn resolve_plain(text: &str) -> Scalar {
    // Most scalars are words; only what could be something else is worth the parser.
    let may_be_typed = text.is_empty() || text.starts_with(|c: char| c.is_ascii_digit() || "+-.~nNtTfF".contains(c));
    if !may_be_typed {
        return Scalar::text(text);
    }
    match serde_yaml::from_str::<serde_yaml::Value>(text) {
        Ok(serde_yaml::Value::Null) => Scalar::Null,
        Ok(serde_yaml::Value::Bool(b)) => Scalar::Bool(b),
        Ok(serde_yaml::Value::Number(n)) => number(&n).map_or_else(|| Scalar::text(text), Scalar::Number),
        _ => Scalar::text(text),
    }
}

/// `None` for what no JSON can hold, such as `.inf`.
fn number(n: &serde_yaml::Number) -> Option<Number> {
    let whole = n.as_i64().map(Number::Int).or_else(|| n.as_u64().map(Number::UInt));
    whole.or_else(|| n.as_f64().filter(|float| float.is_finite()).map(Number::Float))
}

/// A collection that is being filled.
enum Open {
    List { start: usize, items: Vec<Node> },
    Map { start: usize, entries: Vec<(Key, Node)>, seen: Seen, key: Option<Key> },
}

/// Keys of a map that is being filled. Most maps are small, and their entries are looked through faster than a table is made.
#[derive(Default)]
struct Seen(Option<HashMap<CompactString, Span>>);

/// Most entries that are looked through.
const FEW: usize = 16;

impl Seen {
    /// Notes a key; the place of the same key among the entries before, if it is there.
    fn insert(&mut self, name: &str, span: Span, entries: &[(Key, Node)]) -> Option<Span> {
        if entries.len() <= FEW {
            return entries.iter().find(|(key, _)| key.name == name).map(|(key, _)| key.span);
        }
        let known = || entries.iter().map(|(key, _)| (key.name.clone(), key.span)).collect();
        self.0.get_or_insert_with(known).insert(name.into(), span)
    }
}

struct Builder<'t> {
    text: &'t str,
    /// Place of the first byte of the text.
    base: usize,
    /// Byte offset of every character, if the text is not ASCII.
    offsets: Option<Vec<usize>>,
    stack: Vec<Open>,
    root: Option<Node>,
    problems: Problems,
}

impl<'t> Builder<'t> {
    fn new(text: &'t str, base: usize) -> Self {
        let offsets = (!text.is_ascii()).then(|| text.char_indices().map(|(i, _)| i).chain([text.len()]).collect());
        Self { text, base, offsets, stack: Vec::new(), root: None, problems: Problems::new() }
    }

    fn byte(&self, index: usize) -> usize {
        let byte = self.offsets.as_ref().map_or(index, |offsets| offsets.get(index).copied().unwrap_or(self.text.len()));
        byte.min(self.text.len())
    }

    fn span(&self, span: saphyr_parser::Span) -> Span {
        let (start, end) = (self.byte(span.start.index()), self.byte(span.end.index()));
        let written = self.text.get(start..end).unwrap_or_default();
        self.placed(start, start + written.trim_end().len())
    }

    /// The place of a range of this text.
    fn placed(&self, start: usize, end: usize) -> Span {
        Span::new(self.base + start, self.base + end)
    }

    fn run(mut self) -> Result<Node, Problems> {
        let text = self.text;
        for event in Parser::new_from_str(text) {
            match event {
                Ok((event, span)) => {
                    let place = self.span(span);
                    if let Err(fatal) = self.event(event, place) {
                        self.problems.push(fatal);
                        break;
                    }
                }
                Err(error) => {
                    let at = self.byte(error.marker().index());
                    let problem = Problem::new("yaml::syntax", format!("this is not valid YAML: {}", error.info()));
                    self.problems.push(problem.at(self.placed(at.min(text.len().saturating_sub(1)), (at + 1).min(text.len())), "here"));
                    break;
                }
            }
        }
        let root = self.root.unwrap_or(Node { span: Span::new(self.base, self.base), data: Data::Scalar(Scalar::Null) });
        self.problems.or(root)
    }

    /// Takes one event; an error ends the parsing.
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<(), Problem> {
        match event {
            Event::Scalar(text, style, _, tag) => {
                self.refuse_tag(tag.is_some(), span);
                self.scalar(&text, style, span);
            }
            Event::SequenceStart(_, tag) => {
                self.refuse_tag(tag.is_some(), span);
                self.open(Open::List { start: span.start(), items: Vec::new() }, span)?;
            }
            Event::MappingStart(_, tag) => {
                self.refuse_tag(tag.is_some(), span);
                self.open(Open::Map { start: span.start(), entries: Vec::new(), seen: Seen::default(), key: None }, span)?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
            Event::Alias(_) => {
                self.problems.push(
                    Problem::new("yaml::alias", "aliases are not allowed in a pipeline")
                        .at(span, "an alias")
                        .help("write the value out, or make it a param and use `${name}`"),
                );
                self.place(Node { span, data: Data::Scalar(Scalar::Null) });
            }
            Event::DocumentStart(_) if self.root.is_some() => {
                return Err(Problem::new("yaml::several-documents", "a pipeline file holds one document")
                    .at(span, "a second one begins here")
                    .help("put each pipeline into a file of its own"));
            }
            Event::DocumentStart(_) | Event::DocumentEnd | Event::StreamStart | Event::StreamEnd | Event::Nothing => {}
        }
        Ok(())
    }

    fn refuse_tag(&mut self, tagged: bool, span: Span) {
        if tagged {
            self.problems.push(
                Problem::new("yaml::tag", "tags are not allowed in a pipeline")
                    .at(span, "this has a tag")
                    .help("remove the `!…`; quote the value if it must be a string"),
            );
        }
    }

    fn open(&mut self, open: Open, span: Span) -> Result<(), Problem> {
        if let Some(Open::Map { key: None, .. }) = self.stack.last() {
            return Err(Problem::new("yaml::key", "a key must be a plain word")
                .at(span, "a list or a map as a key")
                .help("if this was to be `${…}`, put it in quotes"));
        }
        if self.stack.len() >= MAX_DEPTH {
            return Err(Problem::new("yaml::too-deep", format!("the file nests deeper than {MAX_DEPTH} levels"))
                .at(span, "the first level too many"));
        }
        self.stack.push(open);
        Ok(())
    }

    fn close(&mut self, span: Span) {
        let node = match self.stack.pop() {
            Some(Open::List { start, items }) => {
                let end = items.last().map_or(span.end(), |node| node.span.end()).max(span.end());
                Node { span: self.trimmed(start, end), data: Data::List(items.into()) }
            }
            Some(Open::Map { start, entries, .. }) => {
                let end = entries.last().map_or(span.end(), |(_, node)| node.span.end()).max(span.end());
                Node { span: self.trimmed(start, end), data: Data::Map(entries.into()) }
            }
            None => return,
        };
        self.place(node);
    }

    /// A block collection ends where the next token begins; the blank in between is not part of it.
    fn trimmed(&self, start: usize, end: usize) -> Span {
        let written = self.text.get(start - self.base..end - self.base).unwrap_or_default();
        Span::new(start, start + written.trim_end().len())
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, span: Span) {
        if let Some(Open::Map { key: key @ None, seen, entries, .. }) = self.stack.last_mut() {
            if text == "<<" && style == ScalarStyle::Plain {
                self.problems.push(
                    Problem::new("yaml::merge-key", "merge keys are not allowed in a pipeline")
                        .at(span, "a merge key")
                        .help("write the entries out"),
                );
            }
            if let Some(first) = seen.insert(text, span, entries) {
                self.problems.push(
                    Problem::new("yaml::duplicate-key", format!("the key `{text}` is written twice"))
                        .at(span, "again here")
                        .at(first, "first here")
                        .help("a plain YAML reader would silently keep the last one; remove or rename one of them"),
                );
            }
            *key = Some(Key { name: text.into(), span });
            return;
        }
        let value = if style == ScalarStyle::Plain { resolve_plain(text) } else { Scalar::text(text) };
        self.place(Node { span, data: Data::Scalar(value) });
    }

    fn place(&mut self, node: Node) {
        match self.stack.last_mut() {
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Map { entries, key, .. }) => {
                if let Some(key) = key.take() {
                    entries.push((key, node));
                }
            }
            None => self.root = Some(node),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn codes(text: &str) -> Vec<&'static str> {
        parse(text, 0).unwrap_err().iter().map(|problem| problem.code).collect()
    }

    #[test]
    fn scalars_have_the_types_of_serde_yaml() {
        let value = parse("{a: 1, b: 0.5, c: no, d: true, e: ~, f: '1', g: 1e-3, h: x y, i: -7, j: .5, k: 0x10}", 0).unwrap().to_value();
        assert_eq!(value, json!({"a":1,"b":0.5,"c":"no","d":true,"e":null,"f":"1","g":1e-3,"h":"x y","i":-7,"j":0.5,"k":16}));
    }

    #[test]
    fn spans_are_bytes_even_after_wide_characters() {
        let text = "ä: 'ü'\nb: [1, zwei]\n";
        let node = parse(text, 100).unwrap();
        let two = node.descend("b[1]");
        assert_eq!(&text[two.span.start() - 100..two.span.end() - 100], "zwei");
        let list = node.descend("b");
        assert_eq!(&text[list.span.start() - 100..list.span.end() - 100], "[1, zwei]");
    }

    #[test]
    fn treacherous_yaml_is_refused() {
        assert_eq!(codes("a: 1\na: 2\n"), ["yaml::duplicate-key"]);
        assert_eq!(codes("a: &x 1\nb: *x\n"), ["yaml::alias"]);
        assert_eq!(codes("a: &x {c: 1}\nb:\n  <<: *x\n"), ["yaml::merge-key", "yaml::alias"]);
        assert_eq!(codes("a: !!str 1\n"), ["yaml::tag"]);
        assert_eq!(codes("a: 1\n---\nb: 1\n"), ["yaml::several-documents"]);
        assert_eq!(codes(&"[".repeat(100)), ["yaml::too-deep"]);
        assert_eq!(codes("a: [1\n"), ["yaml::syntax"]);
    }

    #[test]
    fn an_empty_file_is_null() {
        assert!(parse("", 0).unwrap().is_null());
        assert!(parse("# only a comment\n", 0).unwrap().is_null());
    }
}
