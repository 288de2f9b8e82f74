//! Operations on tensors, one family a file: documentation, shape rule, CPU form, CUDA launch, backward
//! and tests of an operation stand together. `kernels/` has the CUDA kernels under the same stems.

pub mod attention;
pub mod conv;
pub mod elementwise;
pub mod embedding;
pub(crate) mod kernels;
pub mod layout;
pub mod matmul;
pub mod norm;
pub mod reduce;
pub mod resample;
pub mod softmax;
#[cfg(test)]
pub(crate) mod testing;

use crate::error::{Error, Result};
use crate::tensor::{DType, Device, Shape, Tensor};

/// What an operation's output will be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Meta {
    /// Its shape.
    pub shape: Shape,
    /// Its dtype.
    pub dtype: DType,
}

impl Meta {
    /// Like `t`.
    pub fn like(t: &Tensor) -> Self {
        Self { shape: *t.shape(), dtype: t.dtype() }
    }
}

/// One operation: its rule, its form on each device, and its gradient.
///
/// `backward` has no default on purpose: an operation that cuts a gradient says so.
pub trait Op {
    /// The name that errors and profiles show.
    fn name(&self) -> &'static str;

    /// Shape and dtype of the output, or the error in the inputs.
    fn infer(&self, inputs: &[&Tensor]) -> Result<Meta>;

    /// Fills `out`: fresh, contiguous, of the inferred shape, with arbitrary contents.
    fn cpu(&self, inputs: &[&Tensor], out: &mut Tensor) -> Result<()>;

    /// As [`Self::cpu`], on the GPU.
    fn cuda(&self, inputs: &[&Tensor], out: &mut Tensor) -> Result<()>;

    /// Gradient of each input, given that of the output. `None`: the input has none by nature (ids).
    fn backward(
        &self,
        inputs: &[&Tensor],
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>>;
}

/// Checks the inputs, allocates the output, runs the operation where its inputs are.
///
/// # Errors
/// `Device` when the inputs are on different devices, and what the operation itself finds wrong.
pub fn apply(op: &impl Op, inputs: &[&Tensor]) -> Result<Tensor> {
    let device = inputs.first().map_or(Device::Cpu, |t| t.device());
    if let Some(other) = inputs.iter().find(|t| t.device() != device) {
        return Err(Error::Device { op: op.name(), a: device, b: other.device() });
    }
    let Meta { shape, dtype } = op.infer(inputs)?;
    let mut out = Tensor::uninit(shape, dtype, device)?;
    match device {
        _ if out.is_empty() => {}
        Device::Cpu => op.cpu(inputs, &mut out)?,
        Device::Cuda(_) => op.cuda(inputs, &mut out)?,
    }
    Ok(out)
}
