//! Products of matrices of single precision.
//!
//! The result is cut into tiles that live in registers ([`tile`]). The right operand is laid out in [`panels`] first, unless there are so few rows that
//! this would not pay; the left one is read where it lies. The order is that of Goto and van de Geijn, *Anatomy of high-performance matrix multiplication*
//! (2008), turned around: some rows of the left operand stay in the first-level cache while the panels stream past from the second one.
//!
//! Results depend on the shapes alone, not on threads or on how a product was cut into rows and columns.
#![allow(unsafe_code, reason = "tiles are read and written by pointers, and parts of one result by several threads")]

use crate::nn::kernel::lanes::{Lanes, choose_lanes};
use crate::nn::kernel::{Then, add, floor, with_scratch};
use crate::nn::parallel::{Parallel, fair};
use rayon::prelude::*;
use std::ops::Range;

mod panels;
mod tile;

pub use panels::{Panels, Shape};
use tile::{BAND, Band, Left, PANEL, Right, Target};

/// Rows of a product that one task computes.
const ROWS: usize = 9 * BAND;
/// Columns of a product that one task computes when there are few rows.
const COLUMNS: usize = 256;
/// Rows up to which the right operand is read where it lies.
const FEW_ROWS: usize = 64;

/// A matrix in a slice: element `(i, j)` is at `i * rows + j * columns`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major with `width` columns.
    pub fn new(data: &'a [f32], width: usize) -> Self {
        Self { data, rows: width, columns: 1 }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self { rows: self.columns, columns: self.rows, ..self }
    }

    fn row(self, i: usize) -> Self {
        Self { data: &self.data[(i * self.rows).min(self.data.len())..], ..self }
    }

    fn column(self, j: usize) -> Self {
        Self { data: &self.data[(j * self.columns).min(self.data.len())..], ..self }
    }

    fn holds(self, m: usize, n: usize) -> bool {
        m == 0 || n == 0 || (m - 1) * self.rows + (n - 1) * self.columns < self.data.len()
    }

    /// From column `j` on, as tiles read it.
    ///
    /// # Panics
    /// If neither the values of a row nor those of a column are neighbours: nobody makes such a matrix.
    fn left(self, j: usize) -> Left {
        assert!(self.rows == 1 || self.columns == 1, "a matrix is row-major or the transpose of one that is");
        let tall = self.columns != 1;
        Left { from: self.column(j).data.as_ptr(), step: if tall { self.columns } else { self.rows }, tall }
    }
}

/// How the sums of a product begin and end.
#[derive(Clone, Copy, Default)]
struct Ends<'a> {
    /// Whether they begin with what is there.
    accumulate: bool,
    then: Then<'a>,
}

impl Ends<'_> {
    fn fit(self, n: usize) -> bool {
        self.then.bias.is_none_or(|bias| bias.len() == n)
    }

    /// Where a part of the `k` terms goes.
    fn target(self, c: &mut [f32], step: usize, part: &Range<usize>, k: usize) -> Target {
        let is_first = part.start == 0;
        let bias = self.then.bias.filter(|_| is_first).map(<[f32]>::as_ptr);
        Target { to: c.as_mut_ptr(), step, add: self.accumulate || !is_first, bias, relu: self.then.relu && part.end == k }
    }

    /// What is there when nothing is added up.
    fn of_nothing(self, m: usize, n: usize, c: &mut [f32], ldc: usize) {
        for row in c.chunks_mut(ldc).take(m) {
            let row = &mut row[..n];
            if !self.accumulate {
                row.fill(0.0);
            }
            if let Some(bias) = self.then.bias {
                add(row, bias);
            }
            if self.then.relu {
                floor(row);
            }
        }
    }
}

/// `c = a·b`, or `c += a·b`, on this thread; `c` is `[m, n]` with `ldc` values from row to row.
pub fn gemm(m: usize, n: usize, k: usize, c: &mut [f32], ldc: usize, accumulate: bool, a: Matrix<'_>, b: Matrix<'_>) {
    product(m, n, k, c, ldc, Ends { accumulate, then: Then::default() }, a, b);
}

