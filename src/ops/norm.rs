//! Normalisations: group (with SiLU fused), layer, and by batch or root mean square in files of their own. Kernels: `kernels/norm.cu`.
//!
//! Variances are means of squared deviations from the mean, never of squares, and means that f32 rounds
//! are corrected by the mean of what deviates from them: a mean a thousand times the deviation costs no digit.

mod batch;
mod cuda;
mod gradient;
mod rms;

pub use batch::{Moments, batch_norm, batch_norm_with, moved};
pub use cuda::concat_group_norm;
pub use rms::rms_norm;

use super::activation::{Identity, Map, Silu};
use super::elementwise::require_float;
use super::gradient::Call;
use super::kernels::{LaunchConfig, kernels, to_u32};
use super::{Grads, Inputs, Meta, Op, Saves, apply, apply_all, tensors};
use crate::cpu::math::Math;
use crate::cpu::parallel::for_each_chunk;
use crate::cpu::simd::{as_acc, as_acc_mut, narrow, simd, sum, widen, widened};
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::tensor::{DType, Element, Float, Real, Tensor};
use bytemuck::NoUninit;
use gradient::{GroupNormGradient, LayerNormGradient};

/// Elements of a tile: 128 KiB of f32, which the second pass over it still finds in a core's second cache.
const TILE: usize = 1 << 15;
/// Elements that a thread normalises by rows at a time.
const ROWS: usize = 1 << 14;

kernels! {
    /// A warp a row.
    fn layer_norm(y: Out, x: In, gamma: In<f32>, beta: In<f32>, dims: LayerNormDims);
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct LayerNormDims {
    rows: u32,
    columns: u32,
    eps: f32,
}

/// Group normalisation (Wu & He 2018), followed by SiLU if `silu`.
///
/// `x` [B, .., C], usually [B, H, W, C]; `gamma`, `beta` `[C]`, f32; `groups` divides C. The mean and the
/// biased variance are those of an image's group: all its positions and C / groups channels.
///
/// # Errors
/// `Shape` when `groups` does not divide C, or `gamma` or `beta` is not `[C]`; `DType` when `x` is not a
/// float, or `gamma` or `beta` neither f32 nor (beside an f64 `x`) f64.
pub fn group_norm(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    groups: usize,
    eps: f32,
    silu: bool,
) -> Result<Tensor> {
    let op = GroupNorm { groups, eps, silu, statistics: false };
    apply(op, &tensors(&[x, gamma, beta]))
}

/// Layer normalisation (Ba et al. 2016) over the last dimension, with the biased variance.
///
/// `x` [.., C]; `gamma`, `beta` `[C]`, f32.
///
/// # Errors
/// As [`group_norm`].
pub fn layer_norm(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f32) -> Result<Tensor> {
    apply(LayerNorm { eps }, &tensors(&[x, gamma, beta]))
}

/// [`group_norm`]; inputs `x`, `gamma`, `beta`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct GroupNorm {
    /// The number of groups.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Whether SiLU follows.
    pub silu: bool,
    /// Whether the groups' means and deviations are wanted for more than the gradient.
    pub statistics: bool,
}

