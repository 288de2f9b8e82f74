//! Transcendental functions in f32 that loops can vectorise, with their errors.
//!
//! Each is a straight line of arithmetic over a [`Simd`] token: no branch, no table, no call, so that
//! the compiler turns a loop over them into vector code, and so that an element's bits do not depend
//! on its neighbours. Polynomials are minimax fits (Remez exchange in 40 digits) of the functions
//! named beside them, their coefficients rounded to f32.
//!
//! | function     | largest error, ulp of f32 | domain |
//! |--------------|---------------------------|--------|
//! | `exp`        | 1.5 (subnormal results: 1 unit of 2^-149 more) | all; overflows to infinity above 88.7228 |
//! | `exp_normal` | 1.5 | 0 below -87.6, infinity above 88.3 |
//! | `expm1`      | 2 | \[0, 60\] |
//! | `tanh`       | 4 | all |
//! | `erf`        | 2 | all |
//! | `sigmoid`    | 3 | above -87; smaller results flush as `exp` does |
//!
//! Without fused multiply-add (the portable level of x86-64) `exp` may lose another ulp; the others
//! stay within twice their figure. A NaN gives a NaN everywhere.

use super::simd::Simd;
use crate::types::Real;

/// Largest |n| survives adding and subtracting this: it leaves `x` rounded to an integer, and that
/// integer in the low bits.
const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
/// [`ROUND`], leaving the integer plus 127 in the low bits: the biased exponent of 2^n.
const BIASED_ROUND: f32 = ROUND + 127.0;
const LN2_HIGH: f32 = 0.693_145_75; // ln 2 in 16 bits: n * LN2_HIGH is exact for |n| < 256
const LN2_LOW: f32 = 1.428_606_8e-6; // ln 2 - LN2_HIGH

/// `(e^r - 1 - r) / r^2` for |r| <= ln(2)/2; error of the whole e^r 3e-9.
const EXPM1: [f32; 5] = [0.5, 0.166_665_18, 0.041_666_206, 0.008_368_947, 0.001_395_058_1];
/// `(2^r - 1) / r` for |r| <= 1/2; relative error of 2^r 1.0e-7.
#[allow(clippy::approx_constant)] // near ln 2, but the fit's value
const EXP2: [f32; 5] = [0.693_147, 0.240_222_45, 0.055_507_08, 0.009_671_371, 0.001_327_200_4];
/// `erf(x)/x - 1` in x^2 for |x| <= 1; relative error 1.2e-9.
const ERF_SMALL: [f32; 7] = [
    0.128_379_17,
    -0.376_126_26,
    0.112_835_854,
    -0.026_853_813,
    0.005_188_327_7,
    -0.000_801_019_37,
    7.853_861e-5,
];
/// `log2(erfc(x))` for 1 <= x <= 4; error of erfc 1.0e-9.
const LOG2_ERFC: [f32; 7] = [
    -0.000_510_319_95,
    -1.625_975,
    -0.920_765_1,
    -0.148_651_42,
    0.031_458_385,
    -0.004_240_946_4,
    0.000_267_725_55,
];

#[inline(always)]
fn polynomial<S: Simd, const N: usize>(s: S, x: f32, coefficients: [f32; N]) -> f32 {
    let mut sum = coefficients[N - 1];
    for i in (0..N - 1).rev() {
        sum = s.fma(sum, x, coefficients[i]);
    }
    sum
}

/// `x = n ln 2 + r`, |r| <= ln(2)/2: `(n, e^r - 1)`.
#[inline(always)]
fn reduce<S: Simd>(s: S, x: f32) -> (i32, f32) {
    let rounded = s.fma(x, std::f32::consts::LOG2_E, ROUND);
    let n = rounded.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let n_float = rounded - ROUND;
    let r = s.fma(n_float, -LN2_LOW, s.fma(n_float, -LN2_HIGH, x));
    (n, s.fma(polynomial(s, r, EXPM1), r * r, r))
}

