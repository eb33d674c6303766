//! Weights as PyTorch keeps them: convolutions `[o, c, kh, kw]`, linear layers `[out, in]`.

use std::collections::BTreeMap;
use std::path::Path;

use super::layer::Spec;
use crate::error::{Error, Result};
use crate::nn::Params;
use crate::nn::params::{Values, load_tensors};

/// The shape that PyTorch has for one of ours.
fn their_shape(ours: &[usize]) -> Vec<usize> {
    match *ours {
        [kh, kw, c, o] => vec![o, c, kh, kw],
        [inputs, outputs] => vec![outputs, inputs],
        _ => ours.to_vec(),
    }
}

/// Their values in our order; `shape` is ours.
fn reordered(shape: &[usize], values: &[f32]) -> Vec<f32> {
    let (o, rest) = match *shape {
        [kh, kw, c, o] => (o, [kh * kw, c]),
        [inputs, outputs] => (outputs, [1, inputs]),
        _ => return values.to_vec(),
    };
    // [o][c][place] to [place][c][o]; a linear layer is a kernel of one place.
    let [places, c] = rest;
    let mut out = Vec::with_capacity(values.len());
    for place in 0..places {
        for channel in 0..c {
            out.extend((0..o).map(|kernel| values[(kernel * c + channel) * places + place]));
        }
    }
    out
}

/// Reads the tensors of an architecture.
pub fn read(specs: &[Spec], path: &Path) -> Result<Params> {
    let mut found: BTreeMap<String, Values> = load_tensors(path)?;
    let mut params = Params::new();
    for spec in specs {
        let Some((shape, values)) = found.remove(&spec.name) else {
            return Err(Error::data(path, format!("the tensor `{}` of the architecture is missing", spec.name)));
        };
        let wanted = their_shape(&spec.shape);
        // A factor a channel may stand as [c, 1, 1].
        let plain: Vec<usize> = if spec.shape.len() == 1 { shape.iter().copied().filter(|n| *n != 1).collect() } else { shape.clone() };
        if shape != wanted && plain != wanted {
            return Err(Error::data(path, format!("tensor `{}` has the shape {shape:?}, the architecture wants {wanted:?}", spec.name)));
        }
        params.insert(&spec.name, &spec.shape, reordered(&spec.shape, &values))?;
    }
    // How many batches PyTorch has seen is nothing that we need.
    match found.keys().find(|name| !name.ends_with("num_batches_tracked")) {
        Some(name) => Err(Error::data(path, format!("tensor `{name}` is not part of the architecture"))),
        None => Ok(params),
    }
}
