//! Number formats and roundings that Rust's primitives lack.
//!
//! Everything marked `inline(always)` is branch-free enough for LLVM to vectorise over a warp's 32 lanes.

use std::arch::asm;

/// Canonical NaN of single-precision results (PTX ISA, "Floating Point Instructions").
pub(crate) const NAN_F32: u32 = 0x7fff_ffff;

/// Rounding of a floating-point result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Round {
    /// To nearest, ties to even.
    Nearest = 0,
    /// Towards minus infinity.
    Down = 1,
    /// Towards plus infinity.
    Up = 2,
    /// Towards zero.
    Zero = 3,
}

impl Round {
    /// The rounding that the low bits of an instruction's immediate hold.
    #[inline(always)]
    pub(crate) fn of(imm: u32) -> Self {
        match imm & 3 {
            0 => Self::Nearest,
            1 => Self::Down,
            2 => Self::Up,
            _ => Self::Zero,
        }
    }

    /// MXCSR with this rounding, every exception masked.
    #[inline(always)]
    fn mxcsr(self) -> u32 {
        0x1f80 | (self as u32) << 13
    }
}

const MXCSR_DEFAULT: u32 = 0x1f80;

/// Wraps one SSE/AVX instruction in a change of the rounding mode. A Rust operator would not do:
/// the compiler may move it across the change.
macro_rules! rounded {
    ($(#[$doc:meta])* $name:ident, $code:literal, ($($arg:ident: $ty:ty),+) -> $out:ty) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// The CPU must have AVX and FMA.
        #[inline(always)]
        pub(crate) unsafe fn $name(round: Round, $($arg: $ty),+) -> $out {
            let (set, reset) = (round.mxcsr(), MXCSR_DEFAULT);
            let mut out: $out;
            // SAFETY: the block restores the rounding mode it changes; the caller vouches for the CPU.
            unsafe {
                asm!(
                    "ldmxcsr [{set}]", $code, "ldmxcsr [{reset}]",
                    set = in(reg) &set, reset = in(reg) &reset,
                    out = out(xmm_reg) out, $($arg = in(xmm_reg) $arg),+,
                    options(nostack)
                );
            }
            out
        }
    };
}

rounded!(/// `a + b`
    add_f32, "vaddss {out}, {a}, {b}", (a: f32, b: f32) -> f32);
rounded!(/// `a * b`
    mul_f32, "vmulss {out}, {a}, {b}", (a: f32, b: f32) -> f32);
rounded!(/// `a / b`
    div_f32, "vdivss {out}, {a}, {b}", (a: f32, b: f32) -> f32);
rounded!(/// Square root of `a`
    sqrt_f32, "vsqrtss {out}, {a}, {a}", (a: f32) -> f32);
rounded!(/// `a * b + c`
    fma_f32, "vmovaps {out}, {a}\nvfmadd213ss {out}, {b}, {c}", (a: f32, b: f32, c: f32) -> f32);
rounded!(/// `a + b`
    add_f64, "vaddsd {out}, {a}, {b}", (a: f64, b: f64) -> f64);
rounded!(/// `a * b`
    mul_f64, "vmulsd {out}, {a}, {b}", (a: f64, b: f64) -> f64);
rounded!(/// `a / b`
    div_f64, "vdivsd {out}, {a}, {b}", (a: f64, b: f64) -> f64);
rounded!(/// Square root of `a`
    sqrt_f64, "vsqrtsd {out}, {a}, {a}", (a: f64) -> f64);
rounded!(/// `a * b + c`
    fma_f64, "vmovapd {out}, {a}\nvfmadd213sd {out}, {b}, {c}", (a: f64, b: f64, c: f64) -> f64);
rounded!(/// Double to single
    narrow_f64, "vcvtsd2ss {out}, {a}, {a}", (a: f64) -> f32);

/// A signed integer of up to 65 bits to f64 or f32 in any rounding.
///
/// # Safety
/// The CPU must have AVX and FMA.
pub(crate) unsafe fn int_to_f64(round: Round, value: i128) -> f64 {
    // Two exact halves meet in one rounded addition.
    let high = (value >> 32) as f64 * 4_294_967_296.0;
    let low = (value & 0xffff_ffff) as f64;
    // SAFETY: as the caller promises.
    unsafe { add_f64(round, high, low) }
}

/// See [`int_to_f64`].
///
/// # Safety
/// The CPU must have AVX and FMA.
pub(crate) unsafe fn int_to_f32(round: Round, value: i128) -> f32 {
    // Rounding to odd on the way keeps the second rounding honest (53 >= 24 + 2 bits).
    let high = (value >> 32) as f64 * 4_294_967_296.0;
    let low = (value & 0xffff_ffff) as f64;
    // SAFETY: as the caller promises.
    unsafe { narrow_f64(round, odd_sum(high, low)) }
}

/// `a + b` rounded to odd: exact, or the truncated sum with its last bit set. A later rounding to
/// fewer than 51 bits then gives what a single rounding would have given.
#[inline(always)]
pub(crate) fn odd_sum(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let (a_part, b_part) = (sum - (sum - a), sum - a);
    let error = (a - a_part) + (b - b_part);
    // The sum moved away from zero where the error points back to it.
    let bits = sum.to_bits();
    let inexact = error != 0.0 && sum.is_finite();
    let away = inexact && ((error < 0.0) == (sum > 0.0));
    let truncated = bits.wrapping_sub(away as u64);
    f64::from_bits(if inexact { truncated | 1 } else { bits })
}

/// f64 to f32 rounded to odd, for a later rounding to f16 or bf16.
#[inline(always)]
pub(crate) fn odd_f32(x: f64) -> f32 {
    let near = x as f32;
    let back = near as f64;
    let inexact = back != x && x.is_finite();
    let away = inexact && back.abs() > x.abs();
    let bits = near.to_bits().wrapping_sub(away as u32);
    f32::from_bits(if inexact { bits | 1 } else { bits })
}

/// IEEE half to single, exact.
#[inline(always)]
pub(crate) fn f16_to_f32(h: u16) -> f32 {
    let magnitude = ((h & 0x7fff) as u32) << 13;
    let exponent = magnitude & 0x0f80_0000;
    let rebased = magnitude + (112 << 23);
    // A subnormal becomes normal by subtracting the implicit one that it lacks.
    let subnormal = (f32::from_bits(rebased + (1 << 23)) - f32::from_bits(113 << 23)).to_bits();
    let special = rebased + (112 << 23);
    let bits = if exponent == 0x0f80_0000 {
        special
    } else if exponent == 0 {
        subnormal
    } else {
        rebased
    };
    f32::from_bits(bits | ((h & 0x8000) as u32) << 16)
}

/// Single to half, to nearest even; NaN becomes the canonical 0x7fff.
#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = bits & 0x8000_0000;
    let magnitude = bits ^ sign;
    let large = if magnitude > 0x7f80_0000 { 0x7fff } else { sign >> 16 | 0x7c00 };
    // Adding 0.5 aligns the bits so that the addition itself rounds.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000) | sign >> 16;
    let odd = (magnitude >> 13) & 1;
    let normal = magnitude.wrapping_add(0xc800_0fff).wrapping_add(odd) >> 13 & 0xffff | sign >> 16;
    let out = if magnitude >= 0x4780_0000 {
        large
    } else if magnitude < 0x3880_0000 {
        small
    } else {
        normal
    };
    out as u16
}

