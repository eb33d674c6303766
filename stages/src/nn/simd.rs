//! The hot loops compiled for several instruction sets, one of which is chosen when the program runs.
//!
//! A loop that only adds, multiplies and compares gives the same bits on each of them: the compiler neither reorders a sum nor fuses a
//! product into it that is not written so (`mul_add`, a call where there is no instruction for it). So what depends on the machine are the matrix products, and the kernels that ask for [`Level`] themselves.
#![allow(unsafe_code, reason = "functions for an instruction set are called once the processor was seen to have it")]

/// The widest instruction set that this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What every processor of the kind has.
    Portable,
    /// Eight values at a time, with fused products.
    Avx2,
    /// Sixteen.
    Avx512,
}

/// What this machine has.
#[inline]
pub fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        // The standard library looks once and keeps the answer.
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512bw")
        {
            return Level::Avx512;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Level::Avx2;
        }
    }
    Level::Portable
}

/// Runs `f`, which must be `#[inline(always)]`, compiled for this machine.
#[inline]
pub fn run<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    match level() {
        // SAFETY: `level` has seen these features.
        Level::Avx512 => return unsafe { run_avx512(f) },
        // SAFETY: as above.
        Level::Avx2 => return unsafe { run_avx2(f) },
        Level::Portable => {}
    }
    f()
}

/// The value of an expression, computed by code compiled for this machine.
macro_rules! vectorised {
    ($work:expr) => {
        $crate::nn::simd::run(
            #[inline(always)]
            || $work,
        )
    };
}
pub(crate) use vectorised;

/// Runs `f`, which must be `#[inline(always)]`, compiled for AVX-512.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,bmi1,bmi2,popcnt")]
pub fn run_avx512<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// Runs `f`, which must be `#[inline(always)]`, compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt")]
pub fn run_avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::redundant_closure, reason = "an attribute needs a closure to stand at")]
    fn every_level_gives_the_same_bits() {
        let x: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() * 50.0).collect();
        let work = || -> Vec<u32> { x.iter().map(|&v| crate::nn::math::sigmoid(v * 0.3 + 1.0).to_bits()).collect() };
        let plain = work();
        assert_eq!(vectorised!(work()), plain);
        #[cfg(target_arch = "x86_64")]
        if level() >= Level::Avx2 {
            // SAFETY: `level` has seen these features.
            assert_eq!(
                unsafe {
                    run_avx2(
                        #[inline(always)]
                        || work(),
                    )
                },
                plain
            );
        }
    }
}
