//! The innermost loop of a product: a tile of the result, kept in registers while a sum runs.
//!
//! Every value of a result is one chain of fused products in the order of the sum, whatever the tile: so neither how rows and columns are cut nor
//! the width of the registers changes a bit (where a machine has fused products).

use std::mem::MaybeUninit;

use crate::nn::kernel::lanes::Lanes;
use crate::nn::kernel::{add, floor};

/// The highest tile.
const HIGHEST: usize = 8;
/// Rows of a band.
pub const BAND: usize = 24;
/// Columns of a panel, and of the widest tile.
pub const PANEL: usize = 64;
/// The most terms that are added up at once: so many rows of a panel are 64 KiB, the copied rows 24.
pub const DEEPEST: usize = 256;
/// Values from row to row that, with multiples, are the distance at which rows drive each other out of the first-level cache.
const ALIASED: usize = 1024;
/// Values from row to row of a copy: no power of two.
const COPY: usize = DEEPEST + 16;
/// Values from column to column of a copy of a tall operand: whole registers.
const TALL_COPY: usize = 32;

/// The left operand from its first row and column on.
#[derive(Clone, Copy)]
pub struct Left {
    pub from: *const f32,
    /// Values from column to column of a tall one, from row to row of another.
    pub step: usize,
    /// Whether the values of a column are neighbours, and not those of a row.
    pub tall: bool,
}

/// Values of the room for a copy of the rows of a tile.
pub const ROOM: usize = if BAND * COPY > TALL_COPY * DEEPEST { BAND * COPY } else { TALL_COPY * DEEPEST };

impl Left {
    /// From row `i` on.
    ///
    /// # Safety
    /// There is such a row.
    #[inline(always)]
    pub unsafe fn row(self, i: usize) -> Self {
        // SAFETY: the caller's promise.
        Self { from: unsafe { self.from.add(if self.tall { i } else { i * self.step }) }, ..self }
    }

    /// `rows` rows, at most [`BAND`], and `k` columns, at most [`DEEPEST`], copied to `room`, which has [`ROOM`] values.
    ///
    /// # Safety
    /// There are as many rows, `left` of them from here on, and columns, and the machine has the lanes.
    unsafe fn copied<V: Lanes>(self, rows: usize, k: usize, left: usize, room: &mut [f32]) -> Self {
        let step = if self.tall { TALL_COPY } else { COPY };
        let (count, length) = if self.tall { (k, rows) } else { (rows, k) };
        assert!(rows <= BAND && k <= DEEPEST && room.len() >= ROOM, "a copy has its room");
        // Whole registers where what lies behind these rows is rows too.
        let whole = self.tall && rows.next_multiple_of(V::COUNT) <= left;
        let to = room.as_mut_ptr();
        // SAFETY: the caller's promise, and the assertion above.
        unsafe {
            // Moved, so that what the loop is bound by cannot be among what it writes.
            V::with(
                #[inline(always)]
                move || {
                    for line in 0..count {
                        let (from, to) = (self.from.add(line * self.step), to.add(line * step));
                        let mut at = 0;
                        while at < rows && whole || at + V::COUNT <= length {
                            V::load(from.add(at)).store(to.add(at));
                            at += V::COUNT;
                        }
                        if at < length {
                            std::ptr::copy_nonoverlapping(from.add(at), to.add(at), length - at);
                        }
                    }
                },
            );
        }
        Self { from: to, step, tall: self.tall }
    }
}

/// The right operand from its first row and column on: values of a row are neighbours.
#[derive(Clone, Copy)]
pub struct Right {
    pub from: *const f32,
    /// Values from row to row.
    pub step: usize,
}

/// Where a result goes.
#[derive(Clone, Copy)]
pub struct Target {
    pub to: *mut f32,
    /// Values from row to row.
    pub step: usize,
    /// Whether it is added to what is there.
    pub add: bool,
    /// What is added to every row, from this column on.
    pub bias: Option<*const f32>,
    /// A ReLU at the end.
    pub relu: bool,
}

impl Target {
    /// # Safety
    /// The place is in the result.
    #[inline(always)]
    pub unsafe fn at(self, row: usize, column: usize) -> Self {
        // SAFETY: the caller's promise.
        Self { to: unsafe { self.to.add(row * self.step + column) }, bias: self.bias.map(|bias| bias.wrapping_add(column)), ..self }
    }
}

/// Carries out a body for every row below `R`. Written out, since the compiler leaves loops of so many rounds as loops, and then their sums in memory.
macro_rules! rows {
    ($i:ident => $body:block) => { rows!(@ $i $body 0 1 2 3 4 5 6 7 ) };
    (@ $i:ident $body:block $($row:literal)*) => { $({ const $i: usize = $row; if $i < R $body })* };
}