/// 2^n for -126 <= n <= 127; any other n gives some float.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// e^x.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: f32) -> f32 {
    // The limits lie beyond the last values that are neither 0 nor infinity. Written so that NaN passes.
    let x = if x < -104.0 { -104.0 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let (n, m) = reduce(s, x);
    // In two factors, since 2^n alone overflows at 128 and is subnormal below -126.
    let half = n >> 1;
    (m + 1.0) * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// e^x where that is a normal number: 0 below -87.6, infinity above 88.3. Cheaper than [`exp`] by a quarter.
#[inline(always)]
pub fn exp_normal<S: Simd>(s: S, x: f32) -> f32 {
    // Limits that round to the exponents of 0 and infinity. Written so that NaN passes.
    let x = if x < -87.8 { -87.8 } else { x };
    let x = if x > 88.8 { 88.8 } else { x };
    let rounded = s.fma(x, std::f32::consts::LOG2_E, BIASED_ROUND);
    let n = rounded - BIASED_ROUND;
    let r = s.fma(n, -LN2_LOW, s.fma(n, -LN2_HIGH, x));
    let m = s.fma(polynomial(s, r, EXPM1), r * r, r);
    (m + 1.0) * f32::from_bits(rounded.to_bits() << 23)
}

/// 2^x for x <= 0, in the lanes of a register: the exponential of softmax, whose largest argument is 0.
/// Relative error 2e-7; exactly 1 at 0, and 0 below -126.5.
#[inline(always)]
pub fn exp2_of_negative<S: Simd>(s: S, x: S::F32) -> S::F32 {
    // In this order of arguments a NaN in x passes.
    let x = s.max(s.splat(-127.0), x);
    // 2^-127, whose biased exponent is 0, comes out as 0.
    let shift = s.splat(BIASED_ROUND);
    let rounded = s.add(x, shift);
    let r = s.sub(x, s.sub(rounded, shift));
    let mut p = s.splat(EXP2[4]);
    for i in (0..4).rev() {
        p = s.mul_add(p, r, s.splat(EXP2[i]));
    }
    s.mul(s.mul_add(p, r, s.splat(1.0)), s.exponent(rounded))
}

/// e^x - 1 for 0 <= x <= 60.
#[inline(always)]
fn expm1<S: Simd>(s: S, x: f32) -> f32 {
    let (n, m) = reduce(s, x);
    let scale = power_of_two(n);
    s.fma(scale, m, scale - 1.0)
}

/// tanh(x).
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: f32) -> f32 {
    let a = x.abs();
    let a = if a > 10.0 { 10.0 } else { a }; // 1 - tanh(10) is a tenth of an ulp
    let e = expm1(s, a + a);
    (e / (e + 2.0)).copysign(x)
}

/// erf(x) = 2/sqrt(pi) * integral of e^(-t^2) from 0 to x.
#[inline(always)]
pub fn erf<S: Simd>(s: S, x: f32) -> f32 {
    let a = x.abs();
    let a = if a > 4.0 { 4.0 } else { a }; // 1 - erf(4) is a quarter of an ulp
    let small = s.fma(polynomial(s, a * a, ERF_SMALL), a, a);
    // erfc = 2^t, -26 <= t <= -2.6
    let t = polynomial(s, a, LOG2_ERFC);
    let rounded = t + BIASED_ROUND;
    let r = t - (rounded - BIASED_ROUND);
    let power = s.fma(polynomial(s, r, EXP2), r, 1.0) * f32::from_bits(rounded.to_bits() << 23);
    let large = 1.0 - power;
    (if a < 1.0 { small } else { large }).copysign(x)
}

/// erf(x) in f64, to a few ulp: the series `2/sqrt(pi) e^(-x^2) sum 2^n x^(2n+1) / (2n+1)!!`, whose
/// terms all have one sign (Abramowitz & Stegun 7.1.6). A reference: not fast.
pub fn erf_f64(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return 1f64.copysign(x); // erfc(6) = 2e-17
    }
    let (mut term, mut sum, mut odd) = (x, x, 1.0);
    while term.abs() > sum.abs() * 1e-17 {
        odd += 2.0;
        term *= 2.0 * x * x / odd;
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-x * x).exp() * sum
}

/// The functions above by the type an operation computes in: f32 as vectors, f64 (the reference
/// that gradients are checked with) by the standard library.
pub trait Math: Real {
    /// e^x.
    fn vector_exp<S: Simd>(self, s: S) -> Self;
    /// e^x where that is a normal number, else 0 or infinity.
    fn vector_exp_normal<S: Simd>(self, s: S) -> Self;
    /// tanh(x).
    fn vector_tanh<S: Simd>(self, s: S) -> Self;
    /// erf(x).
    fn vector_erf<S: Simd>(self, s: S) -> Self;
    /// `self * b + c`.
    fn vector_fma<S: Simd>(self, s: S, b: Self, c: Self) -> Self;

