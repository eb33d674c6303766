//! Files of weights as others write them: safetensors, PyTorch's two formats, pickled NumPy arrays.

mod safe;
mod torch;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::nn::params::Values;
use crate::pickle::{Array, Heap, Node, Number, Value};

/// Where a tensor lies.
#[derive(Debug, Clone, PartialEq)]
enum Place {
    /// Bytes of the file.
    File(Range<usize>),
    /// Bytes that had to be decoded.
    Own(Vec<u8>),
}

/// A tensor as the file describes it.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    shape: Vec<usize>,
    /// Elements from one index to the next.
    strides: Vec<usize>,
    /// Elements before the first.
    offset: usize,
    number: Number,
    big_endian: bool,
    place: Place,
}

/// A file of named tensors; values are converted when they are asked for.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    bytes: Vec<u8>,
    entries: BTreeMap<String, Entry>,
}

/// Keys under which training scripts keep the weights of a checkpoint.
const CUSTOMARY: [&str; 5] = ["state_dict", "model_state_dict", "model", "module", "net"];

impl File {
    /// Opens a file: safetensors, `torch.save` (since 1.6 a zip file, before that a row of pickles) or a pickle of NumPy arrays, told apart
    /// by their first bytes.
    ///
    /// In a checkpoint the weights stand under the key `entry`, such as `state_dict` or `ema.model`; without, under one of the customary keys if
    /// the file has it. Names that all begin with `module.` (`DataParallel`) lose that. Lists are numbered: `conv1.0`.
    ///
    /// # Errors
    /// If the file is damaged or wants to run something.
    pub fn open(path: &Path, entry: Option<&str>) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let entries = entries(&bytes, entry).map_err(|message| Error::data(path, message))?;
        if entries.is_empty() {
            return Err(Error::data(path, "it holds no tensor"));
        }
        Ok(Self { path: path.to_path_buf(), bytes, entries: without_wrapper(entries) })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the tensors, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Sizes of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Sizes and values of a tensor, the last index fastest.
    ///
    /// # Errors
    /// If there is none, it holds whole numbers, or a value is not finite.
    pub fn tensor(&self, name: &str) -> Result<Values> {
        let wrong = |message: String| Error::data(&self.path, message);
        let entry = self.entries.get(name).ok_or_else(|| wrong(format!("there is no tensor `{name}`")))?;
        let bytes = match &entry.place {
            Place::File(range) => self.bytes.get(range.clone()).unwrap_or_default(),
            Place::Own(bytes) => bytes,
        };
        let floats = floats(entry, bytes).map_err(|message| wrong(format!("tensor `{name}` {message}")))?;
        match floats.iter().position(|v| !v.is_finite()) {
            Some(i) => Err(wrong(format!("value {i} of tensor `{name}` is {}", floats[i]))),
            None => Ok((entry.shape.clone(), floats)),
        }
    }
}

fn entries(bytes: &[u8], entry: Option<&str>) -> Result<BTreeMap<String, Entry>, String> {
    match bytes {
        // The length of a header of safetensors may begin with any byte.
        _ if safe::begins(bytes) && entry.is_none() => safe::entries(bytes),
        [b'P', b'K', 3, 4, ..] => torch::archive(bytes, entry),
        // PROTO, or the first opcodes of protocol 0 and 1.
        [0x80, ..] | [b'(', ..] | [b'}', ..] | [b'c', ..] => torch::pickles(bytes, entry),
        [0x89, b'H', b'D', b'F', ..] => Err("it is an HDF5 file: read are safetensors, PyTorch files and pickled NumPy arrays".into()),
        _ if entry.is_some() => Err("`entry` names a part of a PyTorch file, and this is none".into()),
        _ => safe::entries(bytes),
    }
}

fn without_wrapper(entries: BTreeMap<String, Entry>) -> BTreeMap<String, Entry> {
    if !entries.keys().all(|name| name.starts_with("module.")) {
        return entries;
    }
    entries.into_iter().map(|(name, entry)| (name["module.".len()..].to_owned(), entry)).collect()
}

/// The part of a pickle that holds the weights.
fn chosen(heap: &Heap<'_>, root: Value, entry: Option<&str>) -> Result<Value, String> {
    if let Some(entry) = entry {
        let part = entry.split('.').try_fold(root, |part, key| heap.get(part, key));
        return part.filter(|part| heap.dict(*part).is_some()).ok_or_else(|| {
            let keys = heap.dict(root).unwrap_or_default().iter().filter_map(|(key, _)| heap.text(*key)).take(20).collect::<Vec<_>>();
            format!("there is no part `{entry}`; the keys of the file are {}", keys.join(", "))
        });
    }
    let customary = CUSTOMARY.iter().filter_map(|key| heap.get(root, key)).find(|part| heap.dict(*part).is_some());
    Ok(customary.unwrap_or(root))
}

