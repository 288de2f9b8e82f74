//! Weighted sums in one pass: [`linear_combination`](super::linear_combination).

use super::{
    BLOCK, CHUNK, LinearCombinationDims, kernel, require_dtype, require_float, scale, spread,
};
use crate::cpu::math::Math;
use crate::cpu::parallel::for_each_chunk;
use crate::cpu::simd::{narrow, simd, widen};
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::ops::gradient::Call;
use crate::ops::{Grads, Inputs, Meta, Op};
use crate::tensor::{Float, Real, Tensor};

/// [`linear_combination`](super::linear_combination)
#[derive(Clone, Debug)]
pub(super) struct LinearCombination {
    /// One factor a term.
    pub(super) coefficients: Vec<f32>,
}

impl Op for LinearCombination {
    fn name(&self) -> &'static str {
        "linear_combination"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let mut terms = inputs.tensors();
        let first = terms.next().ok_or_else(|| Error::shape(self.name(), "no term was given"))?;
        require_float(self.name(), first)?;
        for t in terms {
            require_dtype(self.name(), first.dtype(), t)?;
            if t.shape() != first.shape() {
                return Err(Error::shape(
                    self.name(),
                    format!("{} and {}", first.shape(), t.shape()),
                ));
            }
        }
        Ok(vec![Meta::like(first)])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        let inputs: Vec<Tensor> =
            inputs.tensors().map(Tensor::contiguous).collect::<Result<_>>()?;
        dispatch_float!(self.name(), out.dtype(), T => {
            let terms: Vec<(f32, &[T])> = self
                .coefficients
                .iter()
                .zip(&inputs)
                .map(|(&c, t)| Ok((c, t.as_slice::<T>()?)))
                .collect::<Result<_>>()?;
            for_each_chunk(out.as_mut_slice::<T>()?, CHUNK, |i, y| combine_chunk(&terms, i * CHUNK, y));
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        let inputs: Vec<Tensor> =
            inputs.tensors().map(Tensor::contiguous).collect::<Result<_>>()?;
        let mut coefficients = [0.0; 8];
        coefficients.iter_mut().zip(&self.coefficients).for_each(|(to, c)| *to = *c);
        let dims = LinearCombinationDims {
            len: out.len() as u64,
            coefficients,
            terms: inputs.len() as u32,
            reserved: 0,
        };
        let config = spread(out.len() * out.dtype().size());
        kernel::linear_combination(config, out, &inputs.iter().collect::<Vec<_>>(), dims)
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let coefficients = self.coefficients.iter().enumerate();
        coefficients.map(|(i, &c)| call.wants(i).then(|| scale(grad, c)).transpose()).collect()
    }
}

simd! {
    /// `y` is the part of the output that starts at element `start`.
    fn combine_chunk[T: Float<Acc: Math>](_s, terms: &[(f32, &[T])], start: usize, y: &mut [T]) {
        let mut sum = [T::Acc::ZERO; BLOCK];
        let mut term = [T::Acc::ZERO; BLOCK];
        let mut at = start;
        for y in y.chunks_mut(BLOCK) {
            let (sum, term) = (&mut sum[..y.len()], &mut term[..y.len()]);
            for (i, (c, x)) in terms.iter().enumerate() {
                let c = T::Acc::from_f64(f64::from(*c));
                widen(&x[at..at + y.len()], term);
                for (sum, x) in sum.iter_mut().zip(term.iter()) {
                    let product = c * *x;
                    *sum = if i == 0 { product } else { *sum + product };
                }
            }
            narrow(sum, y);
            at += y.len();
        }
    }
}
