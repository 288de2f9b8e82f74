//! Gradient of a linear layer or a convolution by its weight: one product over all pixels of the batch. Kernels:
//! `kernels/weight_gradient.cu`.

use bytemuck::NoUninit;

use super::gradient::Call;
use super::kernels::{LaunchConfig, kernels, to_u32};
use super::reduce::sum_columns_on_device;
use super::{Grads, Inputs, Meta, Op, apply, tensors};
use crate::cpu::gemm::{MicroKernel, f32_kernel, f64_kernel};
use crate::cpu::outer::{self, Patches};
use crate::cpu::simd;
use crate::cpu::winograd::{self, Images};
use crate::error::{Error, Result};
use crate::tensor::{DType, Device, Float, Real, Shape, Tensor};

kernels! {
    /// A block a tile of 32 output channels and 128 columns.
    fn weight_gradient_narrow(y: Out<f32>, grad: In, x: In, dims: WeightGradientDims);
    /// A block a tile of 64 output channels and 128 columns.
    fn weight_gradient_wide(y: Out<f32>, grad: In, x: In, dims: WeightGradientDims);
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct WeightGradientDims {
    outputs: u32,
    inputs: u32,
    pixels: u32,
    pixels_of_split: u32,
    height: u32,
    width: u32,
    out_height: u32,
    out_width: u32,
    kernel_height: u32,
    kernel_width: u32,
    stride: u32,
    top: u32,
    left: u32,
}

/// Blocks that keep the GPUs there are busy: two on each of some 130 SMs, twice.
const BLOCKS: usize = 520;
/// Pixels that a block sums at least, and the least that it takes at a time.
const MIN_PIXELS: usize = 256;
const DEPTH: usize = 16;

/// The convolution whose weight's gradient is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    /// Rows and columns of the kernel.
    pub(super) kernel: [usize; 2],
    /// Of both axes.
    pub(super) stride: usize,
    /// Zeros above and left of the image.
    pub(super) before: [usize; 2],
}

/// [`weight_gradient`]; inputs `grad`, `x`.
#[derive(Clone, Copy, Debug)]
struct WeightGradient {
    geometry: Geometry,
}

