//! YAML text to a tree of [`Node`]s with their places: the only module that parses YAML.
//!
//! `saphyr-parser` gives the events with their places; `serde_yaml` decides what a plain scalar is (`1e3` a number, `no` a string),
//! so that its rules hold and not rules of ours. What makes YAML treacherous is refused here: duplicate keys, aliases and merge
//! keys, tags, several documents, and documents over a budget of size and depth.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

use crate::problem::{Problem, Problems, Span};

/// Largest pipeline file, in bytes.
pub const MAX_BYTES: usize = 64 << 20;
/// Deepest nesting.
pub const MAX_DEPTH: usize = 64;

/// A YAML value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its place; for a collection, from its first to its last byte.
    pub span: Span,
    /// The value itself.
    pub data: Data,
}

/// The value of a [`Node`].
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// Null, a truth value, a number or a string.
    Scalar(Value),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping in the order of the file, its keys without repeats.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its text.
    pub name: String,
    /// Its place.
    pub span: Span,
}

impl Node {
    /// What this is, for messages.
    pub fn type_name(&self) -> &'static str {
        match &self.data {
            Data::List(_) => "a list",
            Data::Map(_) => "a map",
            Data::Scalar(value) => value_type_name(value),
        }
    }

    /// The text, if this is a string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.data {
            Data::Scalar(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// Whether this is null or was left empty.
    pub fn is_null(&self) -> bool {
        self.data == Data::Scalar(Value::Null)
    }

    /// The child at a dotted path (`schedule.steps`, `layers[2]`), or the deepest one that exists on the way.
    pub fn descend(&self, path: &str) -> &Self {
        let mut node = self;
        for part in path.split(['.', '[', ']']).filter(|part| !part.is_empty()) {
            let next = match &node.data {
                Data::Map(entries) => entries.iter().find(|(key, _)| key.name == part).map(|(_, child)| child),
                Data::List(items) => part.parse::<usize>().ok().and_then(|i| items.get(i)),
                Data::Scalar(_) => None,
            };
            match next {
                Some(child) => node = child,
                None => break,
            }
        }
        node
    }

    /// The value without its places.
    pub fn to_value(&self) -> Value {
        match &self.data {
            Data::Scalar(value) => value.clone(),
            Data::List(items) => Value::Array(items.iter().map(Self::to_value).collect()),
            Data::Map(entries) => {
                Value::Object(entries.iter().map(|(key, node)| (key.name.clone(), node.to_value())).collect::<Map<_, _>>())
            }
        }
    }
}

/// What a JSON value is called in messages.
pub fn value_type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

/// Parses one document.
///
/// # Errors
/// Every refusal, or the first error of syntax (after which nothing can be trusted).
pub fn parse(text: &str) -> Result<Node, Problems> {
    if text.len() > MAX_BYTES {
        let message = format!("the file has {} MiB; a pipeline may have at most {} MiB", text.len() >> 20, MAX_BYTES >> 20);
        return Err(Problem::new("yaml::too-large", message).into());
    }
    Builder::new(text).run()
}

/// Parses the value of a `--set key=value`: any YAML value on one line.
///
/// # Errors
/// As [`parse`].
pub fn parse_value(text: &str) -> Result<Value, Problems> {
    Ok(parse(text)?.to_value())
}

/// A plain scalar by the rules of `serde_yaml`.
fn resolve_plain(text: &str) -> Value {
    // Most scalars are words; only what could be something else is worth the parser.
    let may_be_typed = text.is_empty() || text.starts_with(|c: char| c.is_ascii_digit() || "+-.~nNtTfF".contains(c));
    if !may_be_typed {
        return Value::String(text.to_owned());
    }
    match serde_yaml::from_str::<serde_yaml::Value>(text) {
        Ok(serde_yaml::Value::Null) => Value::Null,
        Ok(serde_yaml::Value::Bool(b)) => Value::Bool(b),
        Ok(serde_yaml::Value::Number(n)) => number(&n).unwrap_or_else(|| Value::String(text.to_owned())),
        _ => Value::String(text.to_owned()),
    }
}

fn number(n: &serde_yaml::Number) -> Option<Value> {
    if let Some(i) = n.as_i64() {
        return Some(i.into());
    }
    if let Some(u) = n.as_u64() {
        return Some(u.into());
    }
    serde_json::Number::from_f64(n.as_f64()?).map(Value::Number)
}

/// A collection that is being filled.
enum Open {
    List { start: usize, items: Vec<Node> },
    Map { start: usize, entries: Vec<(Key, Node)>, seen: HashMap<String, Span>, key: Option<Key> },
}

