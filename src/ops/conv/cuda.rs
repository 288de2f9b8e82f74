//! Convolution on a GPU, with the product's core of `kernels/gemm.cuh`.

use bytemuck::NoUninit;

use super::{Conv2dConfig, NAME};
use crate::error::{Error, Result};
use crate::ops::kernels::{kernels, to_u32};
use crate::ops::matmul::Epilogue;
use crate::ops::matmul::cuda::{Ends, Plan, Sizes, add_splits};
use crate::tensor::Tensor;

kernels! {
    /// Tiles as those of `matmul_large`.
    fn conv2d_large(
        y: Out,
        x: In,
        w: In,
        partial: Array<Out<f32>, 1>,
        bias: Array<In<f32>, 1>,
        add_channel: Array<In<f32>, 1>,
        residual: Array<In, 1>,
        dims: ConvDims,
    );
    /// Tiles as those of `matmul_small`.
    fn conv2d_small(
        y: Out,
        x: In,
        w: In,
        partial: Array<Out<f32>, 1>,
        bias: Array<In<f32>, 1>,
        add_channel: Array<In<f32>, 1>,
        residual: Array<In, 1>,
        dims: ConvDims,
    );
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct ConvDims {
    m: u32,
    n: u32,
    k: u32,
    splits: u32,
    rows_of_image: u32,
    activation: u32,
    scale: f32,
    height: u32,
    width: u32,
    channels: u32,
    out_width: u32,
    kernel_height: u32,
    kernel_width: u32,
    stride: u32,
    top: u32,
    left: u32,
}

/// `x` [B, H, W, I], `w` [O, KH, KW, I]; `out` [B, OH, OW, O].
pub(super) fn convolve(
    x: &Tensor,
    w: &Tensor,
    config: Conv2dConfig,
    epilogue: &Epilogue,
    out: &mut Tensor,
) -> Result<()> {
    let x = x.contiguous()?;
    let (batch, height, width, channels) = x.dims4()?;
    let (_, kernel_height, kernel_width, _) = w.dims4()?;
    let [top, _, left, _] = config.padding;
    // Pixels and padded coordinates are counted in 31 bits.
    let extents = [batch * height * width, height + top, width + left];
    if extents.iter().any(|&extent| extent > 1 << 30) {
        let message = format!("on CUDA: at most 2^30 pixels, found {}", x.shape());
        return Err(Error::shape(NAME, message));
    }
    let sizes = Sizes::new(out, kernel_height * kernel_width * channels);
    let plan = Plan::new(sizes, 1);
    let dims = ConvDims {
        m: to_u32(NAME, sizes.m)?,
        n: to_u32(NAME, sizes.n)?,
        k: to_u32(NAME, sizes.k)?,
        splits: to_u32(NAME, plan.splits)?,
        rows_of_image: to_u32(NAME, sizes.rows_of_image)?,
        activation: epilogue.act as u32,
        scale: epilogue.scale,
        height: height as u32,
        width: width as u32,
        channels: to_u32(NAME, channels)?,
        out_width: to_u32(NAME, out.dim(2))?,
        kernel_height: to_u32(NAME, kernel_height)?,
        kernel_width: to_u32(NAME, kernel_width)?,
        stride: to_u32(NAME, config.stride)?,
        top: top as u32,
        left: left as u32,
    };
    let launch = plan.config(NAME, sizes, 1)?;
    let ends = Ends::new(epilogue)?;
    let [bias, add_channel, residual] = &ends.tensors();
    let mut partial = plan.partial(sizes, out)?;
    let mut sums: Vec<&mut Tensor> = partial.iter_mut().collect();
    let kernel = if plan.tile == 128 { kernel::conv2d_large } else { kernel::conv2d_small };
    kernel(launch, out, &x, w, &mut sums, bias, add_channel, residual, dims)?;
    match partial {
        Some(partial) => add_splits(NAME, &partial, sizes, &ends, epilogue, out),
        None => Ok(()),
    }
}
