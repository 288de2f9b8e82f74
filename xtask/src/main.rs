//! Chores of the nadir workspace: `cargo xtask help`.

mod cuda;
#[cfg(unix)]
mod fuzz;
mod golden;
mod gpu_bundle;
mod process;
mod test;
mod vgpu;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
Chores of the nadir workspace.

usage: cargo xtask COMMAND [OPTIONS]

commands:
  test [--all] [--no-cuda] [-- ARGS]
            Runs every test, and those of the library and of GPUs once more on the virtual device, which executes the
            kernels: one by one, every tensor with memory of its own; and whole pictures then as users draw them, as
            graphs, with sentinels around tensors. The CUDA compiler is installed first when it is missing; --no-cuda
            goes without both.
            --all adds the tests that are marked as slow, has campaigns of random cases go on ten times as long,
            and makes one update of training at Stable Diffusion 1.5's size beside PyTorch (20 GB of memory), where
            `golden` has installed it or NADIR_PYTHON names it. ARGS go to the test runner (cargo-nextest when it is installed, else cargo test).
  cuda      Installs the pinned CUDA compiler from PyPI under target/cuda (300 MB; Python 3 with pip, g++).
  vgpu [COMMAND ...]
            Runs a command with the virtual CUDA device in place of a driver: kernels are executed on the CPU
            and checked. Without a command it builds the device and prints the variables that select it.
  golden [--python PYTHON] [NAME ...] [-- ARGS]
            Writes the reference tensors of tests/golden anew, by running its NAME.py (default: all that
            need no ARGS) with the pinned PyTorch, diffusers and transformers. Without --python they are
            installed under target/golden-venv first.
  golden --check [--python PYTHON]
            Saves the model that ships and has diffusers compare the copies with it, bit for bit; trains a
            little and has TensorBoard read the events of that.
  gpu-bundle [--profile PROFILE]
            Packs the tests of GPUs, what they read, nadir, times of products and the virtual device into
            target/nadir-gpu.tar.gz, for a machine with a card and a driver and nothing else: unpacked there,
            `sh run.sh` runs them all and writes report.md. PROFILE is how they are built: release, or dev.
  fuzz [--minutes N] [--seed S] [--case C]
            Damages configurations, weights, pictures, replayed pictures and PTX, and has the programs read them:
            none may panic, grow, or refuse a file without naming it. --case makes one case of a seed again.
  help      Shows this.

examples:
  cargo xtask test
  cargo xtask test -- ops::norm
  cargo xtask test --no-cuda -- --no-fail-fast
  cargo xtask vgpu cargo test --lib ops::norm
  cargo xtask golden models pipelines
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            // A child that failed has said why, and its exit code is passed on.
            ExitCode::from(error.downcast_ref::<process::Failed>().map_or(2, |f| f.code()))
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = args.split_first().map_or(("help", &[][..]), |(c, rest)| (c, rest));
    match command {
        "test" => test::run(rest),
        "cuda" if rest.is_empty() => cuda::install().map(|nvcc| println!("{}", nvcc.display())),
        "vgpu" => vgpu::run(rest),
        "golden" => golden::run(rest),
        "gpu-bundle" => gpu_bundle::run(rest),
        #[cfg(unix)]
        "fuzz" => fuzz::run(rest),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        "cuda" => bail!("`cuda` takes no arguments, found `{}`", rest.join(" ")),
        other => bail!("no command `{other}`; `cargo xtask help` lists them"),
    }
}