fn product(m: usize, n: usize, k: usize, c: &mut [f32], ldc: usize, ends: Ends<'_>, a: Matrix<'_>, b: Matrix<'_>) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(a.holds(m, k) && b.holds(k, n) && (m - 1) * ldc + n <= c.len() && ends.fit(n), "a matrix is smaller than its product needs");
    let shape = Shape { k, n };
    // One tile is as wide, and gains nothing by another layout: the widest one does, unless its rows lie without gaps already.
    let lies_well = n < PANEL || n == PANEL && b.rows == PANEL;
    if (m <= FEW_ROWS || lies_well) && b.columns == 1 && n.is_multiple_of(16) && k > 0 {
        let (left, right) = (a.left(0), Right { from: b.data.as_ptr(), step: b.rows });
        for part in shape.parts() {
            let target = ends.target(c, ldc, &part, k);
            let left = Left { from: left.from.wrapping_add(part.start * if left.tall { left.step } else { 1 }), ..left };
            let right = Right { from: right.from.wrapping_add(part.start * right.step), ..right };
            // SAFETY: the assertion above keeps all that is read and written inside of the slices, and columns fill registers.
            choose_lanes!(V => unsafe { tile::strips::<V>(m, n, part.len(), left, right, target) });
        }
        return;
    }
    with_scratch(shape.len(), |room| product_of_panels(m, c, ldc, ends, a, &shape.pack(b, room)));
}

/// [`gemm`] with a right operand that was laid out before.
pub fn gemm_panels(m: usize, c: &mut [f32], ldc: usize, accumulate: bool, a: Matrix<'_>, b: &Panels<'_>) {
    product_of_panels(m, c, ldc, Ends { accumulate, then: Then::default() }, a, b);
}

/// `c = a·b` and what follows, with a right operand that was laid out before.
pub fn gemm_panels_then(m: usize, c: &mut [f32], ldc: usize, then: Then<'_>, a: Matrix<'_>, b: &Panels<'_>) {
    product_of_panels(m, c, ldc, Ends { accumulate: false, then }, a, b);
}

fn product_of_panels(m: usize, c: &mut [f32], ldc: usize, ends: Ends<'_>, a: Matrix<'_>, b: &Panels<'_>) {
    let Shape { k, n } = b.shape();
    if m == 0 || n == 0 {
        return;
    }
    assert!(a.holds(m, k) && (m - 1) * ldc + n <= c.len() && ends.fit(n), "a matrix is smaller than its product needs");
    if k == 0 {
        return ends.of_nothing(m, n, c, ldc);
    }
    for part in b.shape().parts() {
        let (left, target) = (a.left(part.start), ends.target(c, ldc, &part, k));
        if n <= PANEL && n.is_multiple_of(16) {
            let (b, step) = b.panel(&part, 0);
            let right = Right { from: b.as_ptr(), step };
            // SAFETY: the assertion keeps all that is read and written inside of the slices, and columns fill registers.
            choose_lanes!(V => unsafe { tile::strips::<V>(m, n, part.len(), left, right, target) });
            continue;
        }
        // SAFETY: the assertion keeps all that is read and written inside of the slices.
        with_scratch(tile::ROOM, |room| choose_lanes!(V => unsafe { past_panels::<V>(m, &part, left, b, target, room) }));
    }
}

/// Some rows after the other, each past all panels of a part.
///
/// # Safety
/// `a` has `m` rows from the part's first term on, `c` has room for the result, and the machine has the lanes.
unsafe fn past_panels<V: Lanes>(m: usize, part: &Range<usize>, a: Left, b: &Panels<'_>, c: Target, room: &mut [f32]) {
    let n = b.shape().n;
    let mut i = 0;
    while i < m {
        // SAFETY: rows from i on, and columns from j on, are the caller's.
        unsafe {
            let rows = Band::new::<V>(a.row(i), m - i, part.len(), room);
            let mut j = 0;
            while j < n {
                let (b, step) = b.panel(part, j);
                rows.times::<V>(PANEL.min(n - j), Right { from: b.as_ptr(), step }, c.at(i, j));
                j += PANEL;
            }
            i += rows.count();
        }
    }
}