/// bfloat16 to single, exact.
#[inline(always)]
pub(crate) fn bf16_to_f32(h: u16) -> f32 {
    f32::from_bits((h as u32) << 16)
}

/// Single to bfloat16, to nearest even; NaN becomes the canonical 0x7fff.
#[inline(always)]
pub(crate) fn f32_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff).wrapping_add(bits >> 16 & 1) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fff } else { rounded as u16 }
}

/// Single to a 16-bit format, in any rounding, from a value that may itself be rounded to odd.
#[inline(always)]
fn narrow16(
    round: Round,
    x: f32,
    mantissa_bits: u32,
    min_exponent: i32,
    max_finite: u16,
    nearest: u16,
) -> u16 {
    if round == Round::Nearest || !x.is_finite() {
        return nearest;
    }
    let sign = (x.to_bits() >> 16 & 0x8000) as u16;
    let magnitude = x.abs();
    // Step of the target format at this magnitude.
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(min_exponent);
    let step = 2f64.powi(exponent - mantissa_bits as i32);
    let units = magnitude as f64 / step;
    let up = match round {
        Round::Up => sign == 0,
        Round::Down => sign != 0,
        _ => false,
    };
    let whole = if up { units.ceil() } else { units.floor() };
    // Subnormals and normals share one ruler: exponent field and mantissa are one integer.
    let base = ((exponent - min_exponent) as u64) << mantissa_bits;
    let bits = base + whole as u64;
    let infinity = max_finite as u64 + 1;
    let limit = if up { infinity } else { max_finite as u64 };
    sign | bits.min(limit) as u16
}

