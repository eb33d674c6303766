//! 3×3 convolutions of stride 1 by Winograd's minimal filtering F(4×4, 3×3) (Lavin and Gray 2016): 36 products a tile of 16 pixels in place
//! of 144. Its rounding is about ten times that of the plain sum; so [`Conv::fast`](super::Conv) asks for it.
//!
//! With tiles d of 6×6 and kernels g: y = Aᵀ[(G·g·Gᵀ) ⊙ (Bᵀ·d·B)]A, the ⊙ summed over channels by 36 matrix products. A chunk of tiles goes
//! through all three steps on one thread, so that its intermediates stay in cache.

use crate::nn::parallel::{Parallel, fair};
use rayon::prelude::*;

use super::lanes::{Lanes, for_lanes};
use super::{Conv, Matrix, Panels, Shape, Then, add, gemm, gemm_panels, transpose, with_scratch};
use crate::nn::simd::vectorised;
use crate::nn::storage::unwritten;

/// Channels must be a multiple of this: the widest vector.
const WIDTH: usize = 16;
/// Places of a transformed tile.
const PLACES: usize = 36;
/// Values between the matrices of two places: what is written to all of them at once would, at the distance of a power of two, have one place in a cache.
const GAP: usize = 16;
/// Columns of a kernel's place that one task turns.
const COLUMNS: usize = 64;
/// Parts into which a sum over tiles is cut, where its buffers are small enough.
const PARTS: usize = 4;
/// Values up to which the parts' buffers together stay in cache.
const SMALL: usize = 1_300_000;

/// A buffer of which several threads write different places.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: every task writes the tiles of its own chunk alone.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn at(self, i: usize) -> *mut f32 {
        // SAFETY: the callers stay inside of the buffer that they made this of.
        unsafe { self.0.add(i) }
    }
}

/// Images of `c` channels cut into tiles of 4×4.
#[derive(Clone, Copy)]
struct Tiles {
    h: usize,
    w: usize,
    c: usize,
    /// Values from pixel to pixel.
    row: usize,
    down: usize,
    across: usize,
}

impl Tiles {
    fn new(conv: &Conv, c: usize, row: usize) -> Self {
        Self { h: conv.h, w: conv.w, c, row, down: conv.h.div_ceil(4), across: conv.w.div_ceil(4) }
    }

    /// Image, row and column at which tile `t` begins.
    fn origin(&self, t: usize) -> (usize, usize, usize) {
        let (image, tile) = (t / (self.down * self.across), t % (self.down * self.across));
        (image, tile / self.across * 4, tile % self.across * 4)
    }

    /// Bᵀ·d·B of the tile `t` and the pixels around it; place k goes to `v + k * stride`.
    ///
    /// # Safety
    /// `x` holds the images, `v` 36 times `stride` values, and the machine has the lanes.
    #[inline(always)]
    unsafe fn input<V: Lanes>(&self, x: *const f32, t: usize, v: *mut f32, stride: usize) {
        let (image, top, left) = self.origin(t);
        let inner = top > 0 && left > 0 && top + 5 <= self.h && left + 5 <= self.w;
        // SAFETY: only pixels inside the image are read, `c` is a multiple of the lanes.
        unsafe {
            let image = x.add(image * self.h * self.w * self.row);
            for at in (0..self.c).step_by(V::COUNT) {
                let mut d = [[V::zero(); 6]; 6];
                for i in 0..6 {
                    if !inner && (top + i < 1 || top + i > self.h) {
                        continue;
                    }
                    for j in 0..6 {
                        if inner || (left + j >= 1 && left + j <= self.w) {
                            d[i][j] = V::load(image.add(((top + i - 1) * self.w + left + j - 1) * self.row + at));
                        }
                    }
                }
                for j in 0..6 {
                    let column = input_transform([d[0][j], d[1][j], d[2][j], d[3][j], d[4][j], d[5][j]]);
                    for i in 0..6 {
                        d[i][j] = column[i];
                    }
                }
                for i in 0..6 {
                    let row = input_transform(d[i]);
                    for j in 0..6 {
                        row[j].store(v.add((i * 6 + j) * stride + at));
                    }
                }
            }
        }
    }

