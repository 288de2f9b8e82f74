//! `cargo xtask gpu-bundle`: one archive that tests and times nadir on a machine with a card and its driver, and nothing
//! else: no cargo, no compiler, no sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::process::{cargo, root, run as run_program, target_dir};
use crate::{cuda, vgpu};

/// What the archive unpacks to.
const NAME: &str = "nadir-gpu";
const SCRIPT: &str = include_str!("gpu_bundle/run.sh");
/// What is built, and what it is called there.
const PROGRAMS: [(&str, &str); 5] = [
    ("lib nadir", "lib"),
    ("test cuda", "cuda"),
    ("test cuda_device", "cuda_device"),
    ("bin nadir", "nadir"),
    ("example products", "products"),
];
/// What the programs read.
const FILES: [&str; 2] = ["tests/golden", "weights"];

/// See `cargo xtask help`.
pub fn run(args: &[String]) -> Result<()> {
    let profile = match args {
        [] => "release",
        [option, profile] if option == "--profile" => profile,
        _ => bail!("`gpu-bundle` takes --profile NAME, found `{}`", args.join(" ")),
    };
    cuda::install().context("a card runs compiled kernels")?;
    let target = target_dir()?;
    let folder = target.join(NAME);
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    for part in ["bin", "vgpu"] {
        fs::create_dir_all(folder.join(part))?;
    }
    let built = build(profile)?;
    for (target, name) in PROGRAMS {
        let program = built.iter().find(|(built, _)| built == target);
        let (_, program) = program.with_context(|| format!("cargo built no {target}"))?;
        copy(program, &folder.join("bin").join(name))?;
    }
    let staged = vgpu::stage()?;
    for library in ["libcuda.so", "libcuda.so.1"] {
        copy(&staged.join(library), &folder.join("vgpu").join(library))?;
    }
    for file in tracked()? {
        copy(&root().join(&file), &folder.join(&file))?;
    }
    fs::write(folder.join("run.sh"), SCRIPT)?;

    let archive = target.join(format!("{NAME}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.arg("-czf").arg(&archive).arg("-C").arg(&target).arg(NAME);
    run_program(&mut tar)?;
    fs::remove_dir_all(&folder)?;
    println!("{}", archive.display());
    Ok(())
}

/// Builds the programs: each as `KIND NAME`, and where it is.
fn build(profile: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut command = cargo();
    command.args(["test", "--no-run", "--quiet", "--package", "nadir", "--profile", profile]);
    command.args(["--lib", "--bin", "nadir", "--test", "cuda", "--test", "cuda_device"]);
    let mut built = executables(command)?;
    // `cargo test` builds examples, and the program, as tests of themselves.
    built.retain(|(target, _)| target != "bin nadir");
    let mut command = cargo();
    command.args(["build", "--quiet", "--package", "nadir", "--profile", profile]);
    command.args(["--bin", "nadir", "--example", "products"]);
    built.extend(executables(command)?);
    Ok(built)
}

/// What a command of cargo's built that can be run.
fn executables(mut command: Command) -> Result<Vec<(String, PathBuf)>> {
    command.env("NADIR_CUDA", "require").arg("--message-format=json-render-diagnostics");
    let output = command.stderr(Stdio::inherit()).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo could not build the programs");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    // Three fields of JSON objects, which cargo writes without spaces, in this order: no parser for that.
    let field = |line: &str, name: &str| {
        let (_, rest) = line.split_once(name)?;
        rest.split_once('"').map(|(value, _)| value.replace("\\\\", "\\"))
    };
    let program = |line: &str| {
        let kind = field(line, "\"target\":{\"kind\":[\"")?;
        let (_, target) = line.split_once("\"target\":{")?;
        let name = field(target, "\"name\":\"")?;
        Some((format!("{kind} {name}"), field(line, "\"executable\":\"")?.into()))
    };
    Ok(text.lines().filter_map(program).collect())
}

/// The files to pack, as git has them: no leftovers.
fn tracked() -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    let output = git.args(["ls-files", "-z", "--"]).args(FILES).current_dir(root()).output();
    let output = output.context("cannot run git")?;
    let text = String::from_utf8(output.stdout).context("file names")?;
    let files: Vec<PathBuf> = text.split('\0').filter(|f| !f.is_empty()).map(Into::into).collect();
    if files.is_empty() {
        bail!("git lists no files in {}", root().display());
    }
    Ok(files)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}
