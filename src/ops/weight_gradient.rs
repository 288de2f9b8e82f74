//! Gradient of a linear layer or a convolution by its weight: one product over all pixels of the batch.

use super::gradient::Call;
use super::{Grads, Inputs, Meta, Op, apply, tensors};
use crate::cpu::gemm::{MicroKernel, f32_kernel, f64_kernel};
use crate::cpu::outer::{self, Patches};
use crate::cpu::simd;
use crate::error::{Error, Result};
use crate::tensor::{DType, Device, Float, Real, Shape, Tensor};

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

    fn cuda(&self, _: &Inputs, _: &mut [Tensor]) -> Result<()> {
        Err(Error::no_kernel(self.name()))
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

fn fill<T: Float<Acc = C>, C: Real>(
    kernel: MicroKernel<C, C, C>,
    grad: &Tensor,
    x: &Tensor,
    patches: Patches,
    out: &mut Tensor,
) -> Result<()> {
    let n = grad.dim(3);
    let k = out.len() / n;
    let memory = |len: usize| Tensor::uninit([len], C::DTYPE, Device::Cpu);
    let [transposed, sums] = outer::working_memory(kernel, (grad.len() / n, n, k));
    let (mut transposed, mut sums) = (memory(transposed)?, memory(sums)?);
    let working = [transposed.as_mut_slice()?, sums.as_mut_slice()?];
    let (grad, x) = (grad.as_slice::<T>()?, x.as_slice::<T>()?);
    outer::products(kernel, n, grad, x, patches, working, out.as_mut_slice()?);
    Ok(())
}

/// `grad` [B, OH, OW, O] of a convolution's result and its input `x` [B, H, W, I], of one dtype -> the gradient by its
/// weight [O, I, KH, KW], in f32 (f64 of f64). A linear layer is a convolution with a kernel of one tap.
///
/// # Errors
/// `Shape` and `DType` when they do not fit, `NoKernel` on a GPU.
pub(super) fn weight_gradient(grad: &Tensor, x: &Tensor, geometry: Geometry) -> Result<Tensor> {
    apply(WeightGradient { geometry }, &tensors(&[grad, x]))
}
