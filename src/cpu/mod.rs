//! What the operations share on the CPU: the instruction set chosen at run time, vector mathematics, loops over threads.

pub mod gemm;
pub mod math;
pub mod parallel;
pub mod simd;
pub mod winograd;
