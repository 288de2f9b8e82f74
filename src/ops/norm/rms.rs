//! Normalisation by the root of the mean square, over the last dimension (Zhang & Sennrich 2019), and its gradient. With
//! r = 1 / sqrt(mean(x^2) + eps), y = gamma x r and g the gradient by y, those of a row of n elements are
//!
//! ```text
//! dx = r (gamma g - x r^2 mean(gamma g x))    dgamma = sum(g x r), over the rows
//! ```

use super::{LayerNormDims, ROWS, channels, check_parameters, parameter};
use crate::cpu::math::Math;
use crate::cpu::parallel::for_each_chunk;
use crate::cpu::simd::{narrow, simd, sum, widen, widened};
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::ops::elementwise::mul;
use crate::ops::gradient::Call;
use crate::ops::kernels::{LaunchConfig, kernels, to_u32};
use crate::ops::{Grads, Inputs, Meta, Op, Saves, apply, reduce, tensors};
use crate::tensor::{Float, Real, Tensor};

kernels! {
    /// A warp a row.
    fn rms_norm(y: Out, x: In, gamma: In<f32>, dims: LayerNormDims);
    /// A warp a row.
    fn rms_norm_gradient(dx: Out, x: In, gamma: In<f32>, grad: In, dims: LayerNormDims);
}

/// `gamma x / sqrt(mean(x^2) + eps)` over the last dimension: `torch.nn.functional.rms_norm`. Rounded once, behind gamma.
///
/// `x` [.., C]; `gamma` `[C]`, f32 (f64 beside an f64 x).
///
/// # Errors
/// As [`layer_norm`](super::layer_norm).
pub fn rms_norm(x: &Tensor, gamma: &Tensor, eps: f32) -> Result<Tensor> {
    apply(RmsNorm { eps }, &tensors(&[x, gamma]))
}

/// [`rms_norm`]; inputs `x`, `gamma`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct RmsNorm {
    /// Added to the mean square.
    eps: f32,
}

/// What the kernels are told of `x`, and a launch with a warp for each row.
fn launch(op: &'static str, x: &Tensor, eps: f32) -> Result<(LaunchConfig, LayerNormDims)> {
    let columns = x.dim(x.rank() - 1);
    let rows = to_u32(op, x.len() / columns)?;
    let dims = LayerNormDims { rows, columns: to_u32(op, columns)?, eps };
    Ok((LaunchConfig::new([rows.div_ceil(4), 1], 4 * 32), dims))
}

impl Op for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let channels = channels(self.name(), &inputs[0])?;
        check_parameters(self.name(), &inputs[0], channels, [&inputs[1]; 2])?;
        Ok(vec![Meta::like(&inputs[0])])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = inputs[0].contiguous()?;
        dispatch_float!(self.name(), x.dtype(), T => {
            let gamma = parameter::<T>(&inputs[1])?;
            let len = (ROWS / gamma.len()).max(1) * gamma.len();
            let x = x.as_slice::<T>()?;
            for_each_chunk(outputs[0].as_mut_slice::<T>()?, len, |i, y| {
                rows(&x[i * len..][..y.len()], &gamma, self.eps, y);
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, gamma) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        let (config, dims) = launch(self.name(), &x, self.eps)?;
        kernel::rms_norm(config, &mut outputs[0], &x, &gamma, dims)
    }

    fn saves(&self) -> Saves {
        Saves { inputs: &[0, 1], result: false }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let (x, gamma) = (call.tensor(0)?, call.tensor(1)?);
        let by_x = apply(RmsNormGradient { eps: self.eps }, &tensors(&[x, gamma, grad]))?;
        let by_gamma = call.wants(1).then(|| {
            let ones = Tensor::full(*gamma.shape(), 1.0, gamma.dtype(), gamma.device())?;
            let normal = rms_norm(x, &ones, self.eps)?;
            let rows: Vec<usize> = (0..grad.rank() - 1).collect();
            reduce::sum(&mul(grad, &normal)?, &rows)?.to_dtype(gamma.dtype())
        });
        Ok(vec![Some(by_x), by_gamma.transpose()?])
    }
}

/// Gradient of [`rms_norm`] by x; inputs `x`, `gamma`, `grad`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct RmsNormGradient {
    eps: f32,
}

