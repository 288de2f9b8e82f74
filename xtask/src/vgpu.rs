//! `cargo xtask vgpu`: a command with the virtual CUDA device in place of a driver.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cuda;
use crate::process::{cargo, run as run_program, target_dir};

/// Builds the device and runs the command; without one, says how to use it.
pub fn run(args: &[String]) -> Result<()> {
    let Some((program, rest)) = args.split_first() else {
        println!("LD_LIBRARY_PATH={} NADIR_POOL=off", stage()?.display());
        return Ok(());
    };
    if program.starts_with('-') {
        bail!("`vgpu` takes a command and its arguments, found `{program}`");
    }
    cuda::install().context("the virtual device runs compiled kernels")?;
    // A pool hands out parts of what it has allocated: the device could not see where a tensor ends.
    let (name, path) = library_path()?;
    run_program(Command::new(program).args(rest).env(name, path).env("NADIR_POOL", "off"))
}

/// The variable by which a program finds the virtual device, which is built first.
pub fn library_path() -> Result<(&'static str, OsString)> {
    let folder = stage()?;
    let others = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let others = env::split_paths(&others).filter(|path| !path.as_os_str().is_empty());
    let path = env::join_paths([folder].into_iter().chain(others))?;
    Ok(("LD_LIBRARY_PATH", path))
}

/// Puts the library into a folder of its own. Beside the other build products, where `cargo run` looks for
/// libraries, it would be taken for a driver by programs that never asked for it.
pub fn stage() -> Result<PathBuf> {
    if cfg!(any(nadir_portable, not(all(target_os = "linux", target_arch = "x86_64")))) {
        bail!(
            "the virtual device works on Linux on x86-64 only, and not with --cfg nadir_portable"
        );
    }
    run_program(cargo().args(["build", "--quiet", "--release", "--package", "vgpu"]))?;
    let target = target_dir()?;
    let built = target.join("release/libvgpu.so");
    let folder = target.join("vgpu");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    // The name that loaders ask for by hand, and the one that linked programs carry.
    for name in ["libcuda.so", "libcuda.so.1"] {
        // Renamed into place: a program that runs meanwhile keeps the library it has opened.
        let scratch = folder.join(format!("{name}.{}", std::process::id()));
        fs::copy(&built, &scratch).with_context(|| format!("cannot copy {}", built.display()))?;
        let staged = folder.join(name);
        fs::rename(&scratch, &staged)
            .with_context(|| format!("cannot create {}", staged.display()))?;
    }
    Ok(folder)
}
