//! `cargo xtask test`: every test of the workspace.

use std::env;
use std::ffi::OsStr;

use anyhow::{Context, Result, bail};

use crate::cuda;
use crate::process::{cargo, run as run_program, works};

/// See `cargo xtask help`.
pub fn run(args: &[String]) -> Result<()> {
    let (options, passed) = match args.iter().position(|arg| arg == "--") {
        Some(at) => (&args[..at], &args[at + 1..]),
        None => (args, &[][..]),
    };
    let (mut all, mut cuda) = (false, true);
    for option in options {
        match option.as_str() {
            "--all" => all = true,
            "--no-cuda" => cuda = false,
            other => bail!(
                "`test` has no option `{other}`; what the test runner shall get comes after `--`"
            ),
        }
    }

    let mut variables = Vec::new();
    if !cuda {
        variables.push(("NADIR_CUDA", "off"));
    } else if !has_compiler() {
        cuda::install().context(
            "the kernels cannot be checked without a CUDA compiler; \
             `cargo xtask test --no-cuda` leaves them out",
        )?;
    }
    if all {
        variables.push(("NADIR_TEST_ALL", "1"));
    }

    let cargo = |args: &[&str]| {
        let mut command = cargo();
        command.args(args).envs(variables.iter().copied());
        command
    };

    if works("cargo-nextest", &["nextest", "--version"]) {
        let mut command = cargo(&["nextest", "run", "--workspace", "--no-tests=pass"]);
        if all {
            command.arg("--run-ignored=all");
        }
        run_program(command.args(passed))?;
        // nextest leaves the examples in the documentation to cargo.
        if passed.is_empty() {
            run_program(&mut cargo(&["test", "--workspace", "--doc"]))?;
        }
        return Ok(());
    }
    let mut command = cargo(&["test", "--workspace"]);
    command.args(passed);
    if all {
        command.args(["--", "--include-ignored"]);
    }
    run_program(&mut command)
}

/// Whether the build script will find a compiler elsewhere, or is told not to look for one.
fn has_compiler() -> bool {
    let given = |name| env::var_os(name).is_some_and(|value: std::ffi::OsString| !value.is_empty());
    let off = env::var_os("NADIR_CUDA").is_some_and(|v| v == OsStr::new("off"));
    off || given("NVCC")
        || given("CUDA_HOME")
        || given("CUDA_PATH")
        || works("nvcc", &["--version"])
        || works("/usr/local/cuda/bin/nvcc", &["--version"])
}
