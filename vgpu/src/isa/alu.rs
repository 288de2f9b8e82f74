//! Arithmetic: which lane function an opcode means.

use super::float::*;
use super::lanes::{Brain, Half, LANES, Lane, LaneFn, Slot, Wide, lane};
use crate::ptx::Type;
use Type::*;

/// Bits of the immediate that arithmetic with modifiers takes; the low two are the [`Round`].
pub(crate) const FTZ: u32 = 4;
/// Clamp to [0, 1].
pub(crate) const SAT: u32 = 8;
/// Clamp negative results to 0.
pub(crate) const RELU: u32 = 16;

#[inline(always)]
fn input(x: f32, imm: u32) -> f32 {
    if imm & FTZ != 0 { flush(x) } else { x }
}

#[inline(always)]
fn output(x: f32, imm: u32) -> f32 {
    let x = if imm & FTZ != 0 { flush(x) } else { x };
    if imm & SAT != 0 { saturate(x) } else { canonical(x) }
}

#[inline(always)]
pub(super) fn relu(x: f32, imm: u32) -> f32 {
    // Negative zero becomes positive, as on a card.
    if imm & RELU != 0 && x <= 0.0 { 0.0 } else { x }
}

#[inline(always)]
fn halves(x: u32) -> (Half, Half) {
    (Half(x as u16), Half((x >> 16) as u16))
}

#[inline(always)]
fn brains(x: u32) -> (Brain, Brain) {
    (Brain(x as u16), Brain((x >> 16) as u16))
}

#[inline(always)]
fn join(low: u16, high: u16) -> u32 {
    low as u32 | (high as u32) << 16
}

/// f32 result of half arithmetic to half, with `.ftz`, `.sat` and `.relu`.
#[inline(always)]
fn half(x: f32, imm: u32) -> u16 {
    let x = if imm & SAT != 0 { saturate(x) } else { relu(x, imm) };
    let bits = f32_to_f16(x);
    if imm & FTZ != 0 && bits & 0x7c00 == 0 { bits & 0x8000 } else { bits }
}

#[inline(always)]
fn brain(x: f32, imm: u32) -> u16 {
    f32_to_bf16(relu(x, imm))
}

#[inline(always)]
fn half_in(h: Half, imm: u32) -> f32 {
    // A half's subnormals are normal singles, so flushing happens on the half's own bits.
    let bits = if imm & FTZ != 0 && h.0 & 0x7c00 == 0 { h.0 & 0x8000 } else { h.0 };
    f16_to_f32(bits)
}

/// Half fma: the double sum is exact, or so lopsided that rounding it cannot change the half.
#[inline(always)]
fn half_fma(a: f32, b: f32, c: f32) -> f32 {
    odd_f32(a as f64 * b as f64 + c as f64)
}

/// bfloat16 fma: the product is exact in double, the sum is rounded to odd.
#[inline(always)]
fn brain_fma(a: f32, b: f32, c: f32) -> f32 {
    let (product, c) = (a as f64 * b as f64, c as f64);
    odd_f32(if product.is_finite() && c.is_finite() { odd_sum(product, c) } else { product + c })
}

/// The four forms of a two-operand half operation: f16, f16x2, bf16, bf16x2.
macro_rules! half_forms {
    ($ty:expr, |$a:ident, $b:ident, $imm:ident| $e:expr) => {
        match $ty {
            F16 => lane!(|x: Half, y: Half; $imm| -> u16 { let ($a, $b) = (half_in(x, $imm), half_in(y, $imm)); half($e, $imm) }),
            F16x2 => lane!(|x: u32, y: u32; $imm| -> u32 {
                let ((x0, x1), (y0, y1)) = (halves(x), halves(y));
                let ($a, $b) = (half_in(x0, $imm), half_in(y0, $imm));
                let low = half($e, $imm);
                let ($a, $b) = (half_in(x1, $imm), half_in(y1, $imm));
                join(low, half($e, $imm))
            }),
            Bf16 => lane!(|x: Brain, y: Brain; $imm| -> u16 { let ($a, $b) = (x.f32(), y.f32()); brain($e, $imm) }),
            Bf16x2 => lane!(|x: u32, y: u32; $imm| -> u32 {
                let ((x0, x1), (y0, y1)) = (brains(x), brains(y));
                let ($a, $b) = (x0.f32(), y0.f32());
                let low = brain($e, $imm);
                let ($a, $b) = (x1.f32(), y1.f32());
                join(low, brain($e, $imm))
            }),
            _ => return None,
        }
    };
}