    /// 1 / (1 + e^-x).
    #[inline(always)]
    fn vector_sigmoid<S: Simd>(self, s: S) -> Self {
        Self::ONE / (Self::ONE + (-self).vector_exp_normal(s))
    }
}

impl Math for f32 {
    #[inline(always)]
    fn vector_exp<S: Simd>(self, s: S) -> Self {
        exp(s, self)
    }

    #[inline(always)]
    fn vector_exp_normal<S: Simd>(self, s: S) -> Self {
        exp_normal(s, self)
    }

    #[inline(always)]
    fn vector_tanh<S: Simd>(self, s: S) -> Self {
        tanh(s, self)
    }

    #[inline(always)]
    fn vector_erf<S: Simd>(self, s: S) -> Self {
        erf(s, self)
    }

    #[inline(always)]
    fn vector_fma<S: Simd>(self, s: S, b: Self, c: Self) -> Self {
        s.fma(self, b, c)
    }
}

impl Math for f64 {
    #[inline(always)]
    fn vector_exp<S: Simd>(self, _: S) -> Self {
        f64::exp(self)
    }

    #[inline(always)]
    fn vector_exp_normal<S: Simd>(self, _: S) -> Self {
        f64::exp(self)
    }

    #[inline(always)]
    fn vector_tanh<S: Simd>(self, _: S) -> Self {
        f64::tanh(self)
    }

    #[inline(always)]
    fn vector_erf<S: Simd>(self, _: S) -> Self {
        erf_f64(self)
    }

