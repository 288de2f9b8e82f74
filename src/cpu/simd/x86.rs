//! The levels of x86-64 beyond its baseline.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::Simd;

/// AVX2 with FMA and F16C: x86-64-v3.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

/// AVX-512 F, BW, DQ and VL: x86-64-v4.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx2 {
    /// The token, if the machine has all that it stands for.
    pub fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Avx2(()))
    }
}

impl Avx512 {
    /// The token, if the machine has all that it stands for.
    pub fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        Avx2::detect().and_then(|_| found.then_some(Avx512(())))
    }
}

/// [`Simd::transpose_8x8`] in AVX: blocks of 4 x 4, then the two off the diagonal change places.
///
/// # Safety
/// As there; the machine must have AVX.
#[inline(always)]
unsafe fn transpose_8x8(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let low = transpose_fours(from, from_stride);
        let high = transpose_fours(from.add(4 * from_stride), from_stride);
        for i in 0..4 {
            let (first, second) = (to.add(i * to_stride), to.add((i + 4) * to_stride));
            _mm256_storeu_ps(first, _mm256_permute2f128_ps::<0x20>(low[i], high[i]));
            _mm256_storeu_ps(second, _mm256_permute2f128_ps::<0x31>(low[i], high[i]));
        }
    }
}

/// Four rows of 8: the 4 x 4 blocks left and right, each transposed.
///
/// # Safety
/// As [`transpose_8x8`].
#[inline(always)]
unsafe fn transpose_fours(from: *const f32, stride: usize) -> [__m256; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let (a, b) = (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(stride)));
        let (c, d) = (_mm256_loadu_ps(from.add(2 * stride)), _mm256_loadu_ps(from.add(3 * stride)));
        let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
        let (ab_high, cd_high) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
        [
            _mm256_shuffle_ps::<0x44>(ab, cd),
            _mm256_shuffle_ps::<0xee>(ab, cd),
            _mm256_shuffle_ps::<0x44>(ab_high, cd_high),
            _mm256_shuffle_ps::<0xee>(ab_high, cd_high),
        ]
    }
}

