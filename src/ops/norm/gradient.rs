//! Gradients of the normalisations.
//!
//! With x' = (x - mean) / deviation, y = act(gamma x' + beta) and g the gradient by act's argument, those of a
//! group of n elements are
//!
//! ```text
//! dx = (gamma g - mean(gamma g) - x' mean(gamma g x')) / deviation      means over the group
//! dgamma = sum(g x')    dbeta = sum(g)                                  by channel
//! ```
//!
//! (Ioffe & Szegedy 2015, section 3, for other sets of elements.)

use super::cuda::{GroupNormDims, Slabs, THREADS};
use super::{LayerNormDims, parameter};
use crate::cpu::math::Math;
use crate::cpu::parallel::for_each_chunk;
use crate::cpu::simd::{narrow, simd, sum, widen};
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::ops::activation::{Identity, Map, Silu};
use crate::ops::gradient::Call;
use crate::ops::kernels::{LaunchConfig, kernels, to_u32};
use crate::ops::reduce::sum_columns_on_device;
use crate::ops::{Grads, Inputs, Meta, Op};
use crate::tensor::{DType, Device, Float, Real, Tensor};

kernels! {
    /// One block a slab of an image; shared memory holds two f32 for each channel that a thread has.
    fn group_norm_gradient_sums(
        sums: Out<f32>,
        x: In,
        grad: In,
        statistics: In<f32>,
        gamma: In<f32>,
        beta: In<f32>,
        dims: GroupNormDims,
    );
    /// The same blocks; shared memory holds two f32 for each group.
    fn group_norm_gradient(
        dx: Out,
        x: In,
        grad: In,
        statistics: In<f32>,
        gamma: In<f32>,
        beta: In<f32>,
        sums: In<f32>,
        dims: GroupNormDims,
    );
    /// A warp a row.
    fn layer_norm_gradient(
        dx: Out,
        statistics: Out<f32>,
        x: In,
        gamma: In<f32>,
        grad: In,
        dims: LayerNormDims,
    );
    /// A block 32 columns of a chunk of rows.
    fn layer_norm_gradient_sums(
        sums: Out<f32>,
        x: In,
        grad: In,
        statistics: In<f32>,
        dims: LayerNormDims,
    );
}

/// Rows that a block of a GPU sums for the parameters of layer normalisation.
const ROWS_OF_CHUNK: usize = 256;

/// Gradient of [`group_norm`](super::group_norm); inputs `x`, `gamma`, `beta`, `statistics` [B, G, 2] as the forward form
/// saves them, `grad`; outputs `dx`, `dgamma`, `dbeta`.
pub(super) struct GroupNormGradient {
    pub(super) silu: bool,
}