/// f32 arithmetic: plain, with clamps, and in a directed rounding.
macro_rules! f32_forms {
    ($imm:expr, |$($a:ident),+| $plain:expr, $directed:ident) => {
        if $imm == 0 {
            lane!(|$($a: f32),+| -> f32 { canonical($plain) })
        } else if $imm & 3 == 0 {
            lane!(|$($a: f32),+; imm| -> f32 { $(let $a = input($a, imm);)+ output($plain, imm) })
        } else {
            lane!(|$($a: f32),+; imm| -> f32 {
                $(let $a = input($a, imm);)+
                // SAFETY: lane functions only run on CPUs with AVX and FMA.
                output(unsafe { $directed(Round::of(imm), $($a),+) }, imm)
            })
        }
    };
}

macro_rules! f64_forms {
    ($imm:expr, |$($a:ident),+| $plain:expr, $directed:ident) => {
        if $imm == 0 {
            lane!(|$($a: f64),+| -> f64 { $plain })
        } else {
            lane!(|$($a: f64),+; imm| -> f64 {
                // SAFETY: lane functions only run on CPUs with AVX and FMA.
                unsafe { $directed(Round::of(imm), $($a),+) }
            })
        }
    };
}

/// The same wrapping operation for every integer width.
macro_rules! int_forms {
    ($ty:expr, |$($a:ident),+| $e:expr) => {
        match $ty {
            U16 | B16 => lane!(|$($a: u16),+| -> u16 { $e }),
            S16 => lane!(|$($a: i16),+| -> i16 { $e }),
            U32 | B32 => lane!(|$($a: u32),+| -> u32 { $e }),
            S32 => lane!(|$($a: i32),+| -> i32 { $e }),
            U64 | B64 => lane!(|$($a: u64),+| -> u64 { $e }),
            S64 => lane!(|$($a: i64),+| -> i64 { $e }),
            _ => return None,
        }
    };
}

