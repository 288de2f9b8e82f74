//! Says where the device can work, and names the shared library as programs that link with the CUDA driver
//! expect it.

use std::env;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-check-cfg=cfg(vgpu_supported)");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    let is_linux = is("CARGO_CFG_TARGET_OS", "linux");
    // `--cfg nadir_portable` builds the workspace as where there is no x86.
    let is_portable = env::var_os("CARGO_CFG_NADIR_PORTABLE").is_some();
    if is_linux && is("CARGO_CFG_TARGET_ARCH", "x86_64") && !is_portable {
        println!("cargo:rustc-cfg=vgpu_supported");
    }
    if is_linux {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    }
}