impl Op for GroupNormGradient {
    fn name(&self) -> &'static str {
        "group_norm_gradient"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (x, grad) = (&inputs[0], &inputs[4]);
        if Meta::like(grad) != Meta::like(x) {
            let expected = x.shape().to_string();
            return Err(Error::expected_shape(self.name(), "grad", &expected, grad.shape()));
        }
        Ok(vec![Meta::like(x), Meta::like(&inputs[1]), Meta::like(&inputs[2])])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, grad) = (inputs[0].contiguous()?, inputs[4].contiguous()?);
        let statistics = inputs[3].to_vec::<f64>()?;
        let groups = inputs[3].dim(1);
        let [dx, dgamma, dbeta] = outputs else {
            return Err(Error::shape(self.name(), "three outputs are to be filled"));
        };
        dispatch_float!(self.name(), x.dtype(), T => {
            let (gamma, beta) = (parameter::<T>(&inputs[1])?, parameter::<T>(&inputs[2])?);
            let call = Backward {
                x: x.as_slice::<T>()?,
                grad: grad.as_slice::<T>()?,
                gamma: &gamma,
                beta: &beta,
                statistics: &statistics,
                groups,
            };
            let sums = if self.silu {
                call.run(Silu, dx.as_mut_slice()?)
            } else {
                call.run(Identity, dx.as_mut_slice()?)
            };
            store(&sums[gamma.len()..], dgamma)?;
            store(&sums[..gamma.len()], dbeta)
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let [x, gamma, beta, statistics, grad] = [0, 1, 2, 3, 4].map(|i| inputs[i].contiguous());
        let (x, gamma, beta, statistics, grad) = (x?, gamma?, beta?, statistics?, grad?);
        let [dx, dgamma, dbeta] = outputs else {
            return Err(Error::shape(self.name(), "three outputs are to be filled"));
        };
        let (batch, channels, groups) = (x.dim(0), gamma.len(), statistics.dim(1));
        let Slabs { dims, rows, .. } = Slabs::new([Some(&x), None], groups)?;
        let dims = GroupNormDims { silu: self.silu.into(), ..dims };
        let slabs = dims.slabs as usize;
        // 1. sums by slab and channel, then by image and channel, of g and of g x'
        let sums = |n: usize| Tensor::uninit([2 * batch, n, channels], DType::F32, x.device());
        let mut by_slab = sums(slabs)?;
        let config = Slabs::config(slabs, batch, 2 * rows * channels);
        kernel::group_norm_gradient_sums(
            config,
            &mut by_slab,
            &x,
            &grad,
            &statistics,
            &gamma,
            &beta,
            dims,
        )?;
        let mut by_image = sums(1)?;
        sum_columns_on_device(self.name(), &by_slab, [slabs, channels], 1.0, &mut by_image)?;
        // 2. the gradient by x
        let config = Slabs::config(slabs, batch, 2 * groups);
        kernel::group_norm_gradient(
            config,
            dx,
            &x,
            &grad,
            &statistics,
            &gamma,
            &beta,
            &by_image,
            dims,
        )?;
        // 3. those of the parameters
        for (first, to) in [(0, dbeta), (batch, dgamma)] {
            let sums = by_image.narrow(0, first, batch)?;
            sum_columns_on_device(self.name(), &sums, [batch, channels], 1.0, to)?;
        }
        Ok(())
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

fn store(values: &[f64], to: &mut Tensor) -> Result<()> {
    dispatch_float!("group_norm_gradient", to.dtype(), T => {
        for (to, &value) in to.as_mut_slice::<T>()?.iter_mut().zip(values) {
            *to = T::from_acc(<T as Float>::Acc::from_f64(value));
        }
        Ok(())
    })
}

/// Pixels that one thread takes: of a larger image, or of a batch that is normalised as one, several do.
const SLAB: usize = 4096;

/// The sum of rows of `width` elements, in their order.
fn total(rows: &[f64], width: usize) -> Vec<f64> {
    let mut total = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        total.iter_mut().zip(row).for_each(|(total, x)| *total += x);
    }
    total
}

/// What the gradient of one batch is computed from.
struct Backward<'a, T: Float> {
    /// [B, pixels, C]
    x: &'a [T],
    grad: &'a [T],
    gamma: &'a [T::Acc],
    beta: &'a [T::Acc],
    /// [B, G, 2]: mean and 1 / deviation.
    statistics: &'a [f64],
    groups: usize,
}

