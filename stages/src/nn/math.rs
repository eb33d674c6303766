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

/// A polynomial by Horner's rule, with fused products: what follows waits for all of them, and a processor has room for so many operations that
/// wait. Without the instruction for them each is a call.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut value = coefficients[N - 1];
    for coefficient in coefficients[..N - 1].iter().rev() {
        value = value.mul_add(x, *coefficient);
    }
    value
}

/// `e^x` to about 2 units in the last place, without a call: Cody–Waite reduction and a polynomial of degree 6.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first with few bits, so that n·HIGH is exact (Cody and Waite 1980).
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let shifted = x.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let p = polynomial(r, [1.0, 1.0, 0.5, 1.666_666_6e-1, 4.166_579_5e-2, 8.333_452e-3, 1.398_199_9e-3]);
    p * power_of_two(shifted)
}

/// `2^x` for x up to 0, to 2e-7 of it, and at least 2^-126: fewer products than [`exp`] takes. What is not a number stays.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    two_to(if x < -126.0 { -126.0 } else { x })
}

/// [`exp2`] from −126 to 0.
#[inline(always)]
fn two_to(x: f32) -> f32 {
    const LN_2: f32 = std::f32::consts::LN_2;
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    // Least largest relative error from −½ to ½ of those that begin like 2^r.
    let p = polynomial(r, [1.0, LN_2, 0.240_222_83, 5.550_558_5e-2, 9.669_691e-3, 1.330_060_7e-3]);
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

/// `Φ(−a)`, the share of a normal distribution beyond a, for a from 0 on, to 3e-7: two to the power of a polynomial, without a quotient, for
/// operations that wait for each other are what GELU takes its time for. At 5 it is within 2 % of the true share, of 3e-7. What is not a number stays.
#[inline(always)]
pub fn normal_tail(a: f32) -> f32 {
    /// From where on `a·Φ(−a)` is nothing beside the smallest value of interest, and the polynomial says nothing.
    const END: f32 = 12.5;
    let a = if a > END { END } else { a };
    // log₂ Φ(−a): least largest error of max(a, 1)·Φ(−a) up to the end, or of a ten-millionth in its place where it is less, by linear programming.
    two_to(polynomial(a, [-0.999_999_5, -1.151_128_9, -0.459_014, -5.307_039e-2, 7.853_847e-3, -6.991_767e-4, 2.503_540_8e-5]))
}

/// The density of a normal distribution at x, to 1e-7.
#[inline(always)]
pub fn normal_density(x: f32) -> f32 {
    /// 1/√(2π).
    const HIGHEST: f32 = 0.398_942_3;
    /// −½·log₂ e.
    const RATE: f32 = -0.721_347_5;
    HIGHEST * exp2(RATE * (x * x))
}

/// Values of a row that are put together beside each other: a fixed number, so that every machine takes them in the same order.
pub const LANES: usize = 16;

/// What lanes hold put together, one half with the other, so that few wait for each other.
#[inline(always)]
pub fn halved(lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    // Each half a place of its own: a loop over them is left in memory.
    let (mut eight, mut four) = ([0.0; 8], [0.0; 4]);
    for i in 0..8 {
        eight[i] = join(lanes[i], lanes[8 + i]);
    }
    for i in 0..4 {
        four[i] = join(eight[i], eight[4 + i]);
    }
    join(join(four[0], four[2]), join(four[1], four[3]))
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
        // By the trapezoid rule in double precision, from far out on.
        let mut want = 0.0;
        for i in (0..140_000).rev() {
            let x = f64::from(i) / 10_000.0;
            want += 0.5e-4 * (density(x) + density(x + 1e-4));
            let (beyond, height) = (f64::from(normal_tail(x as f32)), f64::from(normal_density(x as f32)));
            assert!((beyond - want).abs() * x.max(1.0) < 3e-7, "Φ(-{x}) = {beyond}, not {want}");
            assert!(x > 5.0 || (beyond / want - 1.0).abs() < 0.02, "Φ(-{x}) = {beyond}, not {want}");
            assert!((height - density(x)).abs() < 1e-7, "the density at {x} is {height}");
        }
        assert!(normal_tail(f32::INFINITY) < 1e-32);
        assert!(normal_tail(f32::NAN).is_nan() && normal_density(f32::NAN).is_nan());
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
