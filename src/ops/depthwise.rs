//! Convolution of NHWC images channel by channel, as depthwise-separable convolutions begin (Chollet 2017). Kernel:
//! `kernels/depthwise.cu`.

use std::ops::Range;

use bytemuck::NoUninit;

use super::elementwise::{mul, require_dtype, require_float};
use super::gradient::Call;
use super::kernels::{LaunchConfig, kernels, to_u32};
use super::layout::concat;
use super::reduce::sum;
use super::{Grads, Inputs, Meta, Op, Saves, apply, tensors};
use crate::cpu::math::Math;
use crate::cpu::parallel::for_each_row;
use crate::cpu::simd::{narrow, simd, widen};
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::tensor::{Float, Real, Tensor};

kernels! {
    fn depthwise_conv2d(y: Out, x: In, w: In, dims: DepthwiseDims);
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct DepthwiseDims {
    len: u64,
    height: u32,
    width: u32,
    channels: u32,
    kernel_height: u32,
    kernel_width: u32,
    dilation: u32,
}

const NAME: &str = "depthwise_conv2d";

/// `x` [B, H, W, C], each channel under its own kernel, whose taps are `dilation` pixels apart: [B, H, W, C].
///
/// `weight` [C, 1, KH, KW] with odd KH and KW; zeros around the image keep its size. Sums are taken in f32 (f64 for f64), taps
/// in ascending order. `torch.nn.functional.conv2d(groups=C, padding="same")`.
///
/// # Errors
/// `Shape` when `weight` does not fit `x` or its kernel is even, `DType` when they differ or are integers, `Value` for a
/// dilation of 0.
pub fn depthwise_conv2d(x: &Tensor, weight: &Tensor, dilation: usize) -> Result<Tensor> {
    let &[c, 1, kh, kw] = weight.dims() else {
        return Err(Error::expected_shape(NAME, "weight", "[C, 1, KH, KW]", weight.shape()));
    };
    let taps = weight.reshape([c, kh * kw])?.transpose(0, 1)?.contiguous()?;
    apply(Depthwise { kernel: [kh, kw], dilation }, &tensors(&[x, &taps]))
}

/// [`depthwise_conv2d`]; inputs `x`, `taps` [KH KW, C].
#[derive(Clone, Copy, Debug)]
struct Depthwise {
    kernel: [usize; 2],
    dilation: usize,
}

impl Depthwise {
    /// How far the tap `i` of `kernel` in a row lies from the middle.
    fn offset(&self, i: usize, kernel: usize) -> isize {
        (i as isize - (kernel / 2) as isize) * self.dilation as isize
    }
}

/// The positions below `n` which `offset` moves to others below `n`.
fn inside(n: usize, offset: isize) -> Range<usize> {
    let start = offset.min(0).unsigned_abs();
    start.min(n)..n.saturating_sub(offset.max(0) as usize).max(start.min(n))
}

impl Op for Depthwise {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (x, taps) = (&inputs[0], &inputs[1]);
        require_float(NAME, x)?;
        require_dtype(NAME, x.dtype(), taps)?;
        let [kh, kw] = self.kernel;
        if kh % 2 == 0 || kw % 2 == 0 {
            return Err(Error::shape(NAME, format!("a kernel of {kh}x{kw} has no middle")));
        }
        if self.dilation == 0 {
            return Err(Error::value(NAME, "dilation 0"));
        }
        match *x.dims() {
            [_, _, _, c] if c == taps.dim(1) => Ok(vec![Meta::like(x)]),
            _ => {
                let expected = format!("[B, H, W, {}]", taps.dim(1));
                Err(Error::expected_shape(NAME, "x", &expected, x.shape()))
            }
        }
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, taps) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        let (_, height, width, channels) = x.dims4()?;
        let [kh, kw] = self.kernel;
        dispatch_float!(NAME, x.dtype(), T => {
            let (x, taps) = (x.as_slice::<T>()?, taps.as_slice::<T>()?);
            let row_len = width * channels;
            for_each_row(outputs[0].as_mut_slice::<T>()?, row_len, |i, to| {
                let (image, row) = (i / height, (i % height) as isize);
                let mut sum = vec![<T as Float>::Acc::ZERO; row_len];
                for ky in 0..kh {
                    let from = row + self.offset(ky, kh);
                    if !(0..height as isize).contains(&from) {
                        continue;
                    }
                    let from = &x[(image * height + from as usize) * row_len..][..row_len];
                    for kx in 0..kw {
                        let offset = self.offset(kx, kw);
                        let columns = inside(width, offset);
                        if columns.is_empty() {
                            continue;
                        }
                        let start = columns.start.saturating_add_signed(offset);
                        let sum = &mut sum[columns.start * channels..columns.end * channels];
                        let from = &from[start * channels..][..sum.len()];
                        add_products(from, &taps[(ky * kw + kx) * channels..][..channels], sum);
                    }
                }
                narrow(&sum, to);
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, taps, out) = (inputs[0].contiguous()?, inputs[1].contiguous()?, &mut outputs[0]);
        let (_, height, width, channels) = x.dims4()?;
        let size = |n| to_u32(NAME, n);
        let dims = DepthwiseDims {
            len: out.len() as u64,
            height: size(height)?,
            width: size(width)?,
            channels: size(channels)?,
            kernel_height: size(self.kernel[0])?,
            kernel_width: size(self.kernel[1])?,
            dilation: size(self.dilation)?,
        };
        let blocks = out.len().div_ceil(256).clamp(1, 1 << 14);
        let config = LaunchConfig::new([blocks as u32, 1], 256);
        kernel::depthwise_conv2d(config, out, &x, &taps, dims)
    }

    fn saves(&self) -> Saves {
        Saves { inputs: &[0, 1], result: false }
    }

    /// By the image it is the same with the kernel turned by half; by a tap, the sum over all pixels of the result's gradient
    /// times what the tap saw there.
    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let (x, taps) = (call.tensor(0)?, call.tensor(1)?);
        let of_x = || {
            let rows: Vec<Tensor> =
                (0..taps.dim(0)).rev().map(|i| taps.narrow(0, i, 1)).collect::<Result<_>>()?;
            let turned = concat(&rows.iter().collect::<Vec<_>>(), 0)?;
            apply(*self, &tensors(&[grad, &turned]))
        };
        let of_taps = || {
            let (_, height, width, channels) = x.dims4()?;
            let [kh, kw] = self.kernel;
            let tap = |i: usize| {
                let (y, column) = (self.offset(i / kw, kh), self.offset(i % kw, kw));
                let (rows, columns) = (inside(height, y), inside(width, column));
                if rows.is_empty() || columns.is_empty() {
                    return Tensor::zeros([1, channels], x.dtype(), x.device());
                }
                let part = |t: &Tensor, y: isize, x: isize| {
                    t.narrow(1, rows.start.saturating_add_signed(y), rows.len())?.narrow(
                        2,
                        columns.start.saturating_add_signed(x),
                        columns.len(),
                    )
                };
                sum(&mul(&part(grad, 0, 0)?, &part(x, y, column)?)?, &[0, 1, 2])?
                    .reshape([1, channels])
            };
            let sums = (0..kh * kw).map(tap).collect::<Result<Vec<_>>>()?;
            concat(&sums.iter().collect::<Vec<_>>(), 0)
        };
        Ok(vec![call.wants(0).then(of_x).transpose()?, call.wants(1).then(of_taps).transpose()?])
    }
}

simd! {
    /// Adds the products of pixels `from` [n, C] and one tap [C] to `sum` [n, C].
    fn add_products[T: Float<Acc: Math>](_s, from: &[T], tap: &[T], sum: &mut [T::Acc]) {
        let mut weights = vec![T::Acc::ZERO; tap.len()];
        let mut pixel = vec![T::Acc::ZERO; tap.len()];
        widen(tap, &mut weights);
        for (sum, from) in sum.chunks_exact_mut(tap.len()).zip(from.chunks_exact(tap.len())) {
            widen(from, &mut pixel);
            for ((sum, x), w) in sum.iter_mut().zip(&pixel).zip(&weights) {
                *sum += *x * *w;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{
        Sum, check_batch, check_gradient, check_nan, check_sums, random, random_in,
    };
    use crate::tensor::DType;

    /// The definition, of an output [b, y, x, c].
    fn direct(
        t: &[Vec<f64>],
        [h, w, c]: [usize; 3],
        [kh, kw]: [usize; 2],
        dilation: usize,
        [b, y, x, channel]: [usize; 4],
    ) -> Sum {
        let mut products = Vec::new();
        for ky in 0..kh {
            for kx in 0..kw {
                let (y, x) = (y + ky * dilation, x + kx * dilation);
                let (top, left) = (kh / 2 * dilation, kw / 2 * dilation);
                if y < top || x < left || y - top >= h || x - left >= w {
                    continue;
                }
                let pixel = t[0][((b * h + y - top) * w + x - left) * c + channel];
                products.push(pixel * t[1][(channel * kh + ky) * kw + kx]);
            }
        }
        products.into_iter().collect()
    }

    /// Image [H, W, C], kernel, dilation.
    const CASES: [([usize; 3], [usize; 2], usize); 6] = [
        ([1, 1, 1], [1, 1], 1),
        ([5, 7, 3], [3, 3], 1),
        ([6, 4, 33], [3, 3], 2),
        ([9, 3, 8], [5, 1], 3),
        ([4, 5, 7], [3, 3], 12),
        ([13, 11, 2], [1, 7], 1),
    ];

    #[test]
    fn each_channel_is_convolved_by_itself() {
        for (image, kernel, dilation) in CASES {
            let [h, w, c] = image;
            check_sums(
                &format!("depthwise {image:?} {kernel:?} {dilation}"),
                &[random([2, h, w, c], 1), random([c, 1, kernel[0], kernel[1]], 2)],
                kernel[0] * kernel[1],
                |t| depthwise_conv2d(t[0], t[1], dilation),
                |t| {
                    let place = |at| [at / (h * w * c), at / (w * c) % h, at / c % w, at % c];
                    let sum = |at| direct(t, image, kernel, dilation, place(at));
                    (0..2 * h * w * c).map(sum).collect()
                },
            );
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        for ([h, w, c], [kh, kw], dilation) in CASES {
            let inputs =
                [random_in(DType::F64, [2, h, w, c], 3), random_in(DType::F64, [c, 1, kh, kw], 4)];
            check_gradient("depthwise", &inputs, |t| depthwise_conv2d(t[0], t[1], dilation));
        }
    }

    #[test]
    fn entries_of_a_batch_are_independent() {
        let (x, w) = (random([7, 5, 3, 9], 5), random([9, 1, 3, 3], 6));
        let run =
            |x: &Tensor| depthwise_conv2d(x, &w.to_dtype(x.dtype())?.to_device(x.device())?, 2);
        check_batch("depthwise", &x, run);
        check_nan("depthwise", &x, 200, run);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let x = random([1, 4, 4, 3], 1);
        let run = |shape: [usize; 4], dilation| depthwise_conv2d(&x, &random(shape, 2), dilation);
        assert!(matches!(run([4, 1, 3, 3], 1), Err(Error::Shape { .. })));
        assert!(matches!(run([3, 2, 3, 3], 1), Err(Error::Shape { .. })));
        assert!(matches!(run([3, 1, 2, 3], 1), Err(Error::Shape { .. })));
        assert!(matches!(run([3, 1, 3, 3], 0), Err(Error::Value { .. })));
    }
}
