//! Rows of a table by number, and the first row of every sample.

use candle_core::{DType, Result, Tensor};

use super::{node::node, single, values};

/// Rows `ids` of `table` `[rows, width]`: `[ids, width]`.
///
/// # Errors
/// Those of candle.
pub fn embedding(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let rows = table.dim(0)?;
    let ids = Tensor::from_vec(ids.to_vec(), ids.len(), table.device())?;
    let y = values(table)?.index_select(&ids, 0)?;
    node("embedding", [table], y, move |_, dy, _| {
        // Which row each result came from, as a matrix of zeros and ones: a product adds up what a row got, in a fixed order.
        let numbers = Tensor::arange(0, rows as u32, dy.device())?.reshape((rows, 1))?;
        let from = numbers.broadcast_eq(&ids.reshape((1, ids.elem_count()))?)?.to_dtype(DType::F32)?;
        Ok([Some(from.matmul(&single(dy)?)?.to_dtype(dy.dtype())?)])
    })
}

/// The first row of every sample of `x` `[n, t, c]`: `[n, c]`.
///
/// # Errors
/// Those of candle.
pub fn first(x: &Tensor) -> Result<Tensor> {
    let (n, t, c) = x.dims3()?;
    let y = values(x)?.narrow(1, 0, 1)?.contiguous()?.reshape((n, c))?;
    node("first", [x], y, move |_, dy, _| Ok([Some(dy.reshape((n, 1, c))?.pad_with_zeros(1, 0, t - 1)?.contiguous()?)]))
}