/// Single to half in any rounding.
#[inline(always)]
pub(crate) fn f32_to_f16_round(round: Round, x: f32) -> u16 {
    narrow16(round, x, 10, -14, 0x7bff, f32_to_f16(x))
}

/// Single to bfloat16 in any rounding.
#[inline(always)]
pub(crate) fn f32_to_bf16_round(round: Round, x: f32) -> u16 {
    narrow16(round, x, 7, -126, 0x7f7f, f32_to_bf16(x))
}

/// Single to tf32 (19 bits in a 32-bit register), ties away from zero as `cvt.rna` asks.
#[inline(always)]
pub(crate) fn f32_to_tf32(x: f32) -> u32 {
    let bits = x.to_bits();
    // The payload of a NaN is cut, and nothing set in its place: one with low bits alone becomes an infinity.
    let half = if x.is_finite() { 0x1000 } else { 0 };
    bits.wrapping_add(half) & 0xffff_e000
}

/// Subnormals to zero of the same sign.
#[inline(always)]
pub(crate) fn flush(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits })
}

/// Clamp to [0, 1], NaN to +0.
#[inline(always)]
pub(crate) fn saturate(x: f32) -> f32 {
    let low = if x > 0.0 { x } else { 0.0 };
    if low < 1.0 { low } else { 1.0 }
}

/// NaN results of single-precision arithmetic have one bit pattern.
#[inline(always)]
pub(crate) fn canonical(x: f32) -> f32 {
    // On the bits: the compiler may take one NaN for another, since its own have no fixed pattern.
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { NAN_F32 } else { bits })
}

/// IEEE minimumNumber or maximumNumber; with `nan` a NaN operand wins.
#[inline(always)]
pub(crate) fn min_max_f32(a: f32, b: f32, max: bool, nan: bool) -> f32 {
    let swap = if max { a < b } else { b < a };
    let picked = if swap { b } else { a };
    // Equal operands differ at most in the sign of zero: -0 is below +0.
    let zero = if max { a.to_bits() & b.to_bits() } else { a.to_bits() | b.to_bits() };
    let ordered = if a == b { f32::from_bits(zero) } else { picked };
    let canonical = f32::from_bits(NAN_F32);
    match (a.is_nan(), b.is_nan()) {
        (false, false) => ordered,
        (true, true) => canonical,
        _ if nan => canonical,
        (true, false) => b,
        (false, true) => a,
    }
}

/// See [`min_max_f32`].
#[inline(always)]
pub(crate) fn min_max_f64(a: f64, b: f64, max: bool) -> f64 {
    if a.is_nan() {
        b
    } else if b.is_nan() {
        a
    } else if a == b {
        f64::from_bits(if max { a.to_bits() & b.to_bits() } else { a.to_bits() | b.to_bits() })
    } else if (a < b) == max {
        b
    } else {
        a
    }
}

