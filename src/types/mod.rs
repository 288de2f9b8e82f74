//! What tensors are described by: element types, shapes and devices. Every other module builds on these words, and
//! [`crate::tensor`] is where they are read from outside.

mod device;
mod dtype;
mod shape;

pub use device::Device;
pub use dtype::{DType, Element, Float, Real};
pub use shape::{MAX_RANK, Shape};
