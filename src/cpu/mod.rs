//! What the operations share on the CPU: the instruction set chosen at run time, vector mathematics, loops over threads.

pub(crate) mod attention_gradient;
pub(crate) mod gemm;
pub(crate) mod math;
pub mod memory;
pub(crate) mod outer;
pub(crate) mod parallel;
pub mod simd;
pub(crate) mod winograd;
