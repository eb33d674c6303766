//! A safetensors file with `images`, `labels` and perhaps `styles`; names are JSON lists in its metadata.

use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use super::{Options, Raw, scaled};
use crate::error::{Error, Result};

/// Reads the file.
pub(super) fn read(path: &Path, options: &Options) -> Result<Raw> {
    let bytes = fs::read(path).map_err(Error::io(path))?;
    let wrong = |e| Error::data(path, e);
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(wrong)?;
    let metadata = header.metadata().clone().unwrap_or_default();
    let tensors = SafeTensors::deserialize(&bytes).map_err(wrong)?;
    let names = |key: &str| -> Result<Option<Vec<String>>> {
        let parse = |text: &String| serde_json::from_str(text).map_err(|e| Error::data(path, format!("metadata `{key}`: {e}")));
        metadata.get(key).map(parse).transpose()
    };
    let images = tensors.tensor("images").map_err(wrong)?;
    let size = match images.shape()[..] {
        [_, h, w] => (h, w, 1),
        [_, h, w, c] => (h, w, c),
        _ => return Err(Error::data(path, format!("`images` has 3 or 4 dimensions, not {:?}", images.shape()))),
    };
    if images.dtype() != Dtype::U8 {
        return Err(Error::data(path, format!("`images` is {:?}: only U8 is read", images.dtype())));
    }
    let labels = integers(path, &tensors, "labels")?;
    let styles = match names("styles")? {
        Some(names) => Some((integers(path, &tensors, "styles")?, names)),
        None => None,
    };
    let images = scaled(path, images.data().to_vec(), size.0 * size.1 * size.2, options)?;
    let source = metadata.get("source").cloned().unwrap_or_else(|| "safetensors".into());
    Ok(Raw { images, labels, size, classes: names("classes")?, styles, source })
}

/// A list of small whole numbers in any of the usual types.
fn integers(path: &Path, tensors: &SafeTensors<'_>, name: &str) -> Result<Vec<u32>> {
    let view = tensors.tensor(name).map_err(|e| Error::data(path, e))?;
    if view.shape().len() != 1 {
        return Err(Error::data(path, format!("`{name}` has 1 dimension, not {:?}", view.shape())));
    }
    let data = view.data();
    let wide: Vec<i64> = match view.dtype() {
        Dtype::U8 => data.iter().map(|&v| v.into()).collect(),
        Dtype::U32 => data.as_chunks().0.iter().map(|&v| u32::from_le_bytes(v).into()).collect(),
        Dtype::I32 => data.as_chunks().0.iter().map(|&v| i32::from_le_bytes(v).into()).collect(),
        Dtype::I64 => data.as_chunks().0.iter().map(|&v| i64::from_le_bytes(v)).collect(),
        other => return Err(Error::data(path, format!("`{name}` is {other:?}: U8, U32, I32 and I64 are read"))),
    };
    let narrow = |(i, v): (usize, i64)| u32::try_from(v).map_err(|_| Error::data(path, format!("`{name}` of image {i} is {v}")));
    wide.into_iter().enumerate().map(narrow).collect()
}
