//! Softmax over the last dimension. Kernels: `kernels/softmax.cu`.

use bytemuck::NoUninit;

use super::elementwise::{require_dtype, require_float};
use super::gradient::Call;
use super::kernels::{LaunchConfig, kernels, to_u32};
use super::{Grads, Inputs, Meta, Op, Saves, apply, tensors};
use crate::cpu::math::Math;
use crate::cpu::parallel::for_each_chunk;
use crate::cpu::simd::{fold, narrow, simd, sum, widen};
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::tensor::{Float, Real, Tensor};

kernels! {
    /// A warp a row.
    fn softmax(y: Out, x: In, dims: SoftmaxDims);
    /// A warp a row.
    fn softmax_gradient(dx: Out, y: In, grad: In, dims: SoftmaxDims);
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct SoftmaxDims {
    rows: u32,
    columns: u32,
}

/// `e^(x - max) / sum e^(x - max)` over the last dimension, in f32 (f64 for f64). [.., N] -> [.., N]
///
/// # Errors
/// `Shape` for a scalar, `DType` for integers.
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    apply(Softmax, &tensors(&[x]))
}

/// [`softmax`]
#[derive(Clone, Copy, Debug)]
struct Softmax;

impl Op for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        require_float("softmax", &inputs[0])?;
        if inputs[0].rank() == 0 {
            return Err(Error::expected_shape("softmax", "x", "[.., N]", inputs[0].shape()));
        }
        Ok(vec![Meta::like(&inputs[0])])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        let x = inputs[0].contiguous()?;
        let n = x.dim(x.rank() - 1);
        let rows = ((1 << 14) / n).max(1) * n;
        dispatch_float!("softmax", x.dtype(), T => {
            let x = x.as_slice::<T>()?;
            for_each_chunk(out.as_mut_slice::<T>()?, rows, |i, y| softmax_rows(&x[i * rows..][..y.len()], n, y));
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = inputs[0].contiguous()?;
        let (config, dims) = rows_by_warps(self.name(), &x)?;
        kernel::softmax(config, &mut outputs[0], &x, dims)
    }

    fn saves(&self) -> Saves {
        Saves { inputs: &[], result: true }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        Ok(vec![Some(softmax_gradient(call.output(0)?, grad)?)])
    }
}

/// The launch over the rows of `x`: four a block, as for layer normalisation.
fn rows_by_warps(op: &'static str, x: &Tensor) -> Result<(LaunchConfig, SoftmaxDims)> {
    let columns = x.dim(x.rank() - 1);
    let rows = x.len() / columns;
    let dims = SoftmaxDims { rows: to_u32(op, rows)?, columns: to_u32(op, columns)? };
    Ok((LaunchConfig::new([dims.rows.div_ceil(4), 1], 4 * 32), dims))
}

simd! {
    /// Rows of `n` elements.
    fn softmax_rows[T: Float<Acc: Math>](s, x: &[T], n: usize, y: &mut [T]) {
        let mut row = vec![T::Acc::ZERO; n];
        for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
            widen(x, &mut row);
            // A NaN need not reach the maximum: it reaches the sum.
            let larger = |a, b| if a > b { a } else { b };
            let max = fold(&row, T::Acc::NEG_INFINITY, larger, larger);
            for v in row.iter_mut() {
                *v = (*v - max).vector_exp_normal(s);
            }
            let total = sum(&row, |v| v);
            for v in row.iter_mut() {
                *v = *v / total;
            }
            narrow(&row, y);
        }
    }
}

/// The gradient of `softmax`'s argument, given its result `y` and that result's gradient: `y (g - sum(y g))`.
///
/// # Errors
/// `Shape` and `DType` when the two differ in shape or dtype.
pub(crate) fn softmax_gradient(y: &Tensor, grad: &Tensor) -> Result<Tensor> {
    apply(SoftmaxGradient, &tensors(&[y, grad]))
}

/// [`softmax_gradient`]; inputs `y`, `grad`.
#[derive(Clone, Copy, Debug)]
struct SoftmaxGradient;

