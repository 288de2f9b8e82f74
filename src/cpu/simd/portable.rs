//! The level that needs no instruction beyond the target's baseline.

use half::{bf16, f16};

use super::Simd;

/// What every machine of the target has: SSE2 on x86-64, NEON on aarch64.
#[derive(Clone, Copy, Debug)]
pub struct Portable(());

impl Portable {
    /// The token: every machine has this level.
    pub(super) fn new() -> Self {
        Self(())
    }
}

impl Simd for Portable {
    type F32 = [f32; 4];
    const LANES: usize = 4;
    const REGISTERS: usize = 16;

    #[inline(always)]
    unsafe fn assume() -> Self {
        Self(())
    }

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
    unsafe fn broadcast(self, from: *const f32) -> [f32; 4] {
        // SAFETY: the caller promises a readable value.
        unsafe { [*from; 4] }
    }

    #[inline(always)]
    unsafe fn load_aligned(self, from: *const f32) -> [f32; 4] {
        // SAFETY: the caller's promise.
        unsafe { self.load(from) }
    }

    #[inline(always)]
    unsafe fn store_aligned(self, to: *mut f32, a: [f32; 4]) {
        // SAFETY: the caller's promise.
        unsafe { self.store(to, a) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const f16) -> [f32; 4] {
        // SAFETY: the caller promises four readable values.
        unsafe { from.cast::<[f16; 4]>().read_unaligned().map(f16::to_f32) }
    }

    #[inline(always)]
    unsafe fn load_i8(self, from: *const i8) -> [f32; 4] {
        // SAFETY: the caller promises four readable values.
        unsafe { from.cast::<[i8; 4]>().read_unaligned().map(f32::from) }
    }

    #[inline(always)]
    unsafe fn load_bf16_even(self, from: *const bf16) -> [f32; 4] {
        // SAFETY: the caller promises eight readable values.
        let x = unsafe { from.cast::<[bf16; 8]>().read_unaligned() };
        [0, 1, 2, 3].map(|i| x[2 * i].to_f32())
    }

    #[inline(always)]
    unsafe fn load_bf16_odd(self, from: *const bf16) -> [f32; 4] {
        // SAFETY: the caller promises eight readable values.
        let x = unsafe { from.cast::<[bf16; 8]>().read_unaligned() };
        [0, 1, 2, 3].map(|i| x[2 * i + 1].to_f32())
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
