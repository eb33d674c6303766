//! IDX, the format of MNIST: <https://yann.lecun.com/exdb/mnist/>, "The IDX file format".

use std::path::Path;

use super::{Options, Raw, bytes, scaled};
use crate::error::{Error, Result};

/// The type code of unsigned bytes.
const U8: u8 = 0x08;

/// An array of bytes.
struct Array {
    dims: Vec<usize>,
    data: Vec<u8>,
}

fn array(path: &Path) -> Result<Array> {
    let bytes = bytes(path)?;
    if bytes.len() < 4 {
        return Err(Error::data(path, format!("the file ends within its header, after {} bytes", bytes.len())));
    }
    let &[0, 0, kind, rank, ..] = bytes.as_slice() else {
        return Err(Error::data(path, "it is no IDX file: the first two bytes are not 0"));
    };
    if kind != U8 {
        return Err(Error::data(path, format!("values of type 0x{kind:02x}: only unsigned bytes (0x08) are read")));
    }
    let head = 4 + 4 * rank as usize;
    let dims = bytes.get(4..head).ok_or_else(|| Error::data(path, format!("the file ends within its header of {head} bytes")))?;
    let dims: Vec<usize> = dims.as_chunks::<4>().0.iter().map(|d| u32::from_be_bytes(*d) as usize).collect();
    let want = dims.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let have = bytes.len() - head;
    if want != Some(have) {
        let each = dims.iter().skip(1).try_fold(1usize, |product, &dim| product.checked_mul(dim)).unwrap_or(usize::MAX).max(1);
        let message = format!("the header says {dims:?}, yet {have} bytes follow: the file ends or goes on at item {}", have / each);
        return Err(Error::data(path, message));
    }
    Ok(Array { dims, data: bytes[head..].to_vec() })
}

/// Reads a file of images and a file of labels.
pub(super) fn read(path: &Path, labels_path: &Path, options: &Options) -> Result<Raw> {
    let images = array(path)?;
    let size = match images.dims[..] {
        [_, h, w] => (h, w, 1),
        [_, h, w, c] => (h, w, c),
        _ => return Err(Error::data(path, format!("images have 3 or 4 dimensions, not {:?}", images.dims))),
    };
    let labels = array(labels_path)?;
    if labels.dims.len() != 1 {
        return Err(Error::data(labels_path, format!("labels have 1 dimension, not {:?}", labels.dims)));
    }
    if labels.dims[0] != images.dims[0] {
        return Err(Error::data(labels_path, format!("{} labels for {} images", labels.dims[0], images.dims[0])));
    }
    let images = scaled(path, images.data, size.0 * size.1 * size.2, options)?;
    let labels = labels.data.into_iter().map(u32::from).collect();
    Ok(Raw { images, labels, size, classes: None, styles: None, source: "idx".into() })
}