/// Operations of one source.
pub(crate) fn unary(op: &str, ty: Type, imm: u32) -> Option<LaneFn> {
    Some(match (op, ty) {
        ("mov", B16 | U16 | S16) => lane!(|a: u16| -> u16 { a }),
        ("mov", B32 | U32 | S32 | F32) => lane!(|a: u32| -> u32 { a }),
        ("mov", B64 | U64 | S64 | F64) => lane!(|a: u64| -> u64 { a }),
        ("abs", S16) => lane!(|a: i16| -> i16 { a.wrapping_abs() }),
        ("abs", S32) => lane!(|a: i32| -> i32 { a.wrapping_abs() }),
        ("abs", S64) => lane!(|a: i64| -> i64 { a.wrapping_abs() }),
        ("abs", F32) => lane!(|a: f32; imm| -> f32 { input(a, imm).abs() }),
        ("abs", F64) => lane!(|a: f64| -> f64 { a.abs() }),
        ("abs", F16 | Bf16) => lane!(|a: u16| -> u16 { a & 0x7fff }),
        ("abs", F16x2 | Bf16x2) => lane!(|a: u32| -> u32 { a & 0x7fff_7fff }),
        ("neg", S16) => lane!(|a: i16| -> i16 { a.wrapping_neg() }),
        ("neg", S32) => lane!(|a: i32| -> i32 { a.wrapping_neg() }),
        ("neg", S64) => lane!(|a: i64| -> i64 { a.wrapping_neg() }),
        ("neg", F32) => lane!(|a: f32; imm| -> f32 { -input(a, imm) }),
        ("neg", F64) => lane!(|a: f64| -> f64 { -a }),
        ("neg", F16 | Bf16) => lane!(|a: u16| -> u16 { a ^ 0x8000 }),
        ("neg", F16x2 | Bf16x2) => lane!(|a: u32| -> u32 { a ^ 0x8000_8000 }),
        ("not", B16) => lane!(|a: u16| -> u16 { !a }),
        ("not", B32) => lane!(|a: u32| -> u32 { !a }),
        ("not", B64) => lane!(|a: u64| -> u64 { !a }),
        ("cnot", B16) => lane!(|a: u16| -> u16 { (a == 0) as u16 }),
        ("cnot", B32) => lane!(|a: u32| -> u32 { (a == 0) as u32 }),
        ("cnot", B64) => lane!(|a: u64| -> u64 { (a == 0) as u64 }),
        ("popc", B32) => lane!(|a: u32| -> u32 { a.count_ones() }),
        ("popc", B64) => lane!(|a: u64| -> u32 { a.count_ones() }),
        ("clz", B32) => lane!(|a: u32| -> u32 { a.leading_zeros() }),
        ("clz", B64) => lane!(|a: u64| -> u32 { a.leading_zeros() }),
        ("brev", B32) => lane!(|a: u32| -> u32 { a.reverse_bits() }),
        ("brev", B64) => lane!(|a: u64| -> u64 { a.reverse_bits() }),
        // The position of the highest bit that is not a copy of the sign; all ones when there is none.
        ("bfind", U32) => lane!(|a: u32| -> u32 { 31u32.wrapping_sub(a.leading_zeros()) }),
        ("bfind", S32) => {
            lane!(|a: i32| -> u32 { 31u32.wrapping_sub((a ^ (a >> 31)).leading_zeros()) })
        }
        ("bfind", U64) => lane!(|a: u64| -> u32 { 63u32.wrapping_sub(a.leading_zeros()) }),
        ("bfind", S64) => {
            lane!(|a: i64| -> u32 { 63u32.wrapping_sub((a ^ (a >> 63)).leading_zeros()) })
        }
        ("bfind.shiftamt", U32) => {
            lane!(|a: u32| -> u32 { if a == 0 { !0 } else { a.leading_zeros() } })
        }
        ("bfind.shiftamt", S32) => {
            lane!(|a: i32| -> u32 {
                let m = a ^ (a >> 31);
                if m == 0 { !0 } else { m.leading_zeros() }
            })
        }
        ("bfind.shiftamt", U64) => {
            lane!(|a: u64| -> u32 { if a == 0 { !0 } else { a.leading_zeros() } })
        }
        ("bfind.shiftamt", S64) => {
            lane!(|a: i64| -> u32 {
                let m = a ^ (a >> 63);
                if m == 0 { !0 } else { m.leading_zeros() }
            })
        }
        ("sqrt", F32) => f32_forms!(imm, |a| a.sqrt(), sqrt_f32),
        ("sqrt", F64) => f64_forms!(imm, |a| a.sqrt(), sqrt_f64),
        ("rcp", F32) => {
            if imm & 3 == 0 {
                lane!(|a: f32; imm| -> f32 { output(1.0 / input(a, imm), imm) })
            } else {
                lane!(|a: f32; imm| -> f32 {
                    // SAFETY: lane functions only run on CPUs with AVX and FMA.
                    output(unsafe { div_f32(Round::of(imm), 1.0, input(a, imm)) }, imm)
                })
            }
        }
        ("rcp", F64) => lane!(|a: f64; imm| -> f64 {
            // SAFETY: lane functions only run on CPUs with AVX and FMA.
            unsafe { div_f64(Round::of(imm), 1.0, a) }
        }),
        // The hardware's seed for its double-precision division: 20 bits, low word zero.
        ("rcp.approx", F64) => lane!(|a: f64| -> f64 {
            f64::from_bits((1.0 / flush64(a)).to_bits() & 0xffff_ffff_0000_0000)
        }),
        // With `.ftz` of the upper words alone, like the seed above.
        ("rsqrt.approx", F64) => lane!(|a: f64; imm| -> f64 {
            let upper = |x: f64| f64::from_bits(x.to_bits() & 0xffff_ffff_0000_0000);
            if imm & FTZ != 0 { upper(1.0 / upper(flush64(a)).sqrt()) } else { 1.0 / a.sqrt() }
        }),
        ("rsqrt.approx", F32) => {
            lane!(|a: f32; imm| -> f32 { output((1.0 / (input(a, imm) as f64).sqrt()) as f32, imm) })
        }
        ("ex2.approx", F32) => lane!(|a: f32; imm| -> f32 { output(exp2(input(a, imm)), imm) }),
        ("ex2.approx", F16) => lane!(|a: Half; imm| -> u16 { half(exp2(half_in(a, imm)), imm) }),
        ("ex2.approx", F16x2) => lane!(|a: u32; imm| -> u32 {
            let (x, y) = halves(a);
            join(half(exp2(half_in(x, imm)), imm), half(exp2(half_in(y, imm)), imm))
        }),
        ("ex2.approx", Bf16) => {
            lane!(|a: Brain; imm| -> u16 { brain(flush(exp2(flush(a.f32()))), imm) })
        }
        ("ex2.approx", Bf16x2) => lane!(|a: u32; imm| -> u32 {
            let (x, y) = brains(a);
            let ex2 = |a: Brain| brain(flush(exp2(flush(a.f32()))), imm);
            join(ex2(x), ex2(y))
        }),
        ("lg2.approx", F32) => lane!(|a: f32; imm| -> f32 { output(input(a, imm).log2(), imm) }),
        ("sin.approx", F32) => lane!(|a: f32; imm| -> f32 { output(input(a, imm).sin(), imm) }),
        ("cos.approx", F32) => lane!(|a: f32; imm| -> f32 { output(input(a, imm).cos(), imm) }),
        ("tanh.approx", F32) => lane!(|a: f32| -> f32 { canonical(a.tanh()) }),
        ("tanh.approx", F16) => lane!(|a: Half| -> u16 { half(a.f32().tanh(), 0) }),
        ("tanh.approx", F16x2) => lane!(|a: u32| -> u32 {
            let (x, y) = halves(a);
            join(half(x.f32().tanh(), 0), half(y.f32().tanh(), 0))
        }),
        ("tanh.approx", Bf16) => lane!(|a: Brain| -> u16 { brain(a.f32().tanh(), 0) }),
        ("tanh.approx", Bf16x2) => lane!(|a: u32| -> u32 {
            let (x, y) = brains(a);
            join(brain(x.f32().tanh(), 0), brain(y.f32().tanh(), 0))
        }),
        _ => return None,
    })
}