impl<T: Float<Acc: Math>> Backward<'_, T> {
    /// Fills `dx` and returns the sums over all images [2, C] of g and of g x'.
    fn run<M: Map>(&self, activation: M, dx: &mut [T]) -> Vec<f64> {
        let channels = self.gamma.len();
        let image = self.x.len() / (self.statistics.len() / 2 / self.groups);
        let part = |i: usize| (&self.x[i * image..][..image], &self.grad[i * image..][..image]);

        // 1. sums by image and channel, of large images by slabs
        let slab = image.min(SLAB * channels);
        let slabs = image.div_ceil(slab);
        let mut by_slab = vec![0.0; self.x.len() / image * slabs * 2 * channels];
        for_each_chunk(&mut by_slab, 2 * channels, |i, sums| {
            let (x, grad) = part(i / slabs);
            let at = i % slabs * slab..image.min((i % slabs + 1) * slab);
            channel_sums(activation, &x[at.clone()], &grad[at], &self.rows(i / slabs), sums);
        });
        let sums: Vec<f64> = match slabs {
            1 => by_slab,
            _ => by_slab
                .chunks_exact(slabs * 2 * channels)
                .flat_map(|s| total(s, 2 * channels))
                .collect(),
        }; // [B, 2, C]

        // 2. the gradient by x
        let n = (image / channels * (channels / self.groups)) as f64;
        for_each_chunk(dx, image, |i, dx| {
            let (of_grad, of_product) = sums[i * 2 * channels..][..2 * channels].split_at(channels);
            // Both means, by channel for the loop's sake.
            let mut means = (vec![T::Acc::ZERO; channels], vec![T::Acc::ZERO; channels]);
            for c in 0..channels {
                let width = channels / self.groups;
                let group = c / width * width..(c / width + 1) * width;
                let mean = |sums: &[f64]| {
                    let weighted = group.clone().map(|c| self.gamma[c].to_f64() * sums[c]);
                    T::Acc::from_f64(weighted.sum::<f64>() / n)
                };
                (means.0[c], means.1[c]) = (mean(of_grad), mean(of_product));
            }
            let ((x, grad), rows) = (part(i), self.rows(i));
            for_each_chunk(dx, slab, |i, dx| {
                let at = i * slab..i * slab + dx.len();
                gradient_by_x(activation, &x[at.clone()], &grad[at], &rows, &means, dx);
            });
        });

        // 3. those of the parameters, image by image
        total(&sums, 2 * channels)
    }

    /// What normalises image `i`, by channel.
    fn rows(&self, i: usize) -> Rows<'_, T::Acc> {
        let channels = self.gamma.len();
        let of = |which: usize| {
            let group = |c: usize| i * self.groups + c / (channels / self.groups);
            (0..channels).map(|c| T::Acc::from_f64(self.statistics[2 * group(c) + which])).collect()
        };
        Rows { mean: of(0), rstd: of(1), gamma: self.gamma, beta: self.beta }
    }
}

/// Statistics and parameters of an image's channels.
struct Rows<'a, A> {
    mean: Vec<A>,
    rstd: Vec<A>,
    gamma: &'a [A],
    beta: &'a [A],
}

impl<A: Math> Rows<'_, A> {
    /// The normalised value of channel `c`, and the gradient by the activation's argument.
    #[inline(always)]
    fn at<S: crate::cpu::simd::Simd, M: Map>(
        &self,
        s: S,
        activation: M,
        c: usize,
        x: A,
        grad: A,
    ) -> (A, A) {
        let normal = (x - self.mean[c]) * self.rstd[c];
        (normal, grad * activation.slope(s, normal * self.gamma[c] + self.beta[c]))
    }
}

simd! {
    /// Sums over the pixels [pixels, C] of an image: `sums` [2, C].
    fn channel_sums[T: Float<Acc: Math>, M: Map](
        s, activation: M, x: &[T], grad: &[T], rows: &Rows<'_, T::Acc>, sums: &mut [f64],
    ) {
        let channels = rows.mean.len();
        let (mut wide_x, mut wide_grad) = (vec![T::Acc::ZERO; channels], vec![T::Acc::ZERO; channels]);
        let (of_grad, of_product) = sums.split_at_mut(channels);
        for (x, grad) in x.chunks_exact(channels).zip(grad.chunks_exact(channels)) {
            widen(x, &mut wide_x);
            widen(grad, &mut wide_grad);
            for c in 0..channels {
                let (normal, g) = rows.at(s, activation, c, wide_x[c], wide_grad[c]);
                of_grad[c] += g.to_f64();
                of_product[c] += (g * normal).to_f64();
            }
        }
    }
}