impl Op for GroupNorm {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let x = &inputs[0];
        let channels = channels("group_norm", x)?;
        check_parameters("group_norm", x, channels, [&inputs[1], &inputs[2]])?;
        if x.rank() < 2 {
            return Err(Error::expected_shape("group_norm", "x", "[B, .., C]", x.shape()));
        }
        self.check_groups(channels)?;
        let mut outputs = vec![Meta::like(x)];
        if inputs.recorded() || self.statistics {
            outputs.push(gradient::statistics(x.device(), x.dim(0), self.groups));
        }
        Ok(outputs)
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let [out, saved @ ..] = outputs else { unreachable!("inferred above") };
        let statistics = saved.first_mut().map(Tensor::as_mut_slice::<f64>).transpose()?;
        let x = inputs[0].contiguous()?;
        dispatch_float!("group_norm", x.dtype(), T => {
            let (gamma, beta) = (parameter::<T>(&inputs[1])?, parameter::<T>(&inputs[2])?);
            let y = out.as_mut_slice::<T>()?;
            if self.silu {
                self.normalize(Silu, &x, &gamma, &beta, y, statistics)
            } else {
                self.normalize(Identity, &x, &gamma, &beta, y, statistics)
            }
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = inputs[0].contiguous()?;
        cuda::group_norm(self, &x, [&inputs[1], &inputs[2]], outputs)
    }

    fn saves(&self) -> Saves {
        Saves { inputs: &[0, 1, 2], result: false }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let (x, gamma, beta) = (call.tensor(0)?, call.tensor(1)?, call.tensor(2)?);
        let inputs = tensors(&[x, gamma, beta, call.output(1)?, grad]);
        let grads = apply_all(GroupNormGradient { silu: self.silu }, &inputs)?;
        Ok(grads.into_iter().map(Some).collect())
    }
}

impl GroupNorm {
    fn check_groups(&self, channels: usize) -> Result<()> {
        if self.groups == 0 || !channels.is_multiple_of(self.groups) {
            return Err(Error::shape(
                "group_norm",
                format!("{channels} channels do not divide into {} groups", self.groups),
            ));
        }
        Ok(())
    }

    fn normalize<T: Float<Acc: Math>, M: Map>(
        &self,
        activation: M,
        x: &Tensor,
        gamma: &[T::Acc],
        beta: &[T::Acc],
        y: &mut [T],
        saved: Option<&mut [f64]>,
    ) -> Result<()> {
        let channels = gamma.len();
        let image = x.len() / x.dim(0);
        let tile = (TILE / channels).max(1) * channels;
        let x = x.as_slice::<T>()?;

        // 1. each tile's mean and deviations from it, by channel: it is read from memory once
        let tiles = image.div_ceil(tile); // of an image
        let mut statistics = vec![T::Acc::ZERO; x.len() / image * tiles * 3 * channels];
        for_each_chunk(&mut statistics, 3 * channels, |i, s| {
            let x = &x[i / tiles * image..][..image];
            let start = i % tiles * tile;
            let x = &x[start..image.min(start + tile)];
            tile_statistics(widened(x, &mut Vec::new()), s, channels);
        });

        // 2. those of the groups, as y = (x - centre) * scale + shift by channel
        let statistics = statistics.chunks(tiles * 3 * channels);
        let affine: Vec<Affine<T::Acc>> =
            statistics.map(|s| self.affine(s, image, tile, gamma, beta)).collect();
        for (saved, affine) in
            saved.into_iter().flat_map(|s| s.chunks_mut(2 * self.groups)).zip(&affine)
        {
            saved.copy_from_slice(&affine.moments);
        }

        // 3. the output
        for_each_chunk(y, image, |b, y| {
            for_each_chunk(y, tile, |i, y| {
                let x = &x[b * image + i * tile..][..y.len()];
                apply_affine(activation, x, &affine[b], y);
            });
        });
        Ok(())
    }

