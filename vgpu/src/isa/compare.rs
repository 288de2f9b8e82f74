//! Comparisons: which condition `setp` and `set` mean.

use super::lanes::{Brain, CompareFn, Half, LANES, Lane, Slot, compare};
use crate::ptx::Type;
use Type::*;

macro_rules! int_compare {
    ($op:expr, $ty:ty) => {
        match $op {
            "eq" => compare!($ty, |a, b| a == b),
            "ne" => compare!($ty, |a, b| a != b),
            "lt" | "lo" => compare!($ty, |a, b| a < b),
            "le" | "ls" => compare!($ty, |a, b| a <= b),
            "gt" | "hi" => compare!($ty, |a, b| a > b),
            "ge" | "hs" => compare!($ty, |a, b| a >= b),
            _ => return None,
        }
    };
}

/// Ordered comparisons are false, unordered ones true, when an operand is NaN.
macro_rules! float_compare {
    ($op:expr, $ty:ty, |$x:ident| $value:expr) => {{
        #[inline(always)]
        fn value($x: $ty) -> impl PartialOrd + Copy + NaN {
            $value
        }
        match $op {
            "eq" => compare!($ty, |a, b| value(a) == value(b)),
            "ne" => compare!($ty, |a, b| value(a) < value(b) || value(a) > value(b)),
            "lt" => compare!($ty, |a, b| value(a) < value(b)),
            "le" => compare!($ty, |a, b| value(a) <= value(b)),
            "gt" => compare!($ty, |a, b| value(a) > value(b)),
            "ge" => compare!($ty, |a, b| value(a) >= value(b)),
            "equ" => compare!($ty, |a, b| value(a) == value(b) || value(a).nan() || value(b).nan()),
            "neu" => compare!($ty, |a, b| value(a) != value(b)),
            "ltu" => compare!($ty, |a, b| value(a) < value(b) || value(a).nan() || value(b).nan()),
            "leu" => compare!($ty, |a, b| value(a) <= value(b) || value(a).nan() || value(b).nan()),
            "gtu" => compare!($ty, |a, b| value(a) > value(b) || value(a).nan() || value(b).nan()),
            "geu" => compare!($ty, |a, b| value(a) >= value(b) || value(a).nan() || value(b).nan()),
            "num" => compare!($ty, |a, b| !value(a).nan() && !value(b).nan()),
            "nan" => compare!($ty, |a, b| value(a).nan() || value(b).nan()),
            _ => return None,
        }
    }};
}

trait NaN {
    fn nan(self) -> bool;
}

impl NaN for f32 {
    #[inline(always)]
    fn nan(self) -> bool {
        self.is_nan()
    }
}

impl NaN for f64 {
    #[inline(always)]
    fn nan(self) -> bool {
        self.is_nan()
    }
}

/// The comparison `op` on type `ty`. For packed types, `high` picks the half that is compared.
pub(crate) fn select(op: &str, ty: Type, high: bool, ftz: bool) -> Option<CompareFn> {
    if matches!(op, "lo" | "ls" | "hi" | "hs") && !matches!(ty, U16 | U32 | U64) {
        return None;
    }
    if matches!(ty, B16 | B32 | B64) && !matches!(op, "eq" | "ne") {
        return None;
    }
    Some(match (ty, high) {
        (U16 | B16, _) => int_compare!(op, u16),
        (S16, _) => int_compare!(op, i16),
        (U32 | B32, _) => int_compare!(op, u32),
        (S32, _) => int_compare!(op, i32),
        (U64 | B64, _) => int_compare!(op, u64),
        (S64, _) => int_compare!(op, i64),
        (F32, _) if ftz => float_compare!(op, f32, |x| super::float::flush(x)),
        (F32, _) => float_compare!(op, f32, |x| x),
        (F64, _) => float_compare!(op, f64, |x| x),
        (F16, _) | (F16x2, false) => float_compare!(op, Half, |x| x.f32()),
        (F16x2, true) => float_compare!(op, u32, |x| Half((x >> 16) as u16).f32()),
        (Bf16, _) | (Bf16x2, false) => float_compare!(op, Brain, |x| x.f32()),
        (Bf16x2, true) => float_compare!(op, u32, |x| Brain((x >> 16) as u16).f32()),
        _ => return None,
    })
}
