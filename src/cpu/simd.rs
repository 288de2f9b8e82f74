//! Run-time choice of the instruction set, and the few vector operations that kernels share.
//!
//! A kernel is written once, generic over a [`Simd`] token; the [`simd!`](crate::cpu::simd) macro compiles it for
//! every level that the target has and calls the best one that the machine has:
//!
//! ```ignore
//! simd! {
//!     /// y = a * x + y
//!     fn axpy(s, a: f32, x: &[f32], y: &mut [f32]) {
//!         for (x, y) in x.iter().zip(y) {
//!             *y = s.fma(a, *x, *y);
//!         }
//!     }
//! }
//! ```
//!
//! The compiler vectorises the loop with that level's registers. It never contracts or reorders
//! floating-point operations, so that a vector body and a scalar tail give equal bits: what an
//! element becomes does not depend on where in the slice it stands.

use std::sync::OnceLock;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::error::{Error, Result};
use crate::types::{DType, Element, Float, Real};

/// A proof that the machine has an instruction set, and that set's operations.
///
/// Scalar operations (`fma`) are for loops that the compiler vectorises; those on [`Simd::F32`] are
/// for kernels that hold a tile in registers and cannot leave that to it.
pub trait Simd: Copy + Send + Sync + 'static {
    /// A register of [`Simd::LANES`] f32 values.
    type F32: Copy;
    /// How many f32 values a register holds.
    const LANES: usize;
    /// How many registers a kernel may count on.
    const REGISTERS: usize;

    /// `a * b + c`, rounded once where the level fuses, twice where it does not.
    fn fma(self, a: f32, b: f32, c: f32) -> f32;
    /// All lanes equal to `a`.
    fn splat(self, a: f32) -> Self::F32;
    /// The first [`Simd::LANES`] values of `from`.
    ///
    /// # Safety
    /// `from` must be readable for [`Simd::LANES`] values; no alignment is needed.
    unsafe fn load(self, from: *const f32) -> Self::F32;
    /// Writes `a` to `to`.
    ///
    /// # Safety
    /// `to` must be writable for [`Simd::LANES`] values; no alignment is needed.
    unsafe fn store(self, to: *mut f32, a: Self::F32);
    /// `a * b + c` in each lane, rounded as [`Simd::fma`] rounds.
    fn mul_add(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// `a * b` in each lane.
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a + b` in each lane.
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a - b` in each lane.
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The larger in each lane; `b` where either is NaN.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The float whose bits are those of `a` shifted left by 23: the low bits of `a` become its exponent.
    fn exponent(self, a: Self::F32) -> Self::F32;
    /// Transposes 8 rows of 8 values: value j of row i becomes value i of row j.
    ///
    /// # Safety
    /// `from` must be readable and `to` writable for 8 rows of 8 values, the strides apart.
    unsafe fn transpose_8x8(
        self,
        from: *const f32,
        from_stride: usize,
        to: *mut f32,
        to_stride: usize,
    );
}

/// What every machine of the target has: SSE2 on x86-64, NEON on aarch64.
#[derive(Clone, Copy, Debug)]
pub struct Portable(());

impl Simd for Portable {
    type F32 = [f32; 4];
    const LANES: usize = 4;
    const REGISTERS: usize = 16;