    /// Aᵀ·m·A to tile `t` of `y`, with what follows; place k is read from `m + k * stride`.
    ///
    /// # Safety
    /// As [`input`](Self::input), with `y` for the images; a bias has `c` values.
    #[inline(always)]
    unsafe fn output<V: Lanes>(&self, m: *const f32, t: usize, y: *mut f32, stride: usize, then: Then<'_>) {
        let (image, top, left) = self.origin(t);
        let (down, across) = (self.h - top, self.w - left);
        // SAFETY: only pixels inside the image are written, `c` is a multiple of the lanes.
        unsafe {
            let image = y.add(image * self.h * self.w * self.row);
            for at in (0..self.c).step_by(V::COUNT) {
                let mut e = [[V::zero(); 6]; 4];
                for j in 0..6 {
                    let mut column = [V::zero(); 6];
                    for i in 0..6 {
                        column[i] = V::load(m.add((i * 6 + j) * stride + at));
                    }
                    let column = output_transform(column);
                    for i in 0..4 {
                        e[i][j] = column[i];
                    }
                }
                let bias = then.bias.map_or_else(V::zero, |bias| V::load(bias.as_ptr().add(at)));
                for i in 0..4 {
                    // A question and no shorter loop: what is counted while the program runs keeps `e` out of registers.
                    if i >= down {
                        break;
                    }
                    let row = output_transform(e[i]);
                    for j in 0..4 {
                        if j < across {
                            let value = row[j].add(bias);
                            let value = if then.relu { value.floor() } else { value };
                            value.store(image.add(((top + i) * self.w + left + j) * self.row + at));
                        }
                    }
                }
            }
        }
    }

    /// A·dy·Aᵀ of tile `t` of `dy`: the way back of [`output`](Self::output).
    ///
    /// # Safety
    /// As [`input`](Self::input).
    #[inline(always)]
    unsafe fn output_back<V: Lanes>(&self, dy: *const f32, t: usize, e: *mut f32, stride: usize) {
        let (image, top, left) = self.origin(t);
        let (down, across) = (self.h - top, self.w - left);
        // SAFETY: only pixels inside the image are read, `c` is a multiple of the lanes.
        unsafe {
            let image = dy.add(image * self.h * self.w * self.row);
            for at in (0..self.c).step_by(V::COUNT) {
                let mut d = [[V::zero(); 4]; 4];
                for i in 0..4 {
                    for j in 0..4 {
                        if i < down && j < across {
                            d[i][j] = V::load(image.add(((top + i) * self.w + left + j) * self.row + at));
                        }
                    }
                }
                let mut rows = [[V::zero(); 4]; 6];
                for j in 0..4 {
                    let column = output_back_transform([d[0][j], d[1][j], d[2][j], d[3][j]]);
                    for i in 0..6 {
                        rows[i][j] = column[i];
                    }
                }
                for i in 0..6 {
                    let row = output_back_transform(rows[i]);
                    for j in 0..6 {
                        row[j].store(e.add((i * 6 + j) * stride + at));
                    }
                }
            }
        }
    }
}

/// Bᵀ times a column.
#[inline(always)]
fn input_transform<V: Lanes>(d: [V; 6]) -> [V; 6] {
    let (p, q) = (d[2].fma(-4.0, d[4]), d[1].fma(-4.0, d[3]));
    let (r, s) = (d[4].sub(d[2]), d[3].sub(d[1]));
    [d[0].fma(4.0, d[2].fma(-5.0, d[4])), p.add(q), p.sub(q), s.fma(2.0, r), s.fma(-2.0, r), d[1].fma(4.0, d[3].fma(-5.0, d[5]))]
}

