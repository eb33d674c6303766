//! The files of a pipeline: their texts, and the trees of [`Node`]s in them.

mod files;
mod parse;

pub use files::{Files, Source};
pub use parse::{MAX_BYTES, MAX_DEPTH, parse};

use compact_str::CompactString;
use serde_json::{Map, Value};

use crate::problem::Span;

/// A YAML value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Its place; for a collection, from its first to its last byte.
    pub span: Span,
    /// The value itself.
    pub data: Data,
}

/// The value of a [`Node`]. A large file has a million of them: they are small, and short texts lie in them.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// Null, a truth value, a number or a string.
    Scalar(Scalar),
    /// A sequence.
    List(Box<[Node]>),
    /// A mapping in the order of the file, its keys without repeats.
    Map(Entries),
}

/// The entries of a mapping.
pub type Entries = Box<[(Key, Node)]>;

/// A value without parts.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    /// `~`, or nothing.
    Null,
    /// A truth value.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string.
    Text(CompactString),
}

/// A number of the file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Number {
    /// One that fits.
    Int(i64),
    /// A whole number beyond those.
    UInt(u64),
    /// Any other; finite.
    Float(f64),
}

impl Scalar {
    /// A string.
    pub fn text(text: &str) -> Self {
        Self::Text(text.into())
    }

    /// The value.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(truth) => (*truth).into(),
            Self::Number(Number::Int(number)) => (*number).into(),
            Self::Number(Number::UInt(number)) => (*number).into(),
            Self::Number(Number::Float(number)) => (*number).into(),
            Self::Text(text) => text.as_str().into(),
        }
    }
}

impl From<&serde_json::Number> for Number {
    fn from(number: &serde_json::Number) -> Self {
        let whole = number.as_i64().map(Self::Int).or_else(|| number.as_u64().map(Self::UInt));
        whole.unwrap_or_else(|| Self::Float(number.as_f64().unwrap_or_default()))
    }
}

/// A key of a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its text.
    pub name: CompactString,
    /// Its place.
    pub span: Span,
}

impl Node {
    /// What this is, for messages.
    pub fn type_name(&self) -> &'static str {
        match &self.data {
            Data::List(_) => "a list",
            Data::Map(_) => "a map",
            Data::Scalar(value) => value_type_name(&value.to_value()),
        }
    }

    /// The text, if this is a string.
    pub fn as_str(&self) -> Option<&str> {
        match &self.data {
            Data::Scalar(Scalar::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Whether this is null or was left empty.
    pub fn is_null(&self) -> bool {
        self.data == Data::Scalar(Scalar::Null)
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

    /// The place of the key `name`, if this is a map that has it.
    pub fn key_span(&self, name: &str) -> Option<Span> {
        match &self.data {
            Data::Map(entries) => entries.iter().find(|(key, _)| key.name == name).map(|(key, _)| key.span),
            _ => None,
        }
    }

    /// The value without its places.
    pub fn to_value(&self) -> Value {
        match &self.data {
            Data::Scalar(value) => value.to_value(),
            Data::List(items) => Value::Array(items.iter().map(Self::to_value).collect()),
            Data::Map(entries) => {
                Value::Object(entries.iter().map(|(key, node)| (key.name.to_string(), node.to_value())).collect::<Map<_, _>>())
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
