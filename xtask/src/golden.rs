//! `cargo xtask golden`: the reference tensors, written anew.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::process::{cargo, root, run as run_program, target_dir, works};

/// What the references are: changing a version here means new tensors.
const PACKAGES: [&str; 18] = [
    "torch==2.15.*",
    "torchvision==0.29.*",
    "diffusers==0.42.*",
    "peft==0.21.*",
    "transformers==5.23.*",
    "pyarrow",
    "segmentation-models-pytorch==0.6.*",
    "pillow<13",
    "accelerate",
    "tensorboard",
    "torch-fidelity==0.4.*",
    "clean-fid==0.1.*",
    "lpips==0.1.*",
    "prdc==0.2",
    "scikit-image==0.26.*",
    "torchmetrics==1.9.*",
    "opencv-python-headless",
    "opensr-model==1.0.8",
];

/// Reads caption files that the project does not hold: runs only when it is named, with arguments.
const NEEDS_FILES: &str = "tokenizer";

/// What the generators import, and what looks at nadir's own output.
const NO_GENERATORS: [&str; 4] =
    ["common.py", "check_save.py", "check_events.py", "check_segmentation.py"];

/// See `cargo xtask help`.
pub fn run(args: &[String]) -> Result<()> {
    let (options, passed) = match args.iter().position(|arg| arg == "--") {
        Some(at) => (&args[..at], &args[at + 1..]),
        None => (args, &[][..]),
    };
    let (mut python, mut names, mut check) = (None, Vec::new(), false);
    let mut args = options.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--python" => {
                python = Some(PathBuf::from(args.next().context("--python needs a path")?))
            }
            "--check" => check = true,
            option if option.starts_with('-') => bail!("`golden` has no option `{option}`"),
            name => names.push(name.trim_end_matches(".py").to_owned()),
        }
    }

    if check {
        if !names.is_empty() {
            bail!("`golden --check` writes no tensors, and takes no names");
        }
        let python = python.map_or_else(environment, Ok)?;
        check_save(&python)?;
        return check_events(&python);
    }

    let folder = root().join("tests/golden");
    let mut generators: Vec<PathBuf> = fs::read_dir(&folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "py"))
        .filter(|path| NO_GENERATORS.iter().all(|name| !path.ends_with(name)))
        .collect();
    generators.sort();
    let stem = |path: &PathBuf| path.file_stem().map(|s| s.to_string_lossy().into_owned());
    for name in &names {
        if generators.iter().all(|path| stem(path).as_ref() != Some(name)) {
            let known: Vec<String> = generators.iter().filter_map(stem).collect();
            bail!("tests/golden has no {name}.py, only {}", known.join(", "));
        }
    }
    if names.is_empty() {
        generators.retain(|path| stem(path).is_none_or(|s| s != NEEDS_FILES));
        eprintln!("left out: cargo xtask golden {NEEDS_FILES} -- CAPTIONS.jsonl ...");
    } else {
        generators.retain(|path| stem(path).is_some_and(|s| names.contains(&s)));
    }

    let python = match python {
        Some(python) => python,
        None => environment()?,
    };
    for generator in generators {
        eprintln!("{}", generator.display());
        run_program(Command::new(&python).arg(&generator).args(passed))?;
    }
    Ok(())
}

/// Saves the model that ships, as each kind of weights, and has diffusers compare.
fn check_save(python: &Path) -> Result<()> {
    let scratch = target_dir()?.join("golden-check");
    if scratch.exists() {
        fs::remove_dir_all(&scratch)
            .with_context(|| format!("cannot empty {}", scratch.display()))?;
    }
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    let original = root().join("weights/eurosat-64");
    let mut compare = Command::new(python);
    compare.arg(root().join("tests/golden/check_save.py")).arg(&original);
    // The files are bf16, which f32 holds exactly.
    for options in [
        &["--keep", "frozen"][..],
        &["--keep", "plain", "--dtype", "bf16"],
        &["--keep", "trainable", "--dtype", "bf16"],
    ] {
        let copy = scratch.join(options[1]);
        let mut save = cargo();
        save.args(["run", "--quiet", "--release", "--example", "save", "--"]);
        run_program(save.arg(&original).arg(&copy).args(options))?;
        compare.arg(copy);
    }
    run_program(&mut compare)
}

/// Trains a little, in two parts, and has TensorBoard read what that leaves.
fn check_events(python: &Path) -> Result<()> {
    let run = target_dir()?.join("golden-check/run");
    // The second process goes back to the checkpoint behind step 4: what the first wrote of step 5 is void.
    for steps in ["5", "7"] {
        let mut train = cargo();
        train.args([
            "run",
            "--quiet",
            "--release",
            "--",
            "train",
            "vae",
            "--quiet",
            "--train-data",
        ]);
        train.arg(root().join("data/blue-marble.parquet")).arg("--output-dir").arg(&run);
        train.args(["--resolution=32", "--train-batch-size=2", "--checkpointing-steps=4"]);
        train.args(["--validation-split=0.1", "--max-train-steps", steps]);
        if steps == "7" {
            train.arg("--resume-from-checkpoint").arg(run.join("checkpoint-4"));
        }
        run_program(&mut train)?;
    }
    run_program(Command::new(python).arg(root().join("tests/golden/check_events.py")).arg(run))
}

/// Makes the first update of the recipe for Stable Diffusion 1.5 beside PyTorch's, where PyTorch is and 20 GB of memory are.
pub fn check_recipe() -> Result<()> {
    let python = env::var_os("NADIR_PYTHON").map_or_else(own_python, |path| Ok(path.into()))?;
    if !has_packages(&python) {
        eprintln!(
            "skipped: benches/peers/recipe.py (one update at Stable Diffusion 1.5's size): {} has no PyTorch and diffusers; \
             `cargo xtask golden` installs them, NADIR_PYTHON names another Python that has them",
            python.display()
        );
        return Ok(());
    }
    let peers = root().join("benches/peers");
    let model = target_dir()?.join("sd15-random");
    // What the script writes last.
    if !model.join("model_index.json").exists() {
        run_program(Command::new(&python).arg(peers.join("make_sd15_folder.py")).arg(&model))?;
    }
    run_program(Command::new(&python).arg(peers.join("recipe.py")).arg(model))
}

fn own_python() -> Result<PathBuf> {
    Ok(target_dir()?.join("golden-venv/bin/python"))
}

fn has_packages(python: &Path) -> bool {
    let import = "import torch, torchvision, diffusers, peft, transformers, pyarrow";
    works(&python.to_string_lossy(), &["-c", import])
}

/// A virtual environment with the pinned packages; returns its Python.
fn environment() -> Result<PathBuf> {
    let folder = target_dir()?.join("golden-venv");
    let python = own_python()?;
    if !has_packages(&python) {
        eprintln!("installing PyTorch, diffusers and transformers under {}", folder.display());
        run_program(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let mut pip = Command::new(&python);
        run_program(pip.args(["-m", "pip", "install", "--quiet"]).args(PACKAGES))?;
    }
    Ok(python)
}