impl Op for WeightGradient {
    fn name(&self) -> &'static str {
        "weight_gradient"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (grad, x) = (&inputs[0], &inputs[1]);
        let ((b, _, _, o), (images, _, _, i)) = (grad.dims4()?, x.dims4()?);
        if b != images {
            let expected = format!("[{b}, H, W, C]");
            return Err(Error::expected_shape(self.name(), "x", &expected, x.shape()));
        }
        if grad.dtype() != x.dtype() {
            let (expected, found) = (x.dtype().name(), grad.dtype());
            return Err(Error::DType { op: self.name(), expected, found });
        }
        let dtype = if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let [kh, kw] = self.geometry.kernel;
        Ok(vec![Meta { shape: Shape::new(&[o, i, kh, kw]), dtype }])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (grad, x) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        let (_, height, width, channels) = x.dims4()?;
        let (_, out_height, out_width, _) = grad.dims4()?;
        let Geometry { kernel, stride, before: [top, left] } = self.geometry;
        let patches =
            Patches { height, width, channels, out_height, out_width, kernel, stride, top, left };
        let (level, out) = (simd::level(), &mut outputs[0]);
        if let Some(images) = winograd_images(&grad, &x, self.geometry) {
            let (grad, x) = (grad.to_dtype(DType::F32)?, x.to_dtype(DType::F32)?);
            let n = grad.dim(3);
            let sums = winograd::gradient::working_memory(images, n);
            let mut sums = Tensor::uninit([sums], DType::F32, Device::Cpu)?;
            let (kernel, sums) = (f32_kernel(level), sums.as_mut_slice()?);
            let (grad, x, out) = (grad.as_slice()?, x.as_slice()?, out.as_mut_slice()?);
            winograd::gradient::weight_gradient(kernel, images, n, grad, x, sums, out);
            return Ok(());
        }
        match x.dtype() {
            DType::F64 => fill::<f64, _>(f64_kernel(level), &grad, &x, patches, out),
            DType::F32 => fill::<f32, _>(f32_kernel(level), &grad, &x, patches, out),
            DType::F16 => fill::<half::f16, _>(f32_kernel(level), &grad, &x, patches, out),
            DType::BF16 => fill::<half::bf16, _>(f32_kernel(level), &grad, &x, patches, out),
            found => {
                let expected = "f32, f16, bf16 or f64";
                Err(Error::DType { op: self.name(), expected, found })
            }
        }
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (grad, x, out) = (inputs[0].contiguous()?, inputs[1].contiguous()?, &mut outputs[0]);
        let (_, height, width, channels) = x.dims4()?;
        let (_, out_height, out_width, n) = grad.dims4()?;
        let Geometry { kernel: [kernel_height, kernel_width], stride, before: [top, left] } =
            self.geometry;
        let pixels = grad.len() / n;
        let tile = if n > 32 { 64 } else { 32 };
        let tiles = n.div_ceil(tile) * (out.len() / n).div_ceil(128);
        let splits = (BLOCKS / tiles).clamp(1, pixels.div_ceil(MIN_PIXELS));
        let pixels_of_split = pixels.div_ceil(splits).next_multiple_of(DEPTH);
        let splits = pixels.div_ceil(pixels_of_split);
        let size = |length| to_u32(self.name(), length);
        let dims = WeightGradientDims {
            outputs: size(n)?,
            inputs: size(channels)?,
            // Blocks look up to one share beyond the last.
            pixels: size(2 * pixels)? / 2,
            pixels_of_split: size(pixels_of_split)?,
            height: size(height)?,
            width: size(width)?,
            out_height: size(out_height)?,
            out_width: size(out_width)?,
            kernel_height: size(kernel_height)?,
            kernel_width: size(kernel_width)?,
            stride: size(stride)?,
            top: size(top)?,
            left: size(left)?,
        };
        let config = LaunchConfig::new([size(tiles)?, size(splits)?], 256);
        let launch =
            if tile == 64 { kernel::weight_gradient_wide } else { kernel::weight_gradient_narrow };
        if splits == 1 {
            return launch(config, out, &grad, &x, dims);
        }
        let mut sums = Tensor::uninit([splits, out.len()], DType::F32, x.device())?;
        launch(config, &mut sums, &grad, &x, dims)?;
        sum_columns_on_device(self.name(), &sums, [splits, out.len()], 1.0, out)
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

/// The images of a convolution whose weight's gradient Winograd's algorithm gives sooner.
fn winograd_images(grad: &Tensor, x: &Tensor, geometry: Geometry) -> Option<Images> {
    let (&[batch, out_height, out_width, n], &[_, height, width, channels]) =
        (grad.dims(), x.dims())
    else {
        return None;
    };
    let Geometry { kernel, stride, before: [top, left] } = geometry;
    let images = Images { batch, height, width, channels, out_height, out_width, top, left };
    let fits = |channels: usize| channels > 0 && channels.is_multiple_of(winograd::CHANNELS);
    let worth = images.tiles(2) >= winograd::gradient::FEWEST_TILES;
    let is = kernel == [3, 3] && stride == 1 && fits(n) && fits(channels) && worth;
    (is && x.dtype() != DType::F64).then_some(images)
}

fn fill<T: Float<Acc = C>, C: Real>(
    kernel: MicroKernel<C, C, C>,
    grad: &Tensor,
    x: &Tensor,
    patches: Patches,
    out: &mut Tensor,
) -> Result<()> {
    let n = grad.dim(3);
    let sums = outer::working_memory(kernel, (grad.len() / n, n, out.len() / n));
    let mut sums = Tensor::uninit([sums], C::DTYPE, Device::Cpu)?;
    let (grad, x) = (grad.as_slice::<T>()?, x.as_slice::<T>()?);
    outer::products(kernel, n, grad, x, patches, sums.as_mut_slice()?, out.as_mut_slice()?);
    Ok(())
}

/// `grad` [B, OH, OW, O] of a convolution's result and its input `x` [B, H, W, I], of one dtype -> the gradient by its
/// weight [O, I, KH, KW], in f32 (f64 of f64). A linear layer is a convolution with a kernel of one tap.
///
/// # Errors
/// `Shape` and `DType` when they do not fit.
pub(super) fn weight_gradient(grad: &Tensor, x: &Tensor, geometry: Geometry) -> Result<Tensor> {
    apply(WeightGradient { geometry }, &tensors(&[grad, x]))
}
