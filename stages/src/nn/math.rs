//! Elementary functions that the compiler can vectorise, and maps over large slices.

#![allow(unsafe_code, reason = "results that are written whole need not be filled with zeros first")]

use crate::nn::parallel::Parallel;
use rayon::prelude::*;

use super::simd::vectorised;
use super::storage::unwritten;

/// Values that one task maps.
pub const CHUNK: usize = 1 << 14;

/// Adding and taking away 1.5·2²³ rounds to a whole number, which then stands in the lowest bits.
const ROUND: f32 = 12_582_912.0;

/// 2 to the power of the whole number to which [`ROUND`] was added.
#[inline(always)]
fn power_of_two(shifted: f32) -> f32 {
    f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}

/// `e^x` to about 2 units in the last place, without a call: Cody–Waite reduction and a polynomial of degree 6.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first with few bits, so that n·HIGH is exact (Cody and Waite 1980).
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let p = 1.0 + r * (1.0 + r * (0.5 + r * (1.666_666_6e-1 + r * (4.166_579_5e-2 + r * (8.333_452e-3 + r * 1.398_199_9e-3)))));
    p * power_of_two(shifted)
}

/// `2^x` for x up to 0, to 2e-7 of it, and at least 2^-126: fewer products than [`exp`] takes. What is not a number stays.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    const LN_2: f32 = std::f32::consts::LN_2;
    let x = if x < -126.0 { -126.0 } else { x };
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    // Least largest relative error from −½ to ½ of those that begin like 2^r.
    let p = 1.0 + r * (LN_2 + r * (0.240_222_83 + r * (5.550_558_5e-2 + r * (9.669_691e-3 + r * 1.330_060_7e-3))));
    p * power_of_two(shifted)
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

/// `Φ(x)`, the share of a normal distribution below x, and its density there, to 3e-7: Abramowitz and Stegun 7.1.26, whose one exponential
/// is the density's: products are what GELU takes its time for.
#[inline(always)]
pub fn normal(x: f32) -> (f32, f32) {
    /// 1/√(2π).
    const DENSITY: f32 = 0.398_942_3;
    /// −½·log₂ e.
    const RATE: f32 = -0.721_347_5;
    let a = x.abs();
    let power = exp2(RATE * (x * x));
    // 0.3275911 / √2: the formula is one of x/√2. Half of its other constants.
    let t = 1.0 / (1.0 + 0.231_641_9 * a);
    let tail = power * t * (0.127_414_8 + t * (-0.142_248_36 + t * (0.710_706_9 + t * (-0.726_576_05 + t * 0.530_702_7))));
    (if x < 0.0 { tail } else { 1.0 - tail }, DENSITY * power)
}

/// `f` of every value.
pub fn map(x: &[f32], f: impl Fn(f32) -> f32 + Sync) -> Vec<f32> {
    // SAFETY: the chunks below are all of y, and each is written whole.
    let mut y = unsafe { unwritten(x.len()) };
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).run(|(y, x)| {
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
    y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK)).run(|((y, a), b)| {
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
    fn the_normal_distribution_is_close_everywhere() {
        let density = |x: f64| (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        // By the trapezoid rule in double precision.
        let mut want = 0.5;
        for i in 0..80_000 {
            let x = f64::from(i) / 10_000.0;
            if i > 0 {
                want += 0.5e-4 * (density(x) + density(x - 1e-4));
            }
            let (share, height) = normal(x as f32);
            assert!((f64::from(share) - want).abs() < 3e-7, "Φ({x}) = {share}, not {want}");
            assert!((f64::from(height) - density(x)).abs() < 1e-7, "the density at {x} is {height}");
            let below = normal(-x as f32).0;
            assert!((f64::from(below) - (1.0 - want)).abs() < 3e-7, "Φ(-{x}) = {below}, not {}", 1.0 - want);
        }
        assert!(normal(f32::NAN).0.is_nan());
    }

    #[test]
    fn exp2_is_close_where_it_is_used() {
        for i in 0..126_000 {
            let x = -i as f32 / 1000.0;
            let (got, want) = (f64::from(exp2(x)), f64::from(x).exp2());
            assert!((got / want - 1.0).abs() < 2e-7, "2^{x} = {got}, not {want}");
        }
        assert_eq!((exp2(0.0), exp2(-1.0), exp2(f32::NEG_INFINITY)), (1.0, 0.5, 2f32.powi(-126)));
        assert!(exp2(f32::NAN).is_nan());
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
