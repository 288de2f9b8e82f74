//! A linear layer that ends in its gate.

use super::cuda::multiply_gated;
use super::{Epilogue, linear, matmul, rows};
use crate::error::{Error, Result};
use crate::ops::elementwise::{geglu, geglu_gradient};
use crate::ops::gradient::Call;
use crate::ops::reduce::sum;
use crate::ops::weight::{Layout, Packed, Weight};
use crate::ops::{Grads, Inputs, Meta, Op, Saves, apply};
use crate::tensor::Tensor;

/// [`geglu`] of a linear layer: [.., K] -> [.., N / 2], with values in the first half of the weight [N, K] and of the bias
/// `[N]`, gates in the second.
///
/// One product where the weight has the layout [`Gated`](Layout::Gated), with one rounding; else the two operations.
///
/// # Errors
/// As [`linear`] and [`geglu`].
pub fn linear_geglu(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Result<Tensor> {
    match weight.layout() {
        Layout::Gated => apply(Gated, &[x.into(), weight.into(), bias.into()]),
        _ => geglu(&linear(x, weight, Epilogue::bias(bias))?),
    }
}

/// [`linear_geglu`] on a GPU; inputs `x`, `weight`, `bias`.
struct Gated;

const BIAS: usize = 2;

impl Op for Gated {
    fn name(&self) -> &'static str {
        "linear_geglu"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (x, w) = (&inputs[0], inputs.weight(1));
        let (n, k) = (w.shape()[0], w.shape()[1]);
        if x.shape().last() != Some(&k) {
            let expected = format!("[.., {k}] to go with a weight of [{n}, {k}]");
            return Err(Error::expected_shape(self.name(), "x", &expected, x.shape()));
        }
        w.check_dtype(self.name(), x.dtype())?;
        let whole = Meta { shape: x.shape().with(x.rank() - 1, n), dtype: x.dtype() };
        Epilogue::bias(inputs.get(BIAS)).check(self.name(), &whole)?;
        Ok(vec![Meta { shape: whole.shape.with(x.rank() - 1, n / 2), ..whole }])
    }

    fn cpu(&self, _: &Inputs, _: &mut [Tensor]) -> Result<()> {
        unreachable!("the layout is that of a GPU")
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let Packed::Rows(w) = inputs.weight(1).packed()? else {
            unreachable!("a matrix on a GPU is packed as rows")
        };
        let x = inputs[0].contiguous()?;
        if x.dtype() != w.dtype() {
            return Err(Error::no_kernel("linear_geglu with 16-bit weights of f32"));
        }
        multiply_gated(self.name(), (&x, w), inputs.get(BIAS), &mut outputs[0])
    }

    fn saves(&self) -> Saves {
        Saves { inputs: &[0, 1, BIAS], result: false }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let (x, bias) = (call.tensor(0)?, call.optional(BIAS));
        // The weight is frozen: a plain one has another layout.
        let weight = call.weight(1)?.elements()?; // [N, K]
        let plain = Weight::plain(&weight, Layout::Matrix, weight.dtype())?;
        let h = linear(x, &plain, Epilogue::bias(bias))?;
        let g = rows(&geglu_gradient(&h, grad)?)?; // [M, N]
        let of_x = call.wants(0).then(|| matmul(&g, &weight)?.reshape(*x.shape()));
        let of_bias = bias.filter(|_| call.wants(BIAS)).map(|b| sum(&g, &[0])?.to_dtype(b.dtype()));
        Ok(vec![of_x.transpose()?, None, of_bias.transpose()?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{
        check_batch, check_gradient, devices, random, shapes, unit_roundoff, values,
    };
    use crate::tensor::{DType, Device};

    /// With weights of this layout, on the devices that have it.
    fn gated(x: &Tensor, w: &Tensor, bias: &Tensor, layout: Layout) -> Result<Tensor> {
        let (dtype, on) = (x.dtype(), x.device());
        let weight = Weight::frozen(&w.to_device(on)?, layout, dtype)?;
        linear_geglu(x, &weight, Some(&bias.to_device(on)?))
    }

    #[test]
    fn a_gated_product_is_the_product_and_its_gate() {
        // Partial tiles, whole ones, many rows; the number of values is a multiple of what fills 16 bytes, or is not.
        for (m, n, k) in [(1, 16, 8), (5, 48, 7), (130, 272, 72), (77, 80, 33), (9, 12, 20)] {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                // What the devices are given, rounded, so that only sums and results differ.
                let [x, w] =
                    [random([2, m, k], 1), random([n, k], 2)].map(|t| t.to_dtype(dtype).unwrap());
                let bias = random([n], 3);
                let [x64, w64, bias64] = [&x, &w, &bias].map(|t| t.to_dtype(DType::F64).unwrap());
                let plain = Weight::frozen(&w64, Layout::Matrix, DType::F64).unwrap();
                let h = linear(&x64, &plain, Epilogue::bias(Some(&bias64))).unwrap();
                let (exact, h) = (values(&geglu(&h).unwrap()), values(&h));
                // Sums of k products of operands in (-1, 1) err by (k + 1) k u; GELU's slope is below 1.2. Both halves pass
                // their error on times the other, and the result is rounded.
                let largest = h.iter().fold(1.0, |m: f64, x| m.max(x.abs()));
                let u = unit_roundoff(dtype);
                // Where values and gates cannot take turns, they are rounded before they meet.
                let of_halves = if n % (32 / dtype.size()) == 0 { 0.0 } else { u * largest };
                let of_sums = (k as f64 + 1.0) * (k as f64 + 1.0) * unit_roundoff(DType::F32);
                for device in devices().filter(|device| *device != Device::Cpu) {
                    let got =
                        gated(&x.to_device(device).unwrap(), &w, &bias, Layout::Gated).unwrap();
                    assert_eq!(got.dims(), [2, m, n / 2]);
                    for (got, exact) in values(&got).into_iter().zip(&exact) {
                        let of_half = of_sums + of_halves;
                        let tolerance = 2.2 * largest * of_half + 2.0 * u * exact.abs() + 1e-7;
                        let error = (got - exact).abs();
                        assert!(error <= tolerance, "{m} {n} {k} {dtype}: {got} for {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_image_is_gated_alike_in_every_batch() {
        let (w, bias) = (random([512, 40], 5), random([512], 6));
        check_batch("linear_geglu", &random([7, 300, 40], 4), |x| {
            let on_gpu = x.device() != Device::Cpu;
            gated(x, &w, &bias, if on_gpu { Layout::Gated } else { Layout::Matrix })
        });
    }

    #[test]
    fn gradients_pass_frozen_gates() {
        // A gate is laid out by 16 columns.
        for [b, t, k] in [[3, 5, 8]].into_iter().chain(shapes()) {
            let inputs = [random([b, t, k], 7), random([16], 9)];
            let w = random([16, k], 8);
            check_gradient("linear_geglu", &inputs, |t| {
                let (dtype, on) = (t[0].dtype(), t[0].device());
                let on_gpu = on != Device::Cpu;
                let layout = if on_gpu { Layout::Gated } else { Layout::Matrix };
                let weight = Weight::frozen(&w.to_dtype(dtype)?.to_device(on)?, layout, dtype)?;
                linear_geglu(t[0], &weight, Some(t[1]))
            });
        }
    }
}
