//! A dtype that is known at run time only: read by name, and turned into a type parameter.

use super::DType;
use crate::error::{Error, Result};

impl std::str::FromStr for DType {
    type Err = Error;

    /// Reads the names that [`DType::from_name`] knows.
    fn from_str(s: &str) -> Result<Self> {
        Self::from_name(s).ok_or_else(|| Error::argument("dtype", s, "one of f32, f16, bf16"))
    }
}

/// Runs an expression with a type parameter bound to the Rust type of a floating-point [`DType`].
///
/// `dispatch_float!("name", dtype, T => expression of type Result<_>)`; other dtypes are [`Error::DType`].
#[macro_export]
macro_rules! dispatch_float {
    ($op:expr, $dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::tensor::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::tensor::DType::F16 => {
                type $T = half::f16;
                $body
            }
            $crate::tensor::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            $crate::tensor::DType::F64 => {
                type $T = f64;
                $body
            }
            found => Err($crate::error::Error::DType {
                op: $op,
                expected: "f32, f16, bf16 or f64",
                found,
            }),
        }
    };
}
