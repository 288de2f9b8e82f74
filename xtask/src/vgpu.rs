//! `cargo xtask vgpu`: a command with the virtual CUDA device in place of a driver.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cuda;
use crate::process::{cargo, run as run_program, target_dir};

/// Builds the device and runs the command; without one, says how to use it.
pub fn run(args: &[String]) -> Result<()> {
    let folder = stage()?;
    let path = match env::var_os("LD_LIBRARY_PATH") {
        Some(others) if !others.is_empty() => {
            env::join_paths([folder.clone()].into_iter().chain(env::split_paths(&others)))?
        }
        _ => folder.clone().into_os_string(),
    };
    let Some((program, rest)) = args.split_first() else {
        println!("LD_LIBRARY_PATH={} NADIR_POOL=off", folder.display());
        return Ok(());
    };
    if program.starts_with('-') {
        bail!("`vgpu` takes a command and its arguments, found `{program}`");
    }
    cuda::install().context("the virtual device runs compiled kernels")?;
    // A pool hands out parts of what it has allocated: the device could not see where a tensor ends.
    run_program(
        Command::new(program).args(rest).env("LD_LIBRARY_PATH", path).env("NADIR_POOL", "off"),
    )
}

/// Puts the library into a folder of its own. Beside the other build products, where `cargo run` looks for
/// libraries, it would be taken for a driver by programs that never asked for it.
fn stage() -> Result<PathBuf> {
    // The profile of tests: it optimises, and its checks find the device's own mistakes.
    run_program(cargo().args(["build", "--quiet", "--package", "vgpu"]))?;
    let target = target_dir()?;
    let built = target.join("debug/libvgpu.so");
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
