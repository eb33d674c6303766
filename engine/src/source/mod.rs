//! The files of a pipeline: their texts, and the trees of [`Node`]s in them.

mod files;
mod parse;

pub use files::{Files, Source};
pub use parse::{MAX_BYTES, MAX_DEPTH, parse};

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
