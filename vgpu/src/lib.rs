//! A virtual CUDA device: the CUDA driver API over an interpreter of PTX on the CPU.

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
