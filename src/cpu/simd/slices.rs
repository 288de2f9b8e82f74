//! What kernels do to whole slices: conversions between stored and computed types, sums in a fixed order, transposes.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::simd;
use crate::types::{DType, Element, Float, Real};

/// Converts stored values to the type they are computed in: f32, or f64 for f64.
///
/// # Panics
/// If the lengths differ.
#[inline(always)]
pub fn widen<T: Float>(from: &[T], to: &mut [T::Acc]) {
    match T::DTYPE {
        DType::F16 => {
            let from: &[u16] = bytemuck::cast_slice(from);
            let to: &mut [f32] = bytemuck::cast_slice_mut(to);
            assert_eq!(from.len(), to.len());
            for (from, to) in from.iter().zip(to) {
                *to = f16_value(*from);
            }
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

/// `f16::to_f32` without a branch, so that loops over it vectorise.
#[inline(always)]
fn f16_value(bits: u16) -> f32 {
    /// What the exponents differ by, and the exponent of the smallest normal number in f16.
    const OFFSET: u32 = (127 - 15) << 23;
    const SMALLEST: u32 = (127 - 14) << 23;
    let (sign, rest) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff));
    let shifted = rest << 13;
    // Behind the point of the smallest normal number stand the bits of a smaller one.
    let subnormal = f32::from_bits(shifted | SMALLEST) - f32::from_bits(SMALLEST);
    let quiet = if rest > 0x7c00 { 0x0040_0000 } else { 0 };
    let special = shifted | 0x7f80_0000 | quiet;
    let finite = if rest < 0x0400 { subnormal.to_bits() } else { shifted.wrapping_add(OFFSET) };
    f32::from_bits(sign | if rest >= 0x7c00 { special } else { finite })
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

    use super::super::at_each_level;
    use super::*;

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
    fn f16_values_are_those_of_half() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f16_value(bits), f16::from_bits(bits).to_f32());
            let equal = ours.to_bits() == theirs.to_bits();
            assert!(equal || ours.is_nan() && theirs.is_nan(), "{bits:#x}: {ours} {theirs}");
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
