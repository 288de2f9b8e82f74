//! Gradients of a convolution, in terms of convolutions and matrix products.
//!
//! By the image it is a convolution of the result's gradient, its pixels `stride` apart, with the kernel turned by half
//! and its channels swapped. By the kernel it is the product of the result's gradient with the patches under the kernel
//! (`ops/weight_gradient.rs`); on a GPU, for each tap, with the pixels that the tap saw.

use super::{Conv2dConfig, conv2d};
use crate::error::{Error, Result};
use crate::ops::epilogue::Epilogue;
use crate::ops::layout::concat;
use crate::ops::matmul::matmul;
use crate::ops::weight::{Layout, Weight};
use crate::ops::weight_gradient::{Geometry, weight_gradient};
use crate::tensor::{Device, Tensor};

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
    let turned = reverse(&reverse(&weight.transpose(0, 1)?, 2)?, 3)?; // [I, O, KH, KW]
    let weight = Weight::frozen(&turned, Layout::ConvolutionAt(1), grad.dtype())?;
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
    let Conv2dConfig { stride, padding: [top, bottom, left, right] } = config;
    if grad.device() == Device::Cpu {
        return weight_gradient(
            grad,
            x,
            Geometry { kernel: [kh, kw], stride, before: [top, left] },
        );
    }
    let (batch, oh, ow, outputs) = grad.dims4()?;
    let inputs = x.dim(3);
    let pixels = batch * oh * ow;
    // Rows and columns behind the last tap are there so that all taps see whole strides.
    let x = pad(&pad(x, 1, top, bottom + stride - 1)?, 2, left, right + stride - 1)?;
    let grad = grad.reshape([pixels, outputs])?.transpose(0, 1)?.contiguous()?; // [O, M]
    let mut taps = Vec::new();
    for ky in 0..kh {
        for kx in 0..kw {
            let seen = every(&every(&x, 1, ky, oh, stride)?, 2, kx, ow, stride)?; // [B, OH, OW, I]
            taps.push(matmul(&grad, &seen.reshape([pixels, inputs])?)?); // [O, I]
        }
    }
    let columns =
        taps.iter().map(|tap| tap.reshape([outputs, inputs, 1])).collect::<Result<Vec<_>>>()?;
    let all = concat(&columns.iter().collect::<Vec<_>>(), 2)?; // [O, I, KH KW]
    all.reshape([outputs, inputs, kh, kw])
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

/// Dimension `dim` with zeros before and behind.
fn pad(x: &Tensor, dim: usize, before: usize, behind: usize) -> Result<Tensor> {
    let zeros = |length| Tensor::zeros(x.shape().with(dim, length), x.dtype(), x.device());
    concat(&[&zeros(before)?, x, &zeros(behind)?], dim)
}

/// `count` positions of dimension `dim`, `stride` apart, from `start` on.
fn every(x: &Tensor, dim: usize, start: usize, count: usize, stride: usize) -> Result<Tensor> {
    let x = x.narrow(dim, start, count * stride)?;
    if stride == 1 {
        return Ok(x);
    }
    let mut dims = x.dims().to_vec();
    dims[dim] = count;
    dims.insert(dim + 1, stride);
    let first = x.reshape(&dims)?.narrow(dim + 1, 0, 1)?; // [.., count, 1, ..]
    dims.remove(dim + 1);
    first.reshape(&dims)
}

/// Dimension `dim` the other way round.
fn reverse(x: &Tensor, dim: usize) -> Result<Tensor> {
    let parts = (0..x.dim(dim)).rev().map(|i| x.narrow(dim, i, 1)).collect::<Result<Vec<_>>>()?;
    concat(&parts.iter().collect::<Vec<_>>(), dim)
}
