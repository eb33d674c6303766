//! Rows of a table by number.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use crate::nn::composed;
use crate::nn::storage::{gradient, output, slice, with};
use crate::nn::tape::apply1;

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
    if composed::wanted(table) {
        return composed::embedding(table, ids);
    }
    apply1(table, Embedding { ids: ids.to_vec(), width })
}

/// The first row of every sample.
struct First;

impl CustomOp1 for First {
    fn name(&self) -> &'static str {
        "first"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, t, c) = layout.shape().dims3()?;
        output(slice(x, layout)?.chunks_exact(t * c).flat_map(|sample| &sample[..c]).copied().collect(), (n, c))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, t, c) = x.dims3()?;
        let mut dx = vec![0.0; x.elem_count()];
        with(dy, |dy| {
            dx.chunks_exact_mut(t * c).zip(dy.chunks_exact(c)).for_each(|(dx, dy)| dx[..c].copy_from_slice(dy));
            Ok(())
        })?;
        gradient(dx, x).map(Some)
    }
}

/// The first row of every sample of `x` `[n, t, c]`: `[n, c]`.
///
/// # Errors
/// If `x` does not have three dimensions, none of them 0.
pub fn first(x: &Tensor) -> Result<Tensor> {
    x.dims3()?;
    if x.elem_count() == 0 {
        bail!("first: {:?} has no rows", x.shape());
    }
    if composed::wanted(x) {
        return composed::first(x);
    }
    apply1(x, First)
}
