//! Register tiles of the matrix product, one for each instruction set and weight format.
//!
//! A tile computes `rows x NR` outputs over one block of at most [`KC`] values of k. The loop is
//! written once, over [`Simd`] (an instruction set) and [`Format`] (how weights lie in memory and enter the
//! registers).
//!
//! Every output is one chain of multiply-adds over ascending k in a lane of its own, so its bits
//! depend neither on the row's place in a tile nor on how many rows the tile has.

use half::{bf16, f16};

use crate::cpu::simd::{Level, Portable, Simd};

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

/// A [`Tile`] of one row over some panels at once, `panel` elements apart, each of which has sums of its own, `ldc` apart: several
/// streams come from memory faster than one.
///
/// # Safety
/// As of [`Tile`], of each panel; there are 1 to [`MicroKernel::at_once`] of them.
pub type Row<A, B, C> = unsafe fn(
    panels: usize,
    k: usize,
    a: *const A,
    b: *const B,
    panel: usize,
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
    /// For one row.
    pub(super) row: Row<A, B, C>,
    /// Panels of such a row, at most.
    pub(super) at_once: usize,
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
        #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
        Level::Avx512(_) => MicroKernel {
            mr: 12,
            nr: 32,
            step: 1,
            tile: x86::avx512_f32,
            row: x86::avx512_f32_row,
            at_once: 4,
        },
        #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
        Level::Avx2(_) => MicroKernel {
            mr: 6,
            nr: 16,
            step: 1,
            tile: x86::avx2_f32,
            row: x86::avx2_f32_row,
            at_once: 4,
        },
        _ => MicroKernel {
            mr: 4,
            nr: 8,
            step: 1,
            tile: portable_f32,
            row: portable_f32_row,
            at_once: 4,
        },
    }
}

/// f16 weights, widened in registers; f32 activations.
pub fn f16_kernel(level: Level) -> MicroKernel<f32, f16, f32> {
    match level {
        #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
        Level::Avx512(_) => MicroKernel {
            mr: 12,
            nr: 32,
            step: 1,
            tile: x86::avx512_f16,
            row: x86::avx512_f16_row,
            at_once: 4,
        },
        #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
        Level::Avx2(_) => MicroKernel {
            mr: 6,
            nr: 16,
            step: 1,
            tile: x86::avx2_f16,
            row: x86::avx2_f16_row,
            at_once: 4,
        },
        _ => MicroKernel {
            mr: 4,
            nr: 8,
            step: 1,
            tile: portable_f16,
            row: portable_f16_row,
            at_once: 4,
        },
    }
}

/// bf16 weights in pairs along k, widened in registers; f32 activations.
pub fn bf16_kernel(level: Level) -> MicroKernel<f32, bf16, f32> {
    match level {
        #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
        Level::Avx512(_) => MicroKernel {
            mr: 12,
            nr: 32,
            step: 2,
            tile: x86::avx512_bf16,
            row: x86::avx512_bf16_row,
            at_once: 4,
        },
        #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
        Level::Avx2(_) => MicroKernel {
            mr: 6,
            nr: 16,
            step: 2,
            tile: x86::avx2_bf16,
            row: x86::avx2_bf16_row,
            at_once: 4,
        },
        _ => MicroKernel {
            mr: 4,
            nr: 8,
            step: 2,
            tile: portable_bf16,
            row: portable_bf16_row,
            at_once: 4,
        },
    }
}

/// Weights of 8 bits, widened in registers; f32 activations. Panels are wider than others', so that one row has four chains of
/// multiply-adds: with two it would wait for them, not for memory.
pub fn i8_kernel(level: Level) -> MicroKernel<f32, i8, f32> {
    match level {
        #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
        Level::Avx512(_) => MicroKernel {
            mr: 6,
            nr: 64,
            step: 1,
            tile: x86::avx512_i8,
            row: x86::avx512_i8_row,
            at_once: 2,
        },
        #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
        Level::Avx2(_) => MicroKernel {
            mr: 3,
            nr: 32,
            step: 1,
            tile: x86::avx2_i8,
            row: x86::avx2_i8_row,
            at_once: 2,
        },
        _ => MicroKernel {
            mr: 4,
            nr: 8,
            step: 1,
            tile: portable_i8,
            row: portable_i8_row,
            at_once: 2,
        },
    }
}

