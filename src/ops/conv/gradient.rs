//! Gradients of a convolution, in terms of convolutions and matrix products.
//!
//! By the image it is a convolution of the result's gradient, its pixels `stride` apart, with the kernel turned by half
//! and its channels swapped. By the kernel it is the product of the result's gradient with the patches under the kernel
//! (`ops/weight_gradient.rs`).

use super::{Conv2dConfig, conv2d};
use crate::error::{Error, Result};
use crate::ops::epilogue::Epilogue;
use crate::ops::layout::{concat, turned};
use crate::ops::weight::{Layout, Weight};
use crate::ops::weight_gradient::{Geometry, weight_gradient};
use crate::tensor::Tensor;

/// Gradient by the image [B, H, W, I], given that of the product [B, OH, OW, O]; `weight` [O, I, KH, KW].
pub(super) fn by_image(
    grad: &Tensor,
    weight: &Tensor,
    config: Conv2dConfig,
    [height, width]: [usize; 2],
) -> Result<Tensor> {
    let Conv2dConfig { stride, padding: [top, _, left, _] } = config;
    let (kh, kw) = (weight.dim(2), weight.dim(3));
    let apart = spread(&spread(grad, 1, stride)?, 2, stride)?; // [B, (OH - 1) stride + 1, .., O]
    // What the padding of the turned kernel leaves to be padded; below and right also the pixels that no tap saw.
    let padding = |size: usize, before: usize, kernel: usize, apart: usize| {
        let start = (kernel - 1).checked_sub(before)?;
        Some((start, (size + kernel - 1).checked_sub(apart + start)?))
    };
    let vertical = padding(height, top, kh, apart.dim(1));
    let horizontal = padding(width, left, kw, apart.dim(2));
    let (Some((top, bottom)), Some((left, right))) = (vertical, horizontal) else {
        return Err(Error::no_gradient("conv2d with padding wider than its kernel"));
    };
    let weight = Weight::frozen(&turned(weight)?, Layout::ConvolutionAt(1), grad.dtype())?;
    let config = Conv2dConfig { stride: 1, padding: [top, bottom, left, right] };
    conv2d(&apart, &weight, config, Epilogue::default())
}

/// Gradient by the kernel [O, I, KH, KW], given that of the product [B, OH, OW, O]; `x` [B, H, W, I].
pub(super) fn by_weight(
    grad: &Tensor,
    x: &Tensor,
    config: Conv2dConfig,
    [kh, kw]: [usize; 2],
) -> Result<Tensor> {
    let Conv2dConfig { stride, padding: [top, _, left, _] } = config;
    weight_gradient(grad, x, Geometry { kernel: [kh, kw], stride, before: [top, left] })
}

/// Dimension `dim` with `stride - 1` zeros between neighbours.
fn spread(x: &Tensor, dim: usize, stride: usize) -> Result<Tensor> {
    if stride == 1 {
        return Ok(x.clone());
    }
    let (mut dims, length) = (x.dims().to_vec(), x.dim(dim));
    dims.insert(dim + 1, 1);
    let x = x.reshape(&dims)?; // [.., n, 1, ..]
    let zeros = Tensor::zeros(x.shape().with(dim + 1, stride - 1), x.dtype(), x.device())?;
    let apart = concat(&[&x, &zeros], dim + 1)?; // [.., n, stride, ..]
    dims.remove(dim + 1);
    dims[dim] = length * stride;
    apart.reshape(&dims)?.narrow(dim, 0, (length - 1) * stride + 1)
}