/// Levels of dictionaries and lists that are looked into.
const DEPTH: usize = 16;

/// Finds the bytes of a storage by its key, the type of its elements and their number.
type Locate<'a> = dyn Fn(&str, Number, usize) -> Result<Range<usize>, String> + 'a;

/// The tensors and arrays below `root`, by their path; `locate` finds the bytes of a storage.
fn flattened(
    heap: &Heap<'_>,
    root: Value,
    array_place: &dyn Fn(&Array<'_>) -> Place,
    locate: &Locate<'_>,
) -> Result<BTreeMap<String, Entry>, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![(String::new(), root, 0)];
    let mut left = 4 * heap.len() + 64;
    while let Some((name, value, depth)) = open.pop() {
        left = left.checked_sub(1).ok_or("its values refer to each other too often")?;
        let within = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
        match heap.node(value) {
            Some(Node::Dict(_) | Node::List(_)) if depth == DEPTH => return Err(format!("`{name}` is nested deeper than {DEPTH} levels")),
            Some(Node::Dict(dict)) => {
                open.extend(dict.iter().rev().filter_map(|(key, value)| Some((within(heap.text(*key)?), *value, depth + 1))));
            }
            Some(Node::List(items)) => {
                open.extend(items.iter().enumerate().map(|(i, value)| (within(&i.to_string()), *value, depth + 1)));
            }
            Some(Node::Tensor(view)) => {
                let Some(Node::Storage { key, number, count }) = heap.node(Value::Node(view.storage)) else {
                    return Err(format!("tensor `{name}` has no storage"));
                };
                let place = Place::File(locate(key, *number, *count).map_err(|e| format!("tensor `{name}`: {e}"))?);
                let (shape, strides) = (view.shape.clone(), view.strides.clone());
                found.insert(name, Entry { shape, strides, offset: view.offset, number: *number, big_endian: false, place });
            }
            Some(Node::Array(Some(array))) => {
                let (shape, strides) = (array.shape.clone(), contiguous(&array.shape, array.fortran));
                let (number, big_endian, place) = (array.number, array.big_endian, array_place(array));
                found.insert(name, Entry { shape, strides, offset: 0, number, big_endian, place });
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Strides of an array without gaps.
fn contiguous(shape: &[usize], fortran: bool) -> Vec<usize> {
    let mut strides = vec![0; shape.len()];
    let order: Vec<usize> = if fortran { (0..shape.len()).collect() } else { (0..shape.len()).rev().collect() };
    let mut step = 1usize;
    for i in order {
        strides[i] = step;
        step = step.saturating_mul(shape[i]);
    }
    strides
}

/// The elements as `f32`, the last index fastest.
fn floats(entry: &Entry, bytes: &[u8]) -> Result<Vec<f32>, String> {
    let size = entry.number.size();
    let convert: fn(&[u8]) -> f32 = match entry.number {
        Number::F32 => |b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        Number::F64 => |b| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32,
        Number::F16 => |b| half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
        Number::BF16 => |b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        other => return Err(format!("holds values of type {other:?}, floats are wanted")),
    };
    let at = |index: usize| -> Result<f32, String> {
        let element = bytes.get(index * size..(index + 1) * size).ok_or_else(|| format!("ends before element {index}"))?;
        if !entry.big_endian {
            return Ok(convert(element));
        }
        let mut turned = [0; 8];
        turned[..size].copy_from_slice(element);
        turned[..size].reverse();
        Ok(convert(&turned))
    };
    let count: usize = entry.shape.iter().product();
    if entry.strides == contiguous(&entry.shape, false) {
        return (entry.offset..entry.offset + count).map(at).collect();
    }
    let mut index = vec![0; entry.shape.len()];
    let mut out = Vec::with_capacity(count);
    for _ in 0..count {
        out.push(at(entry.offset + index.iter().zip(&entry.strides).map(|(i, stride)| i * stride).sum::<usize>())?);
        for d in (0..index.len()).rev() {
            index[d] += 1;
            if index[d] < entry.shape[d] {
                break;
            }
            index[d] = 0;
        }
    }
    Ok(out)
}
