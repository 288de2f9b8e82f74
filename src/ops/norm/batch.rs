//! Batch normalisation: in training by the statistics of the batch, in use by those of all batches before.
//!
//! By the batch it is group normalisation of one image, [1, B H W, C], whose groups are the channels: the same forms,
//! the same gradient. Kernels: `kernels/norm.cu`.

use bytemuck::NoUninit;

use super::{Affine, GroupNorm, TILE, apply_affine, channels, check_parameters, parameter};
use crate::cpu::parallel::for_each_chunk;
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::ops::activation::Identity;
use crate::ops::elementwise::{linear_combination, mul, spread, sub};
use crate::ops::gradient::Call;
use crate::ops::kernels::{LaunchConfig, kernels, to_u32};
use crate::ops::reduce::sum;
use crate::ops::{Grads, Inputs, Meta, Op, Saves, apply, apply_all, tensors};
use crate::tensor::{DType, Device, Float, Real, Tensor};

kernels! {
    fn batch_norm_with(
        y: Out,
        x: In,
        gamma: In<f32>,
        beta: In<f32>,
        mean: In<f32>,
        variance: In<f32>,
        dims: BatchNormDims,
    );
    /// A thread a channel.
    fn batch_moments(
        mean: Out<f32>,
        variance: Out<f32>,
        statistics: In<f32>,
        dims: MomentsDims,
    );
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct BatchNormDims {
    len: u64,
    channels: u32,
    eps: f32,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct MomentsDims {
    channels: u32,
    eps: f32,
    unbiased: f32,
    reserved: u32,
}

/// Mean and variance of each channel, f32 (f64 beside an f64 batch).
#[derive(Clone)]
pub struct Moments {
    /// `[C]`
    pub mean: Tensor,
    /// `[C]`, unbiased: by the number of positions less one. What running statistics are made of.
    pub variance: Tensor,
}

/// Batch normalisation (Ioffe & Szegedy 2015) by the statistics of this batch, and those statistics.
///
/// `x` [B, .., C], usually [B, H, W, C]; `gamma`, `beta` `[C]`, f32. The biased variance of a channel over all
/// positions of all images divides.
///
/// # Errors
/// As [`group_norm`](super::group_norm); `Shape` also when there are fewer than two positions, whose variance says
/// nothing.
pub fn batch_norm(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f32,
) -> Result<(Tensor, Moments)> {
    const OP: &str = "batch_norm";
    let channels = match x.dims() {
        [_, .., channels] if *channels > 0 => *channels,
        _ => return Err(Error::expected_shape(OP, "x", "[B, .., C] with C > 0", x.shape())),
    };
    let positions = x.len() / channels;
    if positions < 2 {
        return Err(Error::expected_shape(OP, "x", "two positions or more", x.shape()));
    }
    let flat = x.reshape([1, positions, channels])?;
    let op = GroupNorm { groups: channels, eps, silu: false, statistics: true };
    let mut outputs = apply_all(op, &tensors(&[&flat, gamma, beta]))?;
    let statistics = outputs.pop().ok_or_else(|| Error::shape(OP, "no statistics"))?;
    let y = outputs.swap_remove(0).reshape(*x.shape())?;
    let op = MomentsOf { eps, positions, dtype: gamma.dtype() };
    let mut moments = apply_all(op, &tensors(&[&statistics.detach()]))?;
    let variance = moments.swap_remove(1);
    Ok((y, Moments { mean: moments.swap_remove(0), variance }))
}

/// [`Moments`] of what [`GroupNorm`] found; input `statistics`: [1, C, 2], mean and 1 / deviation, in f64; on a GPU
/// [1, C, 3], a centre, the mean about it and 1 / deviation, in f32.
#[derive(Clone, Copy, Debug)]
struct MomentsOf {
    /// Added to the variance before.
    eps: f32,
    /// Elements of a channel.
    positions: usize,
    /// Of the moments.
    dtype: DType,
}

impl Op for MomentsOf {
    fn name(&self) -> &'static str {
        "batch_moments"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        Ok(vec![Meta { shape: [inputs[0].dim(1)].into(), dtype: self.dtype }; 2])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let [mean, variance] = outputs else { unreachable!("inferred above") };
        let statistics = inputs[0].contiguous()?;
        let statistics = statistics.as_slice::<f64>()?.as_chunks::<2>().0;
        let unbiased = self.unbiased();
        dispatch_float!(self.name(), self.dtype, T => {
            let moments = mean.as_mut_slice::<T>()?.iter_mut().zip(variance.as_mut_slice::<T>()?);
            for ((mean, variance), [of, rstd]) in moments.zip(statistics) {
                *mean = T::from_acc(Real::from_f64(*of));
                // The mean of squares is not negative, though its last digits may be lost beside eps.
                let biased = (1.0 / (rstd * rstd) - f64::from(self.eps)).max(0.0);
                *variance = T::from_acc(Real::from_f64(biased * unbiased));
            }
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let [mean, variance] = outputs else { unreachable!("inferred above") };
        let statistics = inputs[0].contiguous()?;
        let channels = to_u32(self.name(), mean.len())?;
        let unbiased = self.unbiased() as f32;
        let dims = MomentsDims { channels, eps: self.eps, unbiased, reserved: 0 };
        let config = LaunchConfig::new([channels.div_ceil(256), 1], 256);
        kernel::batch_moments(config, mean, variance, &statistics, dims)
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

impl MomentsOf {
    /// What a biased variance is multiplied by.
    fn unbiased(&self) -> f64 {
        self.positions as f64 / (self.positions - 1) as f64
    }
}

/// Batch normalisation by a given `mean` and `variance` `[C]`, f32: those that training has gathered.
///
/// Gradients reach `x`, `gamma` and `beta`.
///
/// # Errors
/// As [`batch_norm`].
pub fn batch_norm_with(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    mean: &Tensor,
    variance: &Tensor,
    eps: f32,
) -> Result<Tensor> {
    apply(BatchNormWith { eps }, &tensors(&[x, gamma, beta, mean, variance]))
}

/// [`batch_norm_with`]; inputs `x`, `gamma`, `beta`, `mean`, `variance`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct BatchNormWith {
    /// Added to the variance.
    eps: f32,
}

impl BatchNormWith {
    /// 1 / deviation, by channel.
    fn rstd(&self, variance: &Tensor) -> Result<Vec<f64>> {
        let variance = variance.to_device(Device::Cpu)?.to_dtype(DType::F64)?.to_vec::<f64>()?;
        Ok(variance.iter().map(|v| 1.0 / (v + f64::from(self.eps)).sqrt()).collect())
    }
}

impl Op for BatchNormWith {
    fn name(&self) -> &'static str {
        "batch_norm_with"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let channels = channels(self.name(), &inputs[0])?;
        check_parameters(self.name(), &inputs[0], channels, [&inputs[1], &inputs[2]])?;
        for (what, i) in [("mean", 3), ("variance", 4)] {
            if Meta::like(&inputs[i]) != Meta::like(&inputs[1]) {
                let expected = format!("{} {}, as gamma", inputs[1].shape(), inputs[1].dtype());
                return Err(Error::expected_shape(self.name(), what, &expected, inputs[i].shape()));
            }
        }
        Ok(vec![Meta::like(&inputs[0])])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = inputs[0].contiguous()?;
        let rstd = self.rstd(&inputs[4])?;
        dispatch_float!(self.name(), x.dtype(), T => {
            let gamma = parameter::<T>(&inputs[1])?;
            let scale = |(gamma, rstd): (&<T as Float>::Acc, &f64)| {
                <T as Float>::Acc::from_f64(gamma.to_f64() * rstd)
            };
            let affine = Affine {
                centre: parameter::<T>(&inputs[3])?,
                scale: gamma.iter().zip(&rstd).map(scale).collect(),
                shift: parameter::<T>(&inputs[2])?,
                moments: Vec::new(),
            };
            let tile = (TILE / gamma.len()).max(1) * gamma.len();
            let x = x.as_slice::<T>()?;
            for_each_chunk(outputs[0].as_mut_slice::<T>()?, tile, |i, y| {
                apply_affine(Identity, &x[i * tile..][..y.len()], &affine, y);
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let [x, gamma, beta, mean, variance] = [0, 1, 2, 3, 4].map(|i| inputs[i].contiguous());
        let (x, gamma, beta, mean, variance) = (x?, gamma?, beta?, mean?, variance?);
        let channels = to_u32(self.name(), gamma.len())?;
        let dims = BatchNormDims { len: x.len() as u64, channels, eps: self.eps };
        let config = spread(x.len() * x.dtype().size());
        let y = &mut outputs[0];
        kernel::batch_norm_with(config, y, &x, &gamma, &beta, &mean, &variance, dims)
    }

    fn saves(&self) -> Saves {
        Saves { inputs: &[0, 1, 3, 4], result: false }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let (x, gamma, mean) = (call.tensor(0)?, call.tensor(1)?, call.tensor(3)?);
        let of = |t: &Tensor| t.to_dtype(grad.dtype())?.to_device(grad.device());
        let rstd = of(&Tensor::from_vec(self.rstd(call.tensor(4)?)?, [gamma.len()])?)?;
        let positions: Vec<usize> = (0..grad.rank() - 1).collect();
        let by_x = mul(grad, &mul(&rstd, &of(gamma)?)?)?;
        let normal = mul(&sub(x, &of(mean)?)?, &rstd)?;
        let by_gamma = sum(&mul(grad, &normal)?, &positions)?.to_dtype(gamma.dtype())?;
        let by_beta = sum(grad, &positions)?.to_dtype(gamma.dtype())?;
        Ok(vec![Some(by_x), Some(by_gamma), Some(by_beta), None, None])
    }
}

/// `running` moved towards what a batch shows: `(1 - momentum) running + momentum batch`.
///
/// # Errors
/// `Shape` when the two have different shapes.
pub fn moved(running: &Tensor, batch: &Tensor, momentum: f32) -> Result<Tensor> {
    linear_combination(&[(1.0 - momentum, &running.detach()), (momentum, batch)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_gradient, check_nan, devices, random, strided, values};

    const SHAPES: [&[usize]; 10] = [
        &[2, 1, 1, 1],
        &[1, 2, 1, 3],
        &[2, 3, 5, 7],
        &[7, 4, 3, 2],
        &[1, 5, 7, 33],
        &[3, 1, 9, 8],
        &[9, 11],
        &[2, 6, 40],
        &[4, 2, 2, 65],
        &[1, 65, 31, 4],
    ];

    /// gamma about 1, beta, and a running mean and variance, f32.
    fn parameters(channels: usize) -> [Tensor; 4] {
        let positive = |seed| {
            let values = random([channels], seed).to_vec::<f32>().unwrap();
            Tensor::from_vec(values.iter().map(|x| x.abs() + 0.3).collect(), [channels]).unwrap()
        };
        [positive(1), random([channels], 2), random([channels], 3), positive(4)]
    }

    /// Mean and biased variance of channel `c`, in two passes.
    fn moments(x: &[f64], channels: usize, c: usize) -> (f64, f64) {
        let of = || x.iter().skip(c).step_by(channels);
        let n = of().count() as f64;
        let mean = of().sum::<f64>() / n;
        (mean, of().map(|x| (x - mean).powi(2)).sum::<f64>() / n)
    }

    /// The formula, given what normalises each channel.
    fn reference(
        x: &[f64],
        gamma: &[f64],
        beta: &[f64],
        of: impl Fn(usize) -> (f64, f64),
    ) -> Vec<f64> {
        let channels = gamma.len();
        let moments: Vec<_> = (0..channels).map(of).collect();
        let normal = |(i, x): (usize, &f64)| {
            let c = i % channels;
            let (mean, variance) = moments[c];
            (x - mean) / (variance + f64::from(1e-5f32)).sqrt() * gamma[c] + beta[c]
        };
        x.iter().enumerate().map(normal).collect()
    }

    #[test]
    fn a_batch_is_normalised_by_its_own_moments() {
        for shape in SHAPES {
            let channels = shape[shape.len() - 1];
            let [gamma, beta, ..] = parameters(channels);
            let of = |x: &Tensor| {
                let on = x.device();
                batch_norm(x, &gamma.to_device(on)?, &beta.to_device(on)?, 1e-5)
            };
            check(
                "batch_norm",
                &[random(shape, 5)],
                16.0,
                |x| Ok(of(x[0])?.0),
                |x| {
                    let moments = |c| moments(&x[0], channels, c);
                    reference(&x[0], &values(&gamma), &values(&beta), moments)
                },
            );
            let x = random(shape, 6);
            let n = (x.len() / channels) as f64;
            for device in devices() {
                let found = of(&x.to_device(device).unwrap()).unwrap().1;
                for c in 0..channels {
                    let (mean, variance) = moments(&values(&x), channels, c);
                    let variance = variance * n / (n - 1.0);
                    let (m, v) = (values(&found.mean)[c], values(&found.variance)[c]);
                    let close = (m - mean).abs() <= 1e-6
                        && (v - variance).abs() <= 1e-5 * variance.max(1.0);
                    assert!(close, "{device}, {c}: {m} for {mean}, {v} for {variance}");
                }
            }
        }
        let [gamma, beta, ..] = parameters(5);
        check_nan("batch_norm", &random([3, 2, 4, 5], 7), 31, |x| {
            let on = x.device();
            Ok(batch_norm(x, &gamma.to_device(on)?, &beta.to_device(on)?, 1e-5)?.0)
        });
    }

    #[test]
    fn in_use_it_is_normalised_by_given_ones() {
        for shape in SHAPES {
            let channels = shape[shape.len() - 1];
            let all = parameters(channels);
            let of = |x: &Tensor| {
                let [gamma, beta, mean, variance] = all.each_ref().map(|t| t.to_device(x.device()));
                batch_norm_with(x, &gamma?, &beta?, &mean?, &variance?, 1e-5)
            };
            check(
                "batch_norm_with",
                &[random(shape, 8)],
                8.0,
                |x| of(x[0]),
                |x| {
                    let [gamma, beta, mean, variance] = all.each_ref().map(values);
                    reference(&x[0], &gamma, &beta, |c| (mean[c], variance[c]))
                },
            );
            let entries = random(shape, 9);
            crate::ops::testing::check_batch("batch_norm_with", &entries, of);
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let more: Vec<_> = (0..10).map(|i| [2 + i % 3, 1 + i % 4, 1 + i % 5, 1 + i]).collect();
        for shape in SHAPES.into_iter().chain(more.iter().map(|shape| &shape[..])) {
            let [gamma, beta, mean, variance] = parameters(shape[shape.len() - 1]);
            for x in [random(shape, 10), strided(&random(shape, 11))] {
                let inputs = [x, gamma.clone(), beta.clone()];
                // Of two positions all that is left is a sign.
                if inputs[0].len() > 2 * gamma.len() {
                    check_gradient("batch_norm", &inputs, |t| {
                        Ok(batch_norm(t[0], t[1], t[2], 1e-5)?.0)
                    });
                }
                check_gradient("batch_norm_with", &inputs, |t| {
                    let beside = |m: &Tensor| m.to_dtype(t[0].dtype())?.to_device(t[0].device());
                    batch_norm_with(t[0], t[1], t[2], &beside(&mean)?, &beside(&variance)?, 1e-5)
                });
            }
        }
    }

    /// A batch of many pixels is summed by slabs: any number of threads gives the same bits.
    #[test]
    fn gradients_of_large_batches_add_up() {
        let [gamma, beta, ..] = parameters(3);
        let x = random([3, 64, 65, 3], 12);
        let gradient = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let x = x.variable();
                let y = batch_norm(&x, &gamma, &beta, 1e-5).unwrap().0;
                let weights = random(*x.shape(), 13);
                let y = mul(&y, &weights).unwrap();
                let loss = sum(&y, &[0, 1, 2, 3]).unwrap();
                values(crate::ops::gradient::backward(loss).unwrap().get(&x).unwrap())
            })
        };
        let one = gradient(1);
        assert_eq!(one, gradient(3));
        // By the formula, in f64.
        let (x, weights) = (values(&x), values(&random([3, 64, 65, 3], 13)));
        let (gamma, n) = (values(&gamma), (x.len() / 3) as f64);
        for c in 0..3 {
            let (mean, variance) = moments(&x, 3, c);
            let deviation = (variance + f64::from(1e-5f32)).sqrt();
            let at = || (c..x.len()).step_by(3);
            let normal = |i: usize| (x[i] - mean) / deviation;
            let of_grad = at().map(|i| weights[i]).sum::<f64>() / n;
            let of_product = at().map(|i| weights[i] * normal(i)).sum::<f64>() / n;
            for i in at() {
                let expected =
                    gamma[c] / deviation * (weights[i] - of_grad - normal(i) * of_product);
                // A handful of roundings in f32 of numbers of some units.
                assert!((one[i] - expected).abs() <= 1e-5, "{i}: {} instead of {expected}", one[i]);
            }
        }
    }

    #[test]
    fn running_moments_move() {
        let vector = |values: [f32; 2]| Tensor::from_vec(values.to_vec(), [2]).unwrap();
        let next = moved(&vector([1.0, -2.0]), &vector([2.0, 8.0]), 0.1).unwrap();
        // Two products and a sum, of numbers up to 2.
        for (found, expected) in values(&next).into_iter().zip([1.1, -1.0]) {
            assert!((found - expected).abs() <= 4.0 * f64::from(f32::EPSILON), "{found}");
        }
        assert!(matches!(
            moved(&vector([1.0, 2.0]), &random([3], 1), 0.1),
            Err(Error::Shape { .. })
        ));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let [gamma, beta, mean, variance] = parameters(5);
        let [short, ..] = parameters(4);
        let x = random([2, 3, 3, 5], 1);
        assert!(matches!(
            batch_norm(&random([1, 1, 1, 5], 1), &gamma, &beta, 1e-5),
            Err(Error::Shape { .. })
        ));
        assert!(matches!(
            batch_norm(&random([5], 1), &gamma, &beta, 1e-5),
            Err(Error::Shape { .. })
        ));
        assert!(matches!(batch_norm(&x, &short, &beta, 1e-5), Err(Error::Shape { .. })));
        assert!(matches!(
            batch_norm_with(&x, &gamma, &beta, &short, &variance, 1e-5),
            Err(Error::Shape { .. })
        ));
        assert!(matches!(
            batch_norm_with(&x, &gamma, &beta, &mean, &short, 1e-5),
            Err(Error::Shape { .. })
        ));
        let wide = mean.to_dtype(DType::F64).unwrap();
        assert!(matches!(
            batch_norm_with(&x, &gamma, &beta, &wide, &variance, 1e-5),
            Err(Error::Shape { .. })
        ));
    }
}