    #[inline(always)]
    fn vector_fma<S: Simd>(self, _: S, b: Self, c: Self) -> Self {
        self * b + c
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{Level, at_each_level, simd};

    simd! { fn exp_slice(s, x: &mut [f32]) { for x in x { *x = exp(s, *x); } } }
    simd! { fn exp_normal_slice(s, x: &mut [f32]) { for x in x { *x = exp_normal(s, *x); } } }
    simd! { fn tanh_slice(s, x: &mut [f32]) { for x in x { *x = tanh(s, *x); } } }
    simd! { fn erf_slice(s, x: &mut [f32]) { for x in x { *x = erf(s, *x); } } }
    simd! { fn sigmoid_slice(s, x: &mut [f32]) { for x in x { *x = x.vector_sigmoid(s); } } }

    /// Floats across [low, high]: equally spaced, and every power of two with neighbours.
    fn inputs(low: f32, high: f32) -> Vec<f32> {
        let n = 400_001;
        let even = (0..n).map(|i| low + (high - low) * (i as f32 / (n - 1) as f32));
        let powers = (-120..7).flat_map(|e| {
            let p = 2f32.powi(e);
            [p, f32::from_bits(p.to_bits() - 1), p * 1.337, -p, -p * 1.9]
        });
        even.chain(powers).filter(|x| (low..=high).contains(x)).collect()
    }

    /// The error in units of the last place of the exact result; subnormals count in units of 2^-149.
    fn ulps(got: f32, exact: f64) -> f64 {
        let ulp = 2f64.powi(exact.abs().log2().floor().max(-126.0) as i32 - 23);
        (f64::from(got) - exact).abs() / ulp
    }

    /// `limit` holds with fused multiply-add; the portable level may take twice that.
    fn check(f: fn(&mut [f32]), exact: fn(f64) -> f64, low: f32, high: f32, limit: f64) {
        let x = inputs(low, high);
        at_each_level(|level| {
            let limit = if matches!(level, Level::Portable(_)) { 2.0 * limit } else { limit };
            let mut y = x.clone();
            f(&mut y);
            for (x, y) in x.iter().zip(&y) {
                let error = ulps(*y, exact(f64::from(*x)));
                assert!(error <= limit, "{}: f({x:e}) = {y:e}, {error:.2} ulp", level.name());
            }
        });
    }

    #[test]
    fn exp_is_exact_to_the_stated_ulp() {
        check(exp_slice, f64::exp, -87.3, 88.72, 1.5);
        check(exp_slice, f64::exp, -103.9, -87.3, 2.5);
        check(exp_normal_slice, f64::exp, -87.3, 88.3, 1.5);
    }

    #[test]
    fn the_reference_erf_has_the_tabulated_values() {
        // Abramowitz & Stegun table 7.1; their last digit is the 10th.
        let table = [(0.0, 0.0), (0.5, 0.5204998778), (1.0, 0.8427007929), (2.0, 0.9953222650)];
        for (x, y) in table {
            assert!((erf_f64(x) - y).abs() <= 5.1e-11, "erf({x}) = {}", erf_f64(x));
            assert_eq!(erf_f64(-x), -erf_f64(x));
        }
        assert!(erf_f64(f64::NAN).is_nan());
        assert_eq!(erf_f64(f64::INFINITY), 1.0);
    }

    #[test]
    fn tanh_is_exact_to_the_stated_ulp() {
        check(tanh_slice, f64::tanh, -12.0, 12.0, 4.0);
    }

    #[test]
    fn erf_is_exact_to_the_stated_ulp() {
        check(erf_slice, erf_f64, -6.0, 6.0, 2.0);
    }

    #[test]
    fn sigmoid_is_exact_to_the_stated_ulp() {
        check(sigmoid_slice, |x| 1.0 / (1.0 + (-x).exp()), -87.0, 60.0, 3.0);
    }

    simd! {
        fn exp2_slice(s, x: &mut [f32]) {
            for x in x.chunks_exact_mut(S::LANES) {
                // SAFETY: the chunk has as many values as a register.
                unsafe { s.store(x.as_mut_ptr(), exp2_of_negative(s, s.load(x.as_ptr()))) }
            }
        }
    }

    #[test]
    fn exp2_is_exact_to_the_stated_error() {
        let n = 160_000;
        let mut x: Vec<f32> = (0..n).map(|i| -130.0 * (i as f32 / n as f32).powi(3)).collect();
        x[1..4].copy_from_slice(&[f32::NAN, f32::NEG_INFINITY, -0.0]);
        at_each_level(|level| {
            let mut y = x.clone();
            exp2_slice(&mut y);
            assert!(y[0] == 1.0 && y[1].is_nan() && y[2] == 0.0 && y[3] == 1.0, "{}", level.name());
            for (x, y) in x.iter().zip(&y).skip(4) {
                let exact = if *x < -126.5 { 0.0 } else { f64::from(*x).exp2() };
                let error = (f64::from(*y) - exact).abs();
                // Either side of the limit, rounding decides between 0 and 2^-127.
                let tolerance = if *x < -126.0 { 1.3e-38 } else { 2e-7 * exact };
                assert!(error <= tolerance, "{}: 2^{x:e} = {y:e}", level.name());
            }
        });
    }

    #[test]
    fn special_values() {
        at_each_level(|_| {
            let (inf, nan) = (f32::INFINITY, f32::NAN);
            let run = |f: fn(&mut [f32]), x: f32| {
                let mut x = [x];
                f(&mut x);
                x[0]
            };
            for f in [exp_slice, exp_normal_slice, tanh_slice, erf_slice, sigmoid_slice] {
                assert!(run(f, nan).is_nan());
            }
            assert_eq!(
                [run(exp_slice, inf), run(exp_slice, -inf), run(exp_slice, 0.0)],
                [inf, 0.0, 1.0]
            );
            let normal = [inf, -inf, 0.0, 88.7, -87.8].map(|x| run(exp_normal_slice, x));
            assert_eq!(normal, [inf, 0.0, 1.0, inf, 0.0]);
            assert_eq!([run(tanh_slice, inf), run(tanh_slice, -inf)], [1.0, -1.0]);
            assert_eq!([run(erf_slice, inf), run(erf_slice, -inf)], [1.0, -1.0]);
            assert_eq!([run(sigmoid_slice, inf), run(sigmoid_slice, -inf)], [1.0, 0.0]);
            assert_eq!(run(tanh_slice, -0.0).to_bits(), (-0f32).to_bits());
            assert_eq!(run(erf_slice, -0.0).to_bits(), (-0f32).to_bits());
        });
    }

    #[test]
    fn body_and_tail_give_equal_bits() {
        let x: Vec<f32> = (0..67).map(|i| (i as f32 - 31.0) * 0.173).collect();
        at_each_level(|level| {
            for f in [exp_slice, tanh_slice, erf_slice, sigmoid_slice] {
                let mut whole = x.clone();
                f(&mut whole);
                for i in 0..x.len() {
                    let mut alone = [x[i]];
                    f(&mut alone);
                    assert_eq!(
                        alone[0].to_bits(),
                        whole[i].to_bits(),
                        "{} element {i}",
                        level.name()
                    );
                }
            }
        });
    }
}
