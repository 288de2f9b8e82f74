//! How fast the interpreter is on this machine, with checks on and off.
//!
//!     nvcc -ptx -arch=sm_80 vgpu/tests/kernels/families.cu -o families.ptx
//!     cargo run --release -p vgpu --example speed families.ptx

#[cfg(vgpu_supported)]
mod measure;

#[cfg(vgpu_supported)]
fn main() -> Result<(), vgpu::Error> {
    measure::run()
}

#[cfg(not(vgpu_supported))]
fn main() {
    eprintln!("vgpu works on Linux on x86-64 only, and not in a build with --cfg nadir_portable");
}