/// `R` rows and `W` registers of columns of a product. `WHOLE` says that `b` is a panel as wide as they are, so that addresses in it are known.
///
/// # Safety
/// `k` columns of `R` rows can be read from `a`, `k` rows from `b`, the tile written to `c` and read as a bias, and the machine has the lanes.
#[inline(always)]
unsafe fn tile<V: Lanes, const R: usize, const W: usize, const TALL: bool, const WHOLE: bool>(k: usize, a: Left, b: Right, c: Target) {
    let mut sums = [[V::zero(); W]; R];
    let mut right = b.from;
    let step = if WHOLE { PANEL } else { b.step };
    // Where rows are `a.step` apart every third one has a pointer: an address can say one and two steps from there.
    let mut left = [a.from; HIGHEST.div_ceil(3)];
    // One term of all sums, `$next` terms from where the pointers are.
    macro_rules! term {
        ($next:literal) => {
            let mut row = [V::zero(); W];
            for j in 0..W {
                row[j] = V::load(right.wrapping_add($next * step + j * V::COUNT));
            }
            rows!(I => {
                let factor = if TALL { left[0].wrapping_add($next * a.step + I) } else { left[I / 3].wrapping_add(I % 3 * a.step + $next) };
                for j in 0..W {
                    sums[I][j] = row[j].fma(*factor, sums[I][j]);
                }
            });
        };
    }
    macro_rules! move_on {
        ($terms:literal) => {
            right = right.wrapping_add($terms * step);
            if TALL {
                left[0] = left[0].wrapping_add($terms * a.step);
            } else {
                for third in 0..R.div_ceil(3) {
                    left[third] = left[third].wrapping_add($terms);
                }
            }
        };
    }
    // SAFETY: the caller's promise. Pointers are moved once more than they are read from, without a claim to be inside then.
    unsafe {
        if !TALL {
            for third in 0..R.div_ceil(3) {
                left[third] = a.from.wrapping_add(third * 3 * a.step);
            }
        }
        let mut left_over = k;
        // Where most of the time goes.
        if WHOLE {
            for _ in 0..k / 4 {
                term!(0);
                term!(1);
                term!(2);
                term!(3);
                move_on!(4);
            }
            left_over = k % 4;
        }
        for _ in 0..left_over {
            term!(0);
            move_on!(1);
        }
        if c.add {
            rows!(I => {
                for j in 0..W {
                    sums[I][j] = V::load(c.to.wrapping_add(I * c.step + j * V::COUNT)).add(sums[I][j]);
                }
            });
        }
        if let Some(bias) = c.bias {
            let mut row = [V::zero(); W];
            for j in 0..W {
                row[j] = V::load(bias.wrapping_add(j * V::COUNT));
            }
            rows!(I => {
                for j in 0..W {
                    sums[I][j] = row[j].add(sums[I][j]);
                }
            });
        }
        if c.relu {
            rows!(I => {
                for j in 0..W {
                    sums[I][j] = sums[I][j].floor();
                }
            });
        }
        rows!(I => {
            for j in 0..W {
                sums[I][j].store(c.to.wrapping_add(I * c.step + j * V::COUNT));
            }
        });
    }
}

/// Carries out tiles of so many rows each, from the highest on, as long as there are rows.
macro_rules! tiles {
    ($lanes:ident, $width:ident, $tall:ident, $whole:ident, $m:ident, $k:ident, $a:ident, $b:ident, $c:ident: $($rows:literal)*) => {{
        let mut i = 0;
        $(while $m - i >= $rows {
            tile::<$lanes, $rows, $width, $tall, $whole>($k, $a.row(i), $b, $c.at(i, 0));
            i += $rows;
        })*
    }};
}

/// `m` rows and `W` registers of columns. 6 × 4 sums fit 32 registers, with what they are made of, and 6 × 2 fit 16; of all tiles that do, they take
/// the fewest instructions for each product. Fewer columns need more rows, lest each sum waits for itself.
///
/// # Safety
/// As [`tile`].
#[inline(never)]
unsafe fn all_rows<V: Lanes, const W: usize, const TALL: bool, const WHOLE: bool>(m: usize, k: usize, a: Left, b: Right, c: Target) {
    // SAFETY: the caller's promise.
    unsafe {
        V::with(
            #[inline(always)]
            || {
                if W == 1 || V::COUNT == 16 && W < 4 {
                    tiles!(V, W, TALL, WHOLE, m, k, a, b, c: 8 4 2 1);
                } else {
                    tiles!(V, W, TALL, WHOLE, m, k, a, b, c: 6 5 4 3 2 1);
                }
            },
        )
    }
}

/// `m` rows and `n` columns, at least one register of them and at most the widest tile: `n` is cut down to whole registers.
///
/// # Safety
/// As [`tile`].
unsafe fn strip<V: Lanes>(m: usize, n: usize, k: usize, a: Left, b: Right, c: Target) {
    let registers = n / V::COUNT;
    // SAFETY: the caller's promise.
    unsafe {
        if V::COUNT == 16 && registers > 2 {
            match (registers, b.step == PANEL, a.tall) {
                (3, _, false) => all_rows::<V, 3, false, false>(m, k, a, b, c),
                (3, _, true) => all_rows::<V, 3, true, false>(m, k, a, b, c),
                (_, false, false) => all_rows::<V, 4, false, false>(m, k, a, b, c),
                (_, false, true) => all_rows::<V, 4, true, false>(m, k, a, b, c),
                (_, true, false) => all_rows::<V, 4, false, true>(m, k, a, b, c),
                (_, true, true) => all_rows::<V, 4, true, true>(m, k, a, b, c),
            }
        } else {
            match (registers, a.tall) {
                (1, false) => all_rows::<V, 1, false, false>(m, k, a, b, c),
                (1, true) => all_rows::<V, 1, true, false>(m, k, a, b, c),
                (_, false) => all_rows::<V, 2, false, false>(m, k, a, b, c),
                (_, true) => all_rows::<V, 2, true, false>(m, k, a, b, c),
            }
        }
    }
}

