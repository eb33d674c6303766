//! Vectors of the widths that machines have, for kernels whose intermediates should live in registers.

/// Several values that are computed with at once.
pub trait Lanes: Copy {
    /// How many.
    const COUNT: usize;
    /// Half as many, where the machine computes with two such at once in the time of one of these; else the same.
    type Narrow: Lanes;
    fn zero() -> Self;
    fn splat(value: f32) -> Self;
    /// # Safety
    /// `COUNT` values can be read there.
    unsafe fn load(from: *const f32) -> Self;
    /// # Safety
    /// `COUNT` values can be written there.
    unsafe fn store(self, to: *mut f32);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    /// `self·factor + other`.
    fn fma(self, factor: f32, other: Self) -> Self;
    /// `max(self, 0)`; what is not a number stays.
    fn floor(self) -> Self;
    /// `x` and `new` where `x` is more than `self` or not a number, `self` and `old` elsewhere.
    fn larger(self, x: Self, old: Self, new: Self) -> (Self, Self);
    /// Runs `f`, which must be `#[inline(always)]`, compiled for the instruction set.
    ///
    /// # Safety
    /// The machine has it.
    unsafe fn with<R>(f: impl FnOnce() -> R) -> R;
}

/// Plain arrays, for every machine.
impl Lanes for [f32; 4] {
    const COUNT: usize = 4;
    type Narrow = Self;

    #[inline(always)]
    fn zero() -> Self {
        [0.0; 4]
    }

