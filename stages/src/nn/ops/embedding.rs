//! Rows of a table by number.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use crate::nn::storage::{gradient, output, slice, with};

struct Embedding {
    ids: Vec<u32>,
    width: usize,
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let table = slice(table, layout)?;
        let rows = self.ids.iter().flat_map(|&id| &table[id as usize * self.width..][..self.width]).copied().collect();
        output(rows, (self.ids.len(), self.width))
    }

    fn bwd(&self, table: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let mut dtable = vec![0.0; table.elem_count()];
        with(dy, |dy| {
            for (&id, row) in self.ids.iter().zip(dy.chunks_exact(self.width)) {
                dtable[id as usize * self.width..][..self.width].iter_mut().zip(row).for_each(|(d, r)| *d += r);
            }
            Ok(())
        })?;
        gradient(dtable, table).map(Some)
    }
}

/// Rows `ids` of `table` `[rows, width]`: `[ids, width]`; the gradient of a row that is taken twice is the sum.
///
/// # Errors
/// If there is no such row.
pub fn embedding(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let (rows, width) = table.dims2()?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= rows) {
        bail!("embedding: there is no row {id} in a table of {rows}");
    }
    table.contiguous()?.apply_op1(Embedding { ids: ids.to_vec(), width })
}