/// Aᵀ times a column.
#[inline(always)]
fn output_transform<V: Lanes>(m: [V; 6]) -> [V; 4] {
    let (a, b, c, d) = (m[1].add(m[2]), m[1].sub(m[2]), m[3].add(m[4]), m[3].sub(m[4]));
    [m[0].add(a.add(c)), d.fma(2.0, b), c.fma(4.0, a), d.fma(8.0, b).add(m[5])]
}

/// A times a column.
#[inline(always)]
fn output_back_transform<V: Lanes>(y: [V; 4]) -> [V; 6] {
    let (p, q) = (y[0].add(y[2]), y[1].add(y[3]));
    let (r, s) = (y[2].fma(4.0, y[0]), y[3].fma(4.0, y[1]));
    let s = s.add(s);
    [y[0], p.add(q), p.sub(q), r.add(s), r.sub(s), y[3]]
}

/// The rows of G.
const G: [[f32; 3]; 6] = [
    [0.25, 0.0, 0.0],
    [-1.0 / 6.0, -1.0 / 6.0, -1.0 / 6.0],
    [-1.0 / 6.0, 1.0 / 6.0, -1.0 / 6.0],
    [1.0 / 24.0, 1.0 / 12.0, 1.0 / 6.0],
    [1.0 / 24.0, -1.0 / 12.0, 1.0 / 6.0],
    [0.0, 0.0, 1.0],
];

/// Σ factor·value of the factors that are not 0.
#[inline(always)]
fn weighted<V: Lanes, const N: usize>(values: [V; N], factors: [f32; N]) -> V {
    let mut sum = V::zero();
    for i in 0..N {
        if factors[i] != 0.0 {
            sum = values[i].fma(factors[i], sum);
        }
    }
    sum
}

/// G·g·Gᵀ of `V::COUNT` neighbouring kernels: place k from `w + k * from`, to `u + k * to`.
///
/// # Safety
/// `w` holds 9 times `from` and `u` 36 times `to` values, and the machine has the lanes.
#[inline(always)]
unsafe fn weight<V: Lanes>(w: *const f32, u: *mut f32, from: usize, to: usize) {
    // SAFETY: as above.
    unsafe {
        let mut g = [[V::zero(); 3]; 3];
        for place in 0..9 {
            g[place / 3][place % 3] = V::load(w.add(place * from));
        }
        for i in 0..6 {
            let mut row = [V::zero(); 3];
            for j in 0..3 {
                row[j] = weighted([g[0][j], g[1][j], g[2][j]], G[i]);
            }
            for j in 0..6 {
                weighted(row, G[j]).store(u.add((i * 6 + j) * to));
            }
        }
    }
}

/// Gᵀ·dU·G, the way back of [`weight`].
///
/// # Safety
/// As [`weight`], with `du` for `u` and `dw` for `w`.
#[inline(always)]
unsafe fn weight_back<V: Lanes>(du: *const f32, dw: *mut f32, stride: usize) {
    // SAFETY: as above.
    unsafe {
        let mut rows = [[V::zero(); 6]; 3];
        for j in 0..6 {
            for i in 0..6 {
                let value = V::load(du.add((i * 6 + j) * stride));
                for a in 0..3 {
                    if G[i][a] != 0.0 {
                        rows[a][j] = value.fma(G[i][a], rows[a][j]);
                    }
                }
            }
        }
        for a in 0..3 {
            for b in 0..3 {
                weighted(rows[a], [G[0][b], G[1][b], G[2][b], G[3][b], G[4][b], G[5][b]]).store(dw.add((a * 3 + b) * stride));
            }
        }
    }
}

/// Tiles that one task takes: their two intermediates stay in the second-level cache.
fn chunk(channels: usize) -> usize {
    match channels {
        0..=128 => 60,
        129..=256 => 48,
        _ => 36,
    }
}