    #[inline(always)]
    fn splat(value: f32) -> Self {
        [value; 4]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<Self>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<Self>().write_unaligned(self) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] + other[i])
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] - other[i])
    }

    #[inline(always)]
    fn fma(self, factor: f32, other: Self) -> Self {
        // Two roundings: without the instruction a fused product is a slow call.
        std::array::from_fn(|i| self[i] * factor + other[i])
    }

    #[inline(always)]
    fn floor(self) -> Self {
        std::array::from_fn(|i| if self[i] < 0.0 { 0.0 } else { self[i] })
    }

    #[inline(always)]
    fn larger(self, x: Self, old: Self, new: Self) -> (Self, Self) {
        let more = |i: usize| x[i] > self[i] || x[i].is_nan();
        let pick = |a: Self, b: Self| std::array::from_fn(|i| if more(i) { b[i] } else { a[i] });
        (pick(self, x), pick(old, new))
    }

    #[inline(always)]
    unsafe fn with<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Eight, Sixteen};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Lanes;

    /// The lanes of a register type; each of its functions is called only below [`for_lanes`](super::for_lanes), which has seen the instruction set.
    macro_rules! register {
        ($name:ident, $type:ty, $count:literal, $narrow:ty, $zero:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $fma:ident, $splat:ident, $max:ident, $larger:ident, $run:ident) => {
            /// A register.
            #[derive(Clone, Copy)]
            pub struct $name($type);

            impl Lanes for $name {
                const COUNT: usize = $count;
                type Narrow = $narrow;

                #[inline(always)]
                fn zero() -> Self {
                    // SAFETY: the instruction set was seen.
                    Self(unsafe { $zero() })
                }

                #[inline(always)]
                fn splat(value: f32) -> Self {
                    // SAFETY: the instruction set was seen.
                    Self(unsafe { $splat(value) })
                }

                #[inline(always)]
                unsafe fn load(from: *const f32) -> Self {
                    // SAFETY: the caller's promise, and the instruction set was seen.
                    Self(unsafe { $load(from) })
                }

                #[inline(always)]
                unsafe fn store(self, to: *mut f32) {
                    // SAFETY: the caller's promise, and the instruction set was seen.
                    unsafe { $store(to, self.0) }
                }

                #[inline(always)]
                fn add(self, other: Self) -> Self {
                    // SAFETY: the instruction set was seen.
                    Self(unsafe { $add(self.0, other.0) })
                }

                #[inline(always)]
                fn sub(self, other: Self) -> Self {
                    // SAFETY: the instruction set was seen.
                    Self(unsafe { $sub(self.0, other.0) })
                }

                #[inline(always)]
                fn fma(self, factor: f32, other: Self) -> Self {
                    // SAFETY: the instruction set was seen.
                    Self(unsafe { $fma(self.0, $splat(factor), other.0) })
                }

                #[inline(always)]
                fn floor(self) -> Self {
                    // The second operand is the result where one is not a number.
                    // SAFETY: the instruction set was seen.
                    Self(unsafe { $max($zero(), self.0) })
                }

                #[inline(always)]
                fn larger(self, x: Self, old: Self, new: Self) -> (Self, Self) {
                    // SAFETY: the instruction set was seen.
                    let (x, new) = unsafe { $larger([self.0, x.0], [old.0, new.0]) };
                    (Self(x), Self(new))
                }

                #[inline(always)]
                unsafe fn with<R>(f: impl FnOnce() -> R) -> R {
                    // SAFETY: the caller's promise.
                    unsafe { crate::nn::simd::$run(f) }
                }
            }
        };
    }

    /// # Safety
    /// The machine has AVX2.
    #[inline(always)]
    unsafe fn larger_of_eight([a, b]: [__m256; 2], [old, new]: [__m256; 2]) -> (__m256, __m256) {
        // SAFETY: the caller's promise.
        unsafe {
            let more = _mm256_or_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(b, a), _mm256_cmp_ps::<_CMP_UNORD_Q>(b, b));
            (_mm256_blendv_ps(a, b, more), _mm256_blendv_ps(old, new, more))
        }
    }

    /// # Safety
    /// The machine has AVX-512.
    #[inline(always)]
    unsafe fn larger_of_sixteen([a, b]: [__m512; 2], [old, new]: [__m512; 2]) -> (__m512, __m512) {
        // SAFETY: the caller's promise.
        unsafe {
            let more = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(b, a) | _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(b, b);
            (_mm512_mask_blend_ps(more, a, b), _mm512_mask_blend_ps(more, old, new))
        }
    }

    register!(
        Eight,
        __m256,
        8,
        Self,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_fmadd_ps,
        _mm256_set1_ps,
        _mm256_max_ps,
        larger_of_eight,
        run_avx2
    );
    register!(
        Sixteen,
        __m512,
        16,
        Eight,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_fmadd_ps,
        _mm512_set1_ps,
        _mm512_max_ps,
        larger_of_sixteen,
        run_avx512
    );
}

/// Runs `$work` with `$lanes` as the widest vector type of this machine, whose instruction set it turns to [itself](Lanes::with).
macro_rules! choose_lanes {
    ($lanes:ident => $work:expr) => {
        match $crate::nn::simd::level() {
            #[cfg(target_arch = "x86_64")]
            $crate::nn::simd::Level::Avx512 => {
                type $lanes = $crate::nn::kernel::lanes::Sixteen;
                $work
            }
            #[cfg(target_arch = "x86_64")]
            $crate::nn::simd::Level::Avx2 => {
                type $lanes = $crate::nn::kernel::lanes::Eight;
                $work
            }
            _ => {
                type $lanes = [f32; 4];
                $work
            }
        }
    };
}
pub(crate) use choose_lanes;

/// Runs `$work` with `$lanes` as the widest vector type of this machine, compiled for its instruction set.
macro_rules! for_lanes {
    ($lanes:ident => $work:expr) => {
        $crate::nn::kernel::lanes::choose_lanes!($lanes => {
            // SAFETY: the machine has the lanes that were chosen.
            #[allow(unused_unsafe, clippy::redundant_closure_call)]
            unsafe {
                <$lanes as $crate::nn::kernel::lanes::Lanes>::with(
                    #[inline(always)]
                    || $work,
                )
            }
        })
    };
}
pub(crate) use for_lanes;
