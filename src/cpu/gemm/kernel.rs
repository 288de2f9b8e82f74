//! Register tiles of the matrix product, one for each instruction set and weight format.
//!
//! A tile computes `rows x NR` outputs over one block of at most [`KC`] values of k. The loop is
//! written once, over [`Vector`] (an instruction set) and [`Format`] (how weights lie in memory
//! and enter the registers); what differs between AVX2, AVX-512 and the portable form is only the
//! single-instruction functions below.
//!
//! Every output is one chain of multiply-adds over ascending k in a lane of its own, so its bits
//! depend neither on the row's place in a tile nor on how many rows the tile has.

use half::{bf16, f16};

use crate::cpu::simd::Level;

/// Values of k between two trips of the accumulators to memory. Fixed, since it decides the order
/// of summation. A panel of 320 x 16 f32 (20 KiB) and six rows of A (8 KiB) share a 32 KiB L1, and
/// 320 divides the channel counts of Stable Diffusion's UNets.
pub const KC: usize = 320;

/// Distance between rows of a packed block of A, in elements: an odd number of cache lines beyond
/// [`KC`], so that the rows of a tile fall into different sets of the L1.
pub const LDA: usize = KC + 16;

/// Computes `c[rows, nr] (+)= a[rows, k] * b[k, nr]`.
///
/// # Safety
/// `1 <= rows <= mr`; `k` is a multiple of the kernel's `step`, at most [`KC`]; `a` holds `rows` rows of
/// [`LDA`] elements; `b` holds `k * nr` elements; `c` holds `rows` rows of `nr` elements, `ldc` apart, which
/// are initialised if `accumulate`; `b`, `c` and `ldc` are aligned to 64 bytes (32 for 16-bit `b`); the processor has
/// the kernel's instruction set.
pub type Tile<A, B, C> = unsafe fn(
    rows: usize,
    k: usize,
    a: *const A,
    b: *const B,
    c: *mut C,
    ldc: usize,
    accumulate: bool,
);

/// A tile function and the shape it was compiled for.
pub struct MicroKernel<A: 'static, B: 'static, C: 'static> {
    /// Most rows of one tile.
    pub(in crate::cpu) mr: usize,
    /// Columns of a tile, and of a panel of packed weights.
    pub(in crate::cpu) nr: usize,
    /// Values of k that lie together in a panel.
    pub(super) step: usize,
    /// The function.
    pub(super) tile: Tile<A, B, C>,
}

impl<A, B, C> Clone for MicroKernel<A, B, C> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<A, B, C> Copy for MicroKernel<A, B, C> {}

/// f32 weights, f32 activations.
pub fn f32_kernel(level: Level) -> MicroKernel<f32, f32, f32> {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(_) => MicroKernel { mr: 12, nr: 32, step: 1, tile: x86::avx512_f32 },
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(_) => MicroKernel { mr: 6, nr: 16, step: 1, tile: x86::avx2_f32 },
        _ => MicroKernel { mr: 4, nr: 8, step: 1, tile: portable_f32 },
    }
}

/// f16 weights, widened in registers; f32 activations.
pub fn f16_kernel(level: Level) -> MicroKernel<f32, f16, f32> {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(_) => MicroKernel { mr: 12, nr: 32, step: 1, tile: x86::avx512_f16 },
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(_) => MicroKernel { mr: 6, nr: 16, step: 1, tile: x86::avx2_f16 },
        _ => MicroKernel { mr: 4, nr: 8, step: 1, tile: portable_f16 },
    }
}

/// bf16 weights in pairs along k, widened in registers; f32 activations.
pub fn bf16_kernel(level: Level) -> MicroKernel<f32, bf16, f32> {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(_) => MicroKernel { mr: 12, nr: 32, step: 2, tile: x86::avx512_bf16 },
        #[cfg(target_arch = "x86_64")]
        Level::Avx2(_) => MicroKernel { mr: 6, nr: 16, step: 2, tile: x86::avx2_bf16 },
        _ => MicroKernel { mr: 4, nr: 8, step: 2, tile: portable_bf16 },
    }
}

