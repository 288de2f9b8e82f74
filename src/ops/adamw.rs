//! One step of AdamW, with the moving average of the weights, in one pass over memory; and the length of a gradient.
//! Kernels: `kernels/adamw.cu`.

use bytemuck::NoUninit;

use super::elementwise::{mul, spread};
use super::gradient::Call;
use super::kernels::{LaunchConfig, kernels, to_u32};
use super::reduce::sum;
use super::{Grads, Inputs, Meta, Op, Slot, apply_all};
use crate::cpu::parallel::for_each_chunks;
use crate::cpu::simd::simd;
use crate::error::{Error, Result};
use crate::tensor::{DType, Device, Tensor};

kernels! {
    fn adamw(
        new_weight: Out<f32>,
        new_first: Out<f32>,
        new_second: Out<f32>,
        new_ema: Array<Out<f32>, 1>,
        weight: In<f32>,
        gradient: In<f32>,
        first: In<f32>,
        second: In<f32>,
        ema: Array<In<f32>, 1>,
        dims: AdamWDims,
    );
    fn squares(y: Out<f32>, x: Array<In<f32>, 16>, dims: SquaresDims);
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct AdamWDims {
    len: u64,
    step_size: f32,
    root: f32,
    kept: f32,
    share1: f32,
    share2: f32,
    beta2: f32,
    epsilon: f32,
    gradient_scale: f32,
    ema_share: f32,
    reserved: u32,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct SquaresDims {
    lens: [u64; 16],
    first: u32,
    reserved: u32,
}

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

/// A [`Step`] as it meets f32. As torch has it: scalars in f64, rounded when they meet a tensor.
#[derive(Clone, Copy)]
struct Factors {
    step_size: f32,
    root: f32,
    kept: f32,
    share1: f32,
    share2: f32,
    beta2: f32,
    epsilon: f32,
    gradient_scale: f32,
    ema_share: f32,
}

impl Step {
    fn factors(&self) -> Factors {
        let [beta1, beta2] = self.betas;
        let correction = |beta: f64| 1.0 - beta.powi(self.number.min(1 << 30) as i32);
        Factors {
            step_size: (self.rate / correction(beta1)) as f32,
            root: correction(beta2).sqrt() as f32,
            kept: (1.0 - self.rate * self.weight_decay) as f32,
            share1: (1.0 - beta1) as f32,
            share2: (1.0 - beta2) as f32,
            beta2: beta2 as f32,
            epsilon: self.epsilon as f32,
            gradient_scale: self.gradient_scale as f32,
            ema_share: (1.0 - self.ema_decay) as f32,
        }
    }
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
/// `Shape` and `DType` when they are not.
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
            update(self.step.factors(), &inputs, outputs);
        });
        Ok(())
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let inputs = inputs.tensors().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
        let [weight, gradient, first, second, ema @ ..] = &*inputs else {
            return Err(Error::shape(self.name(), "four inputs are read"));
        };
        let [new_weight, new_first, new_second, new_ema @ ..] = outputs else {
            return Err(Error::shape(self.name(), "three outputs are to be filled"));
        };
        let f = self.step.factors();
        let dims = AdamWDims {
            len: weight.len() as u64,
            step_size: f.step_size,
            root: f.root,
            kept: f.kept,
            share1: f.share1,
            share2: f.share2,
            beta2: f.beta2,
            epsilon: f.epsilon,
            gradient_scale: f.gradient_scale,
            ema_share: f.ema_share,
            reserved: 0,
        };
        let mut new_ema: Vec<&mut Tensor> = new_ema.iter_mut().collect();
        let ema: Vec<&Tensor> = ema.iter().collect();
        let config = spread(4 * weight.len());
        kernel::adamw(
            config,
            new_weight,
            new_first,
            new_second,
            &mut new_ema,
            weight,
            gradient,
            first,
            second,
            &ema,
            dims,
        )
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

simd! {
    fn update(_s, factors: Factors, inputs: &[&[f32]], outputs: &mut [&mut [f32]]) {
        let Factors { step_size, root, kept, share1, share2, beta2, epsilon, gradient_scale, ema_share } = factors;
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
                new_ema[i] = ema[i] + ema_share * (new_weight[i] - ema[i]);
            }
        }
    }
}

/// Tensors whose squares a launch sums.
const TOGETHER: usize = 16;
/// Blocks that share out one of them.
const BLOCKS: usize = 64;

/// Root of the sum of squares over all elements of `gradients`, which are f32 and on one device. One wait for the device.
///
/// # Errors
/// `DType` and `Device` when they are not.
pub fn length(gradients: &[Tensor]) -> Result<f64> {
    let device = gradients.first().map_or(Device::Cpu, Tensor::device);
    let mut total = 0.0;
    if device == Device::Cpu {
        for gradient in gradients {
            let all: Vec<usize> = (0..gradient.rank()).collect();
            total += f64::from(sum(&mul(gradient, gradient)?, &all)?.to_vec::<f32>()?[0]);
        }
        return Ok(total.sqrt());
    }
    let mut sums = Tensor::uninit([gradients.len(), BLOCKS], DType::F32, device)?;
    for (i, part) in gradients.chunks(TOGETHER).enumerate() {
        let part = part.iter().map(Tensor::contiguous).collect::<Result<Vec<_>>>()?;
        let mut lens = [0; TOGETHER];
        lens.iter_mut().zip(&part).for_each(|(len, tensor)| *len = tensor.len() as u64);
        let first = to_u32("length", i * TOGETHER)?;
        let grid = [BLOCKS as u32, part.len() as u32];
        let config = LaunchConfig::new(grid, 256);
        let part: Vec<&Tensor> = part.iter().collect();
        kernel::squares(config, &mut sums, &part, SquaresDims { lens, first, reserved: 0 })?;
    }
    total += sums.to_vec::<f32>()?.into_iter().map(f64::from).sum::<f64>();
    Ok(total.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{devices, random, values};

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
        for (n, device) in
            [1, 17, 3 * CHUNK + 5].into_iter().flat_map(|n| devices().map(move |d| (n, d)))
        {
            let [w, g, m, e, v] =
                [1, 2, 3, 4, 5].map(|seed| random([n], seed).to_device(device).unwrap());
            let v = mul(&v, &v).unwrap();
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
    fn a_length_is_the_root_of_all_squares() {
        for device in devices() {
            // More tensors than a launch takes, the last ones of them long.
            let tensors: Vec<Tensor> =
                (0..19).map(|i| random([1 + i * i * i, 3], i as u64)).collect();
            let squares = tensors.iter().flat_map(values).map(|x| x * x);
            let expected = squares.sum::<f64>().sqrt();
            let on_device: Vec<Tensor> =
                tensors.iter().map(|t| t.to_device(device).unwrap()).collect();
            let error = (length(&on_device).unwrap() - expected).abs();
            // Every sum is of positive numbers, in a hundred steps of f32 at most.
            assert!(error <= 100.0 * 2f64.powi(-24) * expected, "{device}: {error:e}");
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
