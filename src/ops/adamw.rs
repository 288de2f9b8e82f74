//! One step of AdamW, with the moving average of the weights, in one pass over memory.

use super::gradient::Call;
use super::{Grads, Inputs, Meta, Op, Slot, apply_all};
use crate::cpu::parallel::for_each_chunks;
use crate::cpu::simd::simd;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Elements that one thread takes at a time.
const CHUNK: usize = 1 << 14;

/// What a step depends on besides its tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// Number of this step, from 1 on.
    pub number: u64,
    /// Learning rate.
    pub rate: f64,
    /// Decay of the moving averages of the gradient and of its square.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Share of the weights that is taken away, times the rate.
    pub weight_decay: f64,
    /// What gradients are multiplied by first: to clip them.
    pub gradient_scale: f64,
    /// Decay of the moving average of the weights.
    pub ema_decay: f64,
}

/// What a step makes of a weight.
pub struct Updated {
    /// The weight.
    pub weight: Tensor,
    /// Moving averages of its gradient and of the gradient's square.
    pub moments: [Tensor; 2],
    /// Moving average of the weight, where there was one.
    pub ema: Option<Tensor>,
}

/// AdamW (Loshchilov & Hutter 2019, algorithm 2, as torch.optim.AdamW computes it), then `ema = d ema + (1 - d) weight`.
/// All tensors are f32 of one shape.
///
/// # Errors
/// `Shape` and `DType` when they are not, `NoKernel` on a GPU.
pub fn adamw(
    weight: &Tensor,
    gradient: &Tensor,
    [first, second]: [&Tensor; 2],
    ema: Option<&Tensor>,
    step: Step,
) -> Result<Updated> {
    let tensors = [weight, gradient, first, second];
    let slots: Vec<Slot> = tensors.into_iter().map(Slot::Tensor).chain([ema.into()]).collect();
    let mut outputs = apply_all(AdamW { step }, &slots)?.into_iter();
    let mut next = || outputs.next().ok_or_else(|| Error::shape("adamw", "an output is missing"));
    let (weight, moments) = (next()?, [next()?, next()?]);
    Ok(Updated { weight, moments, ema: ema.map(|_| next()).transpose()? })
}

/// [`adamw`]; inputs `weight`, `gradient`, `first`, `second`, `ema`; outputs all but the gradient.
struct AdamW {
    step: Step,
}

impl Op for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        for t in inputs.tensors() {
            if t.shape() != inputs[0].shape() {
                let expected = inputs[0].shape().to_string();
                return Err(Error::expected_shape(self.name(), "tensors", &expected, t.shape()));
            }
            if t.dtype() != DType::F32 {
                let (expected, found) = ("f32", t.dtype());
                return Err(Error::DType { op: self.name(), expected, found });
            }
        }
        Ok(vec![Meta::like(&inputs[0]); inputs.tensors().count() - 1])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let inputs = inputs.tensors().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
        let inputs = inputs.iter().map(Tensor::as_slice::<f32>).collect::<Result<Vec<_>>>()?;
        let outputs = outputs.iter_mut().map(Tensor::as_mut_slice::<f32>);
        for_each_chunks(outputs.collect::<Result<Vec<_>>>()?, CHUNK, |i, outputs| {
            let range = i * CHUNK..i * CHUNK + outputs[0].len();
            let inputs: Vec<_> = inputs.iter().map(|x| &x[range.clone()]).collect();
            update(self.step, &inputs, outputs);
        });
        Ok(())
    }

    fn cuda(&self, _: &Inputs, _: &mut [Tensor]) -> Result<()> {
        Err(Error::no_kernel(self.name()))
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

simd! {
    fn update(_s, step: Step, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let Step { number, rate, betas: [beta1, beta2], epsilon, weight_decay, gradient_scale, ema_decay } = step;
        // As torch has it: scalars in f64, rounded when they meet a tensor.
        let correction = |beta: f64| 1.0 - beta.powi(number.min(1 << 30) as i32);
        let step_size = (rate / correction(beta1)) as f32;
        let root = correction(beta2).sqrt() as f32;
        let kept = (1.0 - rate * weight_decay) as f32;
        let [share1, share2, share] = [beta1, beta2, ema_decay].map(|decay| (1.0 - decay) as f32);
        let (beta2, epsilon, gradient_scale) = (beta2 as f32, epsilon as f32, gradient_scale as f32);
        let &[weight, gradient, first, second, ..] = inputs else { return };
        let [new_weight, new_first, new_second, rest @ ..] = outputs else { return };
        for i in 0..weight.len() {
            let g = gradient[i] * gradient_scale;
            let m = first[i] + share1 * (g - first[i]);
            let v = beta2 * second[i] + share2 * (g * g);
            let w = weight[i] * kept - step_size * (m / (v.sqrt() / root + epsilon));
            (new_weight[i], new_first[i], new_second[i]) = (w, m, v);
        }
        if let ([new_ema], &[.., ema]) = (rest, inputs) {
            for i in 0..ema.len() {
                new_ema[i] = ema[i] + share * (new_weight[i] - ema[i]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{random, values};

    const STEP: Step = Step {
        number: 3,
        rate: 1e-3,
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        weight_decay: 1e-2,
        gradient_scale: 0.5,
        ema_decay: 0.9,
    };

    #[test]
    fn a_step_is_the_formula() {
        for n in [1, 17, 3 * CHUNK + 5] {
            let [w, g, m, e] = [1, 2, 3, 4].map(|seed| random([n], seed));
            let v = crate::ops::elementwise::mul(&random([n], 5), &random([n], 5)).unwrap();
            let done = adamw(&w, &g, [&m, &v], Some(&e), STEP).unwrap();
            let inputs = [&w, &g, &m, &v, &e].map(values);
            let got =
                [&done.weight, &done.moments[0], &done.moments[1], done.ema.as_ref().unwrap()];
            let got = got.map(values);
            for i in 0..n {
                let [w, g, m, v, e] = [0, 1, 2, 3, 4].map(|k: usize| inputs[k][i]);
                let g = 0.5 * g;
                let m = 0.9 * m + 0.1 * g;
                let v = 0.999 * v + 0.001 * g * g;
                let unbiased = [m / (1.0 - 0.9f64.powi(3)), v / (1.0 - 0.999f64.powi(3))];
                let w = w * (1.0 - 1e-5) - 1e-3 * unbiased[0] / (unbiased[1].sqrt() + 1e-8);
                let e = 0.9 * e + 0.1 * w;
                for (k, expected) in [w, m, v, e].into_iter().enumerate() {
                    // A handful of roundings of numbers up to 4, and of 0.9 and 0.999 to f32.
                    let error = (got[k][i] - expected).abs();
                    assert!(
                        error <= 16.0 * 2f64.powi(-24) * (4.0 + expected.abs()),
                        "{k} {i}: {error:e}"
                    );
                }
            }
            let without = adamw(&w, &g, [&m, &v], None, STEP).unwrap();
            assert!(without.ema.is_none());
            assert_eq!(values(&without.weight), got[0]);
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let (a, b) = (random([3], 1), random([4], 1));
        assert!(matches!(adamw(&a, &b, [&a, &a], None, STEP), Err(Error::Shape { .. })));
        let half = a.to_dtype(DType::F16).unwrap();
        assert!(matches!(adamw(&a, &half, [&a, &a], None, STEP), Err(Error::DType { .. })));
    }
}
