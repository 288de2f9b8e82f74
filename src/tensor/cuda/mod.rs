//! CUDA devices. All of CUDA's unsafe code is here.
//!
//! | file | what |
//! |---|---|
//! | `device.rs` | the devices of this machine, and which one `--device` means |
//! | `gpu.rs` | a device in use: loaded kernels, what is left of its memory, whether it still answers |
//! | `stream.rs` | in what order work runs, and what waits for what |
//! | `memory.rs` | allocations, pools, the buffers of tensors |
//! | `staging.rs` | copies between host and device |
//! | `launch.rs` | launching kernels |
//! | `graph.rs` | captured work |
//! | `sentinels.rs` | what shows that a kernel of a graph wrote around its output |
//! | `profile.rs` | what is launched, and how long it takes |
//! | `range.rs` | by which part of a model |
//! | `nvtx.rs` | telling that to the profiler that the process runs under |
//!
//! The driver is looked for at run time. Where there is none, [`devices`] and [`choose`] say so. Families of kernels
//! are loaded when first used, machine code before PTX.

mod device;
mod gpu;
mod graph;
mod launch;
mod memory;
mod nvtx;
mod profile;
mod range;
mod sentinels;
mod staging;
mod stream;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use device::is_there_for_tests;
pub use device::{Properties, choose, compiler, devices, families};
pub use gpu::release_unused;
pub use graph::Graph;
pub(crate) use launch::{Args, LaunchConfig};
pub(crate) use memory::Buffer;
pub(crate) use profile::is_profiling;
pub use profile::{Launch, profile};
pub use range::{Entered, Range};
pub use stream::Stream;

include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// A family of kernels as the build script left it: `kernels/FAMILY.cu`.
struct Module {
    family: &'static str,
    /// Machine code for the known architectures.
    fatbin: &'static Image<[u8]>,
    /// Text for the driver to translate on any other, ended by NUL.
    ptx: &'static Image<[u8]>,
}

/// Bytes at an address that the driver can read 64-bit headers from.
#[repr(C, align(16))]
struct Image<T: ?Sized>(T);
