//! The examples that cudarc publishes run on the device: those that need the driver alone.
//!
//! They are built from the package that cargo has downloaded, in a project of their own. Left out are
//! `05-device-repr`, `06-threading`, `09-constant-memory`, `matmul-kernel` and `nvrtc-compile`, which compile
//! their kernels with NVRTC, `13-copy-multi-gpu`, which needs a second device, `08-cupti` and `cufile-copy`.
//! `cudarc.rs` shares a context between threads and reads constant memory.
#![cfg(vgpu_supported)]

mod common;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const EXAMPLES: [&str; 6] = [
    "01-allocate",
    "02-copy",
    "03-launch-kernel",
    "04-streams",
    "10-function-attributes",
    "12-context-config",
];

/// What a command printed on stdout; its failure is the test's.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?} does not run: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{printed}{said}", output.status);
    printed
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Builds the examples of the cudarc that these tests were built with: the package's folder and the programs'.
fn build() -> (PathBuf, PathBuf) {
    let metadata = output(
        cargo()
            .args(["metadata", "--format-version", "1", "--offline", "--locked"])
            // Without the packages of other systems, which nobody has downloaded.
            .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
            .current_dir(env!("CARGO_MANIFEST_DIR")),
    );
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let cudarc = packages.iter().find(|p| p["name"] == "cudarc").unwrap();
    let manifest = Path::new(cudarc["manifest_path"].as_str().unwrap());
    let package = manifest.parent().unwrap().to_path_buf();

    // Kept from run to run: cudarc itself is then built once.
    let project = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cudarc-examples");
    let mut text = format!(
        "[package]\nname = \"cudarc-examples\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[workspace]\n\
         [dependencies]\ncudarc = {{ version = \"={}\", default-features = false, \
         features = [\"std\", \"driver\", \"nvrtc\", \"dynamic-loading\", \"cuda-12080\"] }}\n",
        cudarc["version"].as_str().unwrap()
    );
    for name in EXAMPLES {
        let path = package.join("examples").join(name).with_extension("rs");
        let _ = writeln!(text, "[[bin]]\nname = '{name}'\npath = '{}'", path.display());
    }
    std::fs::create_dir_all(&project).unwrap();
    std::fs::write(project.join("Cargo.toml"), text).unwrap();
    let root = Path::new(metadata["workspace_root"].as_str().unwrap());
    std::fs::copy(root.join("Cargo.lock"), project.join("Cargo.lock")).unwrap();
    output(
        cargo()
            .args(["build", "--offline", "--quiet", "--target-dir", "target"])
            .current_dir(&project),
    );
    (package, project.join("target/debug"))
}

/// The numbers of a line such as `Found [1.0, 2.0]`.
fn numbers(printed: &str, label: &str) -> Vec<f32> {
    let line = printed.lines().find_map(|l| l.strip_prefix(label)).unwrap();
    let list = line.trim().trim_start_matches('[').trim_end_matches(']');
    list.split(", ").map(|n| n.parse().unwrap()).collect()
}

#[test]
fn the_examples_of_cudarc() {
    let (package, programs) = build();
    let folder = common::stage("cudarc-published");
    for name in EXAMPLES {
        for seed in ["0", "1", "2"] {
            // They look for their PTX below the package.
            let printed = output(
                Command::new(programs.join(name))
                    .current_dir(&package)
                    .env("LD_LIBRARY_PATH", &folder)
                    .env("VGPU_SEED", seed),
            );
            match name {
                "03-launch-kernel" | "04-streams" => {
                    let (found, exact) =
                        (numbers(&printed, "Found"), numbers(&printed, "Expected"));
                    assert_eq!(found.len(), exact.len());
                    for (found, exact) in found.iter().zip(&exact) {
                        // CUDA documents 2 units in the last place for sinf, a C library has up to 1:
                        // 3 of 2^-24 each below 1.
                        assert!((found - exact).abs() <= 3.0 * 2f32.powi(-24), "{name}: {printed}");
                    }
                }
                "10-function-attributes" => {
                    assert!(printed.starts_with("Device: vgpu"), "{printed}");
                }
                _ => {}
            }
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}
