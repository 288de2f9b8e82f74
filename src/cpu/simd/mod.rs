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

mod portable;
mod slices;
#[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
mod x86;

use std::sync::OnceLock;

use half::{bf16, f16};

use crate::error::{Error, Result};

/// A proof that the machine has an instruction set, and that set's operations.
///
/// Scalar operations (`fma`) are for loops that the compiler vectorises; those on [`Simd::F32`] are
/// for kernels that hold a tile in registers and cannot leave that to it. To add a level, implement this, add it to
/// [`Level`] and to the `simd!` macro, and give it tiles in `cpu/gemm/kernel.rs`.
pub trait Simd: Copy + Send + Sync + 'static {
    /// A register of [`Simd::LANES`] f32 values.
    type F32: Copy;
    /// How many f32 values a register holds.
    const LANES: usize;
    /// How many registers a kernel may count on.
    const REGISTERS: usize;

    /// The token, without a look at the machine.
    ///
    /// # Safety
    /// The machine must have the instruction set.
    unsafe fn assume() -> Self;

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
    /// All lanes equal to the value at `from`.
    ///
    /// # Safety
    /// `from` must be readable.
    unsafe fn broadcast(self, from: *const f32) -> Self::F32;
    /// As [`Simd::load`], without the checks that a build with debug assertions adds to that, which would cost the
    /// matrix product nine tenths of its speed; likewise below.
    ///
    /// # Safety
    /// `from` must be readable for [`Simd::LANES`] values and aligned to as many; likewise below.
    unsafe fn load_aligned(self, from: *const f32) -> Self::F32;
    /// Writes `a` to `to`.
    ///
    /// # Safety
    /// `to` must be writable for [`Simd::LANES`] values and aligned to as many.
    unsafe fn store_aligned(self, to: *mut f32, a: Self::F32);
    /// The first [`Simd::LANES`] values of `from`, widened.
    ///
    /// # Safety
    /// As [`Simd::load_aligned`].
    unsafe fn load_f16(self, from: *const f16) -> Self::F32;
    /// The first [`Simd::LANES`] whole numbers of `from`, as floats.
    ///
    /// # Safety
    /// As [`Simd::load_aligned`].
    unsafe fn load_i8(self, from: *const i8) -> Self::F32;
    /// The first [`Simd::LANES`] pairs' first values, widened.
    ///
    /// # Safety
    /// As [`Simd::load_aligned`], for twice as many values.
    unsafe fn load_bf16_even(self, from: *const bf16) -> Self::F32;
    /// The pairs' second values, widened.
    ///
    /// # Safety
    /// As [`Simd::load_bf16_even`].
    unsafe fn load_bf16_odd(self, from: *const bf16) -> Self::F32;
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

pub use portable::Portable;
pub(crate) use slices::{as_acc, as_acc_mut, fold, narrow, sum, transpose, widen, widened};
#[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
pub use x86::{Avx2, Avx512};

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug)]
pub enum Level {
    /// The target's baseline.
    Portable(Portable),
    /// AVX2, FMA, F16C.
    #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
    Avx2(Avx2),
    /// AVX-512 F, BW, DQ, VL.
    #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
    Avx512(Avx512),
}

impl Level {
    /// Every level that this machine can run, slowest first.
    pub fn available() -> Vec<Level> {
        #[allow(unused_mut, reason = "not every target has more")]
        let mut levels = vec![Level::Portable(Portable::new())];
        #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
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
            #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
            Level::Avx2(_) => "avx2",
            #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
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

            #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$($generic)*>)? (s: $crate::cpu::simd::Avx2 $(, $arg: $ty)*) $(-> $ret)? {
                body(s $(, $arg)*)
            }

            #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
            fn avx512 $(<$($generic)*>)? (s: $crate::cpu::simd::Avx512 $(, $arg: $ty)*) $(-> $ret)? {
                body(s $(, $arg)*)
            }

            match $crate::cpu::simd::level() {
                $crate::cpu::simd::Level::Portable(s) => body(s $(, $arg)*),
                // SAFETY: the token exists only where its features were detected.
                #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
                $crate::cpu::simd::Level::Avx2(s) => unsafe { avx2(s $(, $arg)*) },
                // SAFETY: the token exists only where its features were detected.
                #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
                $crate::cpu::simd::Level::Avx512(s) => unsafe { avx512(s $(, $arg)*) },
            }
        }
    };
}
pub(crate) use simd;

#[cfg(test)]
mod tests {
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
                #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
                Level::Avx2(_) => 8,
                #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
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

    #[repr(align(64))]
    struct Aligned<T>([T; 32]);

    simd! {
        fn widening_loads(s, a: &Aligned<f16>, b: &Aligned<bf16>, c: &Aligned<i8>, out: &mut Aligned<f32>) {
            // SAFETY: 32 values are two registers of the widest level, and aligned to it.
            unsafe {
                let (even, odd) = (s.load_bf16_even(b.0.as_ptr()), s.load_bf16_odd(b.0.as_ptr()));
                let sum = s.mul_add(even, s.splat(1000.0), odd);
                s.store_aligned(out.0.as_mut_ptr(), sum);
                let again = s.load_aligned(out.0.as_ptr());
                let sum = s.add(s.mul(s.load_f16(a.0.as_ptr()), s.broadcast(&2.0)), again);
                let sum = s.mul_add(s.load_i8(c.0.as_ptr()), s.splat(0.125), sum);
                s.store_aligned(out.0.as_mut_ptr(), sum);
            }
        }
    }

    #[test]
    fn narrow_values_are_widened_in_their_lanes() {
        let half = Aligned(std::array::from_fn(|i| f16::from_f32(i as f32 * 0.5)));
        let brain = Aligned(std::array::from_fn(|i| bf16::from_f32(i as f32 * 0.25)));
        let bytes = Aligned(std::array::from_fn(|i| (i as i8 - 7) * 5));
        at_each_level(|level| {
            let mut out = Aligned([0.0; 32]);
            widening_loads(&half, &brain, &bytes, &mut out);
            for i in 0..lanes() {
                let (even, odd) = (brain.0[2 * i].to_f32(), brain.0[2 * i + 1].to_f32());
                let expected = half.0[i].to_f32() * 2.0 + (even * 1000.0 + odd);
                let expected = f32::from(bytes.0[i]) * 0.125 + expected;
                assert_eq!(out.0[i], expected, "{} lane {i}", level.name());
            }
        });
    }
}
