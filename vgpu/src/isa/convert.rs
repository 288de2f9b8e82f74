//! `cvt`: between any two scalar types, in any rounding.

use super::alu::{FTZ, SAT, relu};
use super::float::*;
use super::lanes::{Brain, Half, LANES, Lane, LaneFn, Slot, Wide, lane};
use crate::ptx::Type;
use Type::*;

/// Rounding to an integral value (`.rni` and its kin) instead of to a representable one.
pub(crate) const INTEGRAL: u32 = 32;

/// The conversion to `to` from `from`, or `None` where PTX has none.
pub(crate) fn select(to: Type, from: Type, imm: u32) -> Option<LaneFn> {
    // The pairs that kernels are full of get loops that vectorise; the rest share a general one.
    if imm == 0 {
        match (to, from) {
            (U64 | S64, U32) => return Some(lane!(|a: u32| -> u64 { a as u64 })),
            (U64 | S64, S32) => return Some(lane!(|a: i32| -> i64 { a as i64 })),
            (U32 | S32, U64 | S64) => return Some(lane!(|a: u64| -> u32 { a as u32 })),
            (U32 | S32, U16) => return Some(lane!(|a: u16| -> u32 { a as u32 })),
            (U32 | S32, S16) => return Some(lane!(|a: i16| -> i32 { a as i32 })),
            (U16 | S16, U32 | S32) => return Some(lane!(|a: u32| -> u16 { a as u16 })),
            (F64, F32) => return Some(lane!(|a: f32| -> f64 { a as f64 })),
            (F32, F64) => return Some(lane!(|a: f64| -> f32 { canonical(a as f32) })),
            (F32, F16) => return Some(lane!(|a: Half| -> f32 { canonical(a.f32()) })),
            (F32, Bf16) => return Some(lane!(|a: Brain| -> f32 { a.f32() })),
            (F16, F32) => return Some(lane!(|a: f32| -> u16 { f32_to_f16(a) })),
            (Bf16, F32) => return Some(lane!(|a: f32| -> u16 { f32_to_bf16(a) })),
            (F32, S32) => return Some(lane!(|a: i32| -> f32 { a as f32 })),
            (F32, U32) => return Some(lane!(|a: u32| -> f32 { a as f32 })),
            (F64, S32) => return Some(lane!(|a: i32| -> f64 { a as f64 })),
            (F64, U32) => return Some(lane!(|a: u32| -> f64 { a as f64 })),
            _ => {}
        }
    }
    if imm == INTEGRAL | Round::Zero as u32 {
        match (to, from) {
            (S32, F32) => return Some(lane!(|a: f32| -> i32 { a as i32 })),
            (U32, F32) => return Some(lane!(|a: f32| -> u32 { a as u32 })),
            _ => {}
        }
    }
    general(to, from)
}

/// A source value, exact.
#[derive(Clone, Copy)]
enum Value {
    Int(i128),
    Float(f64),
    /// A NaN that comes from a double: integers of 32 bits tell it from one that comes from a single.
    DoubleNan(f64),
}

trait Number: Lane {
    fn value(self, imm: u32) -> Value;
    /// # Safety
    /// The CPU must have AVX and FMA.
    unsafe fn from(value: Value, imm: u32) -> Self;
}

