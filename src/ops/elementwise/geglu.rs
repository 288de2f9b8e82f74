//! The gate of a feed-forward layer: [`geglu`](super::geglu).

use super::{BLOCK, GegluDims, Zip, kernel, require_dtype, require_float, spread, zip_chunk};
use crate::cpu::math::Math;
use crate::cpu::parallel::for_each_row;
use crate::cpu::simd::{Simd, narrow, simd, widen};
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::ops::activation::{Gelu, Map};
use crate::ops::gradient::Call;
use crate::ops::kernels::{LaunchConfig, to_u32};
use crate::ops::{Grads, Inputs, Meta, Op, Saves, apply, tensors};
use crate::tensor::{Float, Real, Tensor};

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
        let (config, dims) = by_rows("geglu", out.len() / columns, columns)?;
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
    apply(GegluGradient, &tensors(&[x, grad]))
}

/// [`geglu_gradient`]; inputs `x` [.., 2C], `grad` [.., C].
#[derive(Clone, Copy, Debug)]
struct GegluGradient;

impl Op for GegluGradient {
    fn name(&self) -> &'static str {
        "geglu_gradient"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (x, grad) = (&inputs[0], &inputs[1]);
        require_dtype(self.name(), x.dtype(), grad)?;
        let gated = Geglu.infer(inputs)?[0];
        if *grad.shape() != gated.shape {
            let expected = gated.shape.to_string();
            return Err(Error::expected_shape(self.name(), "grad", &expected, grad.shape()));
        }
        Ok(vec![Meta::like(x)])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, grad) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        let c = grad.dim(grad.rank() - 1);
        dispatch_float!(self.name(), x.dtype(), T => {
            let (x, grad) = (x.as_slice::<T>()?, grad.as_slice::<T>()?);
            for_each_row(outputs[0].as_mut_slice::<T>()?, 2 * c, |i, y| {
                let (of_a, of_b) = y.split_at_mut(c);
                let (a, b) = x[2 * i * c..][..2 * c].split_at(c);
                gradient_row(a, b, &grad[i * c..][..c], of_a, of_b);
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, grad) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        let columns = grad.dim(grad.rank() - 1);
        let (config, dims) = by_rows(self.name(), grad.len() / columns, columns)?;
        kernel::geglu_gradient(config, &mut outputs[0], &x, &grad, dims)
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

simd! {
    /// A row of both gradients, of values `a` and gates `b`.
    fn gradient_row[T: Float<Acc: Math>](s, a: &[T], b: &[T], grad: &[T], of_a: &mut [T], of_b: &mut [T]) {
        let mut buffers = [[T::Acc::ZERO; BLOCK]; 3];
        for start in (0..grad.len()).step_by(BLOCK) {
            let n = BLOCK.min(grad.len() - start);
            let [x, gate, g] = buffers.each_mut().map(|buffer| &mut buffer[..n]);
            widen(&a[start..][..n], x);
            widen(&b[start..][..n], gate);
            widen(&grad[start..][..n], g);
            for ((x, gate), g) in x.iter_mut().zip(gate.iter_mut()).zip(g.iter()) {
                let (value, b) = (*x, *gate);
                *x = *g * Gelu.apply(s, b);
                *gate = *g * value * Gelu.slope(s, b);
            }
            narrow(x, &mut of_a[start..][..n]);
            narrow(gate, &mut of_b[start..][..n]);
        }
    }
}

/// The launch for `rows` rows of `columns` pairs.
fn by_rows(op: &'static str, rows: usize, columns: usize) -> Result<(LaunchConfig, GegluDims)> {
    let dims = GegluDims { rows: rows as u64, columns: to_u32(op, columns)?, reserved: 0 };
    Ok((LaunchConfig { grid: [rows.min(4096) as u32, 1], ..spread(0) }, dims))
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