/// Columns of the widest tile.
const fn widest<V: Lanes>() -> usize {
    if V::COUNT == 16 { PANEL } else { 2 * V::COUNT }
}

/// `m` rows and `n` columns, that fill registers, of a product with `k` terms, both operands where they lie. Columns that nothing is asked of
/// may be read.
///
/// # Safety
/// As [`tile`].
pub unsafe fn strips<V: Lanes>(m: usize, n: usize, k: usize, a: Left, b: Right, c: Target) {
    let mut j = 0;
    while j < n {
        let columns = widest::<V>().min(n - j);
        // SAFETY: the columns from j on are among the `n`.
        unsafe { strip::<V>(m, columns, k, a, Right { from: b.from.add(j), ..b }, c.at(0, j)) };
        j += columns;
    }
}

/// Up to [`BAND`] rows of a left operand, ready for many tiles beside each other: in a copy, if they lie so that reading them again and again is slow.
#[derive(Clone, Copy)]
pub struct Band {
    count: usize,
    k: usize,
    left: Left,
}

impl Band {
    /// The first of `rows` rows of `a`, with `k` terms; a copy goes to `room`.
    ///
    /// # Safety
    /// `a` has these rows and terms, the latter at most [`DEEPEST`], and the machine has the lanes.
    pub unsafe fn new<V: Lanes>(a: Left, rows: usize, k: usize, room: &mut [f32]) -> Self {
        let count = BAND.min(rows);
        let left = match a.tall || a.step.is_multiple_of(ALIASED) {
            // SAFETY: the caller's promise.
            true => unsafe { a.copied::<V>(count, k, rows, room) },
            false => a,
        };
        Self { count, k, left }
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// These rows and `n` columns, at most [`PANEL`], of a product.
    ///
    /// # Safety
    /// The operand is still there, or the room that its copy is in. From `b` as many columns can be read as fill registers; the columns can be written to `c`.
    pub unsafe fn times<V: Lanes>(self, n: usize, b: Right, c: Target) {
        let mut j = 0;
        while j < n {
            let columns = widest::<V>().min(n - j);
            // SAFETY: the columns from j on are among the `n`, or in the part of the last register behind them.
            unsafe {
                let (b, c) = (Right { from: b.from.add(j), ..b }, c.at(0, j));
                if columns.is_multiple_of(V::COUNT) {
                    strip::<V>(self.count, columns, self.k, self.left, b, c);
                } else {
                    self.edge::<V>(columns, b, c);
                }
            }
            j += columns;
        }
    }

    /// Columns of which the last ones do not fill a register: made apart and copied.
    ///
    /// # Safety
    /// As [`times`](Self::times).
    #[inline(never)]
    unsafe fn edge<V: Lanes>(self, n: usize, b: Right, c: Target) {
        let rest = n % V::COUNT;
        let is_narrow = rest <= V::Narrow::COUNT;
        // Few columns are made by half a register. With more, all of them are made by one tile.
        let first = if is_narrow { n - rest } else { 0 };
        let mut apart = [const { MaybeUninit::<f32>::uninit() }; BAND * PANEL];
        let target = Target { to: apart.as_mut_ptr().cast(), step: PANEL, add: false, bias: None, relu: false };
        let last = Right { from: b.from.wrapping_add(first), ..b };
        // SAFETY: the caller's promise; `apart` has room for all rows and the widest tile, and what is read of it was written. Whoever has the lanes has the narrow ones.
        unsafe {
            if first > 0 {
                strip::<V>(self.count, first, self.k, self.left, b, c);
            }
            if is_narrow {
                strip::<V::Narrow>(self.count, V::Narrow::COUNT, self.k, self.left, last, target);
            } else {
                strip::<V>(self.count, n.next_multiple_of(V::COUNT), self.k, self.left, last, target);
            }
            for row in 0..self.count {
                let to = std::slice::from_raw_parts_mut(c.at(row, first).to, n - first);
                let apart = std::slice::from_raw_parts(target.at(row, 0).to, n - first);
                for (to, value) in to.iter_mut().zip(apart) {
                    *to = if c.add { *to + value } else { *value };
                }
                if let Some(bias) = c.bias {
                    add(to, std::slice::from_raw_parts(bias.wrapping_add(first), n - first));
                }
                if c.relu {
                    floor(to);
                }
            }
        }
    }
}