/// bf16 weights in pairs along k against bf16 activations, two products an instruction; `None`
/// without AVX512_BF16. The layout of weights is [`bf16_kernel`]'s.
pub fn bf16_dot_kernel(level: Level) -> Option<MicroKernel<bf16, bf16, f32>> {
    match level {
        #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
        Level::Avx512(_) if is_x86_feature_detected!("avx512bf16") => Some(MicroKernel {
            mr: 12,
            nr: 32,
            step: 2,
            tile: x86::avx512_bf16_dot,
            row: x86::avx512_bf16_dot_row,
            at_once: 4,
        }),
        _ => None,
    }
}

/// f64 throughout: the reference that gradients are checked against.
pub fn f64_kernel(_: Level) -> MicroKernel<f64, f64, f64> {
    MicroKernel { mr: 4, nr: 8, step: 1, tile: portable_f64, row: portable_f64_row, at_once: 1 }
}

/// How weights of a panel enter the accumulators. Loads are aligned ones and pointers advance by `wrapping_add`: these
/// carry no checks in builds with debug assertions, which would cost the tile nine tenths of its speed.
///
/// # Safety
/// `a`: `R` rows, [`LDA`] apart, of `STEP` elements; `b`: `STEP * N * LANES` elements, aligned to a register.
trait Format<S: Simd> {
    type A: Copy;
    type B: Copy;
    const STEP: usize;
    unsafe fn step<const R: usize, const N: usize>(
        s: S,
        a: *const Self::A,
        b: *const Self::B,
        acc: &mut [[S::F32; N]; R],
    );
}

/// Weights of the accumulator's type.
struct F32;
struct F16;
struct I8;
struct Bf16;
/// Pairs of bf16 against pairs of bf16.
#[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
struct Bf16Dot;

/// One value of k: `acc[r] += a[r] * b`.
#[inline(always)]
unsafe fn outer<S: Simd, const R: usize, const N: usize>(
    s: S,
    a: *const f32,
    b: [S::F32; N],
    acc: &mut [[S::F32; N]; R],
) {
    // SAFETY: the caller's promise is ours.
    unsafe {
        for r in 0..R {
            let x = s.broadcast(a.wrapping_add(r * LDA));
            for n in 0..N {
                acc[r][n] = s.mul_add(x, b[n], acc[r][n]);
            }
        }
    }
}

impl<S: Simd> Format<S> for F32 {
    type A = f32;
    type B = f32;
    const STEP: usize = 1;
    #[inline(always)]
    unsafe fn step<const R: usize, const N: usize>(
        s: S,
        a: *const f32,
        b: *const f32,
        acc: &mut [[S::F32; N]; R],
    ) {
        // SAFETY: the caller's promise is ours.
        unsafe {
            let mut v = [s.splat(0.0); N];
            for n in 0..N {
                v[n] = s.load_aligned(b.wrapping_add(n * S::LANES));
            }
            outer(s, a, v, acc);
        }
    }
}

impl<S: Simd> Format<S> for F16 {
    type A = f32;
    type B = f16;
    const STEP: usize = 1;
    #[inline(always)]
    unsafe fn step<const R: usize, const N: usize>(
        s: S,
        a: *const f32,
        b: *const f16,
        acc: &mut [[S::F32; N]; R],
    ) {
        // SAFETY: the caller's promise is ours.
        unsafe {
            let mut v = [s.splat(0.0); N];
            for n in 0..N {
                v[n] = s.load_f16(b.wrapping_add(n * S::LANES));
            }
            outer(s, a, v, acc);
        }
    }
}

