//! Random numbers that depend on a seed and a purpose alone.
//!
//! Every use of chance has its own [`Stream`], named by its purpose, so that drawing more for one thing never shifts another:
//! `Stream::new(seed, "init")` and `Stream::new(seed, "batches")` are independent. The generator is ChaCha8, whose values are
//! fixed by its definition; `rand`'s own default generator may change between versions and is not used.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Beta, Distribution, StandardNormal};

/// BLAKE3's context string: it separates these keys from every other use of the hash.
const CONTEXT: &str = "trestle 2026 random stream v1";

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub struct Stream {
    key: [u8; 32],
    rng: ChaCha8Rng,
}

impl Stream {
    /// The stream of `purpose` under `seed`.
    pub fn new(seed: u64, purpose: &str) -> Self {
        Self::keyed(&seed.to_le_bytes(), purpose)
    }

    /// A stream of its own for a part of this one's purpose. It does not depend on how much was drawn from this one, nor
    /// does it take anything from it.
    #[must_use]
    pub fn child(&self, purpose: &str) -> Self {
        Self::keyed(&self.key, purpose)
    }

    fn keyed(parent: &[u8], purpose: &str) -> Self {
        // The parent has 8 bytes (a seed) or 32 (a key); its length goes first, so no two different pairs give one input.
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&(parent.len() as u64).to_le_bytes());
        hasher.update(parent);
        hasher.update(purpose.as_bytes());
        let key = *hasher.finalize().as_bytes();
        Self { key, rng: ChaCha8Rng::from_seed(key) }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.rng.next_u64()
    }

    /// Uniform in `[0, 1)`, with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `0..n`, without bias (Lemire 2019, "Fast random integer generation in an interval").
    ///
    /// # Panics
    /// If `n` is 0: there is nothing to draw.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "cannot draw from an empty range");
        let n = n as u64;
        let mut wide = u128::from(self.bits()) * u128::from(n);
        if (wide as u64) < n {
            let reject = n.wrapping_neg() % n;
            while (wide as u64) < reject {
                wide = u128::from(self.bits()) * u128::from(n);
            }
        }
        (wide >> 64) as usize
    }

    /// Standard normal, mean 0 and variance 1.
    pub fn normal(&mut self) -> f64 {
        StandardNormal.sample(&mut self.rng)
    }

    /// `n` standard normal values in single precision.
    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal() as f32).collect()
    }

    /// Beta(a, a): mixup's weight (Zhang et al. 2018). `a` of 0, below or not finite means no mixing: always 1.
    pub fn beta(&mut self, a: f64) -> f64 {
        match Beta::new(a, a) {
            Ok(beta) if a.is_finite() => beta.sample(&mut self.rng),
            _ => 1.0,
        }
    }

    /// `0..n` in random order (Fisher and Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean_and_variance(draw: impl FnMut() -> f64) -> (f64, f64) {
        let n = 20_000;
        let xs: Vec<f64> = std::iter::repeat_with(draw).take(n).collect();
        let mean = xs.iter().sum::<f64>() / n as f64;
        (mean, xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64)
    }

    #[test]
    fn values_are_pinned() {
        // A change here changes every cached result: raise the VERSION of every stage that draws.
        let mut s = Stream::new(1, "pinned");
        assert_eq!([s.bits(), s.bits()], PINNED_BITS);
        assert_eq!(s.permutation(8), PINNED_ORDER);
    }

    #[test]
    fn streams_do_not_shift_each_other() {
        let mut parent = Stream::new(7, "a");
        let fresh = parent.child("x").bits();
        parent.permutation(100);
        assert_eq!(parent.child("x").bits(), fresh);
        let firsts = [Stream::new(7, "a").bits(), Stream::new(7, "b").bits(), Stream::new(8, "a").bits(), fresh];
        for (i, a) in firsts.iter().enumerate() {
            assert!(firsts[..i].iter().all(|b| a != b));
        }
    }

    #[test]
    fn moments_are_right() {
        let mut s = Stream::new(3, "moments");
        let (mean, variance) = mean_and_variance(|| s.uniform());
        assert!((mean - 0.5).abs() < 0.01 && (variance - 1.0 / 12.0).abs() < 0.003, "{mean} {variance}");
        let (mean, variance) = mean_and_variance(|| s.normal());
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
        let (mean, variance) = mean_and_variance(|| s.beta(0.2));
        // Var Beta(a, a) = 1 / (4 (2a + 1)).
        assert!((mean - 0.5).abs() < 0.015 && (variance - 1.0 / 5.6).abs() < 0.01, "{mean} {variance}");
    }

    #[test]
    fn beta_without_a_positive_parameter_does_not_mix() {
        let mut s = Stream::new(3, "beta");
        assert_eq!([0.0, -1.0, f64::NAN, f64::INFINITY].map(|a| s.beta(a)), [1.0; 4]);
    }

    #[test]
    fn below_is_uniform_and_in_range() {
        let mut s = Stream::new(5, "below");
        let mut counts = [0usize; 7];
        (0..70_000).for_each(|_| counts[s.below(7)] += 1);
        assert!(counts.iter().all(|&c| c.abs_diff(10_000) < 500), "{counts:?}");
    }

    #[test]
    fn a_permutation_holds_each_once() {
        let mut s = Stream::new(5, "permutation");
        let mut order = s.permutation(1000);
        assert_ne!(order[..20], (0..20).collect::<Vec<_>>());
        order.sort_unstable();
        assert_eq!(order, (0..1000).collect::<Vec<_>>());
        assert!(s.permutation(0).is_empty());
    }

    const PINNED_BITS: [u64; 2] = [12_322_796_297_415_644_123, 3_029_430_751_883_473_178];
    const PINNED_ORDER: [usize; 8] = [5, 4, 2, 7, 1, 3, 0, 6];
}