    /// Combines the statistics of an image's tiles to those of its groups (Chan et al. 1983), in f64.
    fn affine<A: Real>(
        &self,
        tiles: &[A],
        image: usize,
        tile: usize,
        gamma: &[A],
        beta: &[A],
    ) -> Affine<A> {
        let channels = gamma.len();
        let group = channels / self.groups;
        // 1. (mean, sum of squared deviations) by channel
        let mut moments = vec![(0.0, 0.0); channels];
        let all = (image / channels) as f64;
        let pixels = |i: usize| (tile.min(image - i * tile) / channels) as f64;
        let tiles = || tiles.chunks(3 * channels).enumerate();
        for (i, t) in tiles() {
            let (means, sums) = (t[..channels].iter(), &t[channels..2 * channels]);
            for ((channel, mean), sum) in moments.iter_mut().zip(means).zip(sums) {
                channel.0 += (pixels(i) * mean.to_f64() + sum.to_f64()) / all;
            }
        }
        for (i, t) in tiles() {
            let (sums, squares) = (&t[channels..2 * channels], &t[2 * channels..]);
            for (((channel, mean), sum), square) in moments.iter_mut().zip(t).zip(sums).zip(squares)
            {
                // About the channel's mean instead of the tile's, as it was rounded.
                let offset = mean.to_f64() - channel.0;
                channel.1 += square.to_f64() + offset * (2.0 * sum.to_f64() + pixels(i) * offset);
            }
        }
        // 2. those by group
        let mut affine = Affine { centre: vec![], scale: vec![], shift: vec![], moments: vec![] };
        for g in 0..self.groups {
            let range = g * group..(g + 1) * group;
            let of_group = || moments[range.clone()].iter();
            let mean = of_group().map(|(mean, _)| mean).sum::<f64>() / group as f64;
            let squares = of_group().map(|(m, squares)| squares + all * (m - mean) * (m - mean));
            let variance = squares.sum::<f64>() / (all * group as f64);
            let deviation = (variance + f64::from(self.eps)).sqrt();
            affine.moments.extend([mean, 1.0 / deviation]);
            let centre = A::from_f64(mean);
            for c in range.clone() {
                let scale = gamma[c].to_f64() / deviation;
                affine.centre.push(centre);
                affine.scale.push(A::from_f64(scale));
                affine.shift.push(A::from_f64(beta[c].to_f64() + (centre.to_f64() - mean) * scale));
            }
        }
        affine
    }
}

/// `(x - centre) * scale + shift`, by channel. `centre` is the mean as rounded, and `shift` makes up for
/// the rounding; the difference from `x` is exact where it matters, when `x` is close to the mean.
struct Affine<A> {
    centre: Vec<A>,
    scale: Vec<A>,
    shift: Vec<A>,
    /// By group: mean and 1 / deviation.
    moments: Vec<f64>,
}

simd! {
    /// Of a tile `x` [pixels, C]: its mean, and the sums of the deviations from that mean, as rounded, and of
    /// their squares: `statistics` [3, C].
    fn tile_statistics[A: Math](_s, x: &[A], statistics: &mut [A], channels: usize) {
        // As many channels at a time as registers can sum.
        let mut c = 0;
        while c < channels {
            c += match channels - c {
                32.. => channel_statistics::<A, 32>(x, statistics, channels, c),
                8.. => channel_statistics::<A, 8>(x, statistics, channels, c),
                _ => channel_statistics::<A, 1>(x, statistics, channels, c),
            };
        }
    }
}

/// [`tile_statistics`] of N channels from `c` on; returns N.
#[inline(always)]
fn channel_statistics<A: Real, const N: usize>(
    x: &[A],
    statistics: &mut [A],
    channels: usize,
    c: usize,
) -> usize {
    let rows = || x.chunks_exact(channels).map(|row| &row[c..c + N]);
    let pixels = A::from_f64((x.len() / channels) as f64);
    let mut mean = [A::ZERO; N];
    for row in rows() {
        for i in 0..N {
            mean[i] += row[i];
        }
    }
    for mean in &mut mean {
        *mean = *mean / pixels;
    }
    let (mut sums, mut squares) = ([A::ZERO; N], [A::ZERO; N]);
    for row in rows() {
        for i in 0..N {
            let offset = row[i] - mean[i];
            sums[i] += offset;
            squares[i] += offset * offset;
        }
    }
    for (i, values) in [mean, sums, squares].iter().enumerate() {
        statistics[i * channels + c..][..N].copy_from_slice(values);
    }
    N
}

simd! {
    /// The affine map and the activation of a tile [pixels, C].
    fn apply_affine[T: Float<Acc: Math>, M: Map](s, activation: M, x: &[T], affine: &Affine<T::Acc>, y: &mut [T]) {
        let channels = affine.scale.len();
        if let (Some(x), Some(y)) = (as_acc(x), as_acc_mut(y)) {
            for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
                let parameters = affine.centre.iter().zip(&affine.scale).zip(&affine.shift);
                for ((y, x), ((centre, scale), shift)) in y.iter_mut().zip(x).zip(parameters) {
                    *y = activation.apply(s, (*x - *centre).vector_fma(s, *scale, *shift));
                }
            }
            return;
        }
        let mut row = vec![T::Acc::ZERO; channels];
        for (x, y) in x.chunks_exact(channels).zip(y.chunks_exact_mut(channels)) {
            widen(x, &mut row);
            let parameters = affine.centre.iter().zip(&affine.scale).zip(&affine.shift);
            for (v, ((centre, scale), shift)) in row.iter_mut().zip(parameters) {
                *v = activation.apply(s, (*v - *centre).vector_fma(s, *scale, *shift));
            }
            narrow(&row, y);
        }
    }
}