impl<S: Simd> Format<S> for I8 {
    type A = f32;
    type B = i8;
    const STEP: usize = 1;
    #[inline(always)]
    unsafe fn step<const R: usize, const N: usize>(
        s: S,
        a: *const f32,
        b: *const i8,
        acc: &mut [[S::F32; N]; R],
    ) {
        // SAFETY: the caller's promise is ours.
        unsafe {
            let mut v = [s.splat(0.0); N];
            for n in 0..N {
                v[n] = s.load_i8(b.wrapping_add(n * S::LANES));
            }
            outer(s, a, v, acc);
        }
    }
}

impl<S: Simd> Format<S> for Bf16 {
    type A = f32;
    type B = bf16;
    const STEP: usize = 2;
    #[inline(always)]
    unsafe fn step<const R: usize, const N: usize>(
        s: S,
        a: *const f32,
        b: *const bf16,
        acc: &mut [[S::F32; N]; R],
    ) {
        // SAFETY: the caller's promise is ours.
        unsafe {
            // One half after the other: both at once would not fit AVX2's sixteen registers.
            let mut v = [s.splat(0.0); N];
            for n in 0..N {
                v[n] = s.load_bf16_even(b.wrapping_add(2 * n * S::LANES));
            }
            outer(s, a, v, acc);
            for n in 0..N {
                v[n] = s.load_bf16_odd(b.wrapping_add(2 * n * S::LANES));
            }
            outer(s, a.wrapping_add(1), v, acc);
        }
    }
}

/// Asks for what comes 2 KiB behind `len` elements at `b`. One row uses each of its weights once, so that memory is what it waits
/// for: with this, and from several panels at once, it reads up to a quarter faster than the machine's own foresight lets it (seen
/// on Zen 4), into the L2; into the L1 it gains nothing there.
#[inline(always)]
fn ahead<B>(b: *const B, len: usize) {
    #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
    for line in (0..len * size_of::<B>()).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint, which reads nothing; SSE is in every x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(b.cast::<i8>().wrapping_add(2048 + line)) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(nadir_portable))))]
    let _ = (b, len);
}

