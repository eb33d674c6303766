//! safetensors.

use std::collections::BTreeMap;

use safetensors::{Dtype, SafeTensors};

use super::{Entry, Place, contiguous};
use crate::pickle::Number;

/// Whether a file begins with the length of a header that it holds, and a header.
pub(super) fn begins(bytes: &[u8]) -> bool {
    let length = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length));
    bytes.get(8) == Some(&b'{') && length.is_some_and(|length| length <= bytes.len() as u64 - 8)
}

/// The tensors of a file; those of types that no weight has are left out.
pub(super) fn entries(bytes: &[u8]) -> Result<BTreeMap<String, Entry>, String> {
    let (header, _) = SafeTensors::read_metadata(bytes)
        .map_err(|e| format!("it is neither safetensors ({e}), nor a PyTorch file, nor a pickle of NumPy arrays"))?;
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let start = 8 + header;
    let mut entries = BTreeMap::new();
    for (name, view) in file.tensors() {
        let number = match view.dtype() {
            Dtype::F32 => Number::F32,
            Dtype::F64 => Number::F64,
            Dtype::F16 => Number::F16,
            Dtype::BF16 => Number::BF16,
            Dtype::I64 => Number::I64,
            Dtype::I32 => Number::I32,
            Dtype::U8 => Number::U8,
            Dtype::BOOL => Number::Bool,
            _ => continue,
        };
        // Views lie in the bytes that they were made of.
        let at = view.data().as_ptr().addr() - bytes.as_ptr().addr();
        debug_assert!(at >= start);
        let shape = view.shape().to_vec();
        let (strides, place) = (contiguous(&shape, false), Place::File(at..at + view.data().len()));
        entries.insert(name, Entry { shape, strides, offset: 0, number, big_endian: false, place });
    }
    Ok(entries)
}