#[inline(always)]
fn flush64(x: f64) -> f64 {
    if x.is_subnormal() { 0f64.copysign(x) } else { x }
}

/// Operations of two sources.
pub(crate) fn binary(op: &str, ty: Type, imm: u32) -> Option<LaneFn> {
    Some(match (op, ty) {
        ("add", F32) => f32_forms!(imm, |a, b| a + b, add_f32),
        ("add", F64) => f64_forms!(imm, |a, b| a + b, add_f64),
        ("sub", F32) => {
            if imm == 0 {
                lane!(|a: f32, b: f32| -> f32 { canonical(a - b) })
            } else if imm & 3 == 0 {
                lane!(|a: f32, b: f32; imm| -> f32 { output(input(a, imm) - input(b, imm), imm) })
            } else {
                lane!(|a: f32, b: f32; imm| -> f32 {
                    // SAFETY: lane functions only run on CPUs with AVX and FMA.
                    output(unsafe { add_f32(Round::of(imm), input(a, imm), -input(b, imm)) }, imm)
                })
            }
        }
        ("sub", F64) => {
            if imm == 0 {
                lane!(|a: f64, b: f64| -> f64 { a - b })
            } else {
                lane!(|a: f64, b: f64; imm| -> f64 {
                    // SAFETY: lane functions only run on CPUs with AVX and FMA.
                    unsafe { add_f64(Round::of(imm), a, -b) }
                })
            }
        }
        ("mul", F32) => f32_forms!(imm, |a, b| a * b, mul_f32),
        ("mul", F64) => f64_forms!(imm, |a, b| a * b, mul_f64),
        ("div", F32) => f32_forms!(imm, |a, b| a / b, div_f32),
        // By way of the reciprocal, which a divisor of over 2^126 does not have.
        ("div.approx", F32) => lane!(|a: f32, b: f32; imm| -> f32 {
            let (a, b) = (input(a, imm), input(b, imm));
            let reciprocal = if b.abs() > 2f32.powi(126) { 0.0f32.copysign(b) } else { 1.0 };
            output(if reciprocal == 0.0 { a * reciprocal } else { a / b }, imm)
        }),
        ("div", F64) => f64_forms!(imm, |a, b| a / b, div_f64),
        ("add", F16 | F16x2 | Bf16 | Bf16x2) => half_forms!(ty, |a, b, imm| a + b),
        ("sub", F16 | F16x2 | Bf16 | Bf16x2) => half_forms!(ty, |a, b, imm| a - b),
        ("mul", F16 | F16x2 | Bf16 | Bf16x2) => half_forms!(ty, |a, b, imm| a * b),
        ("min", F16 | F16x2 | Bf16 | Bf16x2) => {
            half_forms!(ty, |a, b, imm| min_max_f32(a, b, false, false))
        }
        ("max", F16 | F16x2 | Bf16 | Bf16x2) => {
            half_forms!(ty, |a, b, imm| min_max_f32(a, b, true, false))
        }
        ("min.NaN", F16 | F16x2 | Bf16 | Bf16x2) => {
            half_forms!(ty, |a, b, imm| min_max_f32(a, b, false, true))
        }
        ("max.NaN", F16 | F16x2 | Bf16 | Bf16x2) => {
            half_forms!(ty, |a, b, imm| min_max_f32(a, b, true, true))
        }
        ("min", F32) => {
            lane!(|a: f32, b: f32; imm| -> f32 { min_max_f32(input(a, imm), input(b, imm), false, false) })
        }
        ("max", F32) => {
            lane!(|a: f32, b: f32; imm| -> f32 { min_max_f32(input(a, imm), input(b, imm), true, false) })
        }
        ("min.NaN", F32) => {
            lane!(|a: f32, b: f32; imm| -> f32 { min_max_f32(input(a, imm), input(b, imm), false, true) })
        }
        ("max.NaN", F32) => {
            lane!(|a: f32, b: f32; imm| -> f32 { min_max_f32(input(a, imm), input(b, imm), true, true) })
        }
        ("min", F64) => lane!(|a: f64, b: f64| -> f64 { min_max_f64(a, b, false) }),
        ("max", F64) => lane!(|a: f64, b: f64| -> f64 { min_max_f64(a, b, true) }),
        // PTX gives the result the sign of its first operand, and `copysign` puts that operand first.
        ("copysign", F32) => lane!(|a: f32, b: f32| -> f32 { b.copysign(a) }),
        ("copysign", F64) => lane!(|a: f64, b: f64| -> f64 { b.copysign(a) }),
        ("add", _) => int_forms!(ty, |a, b| a.wrapping_add(b)),
        ("sub", _) => int_forms!(ty, |a, b| a.wrapping_sub(b)),
        ("add.sat", S32) => lane!(|a: i32, b: i32| -> i32 { a.saturating_add(b) }),
        ("sub.sat", S32) => lane!(|a: i32, b: i32| -> i32 { a.saturating_sub(b) }),
        ("min", _) => int_forms!(ty, |a, b| a.min(b)),
        ("max", _) => int_forms!(ty, |a, b| a.max(b)),
        ("min.relu", S32) => lane!(|a: i32, b: i32| -> i32 { a.min(b).max(0) }),
        ("max.relu", S32) => lane!(|a: i32, b: i32| -> i32 { a.max(b).max(0) }),
        ("mul.lo", _) => int_forms!(ty, |a, b| a.wrapping_mul(b)),
        ("mul.hi", U16) => lane!(|a: u16, b: u16| -> u16 { ((a as u32 * b as u32) >> 16) as u16 }),
        ("mul.hi", S16) => lane!(|a: i16, b: i16| -> i16 { ((a as i32 * b as i32) >> 16) as i16 }),
        ("mul.hi", U32) => lane!(|a: u32, b: u32| -> u32 { ((a as u64 * b as u64) >> 32) as u32 }),
        ("mul.hi", S32) => lane!(|a: i32, b: i32| -> i32 { ((a as i64 * b as i64) >> 32) as i32 }),
        ("mul.hi", U64) => {
            lane!(|a: u64, b: u64| -> u64 { ((a as u128 * b as u128) >> 64) as u64 })
        }
        ("mul.hi", S64) => {
            lane!(|a: i64, b: i64| -> i64 { ((a as i128 * b as i128) >> 64) as i64 })
        }
        ("mul.wide", U16) => lane!(|a: u16, b: u16| -> u32 { a as u32 * b as u32 }),
        ("mul.wide", S16) => lane!(|a: i16, b: i16| -> i32 { a as i32 * b as i32 }),
        ("mul.wide", U32) => lane!(|a: u32, b: u32| -> u64 { a as u64 * b as u64 }),
        ("mul.wide", S32) => lane!(|a: i32, b: i32| -> i64 { a as i64 * b as i64 }),
        ("mul24.lo", U32) => {
            lane!(|a: u32, b: u32| -> u32 { (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff) })
        }
        ("mul24.lo", S32) => {
            lane!(|a: i32, b: i32| -> i32 { (a << 8 >> 8).wrapping_mul(b << 8 >> 8) })
        }
        // Division by zero has an unspecified result; all ones is what the hardware's routine gives.
        ("div", U16) => lane!(|a: u16, b: u16| -> u16 { a.checked_div(b).unwrap_or(!0) }),
        ("div", U32) => lane!(|a: u32, b: u32| -> u32 { a.checked_div(b).unwrap_or(!0) }),
        ("div", U64) => lane!(|a: u64, b: u64| -> u64 { a.checked_div(b).unwrap_or(!0) }),
        ("div", S16) => {
            lane!(|a: i16, b: i16| -> i16 { if b == 0 { -1 } else { a.wrapping_div(b) } })
        }
        ("div", S32) => {
            lane!(|a: i32, b: i32| -> i32 { if b == 0 { -1 } else { a.wrapping_div(b) } })
        }
        ("div", S64) => {
            lane!(|a: i64, b: i64| -> i64 { if b == 0 { -1 } else { a.wrapping_div(b) } })
        }
        // By zero PTX leaves it open; cards give all ones.
        ("rem", U16) => lane!(|a: u16, b: u16| -> u16 { a.checked_rem(b).unwrap_or(!0) }),
        ("rem", U32) => lane!(|a: u32, b: u32| -> u32 { a.checked_rem(b).unwrap_or(!0) }),
        ("rem", U64) => lane!(|a: u64, b: u64| -> u64 { a.checked_rem(b).unwrap_or(!0) }),
        ("rem", S16) => {
            lane!(|a: i16, b: i16| -> i16 { if b == 0 { -1 } else { a.wrapping_rem(b) } })
        }
        ("rem", S32) => {
            lane!(|a: i32, b: i32| -> i32 { if b == 0 { -1 } else { a.wrapping_rem(b) } })
        }
        ("rem", S64) => {
            lane!(|a: i64, b: i64| -> i64 { if b == 0 { -1 } else { a.wrapping_rem(b) } })
        }
        ("and", B16) => lane!(|a: u16, b: u16| -> u16 { a & b }),
        ("and", B32) => lane!(|a: u32, b: u32| -> u32 { a & b }),
        ("and", B64) => lane!(|a: u64, b: u64| -> u64 { a & b }),
        ("or", B16) => lane!(|a: u16, b: u16| -> u16 { a | b }),
        ("or", B32) => lane!(|a: u32, b: u32| -> u32 { a | b }),
        ("or", B64) => lane!(|a: u64, b: u64| -> u64 { a | b }),
        ("xor", B16) => lane!(|a: u16, b: u16| -> u16 { a ^ b }),
        ("xor", B32) => lane!(|a: u32, b: u32| -> u32 { a ^ b }),
        ("xor", B64) => lane!(|a: u64, b: u64| -> u64 { a ^ b }),
        // Shifts clamp: a count past the width gives zero or the sign.
        ("shl", B16) => lane!(|a: u16, b: u32| -> u16 { if b > 15 { 0 } else { a << b } }),
        ("shl", B32) => lane!(|a: u32, b: u32| -> u32 { if b > 31 { 0 } else { a << b } }),
        ("shl", B64) => lane!(|a: u64, b: u32| -> u64 { if b > 63 { 0 } else { a << b } }),
        ("shr", U16 | B16) => lane!(|a: u16, b: u32| -> u16 { if b > 15 { 0 } else { a >> b } }),
        ("shr", U32 | B32) => lane!(|a: u32, b: u32| -> u32 { if b > 31 { 0 } else { a >> b } }),
        ("shr", U64 | B64) => lane!(|a: u64, b: u32| -> u64 { if b > 63 { 0 } else { a >> b } }),
        ("shr", S16) => lane!(|a: i16, b: u32| -> i16 { a >> b.min(15) }),
        ("shr", S32) => lane!(|a: i32, b: u32| -> i32 { a >> b.min(31) }),
        ("shr", S64) => lane!(|a: i64, b: u32| -> i64 { a >> b.min(63) }),
        ("bmsk.clamp", B32) => lane!(|a: u32, b: u32| -> u32 { mask(a.min(32), b.min(32)) }),
        ("bmsk.wrap", B32) => lane!(|a: u32, b: u32| -> u32 { mask(a & 31, b & 31) }),
        ("szext.clamp", U32) => {
            lane!(|a: u32, b: u32| -> u32 { if b > 31 { a } else { a & mask(0, b) } })
        }
        ("szext.clamp", S32) => lane!(|a: i32, b: u32| -> i32 { sign_extend(a, b.min(32)) }),
        ("szext.wrap", U32) => lane!(|a: u32, b: u32| -> u32 { a & mask(0, b & 31) }),
        ("szext.wrap", S32) => lane!(|a: i32, b: u32| -> i32 { sign_extend(a, b & 31) }),
        ("pack16", _) => lane!(|a: u16, b: u16| -> u32 { join(a, b) }),
        ("pack32", _) => lane!(|a: u32, b: u32| -> u64 { a as u64 | (b as u64) << 32 }),
        ("cvt2", F16x2) => lane!(|a: f32, b: f32; imm| -> u32 {
            join(to_half(b, imm), to_half(a, imm))
        }),
        ("cvt2", Bf16x2) => lane!(|a: f32, b: f32; imm| -> u32 {
            join(to_brain(b, imm), to_brain(a, imm))
        }),
        _ => return None,
    })
}