simd! {
    fn gradient_by_x[T: Float<Acc: Math>, M: Map](
        s, activation: M, x: &[T], grad: &[T], rows: &Rows<'_, T::Acc>,
        means: &(Vec<T::Acc>, Vec<T::Acc>), dx: &mut [T],
    ) {
        let channels = rows.mean.len();
        let (mut wide_x, mut wide_grad) = (vec![T::Acc::ZERO; channels], vec![T::Acc::ZERO; channels]);
        let rows_of = x.chunks_exact(channels).zip(grad.chunks_exact(channels));
        for ((x, grad), dx) in rows_of.zip(dx.chunks_exact_mut(channels)) {
            widen(x, &mut wide_x);
            widen(grad, &mut wide_grad);
            for c in 0..channels {
                let (normal, g) = rows.at(s, activation, c, wide_x[c], wide_grad[c]);
                wide_x[c] = rows.rstd[c] * (rows.gamma[c] * g - means.0[c] - normal * means.1[c]);
            }
            narrow(&wide_x, dx);
        }
    }
}

/// Gradient of [`layer_norm`](super::layer_norm); inputs `x`, `gamma`, `grad`; outputs `dx`, `dgamma`, `dbeta`.
pub(super) struct LayerNormGradient {
    pub(super) eps: f32,
}

/// Rows whose sums for the parameters are added up before they meet the others'.
const ROWS: usize = 64;