impl Conv {
    /// Whether this convolution goes by Winograd.
    pub(super) fn is_winograd(&self) -> bool {
        self.fast
            && self.groups == 1
            && (self.kh, self.kw, self.stride, self.pad) == (3, 3, [1; 2], [1; 4])
            && self.c.is_multiple_of(WIDTH)
            && self.o.is_multiple_of(WIDTH)
    }

    fn tiles(&self) -> usize {
        self.n * self.h.div_ceil(4) * self.w.div_ceil(4)
    }

    /// All kernels transformed into `u`: 36 matrices `[c, o]`, each laid out in panels, in the order of which they are made.
    fn transformed(&self, w: &[f32], u: &mut [f32]) {
        let (size, shape) = (w.len() / 9, self.kernels());
        let u = Shared(u.as_mut_ptr());
        (0..size / WIDTH).into_par_iter().with_min_len(64).run(|i| {
            let (row, column) = shape.at(i * WIDTH);
            let from = row * self.o + column;
            for_lanes!(V => for j in (0..WIDTH).step_by(V::COUNT) {
                // SAFETY: `w` holds 9 times `size` values and `u` 36 times with a gap, both places stay below `size`.
                unsafe { weight::<V>(w.as_ptr().add(from + j), u.at(i * WIDTH + j), size, size + GAP) };
            });
        });
    }

    /// One of the 36 matrices.
    fn kernels(&self) -> Shape {
        Shape { k: self.c, n: self.o }
    }

    /// Whether slices hold the images and the results, of which other channels may lie between.
    fn holds(&self, x: usize, y: usize) -> bool {
        let last = self.n * self.h * self.w - 1;
        self.x_row >= self.c && self.y_row >= self.o && x >= last * self.x_row + self.c && y >= last * self.y_row + self.o
    }

    /// `conv(x, w)`, and what follows.
    pub(super) fn winograd(&self, x: &[f32], w: &[f32], then: Then<'_>) -> Vec<f32> {
        // SAFETY: every pixel lies in one tile, and `winograd_into` writes all tiles; here no other channels lie between.
        let mut y = unsafe { unwritten(self.n * self.h * self.w * self.o) };
        assert!(self.y_row == self.o, "what is written whole has nothing in between");
        self.winograd_into(x, w, then, &mut y);
        y
    }

    /// Writes `conv(x, w)`, and what follows, to `y`.
    pub(super) fn winograd_into(&self, x: &[f32], w: &[f32], then: Then<'_>, y: &mut [f32]) {
        let (c, o) = (self.c, self.o);
        let (from, to) = (Tiles::new(self, c, self.x_row), Tiles::new(self, o, self.y_row));
        let fits = self.holds(x.len(), y.len()) && w.len() == 9 * c * o && then.bias.is_none_or(|bias| bias.len() == o);
        assert!(fits, "a convolution's tensors have its shape");
        let target = Shared(y.as_mut_ptr());
        with_scratch(PLACES * (c * o + GAP), |u| {
            self.transformed(w, u);
            let (u, size) = (&*u, fair(self.tiles(), chunk(c + o)));
            (0..self.tiles().div_ceil(size)).into_par_iter().run(|i| {
                let tiles = i * size..((i + 1) * size).min(self.tiles());
                let count = tiles.len();
                let (v_step, m_step) = (count * c + GAP, count * o + GAP);
                with_scratch(PLACES * (v_step + m_step), |scratch| {
                    let (v, m) = scratch.split_at_mut(PLACES * v_step);
                    for_lanes!(V => for (j, t) in tiles.clone().enumerate() {
                        // SAFETY: `v` holds 36 times `count` tiles with gaps, j is below `count`.
                        unsafe { from.input::<V>(x.as_ptr(), t, v.as_mut_ptr().add(j * c), v_step) };
                    });
                    for k in 0..PLACES {
                        let u = Panels::new(&u[k * (c * o + GAP)..], self.kernels());
                        gemm_panels(count, &mut m[k * m_step..], o, false, Matrix::new(&v[k * v_step..], c), &u);
                    }
                    for_lanes!(V => for (j, t) in tiles.clone().enumerate() {
                        // SAFETY: `m` holds 36 times `count` tiles with gaps; no other task has tile t.
                        unsafe { to.output::<V>(m.as_ptr().add(j * o), t, target.at(0), m_step, then) };
                    });
                });
            });
        });
    }

