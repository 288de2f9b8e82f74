//! Holds the virtual device against a real card: every register-to-register form of the catalogue of
//! instructions runs on both, on the same random and extreme operands, and the bits are compared.
//!
//!     cargo run --release -p vgpu --example card
//!
//! Needs a card of compute capability 9.0 and its driver. The table it prints is for `vgpu/HARDWARE.md`.

#[cfg(vgpu_supported)]
mod compare;

#[cfg(vgpu_supported)]
mod statement;

#[cfg(vgpu_supported)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    compare::run()
}

#[cfg(not(vgpu_supported))]
fn main() {
    eprintln!("vgpu works on Linux on x86-64 only, and not in a build with --cfg nadir_portable");
}
