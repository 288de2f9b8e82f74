//! `cargo xtask test`: every test of the workspace, and those of the library and of GPUs once more on the virtual device: with
//! memory of its own for every tensor, then whole pictures as users draw them.

use std::env;
use std::ffi::OsString;

use anyhow::{Context, Result, bail};

use crate::process::{cargo, run as run_program, works};
use crate::{cuda, golden, vgpu};

/// See `cargo xtask help`.
pub fn run(args: &[String]) -> Result<()> {
    let (options, passed) = match args.iter().position(|arg| arg == "--") {
        Some(at) => (&args[..at], &args[at + 1..]),
        None => (args, &[][..]),
    };
    let (mut all, mut kernels) = (false, env::var_os("NADIR_CUDA").is_none_or(|v| v != "off"));
    for option in options {
        match option.as_str() {
            "--all" => all = true,
            "--no-cuda" => kernels = false,
            other => bail!(
                "`test` has no option `{other}`; what the test runner shall get comes after `--`"
            ),
        }
    }

    let mut variables: Vec<(&str, OsString)> = Vec::new();
    if all {
        variables.push(("NADIR_TEST_ALL", "1".into()));
    }
    if !kernels {
        variables.push(("NADIR_CUDA", "off".into()));
    } else if !has_compiler() {
        cuda::install().context(
            "the kernels cannot be checked without a CUDA compiler; \
             `cargo xtask test --no-cuda` leaves them out",
        )?;
    }

    let runner = Runner { nextest: works("cargo-nextest", &["nextest", "--version"]), all, passed };
    // All runs are made, so that one shows all that fails.
    let mut outcomes = vec![runner.run(&["--workspace"], &variables)];
    if kernels {
        variables.push(vgpu::library_path()?);
        // Without a device, what needs one would pass by doing nothing.
        variables.push(("NADIR_REQUIRE_CUDA", "1".into()));
        for Setting { what, targets, chosen } in SETTINGS {
            eprintln!("on the virtual device: {what}");
            let chosen = chosen.map(|(name, value)| (name, value.into()));
            let selection: Vec<&str> =
                ["--package", "nadir"].iter().chain(targets).copied().collect();
            outcomes.push(runner.run(&selection, &[&variables[..], &chosen].concat()));
        }
    }
    if all && passed.is_empty() {
        outcomes.push(golden::check_recipe());
    }
    outcomes.into_iter().collect()
}

/// How tests are run on the virtual device.
struct Setting {
    what: &'static str,
    targets: &'static [&'static str],
    chosen: [(&'static str, &'static str); 3],
}

/// The device sees what is done outside of an allocation, or after it is freed; so first, every tensor is an allocation. As
/// users run it, one tensor's memory becomes another's, and a denoising step is a graph: there sentinels see what is done
/// around a tensor.
const SETTINGS: [Setting; 3] = [
    Setting {
        what: "the library and whole pictures, kernel by kernel, every tensor with memory of its own",
        targets: &["--lib", "--test", "cuda", "--test", "cuda_device"],
        chosen: [("NADIR_POOL", "off"), ("NADIR_GRAPH", "off"), ("NADIR_SENTINELS", "off")],
    },
    Setting {
        what: "whole pictures once more, alone and in company, as graphs, from pools, between sentinels",
        targets: &["--test", "cuda", "--test", "cuda_company"],
        chosen: [("NADIR_POOL", "on"), ("NADIR_GRAPH", "on"), ("NADIR_SENTINELS", "on")],
    },
    Setting {
        what: "steps of training, language models, segmentation, CLIP, models that are told or shown more than a prompt, of \
               other bands, what metrics see through, a scene's mask and its smaller pixels",
        // Of their tests those whose names say so.
        targets: &[
            "--test",
            "bands",
            "--test",
            "classifier",
            "--test",
            "clip",
            "--test",
            "command_line",
            "--test",
            "conditioning",
            "--test",
            "controlnet",
            "--test",
            "decoder",
            "--test",
            "ip_adapter",
            "--test",
            "lcm",
            "--test",
            "sdxl",
            "--test",
            "metrics",
            "--test",
            "segmentation",
            "--test",
            "super_resolution",
            "--test",
            "tiny",
            "--test",
            "train",
            "a_gpu_",
        ],
        chosen: [("NADIR_POOL", "on"), ("NADIR_GRAPH", "on"), ("NADIR_SENTINELS", "off")],
    },
];

/// cargo-nextest, or cargo itself where that is not installed.
struct Runner<'a> {
    nextest: bool,
    all: bool,
    passed: &'a [String],
}

impl Runner<'_> {
    fn run(&self, selection: &[&str], variables: &[(&str, OsString)]) -> Result<()> {
        let command = |args: &[&str]| {
            let mut command = cargo();
            command.args(args).args(selection).envs(variables.iter().cloned());
            command
        };
        if !self.nextest {
            let mut command = command(&["test"]);
            command.args(self.passed);
            if self.all {
                command.args(if self.passed.contains(&"--".into()) { &[][..] } else { &["--"] });
                command.arg("--include-ignored");
            }
            return run_program(&mut command);
        }
        let mut tests = command(&["nextest", "run", "--no-tests=pass"]);
        if self.all {
            tests.arg("--run-ignored=all");
        }
        run_program(tests.args(self.passed))?;
        // nextest leaves the examples in the documentation to cargo.
        if self.passed.is_empty() && selection.contains(&"--workspace") {
            run_program(command(&["test"]).arg("--doc"))?;
        }
        Ok(())
    }
}

/// Whether the build script will find a compiler elsewhere.
fn has_compiler() -> bool {
    let given = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
    given("NVCC")
        || given("CUDA_HOME")
        || given("CUDA_PATH")
        || works("nvcc", &["--version"])
        || works("/usr/local/cuda/bin/nvcc", &["--version"])
}