struct Builder<'t> {
    text: &'t str,
    /// Byte offset of every character, if the text is not ASCII.
    offsets: Option<Vec<usize>>,
    stack: Vec<Open>,
    root: Option<Node>,
    problems: Problems,
}

impl<'t> Builder<'t> {
    fn new(text: &'t str) -> Self {
        let offsets = (!text.is_ascii()).then(|| text.char_indices().map(|(i, _)| i).chain([text.len()]).collect());
        Self { text, offsets, stack: Vec::new(), root: None, problems: Problems::new() }
    }

    fn byte(&self, index: usize) -> usize {
        let byte = self.offsets.as_ref().map_or(index, |offsets| offsets.get(index).copied().unwrap_or(self.text.len()));
        byte.min(self.text.len())
    }

    fn span(&self, span: saphyr_parser::Span) -> Span {
        let (start, end) = (self.byte(span.start.index()), self.byte(span.end.index()));
        let written = self.text.get(start..end).unwrap_or_default();
        Span::new(start, start + written.trim_end().len())
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
                    self.problems.push(problem.at(Span::new(at.min(text.len().saturating_sub(1)), (at + 1).min(text.len())), "here"));
                    break;
                }
            }
        }
        let root = self.root.unwrap_or(Node { span: Span::default(), data: Data::Scalar(Value::Null) });
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
                self.open(Open::List { start: span.start, items: Vec::new() }, span)?;
            }
            Event::MappingStart(_, tag) => {
                self.refuse_tag(tag.is_some(), span);
                self.open(Open::Map { start: span.start, entries: Vec::new(), seen: HashMap::new(), key: None }, span)?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span),
            Event::Alias(_) => {
                self.problems.push(
                    Problem::new("yaml::alias", "aliases are not allowed in a pipeline")
                        .at(span, "an alias")
                        .help("write the value out, or make it a param and use `${name}`"),
                );
                self.place(Node { span, data: Data::Scalar(Value::Null) });
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
                let end = items.last().map_or(span.end, |node| node.span.end).max(span.end);
                Node { span: self.trimmed(start, end), data: Data::List(items) }
            }
            Some(Open::Map { start, entries, .. }) => {
                let end = entries.last().map_or(span.end, |(_, node)| node.span.end).max(span.end);
                Node { span: self.trimmed(start, end), data: Data::Map(entries) }
            }
            None => return,
        };
        self.place(node);
    }

    /// A block collection ends where the next token begins; the blank in between is not part of it.
    fn trimmed(&self, start: usize, end: usize) -> Span {
        let written = self.text.get(start..end).unwrap_or_default();
        Span::new(start, start + written.trim_end().len())
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, span: Span) {
        if let Some(Open::Map { key: key @ None, seen, .. }) = self.stack.last_mut() {
            if text == "<<" && style == ScalarStyle::Plain {
                self.problems.push(
                    Problem::new("yaml::merge-key", "merge keys are not allowed in a pipeline")
                        .at(span, "a merge key")
                        .help("write the entries out"),
                );
            }
            if let Some(first) = seen.insert(text.to_owned(), span) {
                self.problems.push(
                    Problem::new("yaml::duplicate-key", format!("the key `{text}` is written twice"))
                        .at(span, "again here")
                        .at(first, "first here")
                        .help("a plain YAML reader would silently keep the last one; remove or rename one of them"),
                );
            }
            *key = Some(Key { name: text.to_owned(), span });
            return;
        }
        let value = if style == ScalarStyle::Plain { resolve_plain(text) } else { Value::String(text.to_owned()) };
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
        parse(text).unwrap_err().iter().map(|problem| problem.code).collect()
    }

    #[test]
    fn scalars_have_the_types_of_serde_yaml() {
        let value = parse("{a: 1, b: 0.5, c: no, d: true, e: ~, f: '1', g: 1e-3, h: x y, i: -7, j: .5, k: 0x10}").unwrap().to_value();
        assert_eq!(value, json!({"a":1,"b":0.5,"c":"no","d":true,"e":null,"f":"1","g":1e-3,"h":"x y","i":-7,"j":0.5,"k":16}));
    }

    #[test]
    fn spans_are_bytes_even_after_wide_characters() {
        let text = "ä: 'ü'\nb: [1, zwei]\n";
        let node = parse(text).unwrap();
        let two = node.descend("b[1]");
        assert_eq!(&text[two.span.start..two.span.end], "zwei");
        let list = node.descend("b");
        assert_eq!(&text[list.span.start..list.span.end], "[1, zwei]");
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
        assert!(parse("").unwrap().is_null());
        assert!(parse("# only a comment\n").unwrap().is_null());
    }
}
