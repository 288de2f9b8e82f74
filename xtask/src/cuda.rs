//! `cargo xtask cuda`: the CUDA compiler, from NVIDIA's packages on PyPI.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{run, target_dir, works};

/// 13.0, since drivers from 580 on load its PTX.
const RELEASE: &str = "13.0.88";

/// The compiler, its device back end, and the headers that kernels include. All of one release.
const PACKAGES: [&str; 5] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
];

/// Where nvcc lies in what pip installs.
const NVCC: &str = "nvidia/cu13/bin/nvcc";

/// Installs the compiler under `target/cuda`, unless it is there, and returns the path of nvcc. The build
/// script finds it by the file `installed`.
pub fn install() -> Result<PathBuf> {
    if !works("g++", &["--version"]) {
        bail!("nvcc needs g++, which was not found: install it (on Debian: apt-get install g++)");
    }
    let folder = target_dir()?.join("cuda");
    let home = folder.join(RELEASE);
    let nvcc = home.join(NVCC);
    if !works(&nvcc.to_string_lossy(), &["--version"]) {
        let Some(python) =
            ["python3", "python"].into_iter().find(|p| works(p, &["-m", "pip", "--version"]))
        else {
            bail!(
                "no Python 3 with pip was found: install it (on Debian: apt-get install python3-pip), \
                 or set CUDA_HOME to a CUDA toolkit"
            );
        };
        eprintln!("installing nvcc {RELEASE} under {} (300 MB)", folder.display());
        // Into a folder of its own first: an interrupted download must not look like a compiler.
        let scratch = folder.join(format!("{RELEASE}.{}", std::process::id()));
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
        pip.args(["--root-user-action=ignore", "--only-binary=:all:", "--target"]);
        let installed = run(pip.arg(&scratch).args(PACKAGES));
        if let Err(error) = installed {
            let _ = fs::remove_dir_all(&scratch);
            return Err(error.context(
                "pip could not install the CUDA compiler (is the network there?); \
                 set CUDA_HOME to a CUDA toolkit, or go without: NADIR_CUDA=off",
            ));
        }
        let _ = fs::remove_dir_all(&home);
        fs::rename(&scratch, &home).with_context(|| format!("cannot create {}", home.display()))?;
    }
    let note = folder.join("installed");
    let path = format!("{RELEASE}/{NVCC}");
    if !fs::read_to_string(&note).is_ok_and(|text| text == path) {
        fs::write(&note, path).with_context(|| format!("cannot write {}", note.display()))?;
    }
    Ok(nvcc)
}