impl Op for RmsNormGradient {
    fn name(&self) -> &'static str {
        "rms_norm_gradient"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        Ok(vec![Meta::like(&inputs[0])])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, grad) = (inputs[0].contiguous()?, inputs[2].contiguous()?);
        dispatch_float!(self.name(), x.dtype(), T => {
            let gamma = parameter::<T>(&inputs[1])?;
            let len = (ROWS / gamma.len()).max(1) * gamma.len();
            let (x, grad) = (x.as_slice::<T>()?, grad.as_slice::<T>()?);
            for_each_chunk(outputs[0].as_mut_slice::<T>()?, len, |i, dx| {
                let part = i * len..i * len + dx.len();
                gradient_rows(&x[part.clone()], &gamma, &grad[part], self.eps, dx);
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let [x, gamma, grad] = [0, 1, 2].map(|i| inputs[i].contiguous());
        let (x, gamma, grad) = (x?, gamma?, grad?);
        let (config, dims) = launch(self.name(), &x, self.eps)?;
        kernel::rms_norm_gradient(config, &mut outputs[0], &x, &gamma, &grad, dims)
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

/// 1 / sqrt(mean square + eps), given the sum of squares.
fn reciprocal_root<A: Math>(squares: A, n: usize, eps: f32) -> A {
    A::ONE / (squares / A::from_f64(n as f64) + A::from_f64(f64::from(eps))).sqrt()
}

simd! {
    fn rows[T: Float<Acc: Math>](_s, x: &[T], gamma: &[T::Acc], eps: f32, y: &mut [T]) {
        let n = gamma.len();
        let (mut wide, mut row) = (Vec::new(), vec![T::Acc::ZERO; n]);
        for (x, y) in x.chunks_exact(n).zip(y.chunks_exact_mut(n)) {
            let x = widened(x, &mut wide);
            let scale = reciprocal_root(sum(x, |v| v * v), n, eps);
            for ((v, x), gamma) in row.iter_mut().zip(x).zip(gamma) {
                *v = *x * scale * *gamma;
            }
            narrow(&row, y);
        }
    }
}

simd! {
    fn gradient_rows[T: Float<Acc: Math>](
        _s, x: &[T], gamma: &[T::Acc], grad: &[T], eps: f32, dx: &mut [T],
    ) {
        let n = gamma.len();
        let (mut wide, mut g, mut product) = (Vec::new(), vec![T::Acc::ZERO; n], vec![T::Acc::ZERO; n]);
        for ((x, grad), dx) in x.chunks_exact(n).zip(grad.chunks_exact(n)).zip(dx.chunks_exact_mut(n)) {
            let x = widened(x, &mut wide);
            widen(grad, &mut g);
            for (((g, product), x), gamma) in g.iter_mut().zip(&mut product).zip(x).zip(gamma) {
                *g = *g * *gamma;
                *product = *g * *x;
            }
            let scale = reciprocal_root(sum(x, |v| v * v), n, eps);
            let along = sum(&product, |v| v) / T::Acc::from_f64(n as f64) * scale * scale;
            for (g, x) in g.iter_mut().zip(x) {
                *g = scale * (*g - *x * along);
            }
            narrow(&g, dx);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{
        check, check_batch, check_gradient, check_nan, random, shapes, values,
    };
    use crate::tensor::{DType, Shape};

    const EPS: f32 = 1e-5;

    /// [`rms_norm`] with a gamma from anywhere.
    fn norm(x: &Tensor, gamma: &Tensor) -> Result<Tensor> {
        rms_norm(x, &gamma.to_device(x.device())?, EPS)
    }

    #[test]
    fn it_equals_its_formula() {
        for shape in [&[1, 1, 8][..], &[2, 33, 77], &[5, 1280], &[31], &[7, 1]] {
            let gamma = random([shape[shape.len() - 1]], 1);
            // A sum of 1280 squares deviates by sqrt(1280) roundings, its root by half as many: twice that, and a few products.
            check(
                "rms_norm",
                &[random(shape, 2)],
                48.0,
                |x| norm(x[0], &gamma),
                |x| {
                    let gamma = values(&gamma);
                    let rows = x[0].chunks(gamma.len()).flat_map(|row| {
                        let squares = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
                        let root = (squares + f64::from(EPS)).sqrt();
                        row.iter().zip(&gamma).map(move |(x, gamma)| x / root * gamma)
                    });
                    rows.collect()
                },
            );
        }
        let gamma = random([40], 3);
        check_batch("rms_norm", &random([7, 3, 40], 4), |x| norm(x, &gamma));
        check_nan("rms_norm", &random([3, 40], 5), 55, |x| norm(x, &gamma));
    }

    #[test]
    fn gradients_are_those_of_differences() {
        // Of one element all that is left is a sign.
        let given = [&[1, 5][..], &[7], &[3, 5, 33], &[140, 4]].map(Shape::new);
        let more = shapes::<3>().map(|[a, b, c]| Shape::from([a, b, c + 2]));
        for shape in given.into_iter().chain(more) {
            let gamma = random([shape[shape.len() - 1]], 6);
            check_gradient("rms_norm", &[random(shape, 7), gamma], |t| rms_norm(t[0], t[1], EPS));
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let x = random([2, 3], 1);
        assert!(matches!(rms_norm(&x, &random([4], 1), EPS), Err(Error::Shape { .. })));
        let half = random([3], 1).to_dtype(DType::F16).unwrap();
        assert!(matches!(rms_norm(&x, &half, EPS), Err(Error::DType { .. })));
    }
}
