//! A register of a warp, and functions over its 32 lanes.

use super::float::{bf16_to_f32, f16_to_f32};

/// Threads of a warp.
pub(crate) const LANES: usize = 32;

/// One 32-bit register of all lanes. A 64-bit register is two slots side by side, a 16-bit one sits
/// in the low half of each lane.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Slot(pub(crate) [u32; LANES]);

impl Slot {
    pub(crate) const ZERO: Self = Self([0; LANES]);
}

/// Result of a lane function: room for 64 bits a lane.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Wide(pub(crate) [u64; LANES]);

impl Wide {
    pub(crate) const ZERO: Self = Self([0; LANES]);

    pub(crate) fn narrow(&self) -> &[u32; LANES] {
        // SAFETY: a Wide is 64 aligned u32.
        unsafe { &*(self.0.as_ptr().cast()) }
    }
}

/// Computes all 32 lanes of a result from up to three source registers and an immediate.
///
/// # Safety
/// Every source that the function reads must point at one slot (two for a 64-bit type) of initialised
/// lanes, and the CPU must have the features of [`supported`].
pub(crate) type LaneFn = unsafe fn(&mut Wide, *const Slot, *const Slot, *const Slot, u32);

/// Compares two registers and gives a bit a lane. Safety as for [`LaneFn`].
pub(crate) type CompareFn = unsafe fn(*const Slot, *const Slot) -> u32;

/// Whether this CPU can run lane functions.
pub(crate) fn supported() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt")
}

/// A type as it lies in the lanes of a register.
pub(crate) trait Lane: Copy {
    /// # Safety
    /// As for [`LaneFn`]; `i < 32`.
    unsafe fn get(from: *const Slot, i: usize) -> Self;
    fn put(self, to: &mut Wide, i: usize);
}

macro_rules! lane_types {
    ($($ty:ty, $load:ty: |$raw:ident| $from:expr, |$value:ident| $to:expr;)+) => {$(
        impl Lane for $ty {
            #[inline(always)]
            unsafe fn get(from: *const Slot, i: usize) -> Self {
                // SAFETY: as the caller promises.
                let $raw = unsafe { *from.cast::<$load>().add(i) };
                $from
            }
            #[inline(always)]
            fn put(self, to: &mut Wide, i: usize) {
                let $value = self;
                let bits: $load = $to;
                // SAFETY: 32 lanes of at most 64 bits fit a Wide.
                unsafe { *to.0.as_mut_ptr().cast::<$load>().add(i) = bits }
            }
        }
    )+};
}

/// An IEEE half, kept as single while it is computed with.
#[derive(Clone, Copy)]
pub(crate) struct Half(pub(crate) u16);
/// A bfloat16.
#[derive(Clone, Copy)]
pub(crate) struct Brain(pub(crate) u16);

impl Half {
    #[inline(always)]
    pub(crate) fn f32(self) -> f32 {
        f16_to_f32(self.0)
    }
}

impl Brain {
    #[inline(always)]
    pub(crate) fn f32(self) -> f32 {
        bf16_to_f32(self.0)
    }
}

lane_types! {
    u8, u32: |r| r as u8, |v| v as u32;
    i8, u32: |r| r as i8, |v| v as i32 as u32;
    u16, u32: |r| r as u16, |v| v as u32;
    i16, u32: |r| r as i16, |v| v as i32 as u32;
    Half, u32: |r| Half(r as u16), |v| v.0 as u32;
    Brain, u32: |r| Brain(r as u16), |v| v.0 as u32;
    u32, u32: |r| r, |v| v;
    i32, u32: |r| r as i32, |v| v as u32;
    f32, u32: |r| f32::from_bits(r), |v| v.to_bits();
    u64, u64: |r| r, |v| v;
    i64, u64: |r| r as i64, |v| v as u64;
    f64, u64: |r| f64::from_bits(r), |v| v.to_bits();
}

/// A [`LaneFn`] from an expression over one lane: `lane!(|a: f32, b: f32| -> f32 { a + b })`.
/// A name after a semicolon receives the instruction's immediate.
macro_rules! lane {
    (|$a:ident: $ta:ty $(, $b:ident: $tb:ty $(, $c:ident: $tc:ty)?)? $(; $imm:ident)?| -> $out:ty $body:block) => {{
        #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
        #[allow(unused_variables)]
        unsafe fn all(to: &mut Wide, pa: *const Slot, pb: *const Slot, pc: *const Slot, imm: u32) {
            $(let $imm = imm;)?
            for i in 0..LANES {
                // SAFETY: the sources hold 32 lanes of these types (see LaneFn).
                let $a: $ta = unsafe { Lane::get(pa, i) };
                $(
                    // SAFETY: likewise.
                    let $b: $tb = unsafe { Lane::get(pb, i) };
                    $(
                        // SAFETY: likewise.
                        let $c: $tc = unsafe { Lane::get(pc, i) };
                    )?
                )?
                let out: $out = $body;
                Lane::put(out, to, i);
            }
        }
        all as LaneFn
    }};
}
pub(crate) use lane;

/// A [`CompareFn`] from a condition over one lane.
macro_rules! compare {
    ($ty:ty, |$a:ident, $b:ident| $body:expr) => {{
        #[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt")]
        #[allow(unused_variables)]
        unsafe fn all(pa: *const Slot, pb: *const Slot) -> u32 {
            let mut mask = 0;
            for i in 0..LANES {
                // SAFETY: the sources hold 32 lanes of this type (see LaneFn).
                let ($a, $b): ($ty, $ty) = unsafe { (Lane::get(pa, i), Lane::get(pb, i)) };
                mask |= ($body as u32) << i;
            }
            mask
        }
        all as CompareFn
    }};
}
pub(crate) use compare;
