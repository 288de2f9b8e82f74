//! The gate of a feed-forward layer: [`geglu`](super::geglu).

use super::{GegluDims, Zip, gelu, kernel, mul, require_float, spread, zip_chunk};
use crate::cpu::math::Math;
use crate::cpu::parallel::for_each_row;
use crate::cpu::simd::Simd;
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::ops::activation::{Activation, Gelu, Map, activation_gradient};
use crate::ops::gradient::Call;
use crate::ops::kernels::{LaunchConfig, to_u32};
use crate::ops::layout::concat;
use crate::ops::{Grads, Inputs, Meta, Op, Saves};
use crate::tensor::Tensor;

/// [`geglu`](super::geglu)
#[derive(Clone, Copy, Debug)]
pub(super) struct Geglu;

impl Op for Geglu {
    fn name(&self) -> &'static str {
        "geglu"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let x = &inputs[0];
        require_float("geglu", x)?;
        match x.dims() {
            [.., last] if last % 2 == 0 => {
                Ok(vec![Meta { shape: x.shape().with(x.rank() - 1, last / 2), dtype: x.dtype() }])
            }
            _ => Err(Error::expected_shape("geglu", "x", "[.., 2C]", x.shape())),
        }
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        let x = inputs[0].contiguous()?;
        let c = out.dim(out.rank() - 1);
        dispatch_float!("geglu", x.dtype(), T => {
            let x = x.as_slice::<T>()?; // [.., 2C]
            for_each_row(out.as_mut_slice::<T>()?, c, |i, y| {
                let (a, b) = x[2 * i * c..][..2 * c].split_at(c);
                zip_chunk(a, b, y, Gated);
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        let x = inputs[0].contiguous()?;
        let columns = out.dim(out.rank() - 1);
        let rows = out.len() / columns;
        let dims = GegluDims { rows: rows as u64, columns: to_u32("geglu", columns)?, reserved: 0 };
        let config = LaunchConfig { grid: [rows.min(4096) as u32, 1], ..spread(0) };
        kernel::geglu(config, out, &x, dims)
    }

    fn saves(&self) -> Saves {
        Saves { inputs: &[0], result: false }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        Ok(vec![Some(geglu_gradient(call.tensor(0)?, grad)?)])
    }
}

/// Of [`geglu`](super::geglu): from the gradient of its result to that of `x`.
pub(in crate::ops) fn geglu_gradient(x: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let (last, half) = (x.rank() - 1, x.dim(x.rank() - 1) / 2);
    let (a, b) = (x.narrow(last, 0, half)?, x.narrow(last, half, half)?);
    let of_a = mul(grad, &gelu(&b)?)?;
    let of_b = activation_gradient(&b, &mul(grad, &a)?, Activation::Gelu)?;
    concat(&[&of_a, &of_b], last)
}

/// The product with the gate.
#[derive(Clone, Copy)]
struct Gated;

impl Zip for Gated {
    #[inline(always)]
    fn apply<S: Simd, A: Math>(self, s: S, a: A, b: A) -> A {
        a * Gelu.apply(s, b)
    }
}