/// `2^x` within 2 ulp, the error that `ex2.approx.f32` is allowed (CUDA math API, `__exp2f`).
#[inline(always)]
pub(crate) fn exp2(x: f32) -> f32 {
    let clamped = x.clamp(-160.0, 130.0);
    let whole = clamped.round_ties_even();
    let f = clamped - whole;
    // Taylor series of exp(f ln 2) for |f| <= 0.5: the first term left out is below 2^-27.
    let p = 1.525_273_4e-5_f32;
    let p = p.mul_add(f, 1.540_353e-4);
    let p = p.mul_add(f, 1.333_355_8e-3);
    let p = p.mul_add(f, 9.618_129e-3);
    let p = p.mul_add(f, 5.550_411e-2);
    let p = p.mul_add(f, 2.402_265e-1);
    let p = p.mul_add(f, std::f32::consts::LN_2);
    let p = p.mul_add(f, 1.0);
    // Two factors, so that results down to the subnormals scale exactly once.
    let n = whole as i32;
    let half = n >> 1;
    let scale = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
    let y = p * scale(half) * scale(n - half);
    if x.is_nan() { f32::from_bits(NAN_F32) } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Correctly rounded conversion by search: the candidates around `x` in the target format.
    fn reference16(round: Round, x: f64, decode: impl Fn(u16) -> f64, infinity: u16) -> u16 {
        let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
        let magnitude = x.abs();
        let below = (0..infinity).rev().find(|b| decode(*b) <= magnitude).unwrap_or(0);
        let (low, high) =
            (decode(below), if below + 1 < infinity { decode(below + 1) } else { f64::INFINITY });
        let up = match round {
            Round::Zero => false,
            Round::Up => sign == 0,
            Round::Down => sign != 0,
            Round::Nearest => {
                // The value that would follow the largest finite one decides overflow.
                let next = if high.is_infinite() { low + (low - decode(below - 1)) } else { high };
                let middle = (low + next) / 2.0;
                magnitude > middle || (magnitude == middle && below & 1 == 1)
            }
        };
        sign | if magnitude == low || !up { below } else { below + 1 }
    }

    fn samples() -> impl Iterator<Item = f32> {
        let edges = [
            0.0f32, -0.0, 1.0, 65504.0, 65519.9, 65520.0, 6.1e-5, 5.96e-8, 2.98e-8, 2.9e-8, 3.4e38,
            1e-40,
        ];
        let mut state = 0x9e37_79b9u32;
        let random = std::iter::repeat_with(move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            // Exponents where half has values, so that few samples are trivial.
            f32::from_bits((state & 0x807f_ffff) | (100 + (state >> 23) % 45) << 23)
        });
        edges.into_iter().flat_map(|e| [e, -e]).chain(random.take(300))
    }

    #[test]
    fn halves_round_as_a_search_says() {
        for x in samples() {
            for round in [Round::Nearest, Round::Down, Round::Up, Round::Zero] {
                let half = reference16(round, x as f64, |b| f16_to_f32(b) as f64, 0x7c00);
                assert_eq!(f32_to_f16_round(round, x), half, "f16 {round:?} {x:e}");
                let brain = reference16(round, x as f64, |b| bf16_to_f32(b) as f64, 0x7f80);
                assert_eq!(f32_to_bf16_round(round, x), brain, "bf16 {round:?} {x:e}");
            }
        }
    }

    #[test]
    fn every_half_survives_a_round_trip() {
        for h in 0..=u16::MAX {
            if h & 0x7fff <= 0x7c00 {
                assert_eq!(f32_to_f16(f16_to_f32(h)), h);
            }
            if h & 0x7fff <= 0x7f80 {
                assert_eq!(f32_to_bf16(bf16_to_f32(h)), h);
            }
        }
    }

    #[test]
    fn exp2_is_within_two_ulp() {
        for i in -30_000..30_000 {
            let x = i as f32 * 0.004_2;
            let exact = (x as f64).exp2();
            let ulp = (f32::from_bits((exact as f32).to_bits() + 1) - exact as f32) as f64;
            assert!(
                (exp2(x) as f64 - exact).abs() <= 2.0 * ulp,
                "{x}: {} against {exact}",
                exp2(x)
            );
        }
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2(f32::INFINITY), f32::INFINITY);
    }

    #[test]
    fn directed_sums_bracket_the_exact_one() {
        // SAFETY: guarded by the check of the CPU.
        unsafe {
            if !(is_x86_feature_detected!("avx") && is_x86_feature_detected!("fma")) {
                return;
            }
            let (a, b) = (1.0f32, 1e-10f32);
            assert_eq!(add_f32(Round::Down, a, b), 1.0);
            assert_eq!(add_f32(Round::Up, a, b), f32::from_bits(1.0f32.to_bits() + 1));
            assert_eq!(add_f32(Round::Zero, -a, -b), -1.0);
            assert_eq!(1.0 + 1e-10f32, 1.0);
            assert_eq!(int_to_f32(Round::Zero, u64::MAX as i128), 18_446_742_974_197_923_840.0);
            assert_eq!(int_to_f32(Round::Nearest, u64::MAX as i128), u64::MAX as f32);
            assert_eq!(int_to_f64(Round::Nearest, i64::MIN as i128), i64::MIN as f64);
        }
    }
}