impl Op for LayerNormGradient {
    fn name(&self) -> &'static str {
        "layer_norm_gradient"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (x, gamma, grad) = (&inputs[0], &inputs[1], &inputs[2]);
        if Meta::like(grad) != Meta::like(x) {
            let expected = x.shape().to_string();
            return Err(Error::expected_shape(self.name(), "grad", &expected, grad.shape()));
        }
        Ok(vec![Meta::like(x), Meta::like(gamma), Meta::like(gamma)])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, grad) = (inputs[0].contiguous()?, inputs[2].contiguous()?);
        let [dx, dgamma, dbeta] = outputs else {
            return Err(Error::shape(self.name(), "three outputs are to be filled"));
        };
        dispatch_float!(self.name(), x.dtype(), T => {
            let gamma = parameter::<T>(&inputs[1])?;
            let (x, grad, channels) = (x.as_slice::<T>()?, grad.as_slice::<T>()?, gamma.len());
            // Of dgamma and dbeta, [2, C], by groups of rows: as many as there are rows, not threads.
            let mut sums = vec![0.0; x.len().div_ceil(ROWS * channels) * 2 * channels];
            let part = |i: usize, len| i * ROWS * channels..i * ROWS * channels + len;
            for_each_chunk(&mut sums, 2 * channels, |i, sums| {
                let part = part(i, (x.len() - i * ROWS * channels).min(ROWS * channels));
                layer_sums(&x[part.clone()], &grad[part], self.eps, sums);
            });
            for_each_chunk(dx.as_mut_slice::<T>()?, ROWS * channels, |i, dx| {
                let part = part(i, dx.len());
                layer_gradient(&x[part.clone()], &grad[part], &gamma, self.eps, dx);
            });
            let total = total(&sums, 2 * channels);
            store(&total[..channels], dgamma)?;
            store(&total[channels..], dbeta)
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let [x, gamma, grad] = [0, 1, 2].map(|i| inputs[i].contiguous());
        let (x, gamma, grad) = (x?, gamma?, grad?);
        let [dx, dgamma, dbeta] = outputs else {
            return Err(Error::shape(self.name(), "three outputs are to be filled"));
        };
        let columns = gamma.len();
        let rows = x.len() / columns;
        let dims = LayerNormDims {
            rows: to_u32(self.name(), rows)?,
            columns: to_u32(self.name(), columns)?,
            eps: self.eps,
        };
        // Four rows a block, as forward.
        let config = LaunchConfig::new([dims.rows.div_ceil(4), 1], 4 * 32);
        let mut statistics = Tensor::uninit([rows, 3], DType::F32, x.device())?;
        kernel::layer_norm_gradient(config, dx, &mut statistics, &x, &gamma, &grad, dims)?;
        // A launch has at most 65535 chunks.
        let chunks = rows.div_ceil(ROWS_OF_CHUNK);
        if chunks > 65_535 {
            let message = format!("on CUDA: at most 2^24 rows, found {rows}");
            return Err(Error::shape(self.name(), message));
        }
        let mut sums = Tensor::uninit([2, chunks, columns], DType::F32, x.device())?;
        let grid = [dims.columns.div_ceil(32), chunks as u32];
        let config = LaunchConfig::new(grid, THREADS as u32);
        kernel::layer_norm_gradient_sums(config, &mut sums, &x, &grad, &statistics, dims)?;
        for (which, to) in [(0, dbeta), (1, dgamma)] {
            let sums = sums.narrow(0, which, 1)?;
            sum_columns_on_device(self.name(), &sums, [chunks, columns], 1.0, to)?;
        }
        Ok(())
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

/// Normalises a row in place; returns 1 / deviation. The mean is corrected as in the forward form.
#[inline(always)]
fn normalize_row<A: Math>(row: &mut [A], eps: f32) -> A {
    let n = A::from_f64(row.len() as f64);
    let mean = sum(row, |v| v) / n;
    let correction = sum(row, |v| v - mean) / n;
    let squares = sum(row, |v| (v - mean) * (v - mean));
    let variance = squares / n - correction * correction;
    let rstd = A::ONE / (variance + A::from_f64(f64::from(eps))).sqrt();
    for v in row {
        *v = ((*v - mean) - correction) * rstd;
    }
    rstd
}

simd! {
    /// Sums of g x' and of g over rows [.., C]: `sums` [2, C].
    fn layer_sums[T: Float<Acc: Math>](_s, x: &[T], grad: &[T], eps: f32, sums: &mut [f64]) {
        let channels = sums.len() / 2;
        let (mut normal, mut g) = (vec![T::Acc::ZERO; channels], vec![T::Acc::ZERO; channels]);
        let (of_product, of_grad) = sums.split_at_mut(channels);
        for (x, grad) in x.chunks_exact(channels).zip(grad.chunks_exact(channels)) {
            widen(x, &mut normal);
            widen(grad, &mut g);
            normalize_row(&mut normal, eps);
            for c in 0..channels {
                of_product[c] += (g[c] * normal[c]).to_f64();
                of_grad[c] += g[c].to_f64();
            }
        }
    }
}

simd! {
    fn layer_gradient[T: Float<Acc: Math>](
        _s, x: &[T], grad: &[T], gamma: &[T::Acc], eps: f32, dx: &mut [T],
    ) {
        let channels = gamma.len();
        let n = T::Acc::from_f64(channels as f64);
        let (mut normal, mut g) = (vec![T::Acc::ZERO; channels], vec![T::Acc::ZERO; channels]);
        let mut product = vec![T::Acc::ZERO; channels];
        let rows = x.chunks_exact(channels).zip(grad.chunks_exact(channels));
        for ((x, grad), dx) in rows.zip(dx.chunks_exact_mut(channels)) {
            widen(x, &mut normal);
            widen(grad, &mut g);
            let rstd = normalize_row(&mut normal, eps);
            for c in 0..channels {
                g[c] = g[c] * gamma[c];
                product[c] = g[c] * normal[c];
            }
            let (mean, of_product) = (sum(&g, |v| v) / n, sum(&product, |v| v) / n);
            for c in 0..channels {
                normal[c] = rstd * (g[c] - mean - normal[c] * of_product);
            }
            narrow(&normal, dx);
        }
    }
}

/// Shape and dtype of the statistics that a gradient reads. On the CPU [B, G, 2], mean and 1 / deviation, in doubles: a
/// mean far from zero keeps its digits. On a GPU [B, G, 3], the mean in two parts.
pub(super) fn statistics(device: Device, batch: usize, groups: usize) -> Meta {
    match device {
        Device::Cpu => Meta { shape: [batch, groups, 2].into(), dtype: DType::F64 },
        Device::Cuda(_) => Meta { shape: [batch, groups, 3].into(), dtype: DType::F32 },
    }
}