/// [`layer_norm`]; inputs `x`, `gamma`, `beta`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct LayerNorm {
    /// Added to the variance.
    pub eps: f32,
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let x = &inputs[0];
        let channels = channels("layer_norm", x)?;
        check_parameters("layer_norm", x, channels, [&inputs[1], &inputs[2]])?;
        Ok(vec![Meta::like(x)])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        let x = inputs[0].contiguous()?;
        dispatch_float!("layer_norm", x.dtype(), T => {
            let (gamma, beta) = (parameter::<T>(&inputs[1])?, parameter::<T>(&inputs[2])?);
            let len = (ROWS / gamma.len()).max(1) * gamma.len();
            let x = x.as_slice::<T>()?;
            for_each_chunk(out.as_mut_slice::<T>()?, len, |i, y| {
                layer_norm_rows(&x[i * len..][..y.len()], &gamma, &beta, self.eps, y);
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        let [x, gamma, beta] = [0, 1, 2].map(|i| inputs[i].contiguous());
        let (x, gamma, beta) = (x?, gamma?, beta?);
        let (rows, columns) = (x.len() / gamma.len(), gamma.len());
        let dims = LayerNormDims {
            rows: to_u32("layer_norm", rows)?,
            columns: to_u32("layer_norm", columns)?,
            eps: self.eps,
        };
        // Four rows a block: enough to fill an SM, and 77 tokens still spread over 20 of them.
        let config = LaunchConfig::new([rows.div_ceil(4) as u32, 1], 4 * 32);
        kernel::layer_norm(config, out, &x, &gamma, &beta, dims)
    }

    fn saves(&self) -> Saves {
        Saves { inputs: &[0, 1], result: false }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let inputs = tensors(&[call.tensor(0)?, call.tensor(1)?, grad]);
        let grads = apply_all(LayerNormGradient { eps: self.eps }, &inputs)?;
        Ok(grads.into_iter().map(Some).collect())
    }
}

simd! {
    fn layer_norm_rows[T: Float<Acc: Math>](
        s, x: &[T], gamma: &[T::Acc], beta: &[T::Acc], eps: f32, y: &mut [T],
    ) {
        let channels = T::Acc::from_f64(gamma.len() as f64);
        let (mut wide, mut row) = (Vec::new(), vec![T::Acc::ZERO; gamma.len()]);
        for (x, y) in x.chunks_exact(gamma.len()).zip(y.chunks_exact_mut(gamma.len())) {
            let x = widened(x, &mut wide);
            let mean = sum(x, |v| v) / channels;
            let correction = sum(x, |v| v - mean) / channels;
            let squares = sum(x, |v| (v - mean) * (v - mean));
            let variance = squares / channels - correction * correction;
            let scale = T::Acc::ONE / (variance + T::Acc::from_f64(f64::from(eps))).sqrt();
            let normalize = |x: T::Acc, gamma, beta| {
                (((x - mean) - correction) * scale).vector_fma(s, gamma, beta)
            };
            if let Some(y) = as_acc_mut(y) {
                for (((y, x), gamma), beta) in y.iter_mut().zip(x).zip(gamma).zip(beta) {
                    *y = normalize(*x, *gamma, *beta);
                }
            } else {
                for (((v, x), gamma), beta) in row.iter_mut().zip(x).zip(gamma).zip(beta) {
                    *v = normalize(*x, *gamma, *beta);
                }
                narrow(&row, y);
            }
        }
    }
}

/// The number of channels of `x`.
fn channels(op: &'static str, x: &Tensor) -> Result<usize> {
    match x.dims() {
        [.., channels] if *channels > 0 => Ok(*channels),
        _ => Err(Error::expected_shape(op, "x", "[.., C] with C > 0", x.shape())),
    }
}

/// Checks that `x`, `gamma` and `beta` fit together.
fn check_parameters(
    op: &'static str,
    x: &Tensor,
    channels: usize,
    [gamma, beta]: [&Tensor; 2],
) -> Result<()> {
    require_float(op, x)?;
    for (what, t) in [("gamma", gamma), ("beta", beta)] {
        if t.dims() != [channels] {
            return Err(Error::expected_shape(op, what, &format!("[{channels}]"), t.shape()));
        }
        let double = x.dtype() == DType::F64 && t.dtype() == DType::F64;
        if t.dtype() != DType::F32 && !double {
            return Err(Error::DType {
                op,
                expected: "f32 (f64 beside an f64 x) for gamma and beta",
                found: t.dtype(),
            });
        }
    }
    Ok(())
}

/// `gamma` or `beta` in the type that `T` is computed in.
fn parameter<T: Float>(t: &Tensor) -> Result<Vec<T::Acc>> {
    t.to_dtype(<T::Acc as Element>::DTYPE)?.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::elementwise::add;
    use crate::ops::testing::{
        assert_close, check, check_batch, check_gradient, check_nan, devices, random, shapes,
        values,
    };
    use crate::tensor::{Device, Shape};

    /// gamma about 1 and beta about 0, f32.
    fn parameters(channels: usize) -> (Tensor, Tensor) {
        let one = Tensor::full([channels], 1.0, DType::F32, Device::Cpu).unwrap();
        (add(&random([channels], 1), &one).unwrap(), random([channels], 2))
    }

    /// [`group_norm`] with parameters from anywhere.
    fn group(
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        groups: usize,
        eps: f32,
        silu: bool,
    ) -> Result<Tensor> {
        let on = x.device();
        group_norm(x, &gamma.to_device(on)?, &beta.to_device(on)?, groups, eps, silu)
    }

    /// [`layer_norm`] with parameters from anywhere.
    fn layer(x: &Tensor, gamma: &Tensor, beta: &Tensor, eps: f32) -> Result<Tensor> {
        layer_norm(x, &gamma.to_device(x.device())?, &beta.to_device(x.device())?, eps)
    }

    /// Two passes in f64 over x [B, pixels, C].
    fn reference(
        x: &[f64],
        pixels: usize,
        gamma: &Tensor,
        beta: &Tensor,
        groups: usize,
        eps: f32,
        silu: bool,
    ) -> Vec<f64> {
        let (gamma, beta) = (values(gamma), values(beta));
        let channels = gamma.len();
        let group = channels / groups;
        let mut y = vec![0.0; x.len()];
        for b in 0..x.len() / (pixels * channels) {
            for g in 0..groups {
                let at: Vec<usize> = (0..pixels)
                    .flat_map(|p| {
                        (0..group).map(move |c| (b * pixels + p) * channels + g * group + c)
                    })
                    .collect();
                let n = at.len() as f64;
                let mean = at.iter().map(|&i| x[i]).sum::<f64>() / n;
                let variance = at.iter().map(|&i| (x[i] - mean).powi(2)).sum::<f64>() / n;
                for i in at {
                    let c = i % channels;
                    let v = (x[i] - mean) / (variance + f64::from(eps)).sqrt() * gamma[c] + beta[c];
                    y[i] = if silu { v / (1.0 + (-v).exp()) } else { v };
                }
            }
        }
        y
    }

    #[test]
    fn group_norm_equals_its_formula() {
        for (shape, groups) in [
            ([1, 1, 1, 8], 2),
            ([2, 7, 33, 30], 5),
            ([1, 65, 31, 20], 1),
            ([3, 2, 3, 6], 6),
            // More groups than a block has warps; pixels wider than a block's threads, by vectors and by channels.
            ([1, 9, 5, 64], 32),
            ([1, 1, 2, 2056], 8),
            ([2, 3, 2, 259], 7),
        ] {
            let (gamma, beta) = parameters(shape[3]);
            for silu in [false, true] {
                // 16 units: sums over a tile in f32, divided by a deviation near 1.
                check(
                    "group_norm",
                    &[random(shape, 3)],
                    16.0,
                    |x| group(x[0], &gamma, &beta, groups, 1e-5, silu),
                    |x| reference(&x[0], shape[1] * shape[2], &gamma, &beta, groups, 1e-5, silu),
                );
            }
        }
    }

    #[test]
    fn layer_norm_equals_its_formula() {
        for shape in [&[1, 1, 8][..], &[2, 33, 77], &[5, 1280], &[31]] {
            let channels = shape[shape.len() - 1];
            let (gamma, beta) = parameters(channels);
            check(
                "layer_norm",
                &[random(shape, 4)],
                16.0,
                |x| layer(x[0], &gamma, &beta, 1e-5),
                |x| reference(&x[0], 1, &gamma, &beta, 1, 1e-5, false),
            );
        }
    }

    /// Runs `op` on `x`, rounded to each dtype that kernels compute, everywhere against the formula in f64: which is
    /// exact beside f32 only.
    fn check_single(
        what: &str,
        x: &Tensor,
        op: impl Fn(&Tensor) -> Result<Tensor>,
        reference: impl Fn(&[f64]) -> Vec<f64>,
    ) {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            let x = x.to_dtype(dtype).unwrap();
            let expected = reference(&values(&x));
            for device in devices() {
                let y = op(&x.to_device(device).unwrap()).unwrap();
                assert_close(&y, &expected, 16.0, &format!("{what} {} on {device}", x.shape()));
            }
        }
    }

    /// Sums of squares in f32 would have no digit of the variance left here.
    #[test]
    fn a_large_mean_does_not_drown_the_variance() {
        // Several slabs of an image on the device; a row that a warp walks more than once.
        for shape in [[2, 70, 9, 40], [1, 33, 3, 45], [1, 1, 2, 1280]] {
            let channels = shape[3];
            let offset = Tensor::full([channels], 4096.0, DType::F32, Device::Cpu).unwrap();
            let x = add(&random(shape, 5), &offset).unwrap();
            let (gamma, beta) = parameters(channels);
            let pixels = shape[1] * shape[2];
            check_single(
                "group_norm",
                &x,
                |x| group(x, &gamma, &beta, 5, 1e-5, false),
                |x| reference(x, pixels, &gamma, &beta, 5, 1e-5, false),
            );
            check_single(
                "layer_norm",
                &x,
                |x| layer(x, &gamma, &beta, 1e-5),
                |x| reference(x, 1, &gamma, &beta, 1, 1e-5, false),
            );
        }
    }

    /// One dimension as large as models have it, the others cut: many slabs, slabs of more than 64 pixels, pixels that
    /// are wider than a block, rows that are wider than a warp's registers, odd and even.
    #[test]
    fn shapes_of_models_equal_their_formula() {
        let shapes = [
            ([1, 64, 64, 10], 2),
            ([1, 96, 96, 3], 3),
            ([1, 131, 97, 2], 1),
            ([1, 5, 14, 1280], 32),
            ([2, 3, 23, 2560], 32),
            ([1, 2, 3, 1283], 1),
        ];
        for (shape, groups) in shapes {
            let (gamma, beta) = parameters(shape[3]);
            check_single(
                "group_norm",
                &random(shape, 8),
                |x| group(x, &gamma, &beta, groups, 1e-5, true),
                |x| reference(x, shape[1] * shape[2], &gamma, &beta, groups, 1e-5, true),
            );
        }
        for columns in [12_800, 12_801] {
            let (gamma, beta) = parameters(columns);
            check_single(
                "layer_norm",
                &random([5, columns], 9),
                |x| layer(x, &gamma, &beta, 1e-5),
                |x| reference(x, 1, &gamma, &beta, 1, 1e-5, false),
            );
        }
    }

    #[test]
    fn entries_of_a_batch_are_independent() {
        let (gamma, beta) = parameters(60);
        let x = random([7, 37, 11, 60], 6);
        for silu in [false, true] {
            check_batch("group_norm", &x, |x| group(x, &gamma, &beta, 4, 1e-6, silu));
        }
        check_batch("layer_norm", &x, |x| layer(x, &gamma, &beta, 1e-6));
        check_nan("group_norm", &x, 1234, |x| group(x, &gamma, &beta, 4, 1e-6, true));
        check_nan("layer_norm", &x, 1234, |x| layer(x, &gamma, &beta, 1e-6));
    }

    #[test]
    fn gradients_are_those_of_differences() {
        // Of two elements all that is left is a sign.
        let more = shapes().enumerate().map(|(i, [b, h, w, c])| {
            let groups = 1 + i % 3;
            ([b, h + 2, w, c * groups], groups)
        });
        let given = [
            ([1, 2, 1, 2], 1),
            ([2, 3, 5, 6], 3),
            ([3, 1, 7, 5], 5),
            ([2, 9, 4, 33], 11),
            ([1, 5, 3, 40], 1),
        ];
        for (shape, groups) in given.into_iter().chain(more) {
            let (gamma, beta) = parameters(shape[3]);
            let inputs = [random(shape, 71), gamma, beta];
            for silu in [false, true] {
                check_gradient(
                    &format!("group_norm, {groups} groups, silu {silu}"),
                    &inputs,
                    |t| group_norm(t[0], t[1], t[2], groups, 1e-5, silu),
                );
            }
        }
    }

    #[test]
    fn gradients_of_layer_norm_are_those_of_differences() {
        // Of two elements all that is left is a sign. The last has more rows than are summed together.
        let given = [&[1, 5][..], &[7], &[3, 5, 33], &[140, 4]].map(Shape::new);
        let more = shapes::<2>().map(|[rows, channels]| Shape::from([rows, channels + 3]));
        for shape in given.into_iter().chain(more) {
            let (gamma, beta) = parameters(shape[shape.len() - 1]);
            check_gradient("layer_norm", &[random(shape, 74), gamma, beta], |t| {
                layer_norm(t[0], t[1], t[2], 1e-5)
            });
        }
    }

    #[test]
    fn gradients_of_group_norm_do_not_depend_on_the_batch() {
        let (gamma, beta) = parameters(20);
        let batch = random([7, 5, 3, 20], 72);
        check_batch("group_norm by x", &batch, |x| {
            let x = x.variable();
            let y = group(&x, &gamma, &beta, 4, 1e-5, true)?;
            let weights = random(&y.dims()[1..], 73).to_dtype(y.dtype())?.to_device(y.device())?;
            let y = crate::ops::elementwise::mul(&y, &weights)?;
            let ones = Tensor::full(*y.shape(), 1.0, y.dtype(), y.device())?;
            let mut gradients = crate::ops::gradient::backward_from(y, ones)?;
            Ok(gradients.take(&x).unwrap())
        });
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let x = random([2, 3, 3, 8], 7);
        let (gamma, beta) = parameters(8);
        let (short, _) = parameters(7);
        assert!(matches!(group_norm(&x, &gamma, &beta, 3, 1e-5, false), Err(Error::Shape { .. })));
        assert!(matches!(group_norm(&x, &gamma, &beta, 0, 1e-5, false), Err(Error::Shape { .. })));
        assert!(matches!(group_norm(&x, &short, &beta, 2, 1e-5, false), Err(Error::Shape { .. })));
        assert!(matches!(group_norm(&x, &gamma, &short, 2, 1e-5, false), Err(Error::Shape { .. })));
        assert!(matches!(
            group_norm(&gamma, &gamma, &beta, 2, 1e-5, false),
            Err(Error::Shape { .. })
        ));
        assert!(matches!(
            layer_norm(&x, &gamma.to_dtype(DType::F16).unwrap(), &beta, 1e-5),
            Err(Error::DType { .. })
        ));
        assert!(matches!(
            layer_norm(&random([3, 0], 1), &random([0], 1), &random([0], 1), 1e-5),
            Err(Error::Shape { .. })
        ));
        assert!(
            group_norm(&random([0, 3, 3, 8], 1), &gamma, &beta, 2, 1e-5, false).unwrap().is_empty()
        );
    }
}
