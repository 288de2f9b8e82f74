//! [`relu`](super::relu): its gradient reads the result, which the next layer holds anyway.

use super::{Binary, ClampDims, MapDims, Zip, kernel, map, require_float, spread, zip_with};
use crate::cpu::math::Math;
use crate::cpu::simd::Simd;
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::ops::activation::Map;
use crate::ops::gradient::Call;
use crate::ops::{Grads, Inputs, Meta, Op, Saves, apply, tensors};
use crate::tensor::Tensor;

/// [`relu`](super::relu); input `x`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Relu;

impl Map for Relu {
    #[inline(always)]
    fn apply<S: Simd, A: Math>(self, _: S, x: A) -> A {
        // Written so that NaN passes.
        if x <= A::ZERO { A::ZERO } else { x }
    }

    #[inline(always)]
    fn slope<S: Simd, A: Math>(self, _: S, x: A) -> A {
        if x <= A::ZERO { A::ZERO } else { A::ONE }
    }
}

impl Op for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        require_float(self.name(), &inputs[0])?;
        Ok(vec![Meta::like(&inputs[0])])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = inputs[0].contiguous()?;
        dispatch_float!(self.name(), x.dtype(), T => {
            map(*self, x.as_slice::<T>()?, outputs[0].as_mut_slice::<T>()?);
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = inputs[0].contiguous()?;
        let dims = ClampDims { len: x.len() as u64, low: 0.0, high: f32::INFINITY };
        kernel::clamp(spread(x.len() * x.dtype().size()), &mut outputs[0], &x, dims)
    }

    fn saves(&self) -> Saves {
        Saves { inputs: &[], result: true }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        Ok(vec![Some(apply(ReluGradient, &tensors(&[call.output(0)?, grad]))?)])
    }
}

/// Gradient of [`Relu`]; inputs `y`, `grad`.
#[derive(Clone, Copy)]
struct ReluGradient;

impl Zip for ReluGradient {
    #[inline(always)]
    fn apply<S: Simd, A: Math>(self, s: S, y: A, grad: A) -> A {
        Relu.slope(s, y) * grad
    }
}

impl Op for ReluGradient {
    fn name(&self) -> &'static str {
        "relu_gradient"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        Binary::Mul.infer(inputs)
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (y, grad) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        dispatch_float!(self.name(), y.dtype(), T => {
            zip_with(y.as_slice::<T>()?, grad.as_slice()?, outputs[0].as_mut_slice()?, *self);
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (y, grad) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        let dims = MapDims { len: y.len() as u64 };
        kernel::relu_gradient(spread(y.len() * y.dtype().size()), &mut outputs[0], &y, &grad, dims)
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::elementwise::relu;
    use crate::ops::gradient::backward;
    use crate::ops::reduce::sum;
    use crate::ops::testing::{check, check_batch, check_gradient, check_nan, random, values};
    use crate::tensor::Tensor;

    #[test]
    fn equals_its_formula() {
        for n in 1..=20 {
            let shape = [n, 41 / n, 3];
            check(
                "relu",
                &[random(shape, 1)],
                0.5,
                |x| relu(x[0]),
                |x| x[0].iter().map(|x| x.max(0.0)).collect(),
            );
            // A difference across 0 shows neither slope.
            let away = |x: f32| if x < 0.0 { x - 0.01 } else { x + 0.01 };
            let x = random(shape, 2).to_vec::<f32>().unwrap().into_iter().map(away).collect();
            let x = Tensor::from_vec(x, shape).unwrap();
            check_gradient("relu", &[x], |x| relu(x[0]));
        }
        check_batch("relu", &random([7, 3, 45], 3), relu);
        check_nan("relu", &random([3, 45], 4), 50, relu);
    }

    #[test]
    fn the_gradient_at_zero_is_zero() {
        let x = Tensor::from_vec(vec![-1.0f32, -0.0, 0.0, 1e-30, f32::INFINITY], [5]).unwrap();
        let x = x.variable();
        let y = relu(&x).unwrap();
        assert_eq!(values(&y)[..3], [0.0; 3]);
        let gradients = backward(sum(&y, &[0]).unwrap()).unwrap();
        assert_eq!(values(gradients.get(&x).unwrap()), [0.0, 0.0, 0.0, 1.0, 1.0]);
    }
}