    #[inline(always)]
    fn fma(self, a: f32, b: f32, c: f32) -> f32 {
        // Without the instruction, `mul_add` is a call into the C library for every element.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            a.mul_add(b, c)
        } else {
            a * b + c
        }
    }

    #[inline(always)]
    fn splat(self, a: f32) -> [f32; 4] {
        [a; 4]
    }

    #[inline(always)]
    unsafe fn load(self, from: *const f32) -> [f32; 4] {
        // SAFETY: the caller promises four readable values; the read assumes no alignment.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32, a: [f32; 4]) {
        // SAFETY: the caller promises four writable values; the write assumes no alignment.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(a) }
    }

    #[inline(always)]
    fn mul_add(self, a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        [0, 1, 2, 3].map(|i| self.fma(a[i], b[i], c[i]))
    }

    #[inline(always)]
    fn mul(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [0, 1, 2, 3].map(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn add(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [0, 1, 2, 3].map(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [0, 1, 2, 3].map(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn max(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [0, 1, 2, 3].map(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn exponent(self, a: [f32; 4]) -> [f32; 4] {
        a.map(|a| f32::from_bits(a.to_bits() << 23))
    }

    #[inline(always)]
    unsafe fn transpose_8x8(
        self,
        from: *const f32,
        from_stride: usize,
        to: *mut f32,
        to_stride: usize,
    ) {
        for i in 0..8 {
            for j in 0..8 {
                // SAFETY: the caller promises 8 rows of 8 values.
                unsafe { *to.add(j * to_stride + i) = *from.add(i * from_stride + j) };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

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
            let (c, d) =
                (_mm256_loadu_ps(from.add(2 * stride)), _mm256_loadu_ps(from.add(3 * stride)));
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

    macro_rules! simd_level {
        ($token:ty, $register:ty, $lanes:literal, $registers:literal,
         $splat:ident, $load:ident, $store:ident, $fma:ident, $mul:ident, $add:ident, $sub:ident,
         $max:ident, $cast:ident, $shift:ident, $cast_back:ident) => {
            impl Simd for $token {
                type F32 = $register;
                const LANES: usize = $lanes;
                const REGISTERS: usize = $registers;

                #[inline(always)]
                fn fma(self, a: f32, b: f32, c: f32) -> f32 {
                    a.mul_add(b, c)
                }

                #[inline(always)]
                fn splat(self, a: f32) -> $register {
                    // SAFETY: the token exists only where `detect` found the instruction set.
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
                fn mul_add(self, a: $register, b: $register, c: $register) -> $register {
                    // SAFETY: the token exists only where `detect` found the instruction set.
                    unsafe { $fma(a, b, c) }
                }

                #[inline(always)]
                fn mul(self, a: $register, b: $register) -> $register {
                    // SAFETY: the token exists only where `detect` found the instruction set.
                    unsafe { $mul(a, b) }
                }

                #[inline(always)]
                fn add(self, a: $register, b: $register) -> $register {
                    // SAFETY: the token exists only where `detect` found the instruction set.
                    unsafe { $add(a, b) }
                }

                #[inline(always)]
                fn sub(self, a: $register, b: $register) -> $register {
                    // SAFETY: the token exists only where `detect` found the instruction set.
                    unsafe { $sub(a, b) }
                }

                #[inline(always)]
                fn max(self, a: $register, b: $register) -> $register {
                    // SAFETY: the token exists only where `detect` found the instruction set.
                    unsafe { $max(a, b) }
                }

                #[inline(always)]
                fn exponent(self, a: $register) -> $register {
                    // SAFETY: the token exists only where `detect` found the instruction set.
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
        Avx2,
        __m256,
        8,
        16,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps,
        _mm256_mul_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_max_ps,
        _mm256_castps_si256,
        _mm256_slli_epi32,
        _mm256_castsi256_ps
    );
    simd_level!(
        Avx512,
        __m512,
        16,
        32,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        _mm512_mul_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_max_ps,
        _mm512_castps_si512,
        _mm512_slli_epi32,
        _mm512_castsi512_ps
    );
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug)]
pub enum Level {
    /// The target's baseline.
    Portable(Portable),
    /// AVX2, FMA, F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX-512 F, BW, DQ, VL.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Level {
    /// Every level that this machine can run, slowest first.
    pub fn available() -> Vec<Level> {
        let mut levels = vec![Level::Portable(Portable(()))];
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(Avx2::detect().map(Level::Avx2));
            levels.extend(Avx512::detect().map(Level::Avx512));
        }
        levels
    }

    /// The name under which `nadir doctor` shows the level.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => "avx512",
        }
    }
}

/// The level that kernels run at: the machine's best, or the one that `NADIR_SIMD` names; decided once.
pub fn level() -> Level {
    #[cfg(test)]
    if let Some(level) = FORCED.get() {
        return level;
    }
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let best = *Level::available().last().expect("the portable level always exists");
        choose().ok().flatten().unwrap_or(best)
    })
}

/// The level that `NADIR_SIMD` names (`portable`, `avx2` or `avx512`): to compare levels, or to tell a fault in one
/// from a fault elsewhere. `None` when it is not set.
///
/// # Errors
/// `Argument` when the machine has no such level. Kernels then run at the machine's best.
pub fn choose() -> Result<Option<Level>> {
    let Ok(name) = std::env::var("NADIR_SIMD") else { return Ok(None) };
    let available = Level::available();
    let Some(&level) = available.iter().find(|level| level.name() == name) else {
        let names: Vec<_> = available.iter().map(|level| level.name()).collect();
        return Err(Error::argument(
            "NADIR_SIMD",
            name,
            format!("this machine has {}", names.join(", ")),
        ));
    };
    Ok(Some(level))
}

#[cfg(test)]
thread_local! {
    static FORCED: std::cell::Cell<Option<Level>> = const { std::cell::Cell::new(None) };
}

/// Runs `f` once a level of the machine, on threads of its own that all run kernels at this level.
#[cfg(test)]
pub fn at_each_level(mut f: impl FnMut(Level) + Send) {
    for level in Level::available() {
        FORCED.set(Some(level));
        pool(rayon::current_num_threads().max(2)).install(|| f(level));
        FORCED.set(None);
    }
}

/// A pool whose threads run kernels at the level that this thread runs them at.
#[cfg(test)]
pub fn pool(threads: usize) -> rayon::ThreadPool {
    let level = FORCED.get();
    let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
    builder.start_handler(move |_| FORCED.set(level)).build().unwrap()
}

/// Compiles a function for every instruction set of the target and picks one at run time: see the module.
///
/// The first parameter names the token (a [`Simd`], of type `S` in the body); callers do not pass it.
/// Type parameters stand in brackets: `fn map[T: Float](s, x: &[T])`.
macro_rules! simd {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $([$($generic:tt)*])? ($s:ident $(, $arg:ident: $ty:ty)* $(,)?) $(-> $ret:ty)?
        $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name $(<$($generic)*>)? ($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<S: $crate::cpu::simd::Simd $(, $($generic)*)?> ($s: S $(, $arg: $ty)*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$($generic)*>)? (s: $crate::cpu::simd::Avx2 $(, $arg: $ty)*) $(-> $ret)? {
                body(s $(, $arg)*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            fn avx512 $(<$($generic)*>)? (s: $crate::cpu::simd::Avx512 $(, $arg: $ty)*) $(-> $ret)? {
                body(s $(, $arg)*)
            }

            match $crate::cpu::simd::level() {
                $crate::cpu::simd::Level::Portable(s) => body(s $(, $arg)*),
                // SAFETY: the token exists only where its features were detected.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Level::Avx2(s) => unsafe { avx2(s $(, $arg)*) },
                // SAFETY: the token exists only where its features were detected.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::simd::Level::Avx512(s) => unsafe { avx512(s $(, $arg)*) },
            }
        }
    };
}
pub(crate) use simd;

/// Converts stored values to the type they are computed in: f32, or f64 for f64.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub fn widen<T: Float>(from: &[T], to: &mut [T::Acc]) {
    match T::DTYPE {
        DType::F16 => {
            let from: &[f16] = bytemuck::cast_slice(from);
            from.convert_to_f32_slice(bytemuck::cast_slice_mut(to));
        }
        DType::BF16 => {
            let from: &[u16] = bytemuck::cast_slice(from);
            let to: &mut [f32] = bytemuck::cast_slice_mut(to);
            assert_eq!(from.len(), to.len());
            for (from, to) in from.iter().zip(to) {
                *to = f32::from_bits(u32::from(*from) << 16);
            }
        }
        _ => to.copy_from_slice(bytemuck::cast_slice(from)),
    }
}

/// Converts computed values to the type they are stored in, rounding to the nearest, ties to even.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub fn narrow<T: Float>(from: &[T::Acc], to: &mut [T]) {
    match T::DTYPE {
        DType::F16 => {
            let to: &mut [f16] = bytemuck::cast_slice_mut(to);
            to.convert_from_f32_slice(bytemuck::cast_slice(from));
        }
        DType::BF16 => {
            let from: &[f32] = bytemuck::cast_slice(from);
            let to: &mut [u16] = bytemuck::cast_slice_mut(to);
            assert_eq!(from.len(), to.len());
            for (from, to) in from.iter().zip(to) {
                *to = bf16_bits(*from);
            }
        }
        _ => to.copy_from_slice(bytemuck::cast_slice(from)),
    }
}

simd! {
    /// `to` [columns, rows] is `from` [rows, columns] transposed.
    ///
    /// # Panics
    /// If either has another length.
    pub fn transpose(s, from: &[f32], rows: usize, columns: usize, to: &mut [f32]) {
        assert!(from.len() == rows * columns && to.len() == rows * columns);
        for i in (0..rows).step_by(8) {
            for j in (0..columns).step_by(8) {
                if i + 8 <= rows && j + 8 <= columns {
                    let (from, to) = (from[i * columns + j..].as_ptr(), to[j * rows + i..].as_mut_ptr());
                    // SAFETY: rows i..i + 8 and columns j..j + 8 are inside, in both.
                    unsafe { s.transpose_8x8(from, columns, to, rows) };
                    continue;
                }
                for i in i..rows.min(i + 8) {
                    for j in j..columns.min(j + 8) {
                        to[j * rows + i] = from[i * columns + j];
                    }
                }
            }
        }
    }
}

/// `x` as what it is computed in, where that is its own type.
#[inline(always)]
pub fn as_acc<T: Float>(x: &[T]) -> Option<&[T::Acc]> {
    (T::DTYPE == <T::Acc as Element>::DTYPE).then(|| bytemuck::cast_slice(x))
}

/// [`as_acc`], to write to.
#[inline(always)]
pub fn as_acc_mut<T: Float>(x: &mut [T]) -> Option<&mut [T::Acc]> {
    (T::DTYPE == <T::Acc as Element>::DTYPE).then(|| bytemuck::cast_slice_mut(x))
}

/// `x` in the type it is computed in: itself where that is its own type, else widened into `scratch`.
#[inline(always)]
pub fn widened<'a, T: Float>(x: &'a [T], scratch: &'a mut Vec<T::Acc>) -> &'a [T::Acc] {
    if let Some(x) = as_acc(x) {
        return x;
    }
    scratch.resize(x.len(), T::Acc::ZERO);
    widen(x, scratch);
    scratch
}

/// The sum of `f(x)` over a slice, in the order of [`fold`].
#[inline(always)]
pub fn sum<A: Real>(x: &[A], f: impl Fn(A) -> A) -> A {
    fold(x, A::ZERO, |sum, x| sum + f(x), |a, b| a + b)
}

/// A slice folded from `start`, in an order that its length alone determines: 32 running values,
/// whatever the registers hold, then pairwise.
#[inline(always)]
pub fn fold<A: Real>(x: &[A], start: A, step: impl Fn(A, A) -> A, merge: impl Fn(A, A) -> A) -> A {
    const RUNNING: usize = 32;
    let mut values = [start; RUNNING];
    let mut chunks = x.chunks_exact(RUNNING);
    for chunk in &mut chunks {
        for i in 0..RUNNING {
            values[i] = step(values[i], chunk[i]);
        }
    }
    for (value, x) in values.iter_mut().zip(chunks.remainder()) {
        *value = step(*value, *x);
    }
    let mut n = RUNNING;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            values[i] = merge(values[i], values[i + n]);
        }
    }
    values[0]
}

/// `bf16::from_f32` without a branch, so that loops over it vectorise.
#[inline(always)]
fn bf16_bits(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // Rounding could carry a NaN's payload into the exponent; setting its quiet bit keeps it a NaN.
    let nan = (bits >> 16) | 0x0040;
    (if x.is_nan() { nan } else { rounded }) as u16
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    simd! {
        fn lanes(s) -> usize {
            let _ = s;
            S::LANES
        }
    }

    #[test]
    fn the_chosen_level_runs() {
        at_each_level(|level| {
            let expected = match level {
                Level::Portable(_) => 4,
                #[cfg(target_arch = "x86_64")]
                Level::Avx2(_) => 8,
                #[cfg(target_arch = "x86_64")]
                Level::Avx512(_) => 16,
            };
            assert_eq!(lanes(), expected, "{}", level.name());
            let workers = rayon::broadcast(|_| lanes());
            assert!(workers.len() > 1 && workers.iter().all(|&n| n == expected), "{workers:?}");
            let nested = pool(3).broadcast(|_| lanes());
            assert_eq!(nested, [expected; 3], "{}", level.name());
        });
    }

    simd! {
        fn sum_of_lanes(s, a: &[f32], b: &[f32], c: &[f32], out: &mut [f32]) {
            assert!(a.len() >= S::LANES && b.len() >= S::LANES && c.len() >= S::LANES && out.len() >= S::LANES);
            // SAFETY: the lengths were checked above.
            unsafe {
                let (a, b, c) = (s.load(a.as_ptr()), s.load(b.as_ptr()), s.load(c.as_ptr()));
                let r = s.add(s.mul(s.mul_add(a, b, c), s.splat(2.0)), s.splat(1.0));
                let nan = s.splat(f32::NAN);
                let r = s.max(nan, s.max(s.sub(a, b), r)); // r is the larger: a - b is 0
                s.store(out.as_mut_ptr(), r);
            }
        }
    }

    #[test]
    fn vector_operations() {
        let ramp: Vec<f32> = (0..16).map(|i| i as f32).collect();
        at_each_level(|level| {
            let mut out = vec![0.0; 16];
            sum_of_lanes(&ramp, &ramp, &ramp, &mut out);
            for i in 0..lanes() {
                let x = i as f32;
                assert_eq!(out[i], (x * x + x) * 2.0 + 1.0, "{} lane {i}", level.name());
            }
        });
    }

    #[test]
    fn transposing() {
        for (rows, columns) in [(1, 1), (8, 8), (16, 40), (7, 9), (33, 8), (8, 31), (24, 65)] {
            let x: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            at_each_level(|level| {
                let mut y = vec![-1.0; x.len()];
                transpose(&x, rows, columns, &mut y);
                for (k, y) in y.iter().enumerate() {
                    let expected = x[k % rows * columns + k / rows];
                    assert_eq!(*y, expected, "{}: {rows} x {columns}, {k}", level.name());
                }
            });
        }
    }

    #[test]
    fn bf16_rounding_is_that_of_half() {
        // Every upper half with lower halves around the tie, NaNs and infinities among them.
        for high in 0..=u16::MAX {
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(high) << 16 | low);
                let (ours, theirs) = (bf16::from_bits(bf16_bits(x)), bf16::from_f32(x));
                assert!(ours == theirs || ours.is_nan() && theirs.is_nan(), "{x:e}");
            }
        }
    }

    #[test]
    fn sums_are_complete() {
        for n in [0, 1, 31, 32, 33, 100, 1000] {
            let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
            assert_eq!(sum(&x, |x| 2.0 * x), (n * n) as f32 - n as f32, "{n} terms");
        }
    }

    #[test]
    fn widening_then_narrowing_is_the_identity() {
        fn check<T: Float + PartialEq + std::fmt::Debug>(values: &[T]) {
            let mut wide = vec![T::Acc::ZERO; values.len()];
            widen(values, &mut wide);
            let mut back = values.to_vec();
            back.reverse();
            narrow(&wide, &mut back);
            assert_eq!(values, back);
        }
        let values: Vec<f32> = (0..37).map(|i| (i as f32 - 18.0) * 0.375).collect();
        check(&values);
        check(&values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
        check(&values.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>());
        check(&values.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>());
    }
}