/// `x` rounded to an integral value.
#[inline(always)]
fn integral(x: f64, imm: u32) -> f64 {
    match Round::of(imm) {
        Round::Nearest => x.round_ties_even(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
        Round::Zero => x.trunc(),
    }
}

macro_rules! ints {
    ($($ty:ty),+) => {$(
        impl Number for $ty {
            #[inline(always)]
            fn value(self, _: u32) -> Value {
                Value::Int(self as i128)
            }
            #[inline(always)]
            unsafe fn from(value: Value, imm: u32) -> Self {
                match value {
                    // A NaN gives the top bit where a double or an integer of 64 bits is concerned, on an H100.
                    Value::Float(x) if x.is_nan() && <$ty>::BITS == 64 => (1u64 << (<$ty>::BITS - 1)) as $ty,
                    Value::DoubleNan(_) if <$ty>::BITS >= 32 => (1u64 << (<$ty>::BITS - 1)) as $ty,
                    Value::DoubleNan(_) => 0,
                    // Otherwise floats saturate, and a NaN gives 0, as Rust's casts do.
                    Value::Float(x) => integral(x, imm) as $ty,
                    Value::Int(i) if imm & SAT != 0 => i.clamp(<$ty>::MIN as i128, <$ty>::MAX as i128) as $ty,
                    Value::Int(i) => i as $ty,
                }
            }
        }
    )+};
}

ints!(u8, i8, u16, i16, u32, i32, u64, i64);

impl Number for f32 {
    #[inline(always)]
    fn value(self, imm: u32) -> Value {
        Value::Float(if imm & FTZ != 0 { flush(self) } else { self } as f64)
    }
    #[inline(always)]
    unsafe fn from(value: Value, imm: u32) -> Self {
        let round = Round::of(imm);
        let x = match value {
            // SAFETY: as the caller promises.
            Value::Int(i) => unsafe { int_to_f32(round, i) },
            Value::Float(x) if imm & INTEGRAL != 0 => integral(x, imm) as f32,
            // SAFETY: as the caller promises.
            Value::Float(x) | Value::DoubleNan(x) => unsafe { narrow_f64(round, x) },
        };
        let x = if imm & FTZ != 0 { flush(x) } else { x };
        let x = relu(x, imm);
        if imm & SAT != 0 { saturate(x) } else { canonical(x) }
    }
}

impl Number for f64 {
    #[inline(always)]
    fn value(self, _: u32) -> Value {
        if self.is_nan() { Value::DoubleNan(self) } else { Value::Float(self) }
    }
    #[inline(always)]
    unsafe fn from(value: Value, imm: u32) -> Self {
        let x = match value {
            // SAFETY: as the caller promises.
            Value::Int(i) => unsafe { int_to_f64(Round::of(imm), i) },
            Value::Float(x) if imm & INTEGRAL != 0 => integral(x, imm),
            Value::Float(x) | Value::DoubleNan(x) => x,
        };
        if imm & SAT == 0 {
            x
        } else if x > 0.0 {
            x.min(1.0)
        } else {
            0.0
        }
    }
}

/// A value on its way to a 16-bit format: rounded to odd, so that one rounding remains.
#[inline(always)]
unsafe fn to_single(value: Value, imm: u32) -> f32 {
    let x = match value {
        Value::Int(i) => {
            odd_f32(odd_sum((i >> 32) as f64 * 4_294_967_296.0, (i & 0xffff_ffff) as f64))
        }
        Value::Float(x) if imm & INTEGRAL != 0 => odd_f32(integral(x, imm)),
        Value::Float(x) | Value::DoubleNan(x) => odd_f32(x),
    };
    let x = if imm & SAT != 0 { saturate(x) } else { x };
    relu(x, imm)
}

impl Number for Half {
    #[inline(always)]
    fn value(self, _: u32) -> Value {
        Value::Float(self.f32() as f64)
    }
    #[inline(always)]
    unsafe fn from(value: Value, imm: u32) -> Self {
        // SAFETY: as the caller promises.
        Half(f32_to_f16_round(Round::of(imm), unsafe { to_single(value, imm) }))
    }
}

impl Number for Brain {
    #[inline(always)]
    fn value(self, _: u32) -> Value {
        Value::Float(self.f32() as f64)
    }
    #[inline(always)]
    unsafe fn from(value: Value, imm: u32) -> Self {
        // SAFETY: as the caller promises.
        Brain(f32_to_bf16_round(Round::of(imm), unsafe { to_single(value, imm) }))
    }
}

fn general(to: Type, from: Type) -> Option<LaneFn> {
    macro_rules! to {
        ($from:ty) => {
            match to {
                U8 => pair!($from, u8),
                S8 => pair!($from, i8),
                U16 => pair!($from, u16),
                S16 => pair!($from, i16),
                U32 => pair!($from, u32),
                S32 => pair!($from, i32),
                U64 => pair!($from, u64),
                S64 => pair!($from, i64),
                F16 => pair!($from, Half),
                Bf16 => pair!($from, Brain),
                F32 => pair!($from, f32),
                F64 => pair!($from, f64),
                _ => return None,
            }
        };
    }
    macro_rules! pair {
        ($from:ty, $to:ty) => {
            // SAFETY: lane functions only run on CPUs with AVX and FMA.
            lane!(|a: $from; imm| -> $to { unsafe { <$to as Number>::from(a.value(imm), imm) } })
        };
    }
    Some(match from {
        U8 => to!(u8),
        S8 => to!(i8),
        U16 => to!(u16),
        S16 => to!(i16),
        U32 => to!(u32),
        S32 => to!(i32),
        U64 => to!(u64),
        S64 => to!(i64),
        F16 => to!(Half),
        Bf16 => to!(Brain),
        F32 => to!(f32),
        F64 => to!(f64),
        _ => return None,
    })
}
