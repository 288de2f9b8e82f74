//! The archive for a bare machine, on the virtual device in place of its driver.
#![cfg(all(target_os = "linux", target_arch = "x86_64", not(nadir_portable)))]

use std::fs;
use std::process::Command;

#[test]
#[ignore = "minutes: cargo xtask test --all"]
fn a_bundle_tests_a_card_without_cargo() {
    if std::env::var_os("NADIR_CUDA").is_some_and(|v| v == "off") {
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["gpu-bundle", "--profile", "dev"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let archive = said.lines().last().unwrap();

    let elsewhere = std::env::temp_dir().join(format!("nadir-gpu-{}", std::process::id()));
    fs::create_dir_all(&elsewhere).unwrap();
    let unpacked =
        Command::new("tar").args(["-xzf", archive, "-C"]).arg(&elsewhere).status().unwrap();
    assert!(unpacked.success());
    let folder = elsewhere.join("nadir-gpu");
    let run = |words: &[&str]| {
        let output = Command::new("sh")
            .arg(folder.join("run.sh"))
            .args(words)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LD_LIBRARY_PATH", folder.join("vgpu"))
            .output()
            .unwrap();
        let report = fs::read_to_string(folder.join("report.md")).unwrap();
        (output.status.code(), report)
    };
    let words = [
        "scale_and_add",
        "a_device_that_is_not_there",
        "a_graph_is_replayed",
        "draws_as_on_the_cpu_in_f32",
    ];
    let (code, report) = run(&words);
    println!("{report}");
    assert_eq!(code, Some(0), "{report}");
    for part in [
        "vgpu A100",
        "| lib | tensor::cuda::tests::a_graph_is_replayed_on_new_inputs | ok |",
        "| cuda | the_shipped_model_draws_as_on_the_cpu_in_f32 | ok |",
        "| cuda_device | a_device_that_is_not_there_is_named | ok |",
        "4 steps in f32: ",
        "0 failed",
        "- f32: bit for bit",
    ] {
        assert!(report.contains(part), "no '{part}' in\n{report}");
    }

    // A test that fails is in the report, and in the exit code.
    fs::remove_dir_all(folder.join("tests")).unwrap();
    let (code, report) = run(&["f32_is_diffusers::pndm"]);
    assert_eq!(code, Some(1), "{report}");
    assert!(report.contains("| cuda | f32_is_diffusers::pndm | FAILED |"), "{report}");
    fs::remove_dir_all(&elsewhere).unwrap();
}
