//! Convolutions whose taps lie several pixels apart (Yu & Koltun 2016), in terms of those whose taps are neighbours.
//!
//! Pixels that are `dilation` apart see only each other. They are brought together as an image of their own, which is
//! convolved as any other: by the same kernels, the fastest included.

use crate::error::{Error, Result};
use crate::ops::layout::concat;
use crate::tensor::Tensor;

/// What `convolve` makes of `x` [B, H, W, C], its taps `dilation` pixels apart: [B, H, W, O].
///
/// `convolve` is a convolution of stride 1 that keeps the size of an image by zeros around it, and is given
/// [B dilation², H / dilation, W / dilation, C], rounded up.
///
/// # Errors
/// `Value` for a dilation of 0, and those of `convolve`.
pub fn dilated(
    x: &Tensor,
    dilation: usize,
    convolve: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if dilation == 0 {
        return Err(Error::value(super::NAME, "dilation 0"));
    }
    if dilation == 1 {
        return convolve(x);
    }
    let (batch, height, width, channels) = x.dims4()?;
    let (rows, columns, d) = (height.div_ceil(dilation), width.div_ceil(dilation), dilation);
    // 1. to whole multiples, by zeros that the convolution would put there too
    let x = padded(&padded(x, 1, rows * d)?, 2, columns * d)?;
    // 2. pixels that are d apart together
    let x = x.reshape([batch, rows, d, columns, d, channels])?;
    let x = x.permute(&[0, 2, 4, 1, 3, 5])?.contiguous()?;
    let y = convolve(&x.reshape([batch * d * d, rows, columns, channels])?)?;
    // 3. back
    let outputs = y.dim(3);
    let y = y.reshape([batch, d, d, rows, columns, outputs])?;
    let y = y.permute(&[0, 3, 1, 4, 2, 5])?.contiguous()?;
    let y = y.reshape([batch, rows * d, columns * d, outputs])?;
    y.narrow(1, 0, height)?.narrow(2, 0, width)?.contiguous()
}

/// `x` [B, H, W, C] with zeros behind the last of dimension `dim`, up to `length`.
fn padded(x: &Tensor, dim: usize, length: usize) -> Result<Tensor> {
    let missing = length - x.dim(dim);
    if missing == 0 {
        return Ok(x.clone());
    }
    let zeros = Tensor::zeros(x.shape().with(dim, missing), x.dtype(), x.device())?;
    concat(&[x, &zeros], dim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::conv::{Conv2dConfig, conv2d};
    use crate::ops::epilogue::Epilogue;
    use crate::ops::testing::{Sum, check_batch, check_gradient, check_sums, random, random_in};
    use crate::ops::weight::{Layout, Weight};
    use crate::tensor::DType;

    fn run(x: &Tensor, w: &Tensor, dilation: usize) -> Result<Tensor> {
        let weight = Weight::plain(w, Layout::ConvolutionAt(1), w.dtype())?;
        let config = Conv2dConfig::new(1, 1);
        dilated(x, dilation, |x| conv2d(x, &weight, config, Epilogue::default()))
    }

    /// The definition, of an output [b, y, x, o].
    fn direct(t: &[Vec<f64>], [h, w, c]: [usize; 3], d: usize, [b, y, x, o]: [usize; 4]) -> Sum {
        let mut products = Vec::new();
        for (ky, kx) in (0..9).map(|tap| (tap / 3, tap % 3)) {
            let (y, x) = ((y + ky * d).wrapping_sub(d), (x + kx * d).wrapping_sub(d));
            if y < h && x < w {
                for i in 0..c {
                    let pixel = t[0][((b * h + y) * w + x) * c + i];
                    products.push(pixel * t[1][((o * c + i) * 3 + ky) * 3 + kx]);
                }
            }
        }
        products.into_iter().collect()
    }

    #[test]
    fn taps_are_as_far_apart_as_is_said() {
        for (image, outputs, dilation) in
            [([1, 1, 1], 1, 2), ([5, 7, 3], 4, 2), ([8, 6, 5], 7, 4), ([4, 9, 2], 3, 12)]
        {
            let [h, w, c] = image;
            check_sums(
                &format!("dilated {image:?} {dilation}"),
                &[random([2, h, w, c], 1), random([outputs, c, 3, 3], 2)],
                9 * c,
                |t| run(t[0], t[1], dilation),
                |t| {
                    let place = |at| {
                        let pixel = at / outputs;
                        [pixel / (h * w), pixel / w % h, pixel % w, at % outputs]
                    };
                    let sum = |at| direct(t, image, dilation, place(at));
                    (0..2 * h * w * outputs).map(sum).collect()
                },
            );
            let inputs = [
                random_in(DType::F64, [2, h, w, c], 3),
                random_in(DType::F64, [outputs, c, 3, 3], 4),
            ];
            check_gradient("dilated", &inputs, |t| run(t[0], t[1], dilation));
        }
    }

    #[test]
    fn entries_of_a_batch_are_independent() {
        let w = random([6, 16, 3, 3], 5);
        check_batch("dilated", &random([7, 9, 5, 16], 6), |x| {
            run(x, &w.to_dtype(x.dtype())?.to_device(x.device())?, 2)
        });
    }
}
