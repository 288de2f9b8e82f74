//! Operations on tensors, one family a file: documentation, shape rule, CPU form, CUDA launch, gradient
//! and tests of an operation stand together. `kernels/` has the CUDA kernels under the same stems.
//!
//! An `Op` is a plain value: the settings of one call. Its tensors and weights come in fixed places, its
//! `Slot`s, absent ones included, so that what a tape keeps of a call says which input was which. `apply`
//! checks, allocates, runs and records; [`gradient::backward`] walks the record.

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod cache;
pub mod conv;
pub mod cross_entropy;
pub mod depthwise;
pub mod elementwise;
pub mod embedding;
mod epilogue;
pub mod gradient;
pub(crate) mod kernels;
pub mod layout;
pub mod loss;
pub mod matmul;
pub mod norm;
pub mod pixel_loss;
pub mod pool;
pub mod reduce;
pub mod resample;
pub mod rotary;
pub mod sampler;
pub mod softmax;
#[cfg(test)]
pub(crate) mod testing;
pub mod view;
pub mod weight;
mod weight_gradient;

use std::ops::Index;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::tensor::tape::{self, Node};
use crate::tensor::{DType, Device, Shape, Tensor};
use gradient::Call;
use weight::Weight;

/// What an operation's output will be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Meta {
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

/// One place among an operation's inputs.
#[derive(Clone, Copy)]
pub(crate) enum Slot<'a> {
    /// An optional input that is absent.
    Empty,
    /// A tensor.
    Tensor(&'a Tensor),
    /// A weight, which has a layout of its own for the operation's kernel.
    Weight(&'a Weight),
}

impl<'a> From<&'a Tensor> for Slot<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self::Tensor(tensor)
    }
}

impl<'a> From<Option<&'a Tensor>> for Slot<'a> {
    fn from(tensor: Option<&'a Tensor>) -> Self {
        tensor.map_or(Self::Empty, Self::Tensor)
    }
}

impl<'a> From<&'a Weight> for Slot<'a> {
    fn from(weight: &'a Weight) -> Self {
        Self::Weight(weight)
    }
}

impl<'a> Slot<'a> {
    fn device(&self) -> Option<Device> {
        match self {
            Self::Empty => None,
            Self::Tensor(tensor) => Some(tensor.device()),
            Self::Weight(weight) => Some(weight.device()),
        }
    }

    /// Where its gradient goes, if one is wanted.
    fn node(&self) -> Option<&'a Arc<Node>> {
        match self {
            Self::Empty => None,
            Self::Tensor(tensor) => tensor.node(),
            Self::Weight(weight) => weight.node(),
        }
    }
}

/// The inputs of one call. `inputs[i]` is the tensor in place `i`, for places that are never empty.
pub(crate) struct Inputs<'a> {
    slots: &'a [Slot<'a>],
    recorded: bool,
}

impl<'a> Inputs<'a> {
    /// The tensor in place `i`, if there is one.
    pub fn get(&self, i: usize) -> Option<&'a Tensor> {
        match self.slots.get(i) {
            Some(Slot::Tensor(tensor)) => Some(tensor),
            _ => None,
        }
    }

    /// The weight in place `i`.
    ///
    /// # Panics
    /// When the operation was called without: its own function puts it there.
    pub fn weight(&self, i: usize) -> &'a Weight {
        match self.slots[i] {
            Slot::Weight(weight) => weight,
            _ => panic!("input {i} is no weight"),
        }
    }

    /// The tensors, in order.
    pub fn tensors(&self) -> impl Iterator<Item = &'a Tensor> {
        (0..self.slots.len()).filter_map(|i| self.get(i))
    }

    /// Whether a gradient will be asked for: what only `backward` reads is then an output too.
    pub fn recorded(&self) -> bool {
        self.recorded
    }
}

impl Index<usize> for Inputs<'_> {
    type Output = Tensor;

    fn index(&self, i: usize) -> &Tensor {
        self.get(i).unwrap_or_else(|| panic!("input {i} is no tensor"))
    }
}

/// What a recorded call keeps for its gradient; of all other inputs shape and dtype are known.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Saves {
    /// Places of inputs that `backward` reads.
    pub inputs: &'static [usize],
    /// Whether it reads the result. Outputs behind the first are always kept.
    pub result: bool,
}

/// The gradient of each input; `None`: it has none by nature (ids), or nobody asked.
pub(crate) type Grads = Vec<Option<Tensor>>;

/// One operation: its rule, its form on each device, and its gradient.
///
/// Its first output is its result. More are what `backward` needs beside (a mask, a standard deviation), made only when
/// the call is [recorded](Inputs::recorded), or the further results of an operation that has no gradient itself.
///
/// `backward` has no default on purpose: an operation that cuts a gradient says so.
pub(crate) trait Op: Send + Sync + Sized + 'static {
    /// The name that errors and profiles show.
    fn name(&self) -> &'static str;

    /// Shape and dtype of each output, or the error in the inputs.
    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>>;

    /// Fills the outputs: fresh, contiguous, as inferred, with arbitrary contents.
    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()>;

    /// As [`Self::cpu`], on the GPU.
    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()>;

    /// What [`Self::backward`] reads of a call.
    fn saves(&self) -> Saves {
        Saves::default()
    }

    /// Gradient of each input, given that of the result. What [nobody wants](Call::wants) may be left out.
    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads>;
}

/// Checks the inputs, allocates the outputs, runs the operation where its inputs are, and records the call when one
/// of them wants a gradient. Returns the result.
///
/// # Errors
/// `Device` when the inputs are on different devices, and what the operation itself finds wrong.
pub(crate) fn apply(op: impl Op, slots: &[Slot]) -> Result<Tensor> {
    Ok(apply_all(op, slots)?.swap_remove(0))
}

/// As [`apply`], for all outputs.
pub(crate) fn apply_all(op: impl Op, slots: &[Slot]) -> Result<Vec<Tensor>> {
    let mut devices = slots.iter().filter_map(Slot::device);
    let device = devices.next().unwrap_or(Device::Cpu);
    if let Some(other) = devices.find(|d| *d != device) {
        return Err(Error::Device { op: op.name(), a: device, b: other });
    }
    let recorded = tape::is_recording() && slots.iter().any(|slot| slot.node().is_some());
    let inputs = Inputs { slots, recorded };
    let metas = op.infer(&inputs)?;
    let outputs = metas.into_iter().map(|meta| {
        #[cfg(test)]
        if let Some(between_sentinels) = testing::guarded(&meta, device) {
            return between_sentinels;
        }
        Tensor::uninit(meta.shape, meta.dtype, device)
    });
    let mut outputs = outputs.collect::<Result<Vec<_>>>()?;
    // The call is recorded as a whole, not what it calls in turn.
    tape::no_grad(|| match device {
        _ if outputs.iter().all(Tensor::is_empty) => Ok(()),
        Device::Cpu => op.cpu(&inputs, &mut outputs),
        Device::Cuda(_) => op.cuda(&inputs, &mut outputs),
    })?;
    #[cfg(test)]
    testing::check_guards(op.name(), &outputs);
    if recorded {
        let node = gradient::record(op, slots, &outputs);
        let result = outputs[0].clone().with_node(node);
        outputs[0] = result;
    }
    Ok(outputs)
}

/// Slots of tensors that are all there.
pub(crate) fn tensors<'a>(tensors: &[&'a Tensor]) -> Vec<Slot<'a>> {
    tensors.iter().map(|&t| t.into()).collect()
}
