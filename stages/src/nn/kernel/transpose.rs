//! Transposes of matrices, 16×16 values at a time in registers where the machine has such.
#![allow(unsafe_code, reason = "values go through registers of one instruction set, seen beforehand")]

use crate::nn::simd::{Level, level};
use crate::nn::storage::unwritten;

/// Side of a block.
const SIDE: usize = 16;

/// The transpose of a row-major `[rows, columns]` matrix.
pub fn transposed(x: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    // SAFETY: every value of a transpose is written.
    let mut out = unsafe { unwritten(rows * columns) };
    transpose(x, [rows, columns], columns, &mut out, rows);
    out
}

/// Writes the transpose of a `[rows, columns]` matrix to `out`; rows of it are `from` values apart, those of the transpose `to`.
pub fn transpose(x: &[f32], [rows, columns]: [usize; 2], from: usize, out: &mut [f32], to: usize) {
    if rows == 0 || columns == 0 {
        return;
    }
    let fits = x.len() >= (rows - 1) * from + columns && out.len() >= (columns - 1) * to + rows;
    assert!(fits, "a matrix is smaller than its transpose needs");
    for i in (0..rows).step_by(SIDE) {
        for j in (0..columns).step_by(SIDE) {
            let (x, out) = (&x[i * from + j..], &mut out[j * to + i..]);
            #[cfg(target_arch = "x86_64")]
            if i + SIDE <= rows && j + SIDE <= columns && level() == Level::Avx512 {
                // SAFETY: `level` has seen the instruction set, and the block lies inside of both.
                unsafe { block(x.as_ptr(), from, out.as_mut_ptr(), to) };
                continue;
            }
            for i in 0..SIDE.min(rows - i) {
                for j in 0..SIDE.min(columns - j) {
                    out[j * to + i] = x[i * from + j];
                }
            }
        }
    }
}

/// One block of 16×16 values: pairs of rows are interleaved, then pairs of pairs, then their quarters are put in order.
///
/// # Safety
/// The machine has AVX-512; 16 rows of 16 values, so far apart, can be read and written.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn block(x: *const f32, from: usize, out: *mut f32, to: usize) {
    use std::arch::x86_64::*;
    let mut r = [_mm512_setzero_ps(); SIDE];
    for (i, r) in r.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *r = unsafe { _mm512_loadu_ps(x.add(i * from)) };
    }
    let mut t = r;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    // No closure: it would be a function for another instruction set, with all registers in memory.
    let (mut pairs, mut quads) = ([_mm512_setzero_pd(); SIDE], [_mm512_setzero_pd(); SIDE]);
    for i in 0..SIDE {
        pairs[i] = _mm512_castps_pd(t[i]);
    }
    for i in 0..4 {
        let [a, b, c, d] = [pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]];
        quads[4 * i] = _mm512_unpacklo_pd(a, c);
        quads[4 * i + 1] = _mm512_unpackhi_pd(a, c);
        quads[4 * i + 2] = _mm512_unpacklo_pd(b, d);
        quads[4 * i + 3] = _mm512_unpackhi_pd(b, d);
    }
    // r[i + k], quarter q: column 4·q + k of the rows i to i + 3.
    for i in 0..SIDE {
        r[i] = _mm512_castpd_ps(quads[i]);
    }
    for k in 0..4 {
        let even = [_mm512_shuffle_f32x4::<0x88>(r[k], r[4 + k]), _mm512_shuffle_f32x4::<0x88>(r[8 + k], r[12 + k])];
        let odd = [_mm512_shuffle_f32x4::<0xdd>(r[k], r[4 + k]), _mm512_shuffle_f32x4::<0xdd>(r[8 + k], r[12 + k])];
        let columns = [
            (k, _mm512_shuffle_f32x4::<0x88>(even[0], even[1])),
            (4 + k, _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1])),
            (8 + k, _mm512_shuffle_f32x4::<0xdd>(even[0], even[1])),
            (12 + k, _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1])),
        ];
        for (column, values) in columns {
            // SAFETY: the caller's promise.
            unsafe { _mm512_storeu_ps(out.add(column * to), values) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_where_row_and_column_are_exchanged() {
        for (rows, columns) in [(1, 1), (3, 20), (16, 16), (32, 48), (17, 33), (100, 64)] {
            let x: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            let got = transposed(&x, rows, columns);
            for i in 0..rows {
                for j in 0..columns {
                    assert_eq!(got[j * rows + i], x[i * columns + j], "({i}, {j}) of {rows}×{columns}");
                }
            }
        }
    }
}
