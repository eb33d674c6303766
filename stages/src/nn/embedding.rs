//! Rows of a table.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::raw::{apply1, output, slice, tensor, with};

/// The rows `ids` of `table` `[v, d]`, as `[ids.len(), d]`; a row that is used twice gets both gradients.
///
/// # Errors
/// If an id is not below `v`; its index is named.
pub fn embedding(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let (rows, width) = table.dims2()?;
    if let Some((i, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= rows) {
        bail!("embedding: id {id} at index {i} is not below the {rows} rows of the table");
    }
    apply1(table, Lookup { ids: ids.to_vec(), width })
}

struct Lookup {
    ids: Vec<u32>,
    width: usize,
}

impl CustomOp1 for Lookup {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let table = slice(table, layout)?;
        let mut y = Vec::with_capacity(self.ids.len() * self.width);
        for id in &self.ids {
            y.extend_from_slice(&table[*id as usize * self.width..][..self.width]);
        }
        output(y, (self.ids.len(), self.width))
    }

    fn bwd(&self, table: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let mut d = vec![0.0; table.elem_count()];
        with(&grad.contiguous()?, |g| {
            for (id, g) in self.ids.iter().zip(g.chunks_exact(self.width)) {
                for (d, g) in d[*id as usize * self.width..].iter_mut().zip(g) {
                    *d += *g;
                }
            }
        })?;
        Ok(Some(tensor(d, table.shape())?))
    }
}
