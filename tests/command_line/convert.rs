//! Original checkpoints on the command line.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nadir::io::TensorSource;
use nadir::io::safetensors::{SafeTensors, save};

use super::original::Original;
use super::{Desk, text};

/// A desk with the small model of Stable Diffusion 2.x's kind in `file.safetensors` and `theirs`, a folder.
fn desk() -> (Desk, Original) {
    let (desk, original) = (Desk::new(), Original::open("sd2"));
    original.write_file(&desk.path("file.safetensors"));
    original.write_folder(&desk.path("theirs"));
    (desk, original)
}

#[test]
fn a_file_is_drawn_with_replayed_and_converted() {
    let (desk, original) = desk();
    let tokenizer = original.tokenizer();
    let tokenizer = tokenizer.to_str().unwrap();
    let size = ["-W", "32", "-H", "24", "-s", "1", "--steps", "2"];
    let draw = |args: &[&str]| desk.picture(&[&["generate", "a river"], args, &size].concat());
    let told = ["--prediction", "v", "--tokenizer", tokenizer];
    let picture = draw(&[&["-m", "file.safetensors", "-o", "a.png"], &told[..]].concat());
    assert_eq!(draw(&["-m", "theirs", "-o", "f.png"]), picture);
    let other = ["-m", "file.safetensors", "-o", "b.png", "--prediction", "epsilon"];
    assert_ne!(draw(&[&other, &told[2..]].concat()), picture);
    assert_eq!(desk.picture(&["replay", "a.png", "-o", "c.png"]), picture);

    // As a folder, and as a file that says what it predicts.
    let run = |args: &[&str]| {
        let output = desk.run(&[&["convert"], args].concat());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    };
    run(&[&["file.safetensors", "--out", "folder"], &told[..]].concat());
    assert_eq!(draw(&["-m", "folder", "-o", "d.png"]), picture);
    run(&["folder", "--out", "again.safetensors"]);
    let again = ["-m", "again.safetensors", "-o", "e.png", "--tokenizer", tokenizer];
    assert_eq!(draw(&again), picture);

    // CLIP's own vocabulary is larger than this model's.
    for (args, words) in [
        (&["generate", "x", "-m", "file.safetensors"][..], &["--prediction", "velocity"][..]),
        (
            &["generate", "x", "-m", "again.safetensors"],
            &["clip-tokenizer", "49408", "--tokenizer FOLDER"],
        ),
        (&["convert", "folder", "--out", "folder2"], &["--out", ".safetensors"]),
        (&["convert", "again.safetensors", "--out", "x.safetensors"], &["--out", "a folder"]),
        (&["generate", "x", "-m", "folder", "--prediction", "v"], &["--prediction", "folder says"]),
        (&["convert", "folder"], &["--out"]),
    ] {
        let output = desk.run(args);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {errors}");
        assert!(words.iter().all(|word| errors.contains(word)), "{args:?}: {errors}");
    }
}

/// A Python with PyTorch: `NADIR_PYTHON`, or that of `cargo xtask golden`.
fn python_with_torch() -> Option<PathBuf> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/golden-venv/bin/python");
    let python = std::env::var_os("NADIR_PYTHON").map_or(own, PathBuf::from);
    let found = Command::new(&python).args(["-c", "import torch, safetensors.torch"]).output();
    found.is_ok_and(|output| output.status.success()).then_some(python)
}

#[test]
fn the_script_takes_tensors_of_a_pickle_and_runs_nothing() {
    let (desk, original) = desk();
    let script = desk.run(&["convert", "--script"]);
    assert!(script.status.success());
    fs::write(desk.path("script.py"), &script.stdout).unwrap();
    assert!(text(&script.stdout).contains("weights_only=True"));
    let output = desk.run(&["generate", "x", "-m", "file.ckpt"]);
    assert_eq!(output.status.code(), Some(2));
    fs::write(desk.path("file.ckpt"), "any").unwrap();
    let output = desk.run(&["generate", "x", "-m", "file.ckpt"]);
    assert!(text(&output.stderr).contains("nadir convert --script"), "{}", text(&output.stderr));

    let Some(python) = python_with_torch() else {
        eprintln!(
            "skipped: scripts/pickle_to_safetensors.py: no Python with PyTorch; `cargo xtask golden` installs one, \
             NADIR_PYTHON names another"
        );
        return;
    };
    let run = |arguments: &[&str]| {
        Command::new(&python).args(arguments).current_dir(desk.folder.path()).output().unwrap()
    };
    // As PyTorch Lightning keeps it: beside the weights an object of a class that is not there, and code to be run.
    let small: Vec<_> = original.component("text_encoder").into_iter().take(9).collect();
    save(&desk.path("small.safetensors"), &small, &Default::default()).unwrap();
    let pickle = "
import sys, torch
from safetensors.torch import load_file
class Callback:
    pass
class Hostile:
    def __reduce__(self):
        return (exec, (\"open('ran', 'w')\",))
state = load_file('small.safetensors')
for name, beside in [('lightning', Callback()), ('hostile', Hostile())]:
    torch.save({'state_dict': state, 'global_step': 7, 'callbacks': {Callback: beside}}, name + '.ckpt')
torch.save(state, 'old.ckpt', _use_new_zipfile_serialization=False)
";
    let made = run(&["-c", pickle]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    for name in ["lightning", "hostile", "old"] {
        let (from, to) = (format!("{name}.ckpt"), format!("{name}.safetensors"));
        let output = run(&["script.py", &from, &to]);
        assert!(output.status.success(), "{name}: {}", text(&output.stderr));
        let file = SafeTensors::open(desk.path(&to)).unwrap();
        assert_eq!(file.names().len(), small.len());
        for (key, tensor) in &small {
            let stored: Vec<f32> = file.read(key).unwrap().to_vec().unwrap();
            assert_eq!(stored, tensor.to_vec::<f32>().unwrap(), "{name} {key}");
        }
    }
    assert!(!desk.path("ran").exists());
}
