//! A reader of Python pickles that hold numbers, and nothing that runs.
//!
//! A pickle is a program for a stack machine, and Python's own machine calls whatever the program names. This one calls nothing: the
//! globals of [`Global`] stand for what PyTorch and NumPy need to describe arrays, and every other global is an error that names it.
//! Protocols 0 to 5 (<https://docs.python.org/3/library/pickletools.html>); of each, the opcodes that such files have.
//!
//! Whatever the bytes are, reading ends after one pass over them and keeps a few small items for each byte: values refer to each other
//! by number, so that neither cycles nor depth cost anything, and texts and arrays stay where they are in the file.
//!
//! candle's own reader knows neither the legacy format of PyTorch nor NumPy's arrays, and the crates that do (`burn-store`, `pyferrite`)
//! bring a framework along or were a week old when we looked.

mod globals;
mod machine;

#[cfg(test)]
mod tests;

use std::borrow::Cow;

pub use globals::{ARRAY_TYPES, Global};
pub use machine::{Pickle, read};

/// Why a pickle is not read; the message names the byte.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pickle, byte {at}: {message}")]
pub struct PickleError {
    /// Where, from the start of this pickle.
    pub at: usize,
    /// What is wrong.
    pub message: String,
}

/// A value; what is larger than a number stands in the [`Heap`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// `None`.
    None,
    /// `True` or `False`.
    Bool(bool),
    /// A whole number; larger ones are a [`Node::Long`].
    Int(i64),
    /// A float.
    Float(f64),
    /// One of the globals that are known.
    Global(Global),
    /// The node of that number.
    Node(usize),
}

/// A type of numbers in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are what their names say")]
pub enum Number {
    F16,
    BF16,
    F32,
    F64,
    U8,
    I8,
    I16,
    I32,
    I64,
    Bool,
}

impl Number {
    /// Bytes of one.
    pub fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }
}

/// A PyTorch tensor: a view into a storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorView {
    /// Number of the [`Node::Storage`].
    pub storage: usize,
    /// First element.
    pub offset: usize,
    /// Sizes.
    pub shape: Vec<usize>,
    /// Elements from one index to the next, for each dimension.
    pub strides: Vec<usize>,
}

/// A NumPy array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Array<'a> {
    /// Sizes.
    pub shape: Vec<usize>,
    /// Type of the elements.
    pub number: Number,
    /// Whether the first index runs fastest.
    pub fortran: bool,
    /// Whether the bytes of an element stand the other way round.
    pub big_endian: bool,
    /// The elements.
    pub bytes: Cow<'a, [u8]>,
}

/// What is larger than a number.
#[derive(Debug, Clone, PartialEq)]
pub enum Node<'a> {
    /// A text.
    Text(Cow<'a, str>),
    /// Bytes, or the `str` of Python 2.
    Bytes(Cow<'a, [u8]>),
    /// A whole number of more than 64 bits, little-endian.
    Long(&'a [u8]),
    /// A tuple, list or set.
    List(Vec<Value>),
    /// A dictionary in its order; of equal keys the last counts.
    Dict(Vec<(Value, Value)>),
    /// A storage that lies elsewhere in the file.
    Storage {
        /// Its name there.
        key: String,
        /// Type of its elements.
        number: Number,
        /// Elements.
        count: usize,
    },
    /// A tensor.
    Tensor(TensorView),
    /// A NumPy type.
    Type {
        /// The elements.
        number: Number,
        /// Whether their bytes stand the other way round.
        big_endian: bool,
    },
    /// A NumPy array; `None` before its state came.
    Array(Option<Array<'a>>),
}

/// All nodes of a pickle.
#[derive(Debug, Clone, PartialEq)]
pub struct Heap<'a> {
    nodes: Vec<Node<'a>>,
    /// Items that may still be copied: a few bytes that copy a large list again and again would fill the memory.
    left: usize,
}

impl<'a> Heap<'a> {
    fn for_bytes(count: usize) -> Self {
        Self { nodes: Vec::new(), left: count.saturating_mul(8).saturating_add(1024) }
    }

    fn spend(&mut self, items: usize) -> Result<(), String> {
        self.left = self.left.checked_sub(items).ok_or("it copies its own values so often that it was not written by Python")?;
        Ok(())
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    fn add(&mut self, node: Node<'a>) -> Value {
        self.nodes.push(node);
        Value::Node(self.nodes.len() - 1)
    }

    /// Items that a copy of this value takes.
    fn weight(&self, value: Value) -> usize {
        match self.node(value) {
            Some(Node::List(items)) => items.len(),
            Some(Node::Text(Cow::Borrowed(text))) => text.len(),
            Some(Node::Bytes(Cow::Owned(bytes))) => bytes.len(),
            _ => 0,
        }
    }

    /// The node that a value stands for.
    pub fn node(&self, value: Value) -> Option<&Node<'a>> {
        match value {
            Value::Node(i) => self.nodes.get(i),
            _ => None,
        }
    }

    /// A text; that of Python 2 too, if it is UTF-8.
    pub fn text(&self, value: Value) -> Option<&str> {
        match self.node(value)? {
            Node::Text(text) => Some(text),
            Node::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The entries of a dictionary.
    pub fn dict(&self, value: Value) -> Option<&[(Value, Value)]> {
        match self.node(value)? {
            Node::Dict(entries) => Some(entries),
            _ => None,
        }
    }

    /// The items of a tuple or list.
    pub fn list(&self, value: Value) -> Option<&[Value]> {
        match self.node(value)? {
            Node::List(items) => Some(items),
            _ => None,
        }
    }

    /// A tuple or list of sizes.
    pub fn sizes(&self, value: Value) -> Option<Vec<usize>> {
        let size = |value: &Value| match value {
            Value::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        };
        self.list(value)?.iter().map(size).collect()
    }

    /// What a dictionary has under a text.
    pub fn get(&self, dict: Value, key: &str) -> Option<Value> {
        self.dict(dict)?.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|(_, value)| *value)
    }
}