impl Op for SoftmaxGradient {
    fn name(&self) -> &'static str {
        "softmax_gradient"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (y, grad) = (&inputs[0], &inputs[1]);
        require_dtype(self.name(), y.dtype(), grad)?;
        if grad.shape() != y.shape() {
            let expected = y.shape().to_string();
            return Err(Error::expected_shape(self.name(), "grad", &expected, grad.shape()));
        }
        Softmax.infer(inputs)
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (y, grad) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        let n = y.dim(y.rank() - 1);
        let rows = ((1 << 14) / n).max(1) * n;
        dispatch_float!(self.name(), y.dtype(), T => {
            let (y, grad) = (y.as_slice::<T>()?, grad.as_slice::<T>()?);
            for_each_chunk(outputs[0].as_mut_slice::<T>()?, rows, |i, dx| {
                let part = i * rows..i * rows + dx.len();
                gradient_rows(&y[part.clone()], &grad[part], n, dx);
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (y, grad) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        let (config, dims) = rows_by_warps(self.name(), &y)?;
        kernel::softmax_gradient(config, &mut outputs[0], &y, &grad, dims)
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

simd! {
    /// Rows of `n` elements.
    fn gradient_rows[T: Float<Acc: Math>](_s, y: &[T], grad: &[T], n: usize, dx: &mut [T]) {
        let (mut weight, mut product) = (vec![T::Acc::ZERO; n], vec![T::Acc::ZERO; n]);
        for ((y, grad), dx) in y.chunks_exact(n).zip(grad.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
            widen(y, &mut weight);
            widen(grad, &mut product);
            for (product, weight) in product.iter_mut().zip(&weight) {
                *product = *product * *weight;
            }
            let total = sum(&product, |v| v);
            for (product, weight) in product.iter_mut().zip(&weight) {
                *product = *product - *weight * total;
            }
            narrow(&product, dx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::elementwise::scale;
    use crate::ops::testing::{
        check, check_batch, check_gradient, check_nan, devices, random, shapes, values,
    };

    fn reference(x: &[f64], n: usize) -> Vec<f64> {
        x.chunks(n)
            .flat_map(|row| {
                let total: f64 = row.iter().map(|x| x.exp()).sum();
                row.iter().map(move |x| x.exp() / total)
            })
            .collect()
    }

    #[test]
    fn softmax_equals_its_definition() {
        for shape in [&[1][..], &[3, 7], &[2, 5, 33], &[2, 1000], &[3, 4096]] {
            let n = shape[shape.len() - 1];
            let x = scale(&random(shape, 1), 4.0).unwrap();
            // 32 units: the difference x - max, up to 16, is rounded before it is an exponent.
            check("softmax", &[x], 32.0, |x| softmax(x[0]), |x| reference(&x[0], n));
        }
        let batch = random([7, 3, 45], 2);
        check_batch("softmax", &batch, softmax);
        check_nan("softmax", &batch, 50, softmax);
    }

    #[test]
    fn gradients_are_those_of_differences() {
        for shape in [&[1][..], &[7], &[3, 5], &[2, 3, 33]] {
            check_gradient("softmax", &[random(shape, 5)], |x| softmax(x[0]));
        }
        for shape in shapes::<3>() {
            check_gradient("softmax", &[random(shape, 6)], |x| softmax(x[0]));
        }
    }

    #[test]
    fn extremes() {
        let inf = f32::INFINITY;
        let x = Tensor::from_vec(vec![1e30, 1e30, -inf, -inf, -inf, -inf], [2, 3]).unwrap();
        for device in devices() {
            let y = values(&softmax(&x.to_device(device).unwrap()).unwrap());
            assert_eq!(y[..3], [0.5, 0.5, 0.0], "{device}");
            assert!(y[3..].iter().all(|x| x.is_nan())); // 0 / 0: nothing is left to choose from
        }
        assert!(matches!(softmax(&random(&[][..], 1)), Err(Error::Shape { .. })));
        assert!(matches!(
            softmax(&Tensor::from_vec(vec![1i64], [1]).unwrap()),
            Err(Error::DType { .. })
        ));
        assert!(softmax(&random([3, 0], 1)).unwrap().is_empty());
    }
}
