//! A virtual CUDA device: the CUDA driver API over an interpreter of PTX on the CPU.
//!
//! It works on Linux on x86-64. Built for anything else, or with `--cfg nadir_portable`, this crate is empty.
#![cfg(vgpu_supported)]

mod driver;
mod exec;
mod gpu;
mod isa;
mod module;
mod ptx;

pub use exec::{Checks, Counters, Fault, FaultKind, LineCounters, Severity};
pub use gpu::{Arguments, Config, Error, Function, Gpu, LoadedModule, Plain};
pub use isa::decode::supports;
pub use ptx::SyntaxError;