/// The tile itself: see [`Tile`].
#[inline(always)]
unsafe fn tile<S: Simd, F: Format<S>, const R: usize, const N: usize>(
    s: S,
    k: usize,
    a: *const F::A,
    b: *const F::B,
    c: *mut f32,
    ldc: usize,
    accumulate: bool,
) {
    // SAFETY: `Tile`'s contract covers every access.
    unsafe {
        let mut acc = [[s.splat(0.0); N]; R];
        let (mut a, mut b) = (a, b);
        let mut left = k / F::STEP;
        // Four steps a turn keep the loop's own instructions out of the way of the multiply-adds.
        while left >= 4 {
            for i in 0..4 {
                F::step(
                    s,
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
            F::step(s, a, b, &mut acc);
            a = a.wrapping_add(F::STEP);
            b = b.wrapping_add(F::STEP * N * S::LANES);
            left -= 1;
        }
        for r in 0..R {
            for n in 0..N {
                let p = c.wrapping_add(r * ldc + n * S::LANES);
                let v = if accumulate { s.add(s.load_aligned(p), acc[r][n]) } else { acc[r][n] };
                s.store_aligned(p, v);
            }
        }
    }
}

/// See [`Row`].
#[inline(always)]
unsafe fn row<S: Simd, F: Format<S>, const P: usize, const N: usize>(
    s: S,
    k: usize,
    a: *const F::A,
    b: *const F::B,
    panel: usize,
    c: *mut f32,
    ldc: usize,
    accumulate: bool,
) {
    let width = F::STEP * N * S::LANES;
    // SAFETY: the contract covers every access.
    unsafe {
        let mut acc = [[[s.splat(0.0); N]; 1]; P];
        for i in 0..k / F::STEP {
            for (p, acc) in acc.iter_mut().enumerate() {
                let b = b.wrapping_add(p * panel + i * width);
                if i % 4 == 0 {
                    ahead(b, 4 * width);
                }
                F::step(s, a.wrapping_add(i * F::STEP), b, acc);
            }
        }
        for (p, [acc]) in acc.into_iter().enumerate() {
            for (n, sum) in acc.into_iter().enumerate() {
                let p = c.wrapping_add(p * ldc + n * S::LANES);
                let sum = if accumulate { s.add(s.load_aligned(p), sum) } else { sum };
                s.store_aligned(p, sum);
            }
        }
    }
}

/// The tile in f64, of ordinary arithmetic, R x 8: see [`Tile`].
#[inline(always)]
unsafe fn f64_tile<const R: usize>(
    k: usize,
    a: *const f64,
    b: *const f64,
    c: *mut f64,
    ldc: usize,
    accumulate: bool,
) {
    // SAFETY: `Tile`'s contract covers every access.
    unsafe {
        let mut acc = [[0.0; 8]; R];
        for i in 0..k {
            let b = b.wrapping_add(8 * i).cast::<[f64; 8]>().read_unaligned();
            for r in 0..R {
                let x = *a.wrapping_add(r * LDA + i);
                for n in 0..8 {
                    // Without the instruction `mul_add` is a call into the C library.
                    acc[r][n] = if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
                        x.mul_add(b[n], acc[r][n])
                    } else {
                        x * b[n] + acc[r][n]
                    };
                }
            }
        }
        for r in 0..R {
            let to = c.wrapping_add(r * ldc).cast::<[f64; 8]>();
            if accumulate {
                let before = to.read_unaligned();
                for n in 0..8 {
                    acc[r][n] += before[n];
                }
            }
            to.write_unaligned(acc[r]);
        }
    }
}

/// Functions of type [`Tile`] and [`Row`]: the generic ones compiled for one instruction set, for each number of rows, and of panels.
macro_rules! entry {
    ($(#[$attr:meta])* $name:ident $row:ident, $set:ty, $format:ty, ($a:ty, $b:ty), $vectors:literal, [$($rows:literal)+], [$($panels:literal)+]) => {
        $(#[$attr])*
        pub(super) unsafe fn $name(
            rows: usize,
            k: usize,
            a: *const $a,
            b: *const $b,
            c: *mut f32,
            ldc: usize,
            accumulate: bool,
        ) {
            // SAFETY: the caller keeps `Tile`'s contract, the instruction set included.
            unsafe {
                let s = <$set>::assume();
                match rows {
                    $($rows => tile::<$set, $format, $rows, $vectors>(s, k, a, b, c, ldc, accumulate),)+
                    _ => unreachable!("a tile of {rows} rows"),
                }
            }
        }

        $(#[$attr])*
        pub(super) unsafe fn $row(
            panels: usize,
            k: usize,
            a: *const $a,
            b: *const $b,
            panel: usize,
            c: *mut f32,
            ldc: usize,
            accumulate: bool,
        ) {
            // SAFETY: as above.
            unsafe {
                let s = <$set>::assume();
                match panels {
                    $($panels => row::<$set, $format, $panels, $vectors>(s, k, a, b, panel, c, ldc, accumulate),)+
                    _ => unreachable!("a row of {panels} panels"),
                }
            }
        }
    };
}

entry!(portable_f32 portable_f32_row, Portable, F32, (f32, f32), 2, [1 2 3 4], [1 2 3 4]);
entry!(portable_f16 portable_f16_row, Portable, F16, (f32, f16), 2, [1 2 3 4], [1 2 3 4]);
entry!(portable_i8 portable_i8_row, Portable, I8, (f32, i8), 2, [1 2 3 4], [1 2]);
entry!(portable_bf16 portable_bf16_row, Portable, Bf16, (f32, bf16), 2, [1 2 3 4], [1 2 3 4]);

unsafe fn portable_f64(
    rows: usize,
    k: usize,
    a: *const f64,
    b: *const f64,
    c: *mut f64,
    ldc: usize,
    accumulate: bool,
) {
    // SAFETY: the caller keeps `Tile`'s contract.
    unsafe {
        match rows {
            1 => f64_tile::<1>(k, a, b, c, ldc, accumulate),
            2 => f64_tile::<2>(k, a, b, c, ldc, accumulate),
            3 => f64_tile::<3>(k, a, b, c, ldc, accumulate),
            4 => f64_tile::<4>(k, a, b, c, ldc, accumulate),
            _ => unreachable!("a tile of {rows} rows"),
        }
    }
}

unsafe fn portable_f64_row(
    _: usize,
    k: usize,
    a: *const f64,
    b: *const f64,
    _: usize,
    c: *mut f64,
    ldc: usize,
    accumulate: bool,
) {
    // SAFETY: the caller keeps [`Row`]'s contract, of one panel.
    unsafe { f64_tile::<1>(k, a, b, c, ldc, accumulate) }
}

#[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
mod x86 {
    use std::arch::x86_64::{__m512bh, _mm512_dpbf16_ps, _mm512_load_si512, _mm512_set1_epi32};

    use half::{bf16, f16};

    use super::{Bf16, Bf16Dot, F16, F32, Format, I8, LDA, row, tile};
    use crate::cpu::simd::{Avx2, Avx512, Simd};

    /// The caller has AVX512_BF16 besides.
    impl Format<Avx512> for Bf16Dot {
        type A = bf16;
        type B = bf16;
        const STEP: usize = 2;
        #[inline(always)]
        unsafe fn step<const R: usize, const N: usize>(
            _: Avx512,
            a: *const bf16,
            b: *const bf16,
            acc: &mut [[<Avx512 as Simd>::F32; N]; R],
        ) {
            // SAFETY: the caller has the instructions, a pair behind every row of `a` and sixteen behind every register
            // of `b`; the types are 512 bits of plain data.
            unsafe {
                for r in 0..R {
                    for n in 0..N {
                        let a = a.wrapping_add(r * LDA).cast::<i32>().read_unaligned();
                        let b = b.wrapping_add(2 * n * Avx512::LANES);
                        let a: __m512bh = std::mem::transmute(_mm512_set1_epi32(a));
                        let b: __m512bh = std::mem::transmute(_mm512_load_si512(b.cast()));
                        acc[r][n] = _mm512_dpbf16_ps(acc[r][n], a, b);
                    }
                }
            }
        }
    }

    entry!(#[target_feature(enable = "avx2,fma,f16c")] avx2_f32 avx2_f32_row, Avx2, F32, (f32, f32), 2, [1 2 3 4 5 6], [1 2 3 4]);
    entry!(#[target_feature(enable = "avx2,fma,f16c")] avx2_f16 avx2_f16_row, Avx2, F16, (f32, f16), 2, [1 2 3 4 5 6], [1 2 3 4]);
    entry!(#[target_feature(enable = "avx2,fma,f16c")] avx2_i8 avx2_i8_row, Avx2, I8, (f32, i8), 4, [1 2 3], [1 2]);
    entry!(#[target_feature(enable = "avx2,fma,f16c")] avx2_bf16 avx2_bf16_row, Avx2, Bf16, (f32, bf16), 2, [1 2 3 4 5 6], [1 2 3 4]);
    entry!(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")] avx512_f32 avx512_f32_row, Avx512, F32, (f32, f32), 2, [1 2 3 4 5 6 7 8 9 10 11 12], [1 2 3 4]);
    entry!(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")] avx512_f16 avx512_f16_row, Avx512, F16, (f32, f16), 2, [1 2 3 4 5 6 7 8 9 10 11 12], [1 2 3 4]);
    entry!(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")] avx512_i8 avx512_i8_row, Avx512, I8, (f32, i8), 4, [1 2 3 4 5 6], [1 2]);
    entry!(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")] avx512_bf16 avx512_bf16_row, Avx512, Bf16, (f32, bf16), 2, [1 2 3 4 5 6 7 8 9 10 11 12], [1 2 3 4]);
    entry!(#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")] avx512_bf16_dot avx512_bf16_dot_row, Avx512, Bf16Dot, (bf16, bf16), 2, [1 2 3 4 5 6 7 8 9 10 11 12], [1 2 3 4]);
}
