//! What `torch.save` writes (`torch/serialization.py`), and plain pickles of NumPy arrays.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::ops::Range;

use zip::{CompressionMethod, ZipArchive};

use super::{Entry, Place, chosen, flattened};
use crate::pickle::{self, Array, Node, Number, Pickle, Value};

/// The number that a legacy file begins with, `0x1950a86a20f9469cfc6c`.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// The version of the legacy format; there was only one.
const PROTOCOL: i64 = 1001;

/// Where an array lies that was decoded within `bytes`.
fn place<'a>(bytes: &'a [u8], base: usize) -> impl Fn(&Array<'_>) -> Place + 'a {
    move |array| match &array.bytes {
        std::borrow::Cow::Borrowed(inner) => {
            let at = inner.as_ptr().addr() - bytes.as_ptr().addr() + base;
            Place::File(at..at + inner.len())
        }
        std::borrow::Cow::Owned(inner) => Place::Own(inner.clone()),
    }
}

/// A zip file with `data.pkl` and a member `data/KEY` for each storage, all of them stored as they are.
pub(super) fn archive(bytes: &[u8], entry: Option<&str>) -> Result<BTreeMap<String, Entry>, String> {
    let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(|e| format!("a PyTorch file is a zip file: {e}"))?;
    let names = zip.file_names().map(|name| name.map(|name| name.into_owned())).collect::<Result<Vec<_>, _>>();
    let names = names.map_err(|e| e.to_string())?;
    let main = names.iter().find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
    let Some(main) = main else { return Err("a zip file without `data.pkl` is no PyTorch file".into()) };
    if names.iter().any(|name| name.ends_with("/constants.pkl")) {
        return Err("it is a TorchScript program: save its `state_dict()` instead".into());
    }
    let folder = main.trim_end_matches("data.pkl").to_owned();
    let mut members = BTreeMap::new();
    for i in 0..zip.len() {
        let member = zip.by_index(i).map_err(|e| e.to_string())?;
        let Some(name) = names.get(i).and_then(|name| name.strip_prefix(&folder)) else { continue };
        if member.compression() != CompressionMethod::Stored {
            return Err(format!("`{name}` in it is compressed, which `torch.save` never does"));
        }
        let start = member.data_start().ok_or("a member without data")?;
        let range = usize::try_from(start).ok().zip(usize::try_from(member.size()).ok());
        let range = range.and_then(|(start, size)| Some(start..start.checked_add(size)?)).filter(|range| range.end <= bytes.len());
        members.insert(name.to_owned(), range.ok_or_else(|| format!("`{name}` ends behind the file"))?);
    }
    for name in ["data.pkl", "byteorder"] {
        check(&mut zip, &format!("{folder}{name}"))?;
    }
    if let Some(range) = members.get("byteorder").filter(|range| !bytes[(*range).clone()].starts_with(b"little")) {
        return Err(format!("its numbers are {}-endian, only little-endian ones are read", String::from_utf8_lossy(&bytes[range.clone()])));
    }
    let range = members.get("data.pkl").cloned().ok_or("there is no data.pkl")?;
    let inner = &bytes[range.clone()];
    let Pickle { heap, root, .. } = pickle::read(inner).map_err(|e| format!("data.pkl: {e}"))?;
    let locate = |key: &str, number: Number, count: usize| {
        let range = members.get(&format!("data/{key}")).ok_or_else(|| format!("the file has no storage `{key}`"))?;
        fits(range.clone(), number, count)
    };
    flattened(&heap, chosen(&heap, root, entry)?, &place(inner, range.start), &locate)
}

/// Reads a small member to its end, which compares its checksum.
fn check(zip: &mut ZipArchive<Cursor<&[u8]>>, name: &str) -> Result<(), String> {
    let Ok(mut member) = zip.by_name(name) else { return Ok(()) };
    std::io::copy(&mut member.by_ref(), &mut std::io::sink()).map(drop).map_err(|e| format!("`{name}` in it: {e}"))
}

fn fits(range: Range<usize>, number: Number, count: usize) -> Result<Range<usize>, String> {
    let want = count.checked_mul(number.size());
    if want.is_some_and(|want| want <= range.len()) {
        return Ok(range);
    }
    Err(format!("its storage has {} bytes, {count} values of {number:?} are promised", range.len()))
}

/// The legacy format (the magic number, the protocol, what wrote it, the object and the list of storages as pickles, then the storages), or
/// one pickle alone.
pub(super) fn pickles(bytes: &[u8], entry: Option<&str>) -> Result<BTreeMap<String, Entry>, String> {
    let first = pickle::read(bytes).map_err(|e| e.to_string())?;
    let legacy = matches!(first.heap.node(first.root), Some(Node::Long(number)) if *number == MAGIC);
    if !legacy {
        let none = |key: &str, _: Number, _: usize| Err(format!("a pickle has no storage `{key}`"));
        return flattened(&first.heap, chosen(&first.heap, first.root, entry)?, &place(bytes, 0), &none);
    }
    let mut at = first.length;
    let mut next = |what: &str| {
        let pickle = pickle::read(&bytes[at..]).map_err(|e| format!("legacy PyTorch file, {what} at byte {at}: {e}"))?;
        let start = at;
        at += pickle.length;
        Ok::<_, String>((start, pickle))
    };
    let (_, protocol) = next("its protocol")?;
    if protocol.root != Value::Int(PROTOCOL) {
        return Err(format!("a legacy PyTorch file of a protocol other than {PROTOCOL}"));
    }
    let (_, system) = next("what wrote it")?;
    if system.heap.get(system.root, "little_endian") == Some(Value::Bool(false)) {
        return Err("its numbers are big-endian, only little-endian ones are read".into());
    }
    let (start, object) = next("its object")?;
    let (_, keys) = next("the list of its storages")?;
    let storages = storages(bytes, at, &object, &keys)?;
    let locate = |key: &str, number: Number, count: usize| {
        fits(storages.get(key).cloned().ok_or_else(|| format!("the file has no storage `{key}`"))?, number, count)
    };
    flattened(&object.heap, chosen(&object.heap, object.root, entry)?, &place(&bytes[start..], start), &locate)
}

/// The storages in the order of their list: the number of elements in 8 bytes, then the elements.
fn storages(bytes: &[u8], mut at: usize, object: &Pickle<'_>, keys: &Pickle<'_>) -> Result<BTreeMap<String, Range<usize>>, String> {
    let numbers: BTreeMap<&str, Number> = (0..object.heap.len())
        .filter_map(|i| match object.heap.node(Value::Node(i)) {
            Some(Node::Storage { key, number, .. }) => Some((key.as_str(), *number)),
            _ => None,
        })
        .collect();
    let mut found = BTreeMap::new();
    for key in keys.heap.list(keys.root).ok_or("the list of its storages is none")? {
        let key = keys.heap.text(*key).ok_or("the name of a storage is no text")?;
        let number = numbers.get(key).ok_or_else(|| format!("storage `{key}` belongs to no tensor, so that its type is not known"))?;
        let head = bytes.get(at..at + 8).and_then(|head| <[u8; 8]>::try_from(head).ok());
        let count = head.and_then(|head| usize::try_from(i64::from_le_bytes(head)).ok());
        let end = count.and_then(|count| count.checked_mul(number.size())?.checked_add(at + 8)).filter(|end| *end <= bytes.len());
        let end = end.ok_or_else(|| format!("the file ends within storage `{key}`, which begins at byte {at}"))?;
        found.insert(key.to_owned(), at + 8..end);
        at = end;
    }
    Ok(found)
}
