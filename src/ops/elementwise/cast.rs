//! Rounding to another dtype: [`cast`](super::cast).

use super::{BLOCK, CHUNK, MapDims, cast, kernel, require_float, spread};
use crate::cpu::parallel::for_each_chunk;
use crate::cpu::simd::{narrow, simd, widen};
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::ops::gradient::Call;
use crate::ops::{Grads, Inputs, Meta, Op};
use crate::tensor::{DType, Float, Real, Tensor};

impl Tensor {
    /// The elements rounded to another floating-point dtype; itself when it has that dtype already.
    ///
    /// # Errors
    /// `DType` between floats and integers.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        cast(self, dtype)
    }
}

/// [`cast`](super::cast)
#[derive(Clone, Copy, Debug)]
pub(super) struct Cast {
    /// The dtype to round to.
    pub(super) dtype: DType,
}

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        require_float("cast", &inputs[0])?;
        if !self.dtype.is_float() {
            return Err(Error::DType {
                op: "cast",
                expected: "f32, f16, bf16 or f64",
                found: self.dtype,
            });
        }
        Ok(vec![Meta { shape: *inputs[0].shape(), dtype: self.dtype }])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        let x = inputs[0].contiguous()?;
        dispatch_float!("cast", x.dtype(), T => dispatch_float!("cast", self.dtype, U => {
            let x = x.as_slice::<T>()?;
            for_each_chunk(out.as_mut_slice::<U>()?, CHUNK, |i, y| cast_chunk(&x[i * CHUNK..][..y.len()], y));
            Ok(())
        }))
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        let x = inputs[0].contiguous()?;
        let config = spread(x.len() * x.dtype().size());
        let dims = MapDims { len: x.len() as u64 };
        kernel::cast(config, out, &x, dims)
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let dtype = call.meta(0).map_or(grad.dtype(), |x| x.dtype);
        Ok(vec![Some(cast(grad, dtype)?)])
    }
}

simd! {
    fn cast_chunk[T: Float, U: Float](_s, x: &[T], y: &mut [U]) {
        let mut from = [T::Acc::ZERO; BLOCK];
        let mut to = [U::Acc::ZERO; BLOCK];
        for (x, y) in x.chunks(BLOCK).zip(y.chunks_mut(BLOCK)) {
            let (from, to) = (&mut from[..x.len()], &mut to[..x.len()]);
            widen(x, from);
            // Exact in both directions but f64 to f32, which rounds.
            for (to, from) in to.iter_mut().zip(from.iter()) {
                *to = U::Acc::from_f64(from.to_f64());
            }
            narrow(to, y);
        }
    }
}
