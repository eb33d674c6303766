//! The right operand of a product, laid out in the order in which tiles read it.

use crate::nn::kernel::product::tile::{DEEPEST, PANEL};
use crate::nn::kernel::{Matrix, transpose};
use crate::nn::parallel::Parallel;
use rayon::prelude::*;

/// Columns of the last panel are filled up with zeros to a multiple of this, the widest register.
const WIDTH: usize = 16;

/// The layout of `[k, n]` in panels of 64 columns, the last one of a multiple of 16, one after the other for a part of the rows, then those of the next part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub k: usize,
    pub n: usize,
}

impl Shape {
    /// Values that it takes.
    pub fn len(self) -> usize {
        self.k * self.padded()
    }

    fn padded(self) -> usize {
        self.n.next_multiple_of(WIDTH)
    }

    /// The rows that are added up in one pass, part after part.
    pub fn parts(self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let rows = self.rows();
        (0..self.k.div_ceil(rows)).map(move |part| part * rows..((part + 1) * rows).min(self.k))
    }

    /// Rows of a part.
    fn rows(self) -> usize {
        self.k.div_ceil(self.k.div_ceil(DEEPEST).max(1)).max(1)
    }

    /// Where the panel from column `j` on begins of a part, and how wide it is.
    pub fn panel(self, part: &std::ops::Range<usize>, j: usize) -> (usize, usize) {
        (part.start * self.padded() + j * part.len(), PANEL.min(self.padded() - j))
    }

    /// Lays a part out.
    fn pack_part(self, b: Matrix<'_>, part: &std::ops::Range<usize>, j: usize, to: &mut [f32]) {
        let (_, width) = self.panel(part, j);
        let filled = width.min(self.n - j);
        if b.columns == 1 {
            for (row, to) in part.clone().zip(to.chunks_exact_mut(width)) {
                let (to, zeros) = to.split_at_mut(filled);
                to.copy_from_slice(&b.data[row * b.rows + j..][..filled]);
                zeros.fill(0.0);
            }
            return;
        }
        if filled < width {
            to.fill(0.0);
        }
        transpose(&b.data[part.start * b.rows + j * b.columns..], [filled, part.len()], b.columns, to, width);
    }

    /// Lays a matrix out on this thread.
    pub fn pack<'a>(self, b: Matrix<'_>, to: &'a mut [f32]) -> Panels<'a> {
        for part in self.parts() {
            for j in (0..self.n).step_by(PANEL) {
                let (at, width) = self.panel(&part, j);
                self.pack_part(b, &part, j, &mut to[at..][..width * part.len()]);
            }
        }
        Panels { values: to, shape: self }
    }

    /// The same on all threads.
    pub fn pack_on_all<'a>(self, b: Matrix<'_>, to: &'a mut [f32]) -> Panels<'a> {
        for part in self.parts() {
            let of_part = &mut to[part.start * self.padded()..][..part.len() * self.padded()];
            of_part.par_chunks_mut((part.len() * PANEL).max(1)).enumerate().run(|(i, to)| self.pack_part(b, &part, i * PANEL, to));
        }
        Panels { values: to, shape: self }
    }

    /// The row and the column of what is laid out at `place`; 16 columns that are neighbours, the first a multiple of 16, stay neighbours.
    pub fn at(self, place: usize) -> (usize, usize) {
        let start = place / self.padded() / self.rows() * self.rows();
        let length = self.rows().min(self.k - start);
        let rest = place - start * self.padded();
        let j = rest / (length * PANEL) * PANEL;
        let width = PANEL.min(self.padded() - j);
        let rest = rest - j * length;
        (start + rest / width, j + rest % width)
    }
}

/// A matrix laid out so.
#[derive(Debug, Clone, Copy)]
pub struct Panels<'a> {
    values: &'a [f32],
    shape: Shape,
}

impl<'a> Panels<'a> {
    /// Values that were written [in their order](Shape::at), and zeros behind the last column.
    pub fn new(values: &'a [f32], shape: Shape) -> Self {
        assert!(values.len() >= shape.len(), "panels are as large as their shape says");
        Self { values, shape }
    }

    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The panel from column `j` on of a part: its values, and its width.
    pub fn panel(&self, part: &std::ops::Range<usize>, j: usize) -> (&'a [f32], usize) {
        let (at, width) = self.shape.panel(part, j);
        (&self.values[at..][..width * part.len()], width)
    }
}