/// bf16 weights in pairs along k against bf16 activations, two products an instruction; `None`
/// without AVX512_BF16. The layout of weights is [`bf16_kernel`]'s.
pub fn bf16_dot_kernel(level: Level) -> Option<MicroKernel<bf16, bf16, f32>> {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(_) if is_x86_feature_detected!("avx512bf16") => {
            Some(MicroKernel { mr: 12, nr: 32, step: 2, tile: x86::avx512_bf16_dot })
        }
        _ => None,
    }
}

/// f64 throughout: the reference that gradients are checked against.
pub fn f64_kernel(_: Level) -> MicroKernel<f64, f64, f64> {
    MicroKernel { mr: 4, nr: 8, step: 1, tile: portable_f64 }
}

/// The few instructions a tile is made of. Loads are aligned ones and pointers advance by `wrapping_add`:
/// these carry no checks in builds with debug assertions, which would cost the tile nine tenths of its speed.
///
/// # Safety
/// The processor has the instruction set; pointers are aligned to a vector and have [`Vector::LANES`]
/// elements behind them (`splat`: one).
trait Vector {
    type Elem: Copy;
    type V: Copy;
    const LANES: usize;
    unsafe fn zero() -> Self::V;
    unsafe fn splat(p: *const Self::Elem) -> Self::V;
    unsafe fn load(p: *const Self::Elem) -> Self::V;
    unsafe fn store(p: *mut Self::Elem, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
}

/// Loads of 16-bit weights as f32.
///
/// # Safety
/// As [`Vector`]; the bf16 loads read two elements a lane.
trait Widen: Vector<Elem = f32> {
    unsafe fn load_f16(p: *const f16) -> Self::V;
    /// The even elements of `2 * LANES`.
    unsafe fn load_bf16_even(p: *const bf16) -> Self::V;
    /// The odd ones.
    unsafe fn load_bf16_odd(p: *const bf16) -> Self::V;
}

/// Products of bf16 pairs.
///
/// # Safety
/// As [`Vector`]; both pointers to pairs, `b` to one a lane.
trait Dot: Vector<Elem = f32> {
    /// `acc + a[0] * b[2i] + a[1] * b[2i + 1]` in every lane i.
    unsafe fn dot(acc: Self::V, a: *const bf16, b: *const bf16) -> Self::V;
}

/// How weights of a panel enter the accumulators.
///
/// # Safety
/// `a`: `R` rows, [`LDA`] apart, of `STEP` elements; `b`: `STEP * N * LANES` elements.
trait Format<S: Vector> {
    type A: Copy;
    type B: Copy;
    const STEP: usize;
    unsafe fn step<const R: usize, const N: usize>(
        a: *const Self::A,
        b: *const Self::B,
        acc: &mut [[S::V; N]; R],
    );
}

/// Weights of the accumulator's type.
struct Plain;
struct F16;
struct Bf16;
struct Bf16Dot;

/// One value of k: `acc[r] += a[r] * b`.
#[inline(always)]
unsafe fn outer<S: Vector, const R: usize, const N: usize>(
    a: *const S::Elem,
    b: [S::V; N],
    acc: &mut [[S::V; N]; R],
) {
    // SAFETY: the caller's promise is ours.
    unsafe {
        for r in 0..R {
            let x = S::splat(a.wrapping_add(r * LDA));
            for n in 0..N {
                acc[r][n] = S::mul_add(x, b[n], acc[r][n]);
            }
        }
    }
}

impl<S: Vector> Format<S> for Plain {
    type A = S::Elem;
    type B = S::Elem;
    const STEP: usize = 1;
    #[inline(always)]
    unsafe fn step<const R: usize, const N: usize>(
        a: *const S::Elem,
        b: *const S::Elem,
        acc: &mut [[S::V; N]; R],
    ) {
        // SAFETY: the caller's promise is ours.
        unsafe {
            let mut v = [S::zero(); N];
            for n in 0..N {
                v[n] = S::load(b.wrapping_add(n * S::LANES));
            }
            outer::<S, R, N>(a, v, acc);
        }
    }
}

impl<S: Widen> Format<S> for F16 {
    type A = f32;
    type B = f16;
    const STEP: usize = 1;
    #[inline(always)]
    unsafe fn step<const R: usize, const N: usize>(
        a: *const f32,
        b: *const f16,
        acc: &mut [[S::V; N]; R],
    ) {
        // SAFETY: the caller's promise is ours.
        unsafe {
            let mut v = [S::zero(); N];
            for n in 0..N {
                v[n] = S::load_f16(b.wrapping_add(n * S::LANES));
            }
            outer::<S, R, N>(a, v, acc);
        }
    }
}

impl<S: Widen> Format<S> for Bf16 {
    type A = f32;
    type B = bf16;
    const STEP: usize = 2;
    #[inline(always)]
    unsafe fn step<const R: usize, const N: usize>(
        a: *const f32,
        b: *const bf16,
        acc: &mut [[S::V; N]; R],
    ) {
        // SAFETY: the caller's promise is ours.
        unsafe {
            // One half after the other: both at once would not fit AVX2's sixteen registers.
            let mut v = [S::zero(); N];
            for n in 0..N {
                v[n] = S::load_bf16_even(b.wrapping_add(2 * n * S::LANES));
            }
            outer::<S, R, N>(a, v, acc);
            for n in 0..N {
                v[n] = S::load_bf16_odd(b.wrapping_add(2 * n * S::LANES));
            }
            outer::<S, R, N>(a.wrapping_add(1), v, acc);
        }
    }
}

impl<S: Dot> Format<S> for Bf16Dot {
    type A = bf16;
    type B = bf16;
    const STEP: usize = 2;
    #[inline(always)]
    unsafe fn step<const R: usize, const N: usize>(
        a: *const bf16,
        b: *const bf16,
        acc: &mut [[S::V; N]; R],
    ) {
        // SAFETY: the caller's promise is ours.
        unsafe {
            for r in 0..R {
                for n in 0..N {
                    acc[r][n] = S::dot(
                        acc[r][n],
                        a.wrapping_add(r * LDA),
                        b.wrapping_add(2 * n * S::LANES),
                    );
                }
            }
        }
    }
}

/// The tile itself: see [`Tile`].
#[inline(always)]
unsafe fn tile<S: Vector, F: Format<S>, const R: usize, const N: usize>(
    k: usize,
    a: *const F::A,
    b: *const F::B,
    c: *mut S::Elem,
    ldc: usize,
    accumulate: bool,
) {
    // SAFETY: `Tile`'s contract covers every access.
    unsafe {
        let mut acc = [[S::zero(); N]; R];
        let (mut a, mut b) = (a, b);
        let mut left = k / F::STEP;
        // Four steps a turn keep the loop's own instructions out of the way of the multiply-adds.
        while left >= 4 {
            for i in 0..4 {
                F::step(
                    a.wrapping_add(i * F::STEP),
                    b.wrapping_add(i * F::STEP * N * S::LANES),
                    &mut acc,
                );
            }
            a = a.wrapping_add(4 * F::STEP);
            b = b.wrapping_add(4 * F::STEP * N * S::LANES);
            left -= 4;
        }
        while left > 0 {
            F::step(a, b, &mut acc);
            a = a.wrapping_add(F::STEP);
            b = b.wrapping_add(F::STEP * N * S::LANES);
            left -= 1;
        }
        for r in 0..R {
            for n in 0..N {
                let p = c.wrapping_add(r * ldc + n * S::LANES);
                let v = if accumulate { S::add(S::load(p), acc[r][n]) } else { acc[r][n] };
                S::store(p, v);
            }
        }
    }
}

/// A function of type [`Tile`]: the generic tile compiled for one instruction set, for each number of rows.
macro_rules! entry {
    ($(#[$attr:meta])* $name:ident, $set:ty, $format:ty, ($a:ty, $b:ty, $c:ty), $vectors:literal, [$($rows:literal)+]) => {
        $(#[$attr])*
        pub(super) unsafe fn $name(
            rows: usize,
            k: usize,
            a: *const $a,
            b: *const $b,
            c: *mut $c,
            ldc: usize,
            accumulate: bool,
        ) {
            // SAFETY: the caller keeps `Tile`'s contract.
            unsafe {
                match rows {
                    $($rows => tile::<$set, $format, $rows, $vectors>(k, a, b, c, ldc, accumulate),)+
                    _ => unreachable!("a tile of {rows} rows"),
                }
            }
        }
    };
}

mod portable {
    use super::*;

    /// Four lanes of ordinary arithmetic: one SSE2 or NEON register of f32.
    pub struct Lanes<T>(std::marker::PhantomData<T>);

    macro_rules! lanes {
        ($t:ty) => {
            impl Vector for Lanes<$t> {
                type Elem = $t;
                type V = [$t; 4];
                const LANES: usize = 4;
                #[inline(always)]
                unsafe fn zero() -> Self::V {
                    [0.0; 4]
                }
                #[inline(always)]
                unsafe fn splat(p: *const $t) -> Self::V {
                    // SAFETY: the caller's pointer has an element.
                    unsafe { [*p; 4] }
                }
                #[inline(always)]
                unsafe fn load(p: *const $t) -> Self::V {
                    // SAFETY: the caller's pointer has four elements.
                    unsafe { p.cast::<Self::V>().read_unaligned() }
                }
                #[inline(always)]
                unsafe fn store(p: *mut $t, v: Self::V) {
                    // SAFETY: the caller's pointer has four elements.
                    unsafe { p.cast::<Self::V>().write_unaligned(v) }
                }
                #[inline(always)]
                unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
                    std::array::from_fn(|i| a[i] + b[i])
                }
                #[inline(always)]
                unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                    // Without the instruction `mul_add` is a call into the C library.
                    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
                        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
                    } else {
                        std::array::from_fn(|i| a[i] * b[i] + c[i])
                    }
                }
            }
        };
    }
    lanes!(f32);
    lanes!(f64);