#[inline(always)]
fn to_half(x: f32, imm: u32) -> u16 {
    let x = if imm & SAT != 0 { saturate(x) } else { relu(x, imm) };
    if imm & 3 == 0 { f32_to_f16(x) } else { f32_to_f16_round(Round::of(imm), x) }
}

#[inline(always)]
fn to_brain(x: f32, imm: u32) -> u16 {
    let x = if imm & SAT != 0 { saturate(x) } else { relu(x, imm) };
    if imm & 3 == 0 { f32_to_bf16(x) } else { f32_to_bf16_round(Round::of(imm), x) }
}

/// `count` ones from bit `from` up.
#[inline(always)]
fn mask(from: u32, count: u32) -> u32 {
    let ones = ((1u64 << count) - 1) as u32;
    ((ones as u64) << from) as u32
}

#[inline(always)]
fn sign_extend(a: i32, bits: u32) -> i32 {
    if bits == 0 { 0 } else { a << (32 - bits) >> (32 - bits) }
}

/// Operations of three sources.
pub(crate) fn ternary(op: &str, ty: Type, imm: u32) -> Option<LaneFn> {
    Some(match (op, ty) {
        ("fma", F32) => f32_forms!(imm, |a, b, c| a.mul_add(b, c), fma_f32),
        ("fma", F64) => f64_forms!(imm, |a, b, c| a.mul_add(b, c), fma_f64),
        ("fma", F16) => lane!(|a: Half, b: Half, c: Half; imm| -> u16 {
            half(half_fma(half_in(a, imm), half_in(b, imm), half_in(c, imm)), imm)
        }),
        ("fma", F16x2) => lane!(|a: u32, b: u32, c: u32; imm| -> u32 {
            let ((a0, a1), (b0, b1), (c0, c1)) = (halves(a), halves(b), halves(c));
            join(
                half(half_fma(half_in(a0, imm), half_in(b0, imm), half_in(c0, imm)), imm),
                half(half_fma(half_in(a1, imm), half_in(b1, imm), half_in(c1, imm)), imm),
            )
        }),
        ("fma", Bf16) => lane!(|a: Brain, b: Brain, c: Brain; imm| -> u16 {
            brain(brain_fma(a.f32(), b.f32(), c.f32()), imm)
        }),
        ("fma", Bf16x2) => lane!(|a: u32, b: u32, c: u32; imm| -> u32 {
            let ((a0, a1), (b0, b1), (c0, c1)) = (brains(a), brains(b), brains(c));
            join(
                brain(brain_fma(a0.f32(), b0.f32(), c0.f32()), imm),
                brain(brain_fma(a1.f32(), b1.f32(), c1.f32()), imm),
            )
        }),
        ("mad.lo", _) => int_forms!(ty, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        ("mad.lo.sat", S32) => {
            lane!(|a: i32, b: i32, c: i32| -> i32 { a.wrapping_mul(b).saturating_add(c) })
        }
        ("mad.hi", U32) => lane!(|a: u32, b: u32, c: u32| -> u32 {
            (((a as u64 * b as u64) >> 32) as u32).wrapping_add(c)
        }),
        ("mad.hi", S32) => lane!(|a: i32, b: i32, c: i32| -> i32 {
            (((a as i64 * b as i64) >> 32) as i32).wrapping_add(c)
        }),
        ("mad.hi", U64) => {
            lane!(|a: u64, b: u64, c: u64| -> u64 {
                (((a as u128 * b as u128) >> 64) as u64).wrapping_add(c)
            })
        }
        ("mad.hi", S64) => {
            lane!(|a: i64, b: i64, c: i64| -> i64 {
                (((a as i128 * b as i128) >> 64) as i64).wrapping_add(c)
            })
        }
        ("mad.wide", U16) => {
            lane!(|a: u16, b: u16, c: u32| -> u32 { (a as u32 * b as u32).wrapping_add(c) })
        }
        ("mad.wide", S16) => {
            lane!(|a: i16, b: i16, c: i32| -> i32 { (a as i32 * b as i32).wrapping_add(c) })
        }
        ("mad.wide", U32) => {
            lane!(|a: u32, b: u32, c: u64| -> u64 { (a as u64 * b as u64).wrapping_add(c) })
        }
        ("mad.wide", S32) => {
            lane!(|a: i32, b: i32, c: i64| -> i64 { (a as i64 * b as i64).wrapping_add(c) })
        }
        ("mad24.lo", U32) => {
            lane!(|a: u32, b: u32, c: u32| -> u32 {
                (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff).wrapping_add(c)
            })
        }
        ("mad24.lo", S32) => {
            lane!(|a: i32, b: i32, c: i32| -> i32 {
                (a << 8 >> 8).wrapping_mul(b << 8 >> 8).wrapping_add(c)
            })
        }
        ("sad", U32) => lane!(|a: u32, b: u32, c: u32| -> u32 { a.abs_diff(b).wrapping_add(c) }),
        ("sad", S32) => lane!(|a: i32, b: i32, c: u32| -> u32 { a.abs_diff(b).wrapping_add(c) }),
        ("sad", U64) => lane!(|a: u64, b: u64, c: u64| -> u64 { a.abs_diff(b).wrapping_add(c) }),
        ("sad", S64) => lane!(|a: i64, b: i64, c: u64| -> u64 { a.abs_diff(b).wrapping_add(c) }),
        ("sad", U16) => lane!(|a: u16, b: u16, c: u16| -> u16 { a.abs_diff(b).wrapping_add(c) }),
        ("sad", S16) => lane!(|a: i16, b: i16, c: u16| -> u16 { a.abs_diff(b).wrapping_add(c) }),
        ("bfe", U32) => lane!(|a: u32, b: u32, c: u32| -> u32 {
            let (from, count) = (b & 255, c & 255);
            let shifted = if from > 31 { 0 } else { a >> from };
            if count > 31 { shifted } else { shifted & ((1 << count) - 1) }
        }),
        ("bfe", S32) => lane!(|a: i32, b: u32, c: u32| -> i32 {
            let (from, count) = ((b & 255).min(31), c & 255);
            let shifted = a >> from;
            if count == 0 {
                0
            } else if count > 31 - from {
                shifted
            } else {
                sign_extend(shifted, count)
            }
        }),
        ("bfe", U64) => lane!(|a: u64, b: u32, c: u32| -> u64 {
            let (from, count) = (b & 255, c & 255);
            let shifted = if from > 63 { 0 } else { a >> from };
            if count > 63 { shifted } else { shifted & ((1 << count) - 1) }
        }),
        ("bfe", S64) => lane!(|a: i64, b: u32, c: u32| -> i64 {
            let (from, count) = ((b & 255).min(63), c & 255);
            let shifted = a >> from;
            if count == 0 {
                0
            } else if count > 63 - from {
                shifted
            } else {
                shifted << (64 - count) >> (64 - count)
            }
        }),
        ("shf.l.wrap", B32) => {
            lane!(|a: u32, b: u32, c: u32| -> u32 { funnel(a, b, c & 31, true) })
        }
        ("shf.l.clamp", B32) => {
            lane!(|a: u32, b: u32, c: u32| -> u32 { funnel(a, b, c.min(32), true) })
        }
        ("shf.r.wrap", B32) => {
            lane!(|a: u32, b: u32, c: u32| -> u32 { funnel(a, b, c & 31, false) })
        }
        ("shf.r.clamp", B32) => {
            lane!(|a: u32, b: u32, c: u32| -> u32 { funnel(a, b, c.min(32), false) })
        }
        ("prmt", B32) => lane!(|a: u32, b: u32, c: u32| -> u32 {
            let bytes = a as u64 | (b as u64) << 32;
            let mut out = 0;
            for i in 0..4 {
                let select = c >> (4 * i);
                let byte = (bytes >> (8 * (select & 7))) as u32 & 255;
                let picked =
                    if select & 8 != 0 { if byte & 128 != 0 { 255 } else { 0 } } else { byte };
                out |= picked << (8 * i);
            }
            out
        }),
        ("lop3", B32) => lane!(|a: u32, b: u32, c: u32; imm| -> u32 {
            // The table's bit i is the result for the inputs whose bits spell i.
            let mut out = 0;
            let pick = |bit: u32| if imm >> bit & 1 != 0 { !0u32 } else { 0 };
            out |= pick(0) & !a & !b & !c;
            out |= pick(1) & !a & !b & c;
            out |= pick(2) & !a & b & !c;
            out |= pick(3) & !a & b & c;
            out |= pick(4) & a & !b & !c;
            out |= pick(5) & a & !b & c;
            out |= pick(6) & a & b & !c;
            out |= pick(7) & a & b & c;
            out
        }),
        // Byte by byte; bits 0 and 1 of the immediate say which of a and b are signed.
        ("dp4a", _) => lane!(|a: u32, b: u32, c: u32; imm| -> u32 {
            let mut sum = c;
            for i in 0..4 {
                let x = (a >> (8 * i)) as u8;
                let y = (b >> (8 * i)) as u8;
                let x = if imm & 1 != 0 { x as i8 as i32 } else { x as i32 };
                let y = if imm & 2 != 0 { y as i8 as i32 } else { y as i32 };
                sum = sum.wrapping_add((x * y) as u32);
            }
            sum
        }),
        // Bit 2 of the immediate picks the high half of b.
        ("dp2a", _) => lane!(|a: u32, b: u32, c: u32; imm| -> u32 {
            let mut sum = c;
            let b = if imm & 4 != 0 { b >> 16 } else { b };
            for i in 0..2 {
                let x = (a >> (16 * i)) as u16;
                let y = (b >> (8 * i)) as u8;
                let x = if imm & 1 != 0 { x as i16 as i32 } else { x as i32 };
                let y = if imm & 2 != 0 { y as i8 as i32 } else { y as i32 };
                sum = sum.wrapping_add((x.wrapping_mul(y)) as u32);
            }
            sum
        }),
        // Third source is the length and position in one register: position in the low byte.
        ("bfi", B32) => lane!(|a: u32, b: u32, c: u32| -> u32 {
            let (from, count) = (c & 255, c >> 8 & 255);
            if from > 31 {
                b
            } else {
                let m = mask(from, count.min(32));
                (b & !m) | (a << from & m)
            }
        }),
        ("bfi", B64) => lane!(|a: u64, b: u64, c: u32| -> u64 {
            let (from, count) = (c & 255, (c >> 8 & 255).min(64));
            if from > 63 {
                b
            } else {
                let m = (((1u128 << count) - 1) << from) as u64;
                (b & !m) | (a << from & m)
            }
        }),
        // First source picks, as a predicate spread over a register.
        ("slct32", _) => lane!(|a: u32, b: u32, c: i32| -> u32 { if c >= 0 { a } else { b } }),
        ("slct64", _) => lane!(|a: u64, b: u64, c: i32| -> u64 { if c >= 0 { a } else { b } }),
        _ => return None,
    })
}

#[inline(always)]
fn funnel(low: u32, high: u32, count: u32, left: bool) -> u32 {
    let both = low as u64 | (high as u64) << 32;
    if left { ((both << count) >> 32) as u32 } else { (both >> count) as u32 }
}