/// Calls `f` with a `[k, n]` matrix laid out in panels.
pub fn with_panels<R>(k: usize, n: usize, b: Matrix<'_>, f: impl FnOnce(&Panels<'_>) -> R) -> R {
    assert!(b.holds(k, n), "a matrix is smaller than its product needs");
    let shape = Shape { k, n };
    with_scratch(shape.len(), |room| f(&shape.pack_on_all(b, room)))
}

/// `c = a·b` on all threads; `c` is row-major `[m, n]`.
pub fn matmul(m: usize, n: usize, k: usize, c: &mut [f32], a: Matrix<'_>, b: Matrix<'_>) {
    matmul_then(m, n, k, c, a, b, None, |_, _| ());
}

/// [`matmul`] with a bias for every row, if there is one, and what follows for some rows at a time of the result, from the one that is
/// given on, soon after they were made.
pub fn matmul_then(
    m: usize,
    n: usize,
    k: usize,
    c: &mut [f32],
    a: Matrix<'_>,
    b: Matrix<'_>,
    bias: Option<&[f32]>,
    then: impl Fn(usize, &mut [f32]) + Sync,
) {
    let ends = Ends { accumulate: false, then: Then { bias, relu: false } };
    if m * n * k < 1 << 15 {
        product(m, n, k, c, n, ends, a, b);
        return then(0, &mut c[..m * n]);
    }
    if m >= 2 * ROWS || n < 2 * COLUMNS {
        let rows = fair(m, ROWS);
        return with_panels(k, n, b, |b| {
            c[..m * n].par_chunks_mut(rows * n).enumerate().run(|(i, c)| {
                for (band, c) in c.chunks_mut(BAND * n).enumerate() {
                    let row = i * rows + band * BAND;
                    product_of_panels(c.len() / n, c, n, ends, a.row(row), b);
                    then(row, c);
                }
            });
        });
    }
    // Few rows, many columns: each task makes a block of columns apart, which is then copied to its place.
    let blocks: Vec<Vec<f32>> = (0..n.div_ceil(COLUMNS)).into_par_iter().gather(|j| {
        let columns = j * COLUMNS..n.min((j + 1) * COLUMNS);
        let width = columns.len();
        let mut block = vec![0.0; m * width];
        let ends = Ends { then: ends.then.columns(columns), ..ends };
        product(m, width, k, &mut block, width, ends, a, b.column(j * COLUMNS));
        block
    });
    for (j, block) in blocks.iter().enumerate() {
        let width = block.len() / m;
        for i in 0..m {
            c[i * n + j * COLUMNS..][..width].copy_from_slice(&block[i * width..][..width]);
        }
    }
    then(0, &mut c[..m * n]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    /// A product in double precision.
    fn plain(m: usize, n: usize, k: usize, a: Matrix<'_>, b: Matrix<'_>) -> Vec<f64> {
        let at = |x: Matrix<'_>, i: usize, j: usize| f64::from(x.data[i * x.rows + j * x.columns]);
        (0..m * n).map(|place| (0..k).map(|p| at(a, place / n, p) * at(b, p, place % n)).sum()).collect()
    }

    /// Calls `check` with operands of many shapes, each as it is and as a transpose.
    fn for_shapes(check: impl Fn([usize; 3], Matrix<'_>, Matrix<'_>)) {
        let sizes = [
            [1, 1, 1],
            [6, 64, 4],
            [7, 65, 5],
            [23, 48, 129],
            [25, 130, 3],
            [64, 16, 300],
            [70, 100, 31],
            [3, 200, 257],
            [130, 80, 600],
            [48, 64, 1024],
        ];
        for [m, n, k] in sizes {
            let (a, b) = (Stream::new(1, "a").normals(m * k), Stream::new(1, "b").normals(k * n));
            for a in [Matrix::new(&a, k), Matrix::new(&a, m).t()] {
                for b in [Matrix::new(&b, n), Matrix::new(&b, k).t()] {
                    check([m, n, k], a, b);
                }
            }
        }
    }

    #[test]
    fn products_of_all_shapes_and_orders_are_right() {
        for_shapes(|[m, n, k], a, b| {
            let want = plain(m, n, k, a, b);
            for (accumulate, start) in [(false, f32::NAN), (true, 0.5)] {
                let ldc = n + 3;
                let mut c = vec![start; m * ldc];
                gemm(m, n, k, &mut c, ldc, accumulate, a, b);
                for (i, row) in c.chunks_exact(ldc).enumerate() {
                    for (j, got) in row[..n].iter().enumerate() {
                        let want = want[i * n + j] + if accumulate { 0.5 } else { 0.0 };
                        assert!((f64::from(*got) - want).abs() < 1e-4 * (k as f64).sqrt(), "{m}×{n}×{k}, {i}, {j}: {got}, not {want}");
                    }
                    assert!(row[n..].iter().all(|v| v.to_bits() == start.to_bits()), "what lies behind a row is left alone");
                }
            }
        });
    }

    #[test]
    fn what_a_product_is_cut_into_does_not_change_a_bit() {
        for_shapes(|[m, n, k], a, b| {
            let (mut whole, mut shared, mut rows) = (vec![0.0; m * n], vec![0.0; m * n], vec![0.0; m * n]);
            gemm(m, n, k, &mut whole, n, false, a, b);
            matmul(m, n, k, &mut shared, a, b);
            for (i, row) in rows.chunks_exact_mut(n).enumerate() {
                with_panels(k, n, b, |b| gemm_panels(1, row, n, false, a.row(i), b));
            }
            assert!(whole == shared && whole == rows, "{m}×{n}×{k}");
        });
    }

    #[test]
    fn a_bias_and_a_relu_in_the_same_pass_are_those_after_it() {
        for_shapes(|[m, n, k], a, b| {
            let (bias, ldc) = (Stream::new(1, "bias").normals(n), n + 3);
            let (mut want, mut got) = (vec![f32::NAN; m * ldc], vec![f32::NAN; m * ldc]);
            want.chunks_exact_mut(ldc).for_each(|row| row[..n].copy_from_slice(&bias));
            gemm(m, n, k, &mut want, ldc, true, a, b);
            want.chunks_exact_mut(ldc).for_each(|row| floor(&mut row[..n]));
            with_panels(k, n, b, |b| gemm_panels_then(m, &mut got, ldc, Then { bias: Some(&bias), relu: true }, a, b));
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&got), bits(&want), "{m}×{n}×{k}");
            let mut rows = vec![0.0; m * n];
            matmul_then(m, n, k, &mut rows, a, b, Some(&bias), |_, rows| floor(rows));
            let got: Vec<f32> = got.chunks_exact(ldc).flat_map(|row| &row[..n]).copied().collect();
            assert_eq!(rows, got, "{m}×{n}×{k}");
        });
    }

    #[test]
    fn a_sum_of_nothing_is_zero() {
        let mut c = [f32::NAN; 6];
        gemm(2, 3, 0, &mut c, 3, false, Matrix::new(&[], 0), Matrix::new(&[], 3));
        assert_eq!(c, [0.0; 6]);
        with_panels(0, 3, Matrix::new(&[], 3), |b| {
            gemm_panels_then(2, &mut c, 3, Then { bias: Some(&[1.0, -2.0, 3.0]), relu: true }, Matrix::new(&[], 0), b);
        });
        assert_eq!(c, [1.0, 0.0, 3.0, 1.0, 0.0, 3.0]);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn avx2_and_avx_512_give_the_same_bits() {
        use crate::nn::kernel::lanes::{Eight, Sixteen};
        use crate::nn::simd::{Level, level};
        if level() < Level::Avx512 {
            return;
        }
        for_shapes(|[m, n, k], a, b| {
            let (mut narrow, mut wide, mut room) = (vec![0.0; m * n], vec![0.0; m * n], vec![0.0; tile::ROOM]);
            with_panels(k, n, b, |b| {
                for part in b.shape().parts() {
                    let target = |c: &mut [f32]| Ends::default().target(c, n, &part, k);
                    let (narrow, wide, room, a) = (target(&mut narrow), target(&mut wide), &mut room[..], a.left(part.start));
                    // SAFETY: `level` has seen the instruction sets, and the results have the shape of the product.
                    unsafe {
                        past_panels::<Eight>(m, &part, a, b, narrow, room);
                        past_panels::<Sixteen>(m, &part, a, b, wide, room);
                    }
                }
            });
            assert!(narrow == wide, "{m}×{n}×{k}");
        });
    }
}