    impl Widen for Lanes<f32> {
        #[inline(always)]
        unsafe fn load_f16(p: *const f16) -> Self::V {
            // SAFETY: the caller's pointer has four elements.
            unsafe { p.cast::<[f16; 4]>().read_unaligned().map(f16::to_f32) }
        }
        #[inline(always)]
        unsafe fn load_bf16_even(p: *const bf16) -> Self::V {
            // SAFETY: the caller's pointer has eight elements.
            let x = unsafe { p.cast::<[bf16; 8]>().read_unaligned() };
            std::array::from_fn(|i| x[2 * i].to_f32())
        }
        #[inline(always)]
        unsafe fn load_bf16_odd(p: *const bf16) -> Self::V {
            // SAFETY: the caller's pointer has eight elements.
            let x = unsafe { p.cast::<[bf16; 8]>().read_unaligned() };
            std::array::from_fn(|i| x[2 * i + 1].to_f32())
        }
    }
}

use portable::Lanes;
entry!(portable_f32, Lanes<f32>, Plain, (f32, f32, f32), 2, [1 2 3 4]);
entry!(portable_f64, Lanes<f64>, Plain, (f64, f64, f64), 2, [1 2 3 4]);
entry!(portable_f16, Lanes<f32>, F16, (f32, f16, f32), 2, [1 2 3 4]);
entry!(portable_bf16, Lanes<f32>, Bf16, (f32, bf16, f32), 2, [1 2 3 4]);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Bf16, Bf16Dot, Dot, F16, Plain, Vector, Widen, tile};
    use half::{bf16, f16};
    use std::arch::x86_64::*;

    pub struct Avx2;

    impl Vector for Avx2 {
        type Elem = f32;
        type V = __m256;
        const LANES: usize = 8;
        #[inline(always)]
        unsafe fn zero() -> __m256 {
            // SAFETY: the caller has AVX2.
            unsafe { _mm256_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn splat(p: *const f32) -> __m256 {
            // SAFETY: the caller has AVX2.
            unsafe { _mm256_broadcastss_ps(_mm_load_ss(p)) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m256 {
            // SAFETY: the caller has AVX2 and eight elements.
            unsafe { _mm256_load_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m256) {
            // SAFETY: the caller has AVX2 and eight elements.
            unsafe { _mm256_store_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            // SAFETY: the caller has AVX2.
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
            // SAFETY: the caller has FMA.
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
    }

    impl Widen for Avx2 {
        #[inline(always)]
        unsafe fn load_f16(p: *const f16) -> __m256 {
            // SAFETY: the caller has F16C and eight elements.
            unsafe { _mm256_cvtph_ps(_mm_load_si128(p.cast())) }
        }
        #[inline(always)]
        unsafe fn load_bf16_even(p: *const bf16) -> __m256 {
            // SAFETY: the caller has AVX2 and sixteen elements.
            unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_load_si256(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_bf16_odd(p: *const bf16) -> __m256 {
            // SAFETY: the caller has AVX2 and sixteen elements.
            unsafe {
                let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
                _mm256_castsi256_ps(_mm256_and_si256(_mm256_load_si256(p.cast()), high))
            }
        }
    }

    pub struct Avx512;

    impl Vector for Avx512 {
        type Elem = f32;
        type V = __m512;
        const LANES: usize = 16;
        #[inline(always)]
        unsafe fn zero() -> __m512 {
            // SAFETY: the caller has AVX-512.
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn splat(p: *const f32) -> __m512 {
            // SAFETY: the caller has AVX-512.
            unsafe { _mm512_broadcastss_ps(_mm_load_ss(p)) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            // SAFETY: the caller has AVX-512 and sixteen elements.
            unsafe { _mm512_load_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            // SAFETY: the caller has AVX-512 and sixteen elements.
            unsafe { _mm512_store_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            // SAFETY: the caller has AVX-512.
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: the caller has AVX-512.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
    }

    impl Widen for Avx512 {
        #[inline(always)]
        unsafe fn load_f16(p: *const f16) -> __m512 {
            // SAFETY: the caller has AVX-512 and sixteen elements.
            unsafe { _mm512_cvtph_ps(_mm256_load_si256(p.cast())) }
        }
        #[inline(always)]
        unsafe fn load_bf16_even(p: *const bf16) -> __m512 {
            // SAFETY: the caller has AVX-512 and thirty-two elements.
            unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_load_si512(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn load_bf16_odd(p: *const bf16) -> __m512 {
            // SAFETY: the caller has AVX-512 and thirty-two elements.
            unsafe {
                let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
                _mm512_castsi512_ps(_mm512_and_si512(_mm512_load_si512(p.cast()), high))
            }
        }
    }

    impl Dot for Avx512 {
        #[inline(always)]
        unsafe fn dot(acc: __m512, a: *const bf16, b: *const bf16) -> __m512 {
            // SAFETY: the caller has AVX512_BF16, a pair behind `a` and sixteen behind `b`; all three
            // types are 512 bits of plain data.
            unsafe {
                let a: __m512bh =
                    std::mem::transmute(_mm512_set1_epi32(a.cast::<i32>().read_unaligned()));
                let b: __m512bh = std::mem::transmute(_mm512_load_si512(b.cast()));
                _mm512_dpbf16_ps(acc, a, b)
            }
        }
    }

    entry!(#[target_feature(enable = "avx2,fma,f16c")] avx2_f32, Avx2, Plain, (f32, f32, f32), 2, [1 2 3 4 5 6]);
    entry!(#[target_feature(enable = "avx2,fma,f16c")] avx2_f16, Avx2, F16, (f32, f16, f32), 2, [1 2 3 4 5 6]);
    entry!(#[target_feature(enable = "avx2,fma,f16c")] avx2_bf16, Avx2, Bf16, (f32, bf16, f32), 2, [1 2 3 4 5 6]);
    entry!(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")] avx512_f32, Avx512, Plain, (f32, f32, f32), 2, [1 2 3 4 5 6 7 8 9 10 11 12]);
    entry!(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")] avx512_f16, Avx512, F16, (f32, f16, f32), 2, [1 2 3 4 5 6 7 8 9 10 11 12]);
    entry!(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")] avx512_bf16, Avx512, Bf16, (f32, bf16, f32), 2, [1 2 3 4 5 6 7 8 9 10 11 12]);
    entry!(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")] avx512_bf16_dot, Avx512, Bf16Dot, (bf16, bf16, f32), 2, [1 2 3 4 5 6 7 8 9 10 11 12]);
}
