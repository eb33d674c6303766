//! Elementary functions that the compiler can vectorise, and maps over large slices.

#![allow(unsafe_code, reason = "results that are written whole need not be filled with zeros first")]

use rayon::prelude::*;

use super::simd::vectorised;
use super::storage::unwritten;

/// Values that one task maps.
pub const CHUNK: usize = 1 << 14;

/// `e^x` to about 2 units in the last place, without a call: Cody–Waite reduction and a polynomial of degree 6.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first with few bits, so that n·HIGH is exact (Cody and Waite 1980).
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding and taking away 1.5·2²³ rounds to a whole number, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let p = 1.0 + r * (1.0 + r * (0.5 + r * (1.666_666_6e-1 + r * (4.166_579_5e-2 + r * (8.333_452e-3 + r * 1.398_199_9e-3)))));
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh x`.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// The error function, to about 4 units in the last place: Abramowitz and Stegun's form t·P(t)·e^(−x²) of 1 − erf for large |x|, a power series for small.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let a = x.abs();
    let square = x * x;
    // Σ (−1)ⁿ x^(2n+1) / (n! (2n + 1)) · 2/√π, for |x| < 1.
    const SERIES: [f32; 10] = [
        std::f32::consts::FRAC_2_SQRT_PI,
        -0.376_126_4,
        0.112_837_92,
        -0.026_866_17,
        0.005_223_978,
        -8.548_327e-4,
        1.205_533_3e-4,
        -1.492_565e-5,
        1.646_211_4e-6,
        -1.636_584_6e-7,
    ];
    let near = x * SERIES.iter().rev().fold(0.0, |sum, c| sum * square + c);
    // Numerical Recipes' erfcc: relative error below 1.2e-7 everywhere.
    let t = 1.0 / (1.0 + 0.5 * a);
    let tail = t * exp(-square - 1.265_512_2
        + t * (1.000_023_7
            + t * (0.374_091_96
                + t * (0.096_784_18
                    + t * (-0.186_288_06
                        + t * (0.278_868_07 + t * (-1.135_204 + t * (1.488_515_9 + t * (-0.822_152_26 + t * 0.170_872_77)))))))));
    let far = if x < 0.0 { tail - 1.0 } else { 1.0 - tail };
    if a < 1.0 { near } else { far }
}

/// `f` of every value.
pub fn map(x: &[f32], f: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    // SAFETY: the chunks below are all of y, and each is written whole.
    let mut y = unsafe { unwritten(x.len()) };
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| {
        vectorised!(for (y, x) in y.iter_mut().zip(x) {
            *y = f(*x);
        });
    });
    y
}

/// `f` of every pair of values.
pub fn map2(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) -> Vec<f32> {
    assert_eq!(a.len(), b.len(), "a map over pairs takes as many of both");
    // SAFETY: the chunks below are all of y, and each is written whole.
    let mut y = unsafe { unwritten(a.len()) };
    y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK)).for_each(|((y, a), b)| {
        vectorised!(for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            *y = f(*a, *b);
        });
    });
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_close_everywhere() {
        // By the trapezoid rule in double precision.
        let mut want = 0.0;
        let density = |x: f64| 2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp();
        for i in 0..50_000 {
            let x = f64::from(i) / 10_000.0;
            if i > 0 {
                want += 0.5e-4 * (density(x) + density(x - 1e-4));
            }
            let got = f64::from(erf(x as f32));
            assert!((got - want).abs() < 3e-7, "erf({x}) = {got}, not {want}");
            assert_eq!(erf(-x as f32), -erf(x as f32));
        }
        assert!(erf(f32::NAN).is_nan());
    }

    #[test]
    fn exp_is_close_everywhere() {
        for i in -8600..8700 {
            let x = i as f32 / 100.0;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 5e-7, "exp({x}) = {got}, not {want}");
        }
        assert_eq!(exp(0.0), 1.0);
    }
}