/// [`Simd`] for a level, from the intrinsics that its operations are.
macro_rules! simd_level {
    (
        $token:ident: $register:ty, $lanes:literal lanes, $registers:literal registers,
        $splat:ident, $load:ident, $store:ident, $load_aligned:ident, $store_aligned:ident, $broadcast:ident,
        $fma:ident, $mul:ident, $add:ident, $sub:ident, $max:ident,
        bits $cast:ident, $cast_back:ident, $shift:ident, $and:ident, $set:ident,
        halves $load_bits:ident, $load_half:ident, $widen:ident,
        bytes $load_bytes:ident, $widen_bytes:ident, $to_float:ident $(,)?
    ) => {
        impl Simd for $token {
            type F32 = $register;
            const LANES: usize = $lanes;
            const REGISTERS: usize = $registers;

            #[inline(always)]
            unsafe fn assume() -> Self {
                Self(())
            }

            #[inline(always)]
            fn fma(self, a: f32, b: f32, c: f32) -> f32 {
                a.mul_add(b, c)
            }

            #[inline(always)]
            fn splat(self, a: f32) -> $register {
                // SAFETY: the token exists only where the machine has the instruction set.
                unsafe { $splat(a) }
            }

            #[inline(always)]
            unsafe fn load(self, from: *const f32) -> $register {
                // SAFETY: the token proves the instruction set, the caller the memory.
                unsafe { $load(from) }
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut f32, a: $register) {
                // SAFETY: the token proves the instruction set, the caller the memory.
                unsafe { $store(to, a) }
            }

            #[inline(always)]
            unsafe fn broadcast(self, from: *const f32) -> $register {
                // SAFETY: the token proves the instruction set, the caller the memory.
                unsafe { $broadcast(_mm_load_ss(from)) }
            }

            #[inline(always)]
            unsafe fn load_aligned(self, from: *const f32) -> $register {
                // SAFETY: the token proves the instruction set, the caller the memory.
                unsafe { $load_aligned(from) }
            }

            #[inline(always)]
            unsafe fn store_aligned(self, to: *mut f32, a: $register) {
                // SAFETY: the token proves the instruction set, the caller the memory.
                unsafe { $store_aligned(to, a) }
            }

            #[inline(always)]
            unsafe fn load_f16(self, from: *const f16) -> $register {
                // SAFETY: the token proves the instruction set, the caller the memory.
                unsafe { $widen($load_half(from.cast())) }
            }

            #[inline(always)]
            unsafe fn load_i8(self, from: *const i8) -> $register {
                // SAFETY: the token proves the instruction set, the caller the memory.
                unsafe { $to_float($widen_bytes($load_bytes(from.cast()))) }
            }

            #[inline(always)]
            unsafe fn load_bf16_even(self, from: *const bf16) -> $register {
                // SAFETY: the token proves the instruction set, the caller the memory.
                unsafe { $cast_back($shift::<16>($load_bits(from.cast()))) }
            }

            #[inline(always)]
            unsafe fn load_bf16_odd(self, from: *const bf16) -> $register {
                // SAFETY: the token proves the instruction set, the caller the memory.
                unsafe {
                    let high = $set(0xffff_0000_u32 as i32);
                    $cast_back($and($load_bits(from.cast()), high))
                }
            }

            #[inline(always)]
            fn mul_add(self, a: $register, b: $register, c: $register) -> $register {
                // SAFETY: the token exists only where the machine has the instruction set.
                unsafe { $fma(a, b, c) }
            }

            #[inline(always)]
            fn mul(self, a: $register, b: $register) -> $register {
                // SAFETY: the token exists only where the machine has the instruction set.
                unsafe { $mul(a, b) }
            }

            #[inline(always)]
            fn add(self, a: $register, b: $register) -> $register {
                // SAFETY: the token exists only where the machine has the instruction set.
                unsafe { $add(a, b) }
            }

            #[inline(always)]
            fn sub(self, a: $register, b: $register) -> $register {
                // SAFETY: the token exists only where the machine has the instruction set.
                unsafe { $sub(a, b) }
            }

            #[inline(always)]
            fn max(self, a: $register, b: $register) -> $register {
                // SAFETY: the token exists only where the machine has the instruction set.
                unsafe { $max(a, b) }
            }

            #[inline(always)]
            fn exponent(self, a: $register) -> $register {
                // SAFETY: the token exists only where the machine has the instruction set.
                unsafe { $cast_back($shift::<23>($cast(a))) }
            }

            #[inline(always)]
            unsafe fn transpose_8x8(
                self,
                from: *const f32,
                from_stride: usize,
                to: *mut f32,
                to_stride: usize,
            ) {
                // SAFETY: the token proves the instruction set, the caller the memory.
                unsafe { transpose_8x8(from, from_stride, to, to_stride) }
            }
        }
    };
}

simd_level!(
    Avx2: __m256, 8 lanes, 16 registers,
    _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_load_ps, _mm256_store_ps, _mm256_broadcastss_ps,
    _mm256_fmadd_ps, _mm256_mul_ps, _mm256_add_ps, _mm256_sub_ps, _mm256_max_ps,
    bits _mm256_castps_si256, _mm256_castsi256_ps, _mm256_slli_epi32, _mm256_and_si256, _mm256_set1_epi32,
    halves _mm256_load_si256, _mm_load_si128, _mm256_cvtph_ps,
    bytes _mm_loadl_epi64, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps,
);
simd_level!(
    Avx512: __m512, 16 lanes, 32 registers,
    _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_load_ps, _mm512_store_ps, _mm512_broadcastss_ps,
    _mm512_fmadd_ps, _mm512_mul_ps, _mm512_add_ps, _mm512_sub_ps, _mm512_max_ps,
    bits _mm512_castps_si512, _mm512_castsi512_ps, _mm512_slli_epi32, _mm512_and_si512, _mm512_set1_epi32,
    halves _mm512_load_si512, _mm256_load_si256, _mm512_cvtph_ps,
    bytes _mm_load_si128, _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps,
);