    /// The gradient of `x`: a convolution with the kernels turned around, inputs and outputs exchanged.
    pub(super) fn winograd_input(&self, dy: &[f32], w: &[f32]) -> Vec<f32> {
        Self { c: self.o, o: self.c, x_row: self.y_row, y_row: self.x_row, ..*self }.winograd(dy, &self.turned(w), Then::default())
    }

    /// The gradient of `w`.
    pub(super) fn winograd_weight(&self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let (c, o) = (self.c, self.o);
        assert!(self.holds(x.len(), dy.len()), "a convolution's tensors have its shape");
        let size = PLACES * c * o;
        if size * PARTS <= SMALL {
            return with_scratch(size * PARTS, |du| {
                du.par_chunks_mut(size).enumerate().run(|(part, du)| self.weight_part(x, dy, part, du));
                let (total, parts) = du.split_at_mut(size);
                for part in parts.chunks_exact(size) {
                    vectorised!(add(total, part));
                }
                Self::weights_back(total)
            });
        }
        let tiles = self.tiles();
        let (v_step, e_step) = (tiles * c + GAP, tiles * o + GAP);
        with_scratch(size + PLACES * (v_step + e_step), |scratch| {
            let (du, rest) = scratch.split_at_mut(size);
            let (v, e) = rest.split_at_mut(PLACES * v_step);
            self.transform_both(x, dy, 0, tiles, v, e);
            let (v, e) = (&*v, &*e);
            du.par_chunks_mut(c * o).enumerate().run(|(k, du)| {
                let (v, e) = (Matrix::new(&v[k * v_step..], c), Matrix::new(&e[k * e_step..], o));
                gemm(c, o, tiles, du, o, false, v.t(), e);
            });
            Self::weights_back(du)
        })
    }

    /// The tiles `from..to` of image and gradient, transformed: `[36, tiles, c]` and `[36, tiles, o]`, with gaps.
    fn transform_both(&self, x: &[f32], dy: &[f32], from: usize, to: usize, v: &mut [f32], e: &mut [f32]) {
        let (c, o, count) = (self.c, self.o, to - from);
        let (image, result) = (Tiles::new(self, c, self.x_row), Tiles::new(self, o, self.y_row));
        let (v, e) = (Shared(v.as_mut_ptr()), Shared(e.as_mut_ptr()));
        (0..count).into_par_iter().with_min_len(16).run(|j| {
            // SAFETY: both buffers hold 36 times `count` tiles, j is below `count`, and no other task has it.
            for_lanes!(V => unsafe {
                image.input::<V>(x.as_ptr(), from + j, v.at(j * c), count * c + GAP);
                result.output_back::<V>(dy.as_ptr(), from + j, e.at(j * o), count * o + GAP);
            });
        });
    }

    /// The sum over one of [`PARTS`] parts of the tiles.
    fn weight_part(&self, x: &[f32], dy: &[f32], part: usize, du: &mut [f32]) {
        let (c, o, size) = (self.c, self.o, chunk(self.c + self.o));
        let chunks = self.tiles().div_ceil(size);
        du.fill(0.0);
        for i in chunks * part / PARTS..chunks * (part + 1) / PARTS {
            let (from, to) = (i * size, ((i + 1) * size).min(self.tiles()));
            let count = to - from;
            let (v_step, e_step) = (count * c + GAP, count * o + GAP);
            with_scratch(PLACES * (v_step + e_step), |scratch| {
                let (v, e) = scratch.split_at_mut(PLACES * v_step);
                let (image, result) = (Tiles::new(self, c, self.x_row), Tiles::new(self, o, self.y_row));
                for_lanes!(V => for j in 0..count {
                    // SAFETY: both buffers hold 36 times `count` tiles, and j is below `count`.
                    unsafe {
                        image.input::<V>(x.as_ptr(), from + j, v.as_mut_ptr().add(j * c), v_step);
                        result.output_back::<V>(dy.as_ptr(), from + j, e.as_mut_ptr().add(j * o), e_step);
                    }
                });
                for k in 0..PLACES {
                    let (v, e) = (Matrix::new(&v[k * v_step..], c), Matrix::new(&e[k * e_step..], o));
                    gemm(c, o, count, &mut du[k * c * o..], o, true, v.t(), e);
                }
            });
        }
    }

    /// `[36, c, o]` to `[3, 3, c, o]`.
    fn weights_back(du: &[f32]) -> Vec<f32> {
        let size = du.len() / PLACES;
        // SAFETY: the loop below writes every place of every kernel.
        let mut dw = unsafe { unwritten(9 * size) };
        let target = Shared(dw.as_mut_ptr());
        (0..size / WIDTH).into_par_iter().with_min_len(64).run(|i| {
            let at = i * WIDTH;
            for_lanes!(V => for j in (at..at + WIDTH).step_by(V::COUNT) {
                // SAFETY: `du` holds 36 and `dw` 9 times `size` values, and j stays below `size`.
                unsafe { weight_back::<V>(du.as_ptr().add(j), target.at(j), size) };
            });
        });
        dw
    }

    /// `[kh, kw, c, o]` to `[kh, kw, o, c]` with both kernel axes reversed.
    pub(super) fn turned(&self, w: &[f32]) -> Vec<f32> {
        let (c, o, places) = (self.c, self.o, self.kh * self.kw);
        // SAFETY: the loop below writes every column of every place.
        let mut turned = unsafe { unwritten(w.len()) };
        let columns = if o.is_multiple_of(COLUMNS) { COLUMNS } else { o };
        turned.par_chunks_mut(columns * c).enumerate().run(|(i, to)| {
            let (place, column) = (i * columns / o, i * columns % o);
            transpose(&w[(places - 1 - place) * c * o + column..], [c, columns], o, to, c);
        });
        turned
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    fn near(got: &[f32], want: &[f32]) {
        let size = (want.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / want.len() as f64).sqrt();
        assert_eq!(got.len(), want.len());
        for (i, (g, w)) in got.iter().zip(want).enumerate() {
            assert!(f64::from((g - w).abs()) < 3e-4 * size, "at {i}: {g}, not {w}");
        }
    }

    #[test]
    fn winograd_is_the_plain_convolution() {
        for (n, h, w, c, o) in [(2, 8, 8, 16, 32), (3, 7, 5, 32, 16), (1, 1, 3, 16, 16), (2, 4, 6, 160, 256), (9, 13, 14, 64, 48)] {
            let (kh, kw, stride, pad, groups) = (3, 3, [1; 2], [1; 4], 1);
            let exact = Conv { n, h, w, c, o, kh, kw, stride, pad, groups, fast: false, x_row: c, y_row: o };
            let fast = Conv { fast: true, ..exact };
            assert!(fast.is_winograd() && !exact.is_winograd());
            let draw = |name: &str, count| Stream::new(1, name).normals(count);
            let (x, k, dy) = (draw("x", n * h * w * c), draw("k", 9 * c * o), draw("dy", n * h * w * o));
            let bias = draw("bias", o);
            for then in [Then::default(), Then { bias: Some(&bias), relu: false }, Then { bias: Some(&bias), relu: true }] {
                near(&fast.forward(&x, &k, then), &exact.forward(&x, &k, then));
            }
            near(&fast.backward_input(&dy, &k), &exact.backward_input(&dy, &k));
            near(&fast.backward_weight(&x, &dy), &exact.backward_weight(&x, &dy));
        }
    }
}
