//! Correct kernels that look suspicious run without a complaint, in every order, and compute the right thing.
#![cfg(vgpu_supported)]

mod common;

use vgpu::{Arguments, Config, Fault, Gpu, Severity};

#[test]
fn unusual_but_correct_kernels_give_no_alarm() {
    let Some(ptx) = common::compile("correct.cu") else { return };
    let source = include_str!("kernels/correct.cu");
    let kernels: Vec<(&str, bool, bool)> = source
        .lines()
        .filter_map(|l| {
            let name = l.strip_prefix("KERNEL(")?.split(')').next()?;
            Some((name, l.contains("LAUNCH cooperative"), l.contains("WARNS")))
        })
        .collect();
    assert!(kernels.len() >= 60, "{} kernels", kernels.len());
    let mut wrong = Vec::new();
    for (name, cooperative, warns) in &kernels {
        for seed in 0..4 {
            let mut gpu = Gpu::new(Config {
                seed,
                budget: 5_000_000,
                threads: 1 + seed as usize % 3,
                ..Config::default()
            })
            .unwrap();
            let kernel = gpu.load(&ptx).unwrap().function(name).unwrap();
            let n = 256;
            let out = gpu.upload(&vec![0i32; n]).unwrap();
            let data = gpu.upload(&vec![0i32; 8192]).unwrap();
            let fresh = gpu.allocate(n * 16).unwrap();
            let args = Arguments::new().pointer(out).pointer(data).pointer(fresh).int(n as i32);
            let run = if *cooperative { Gpu::launch_cooperative } else { Gpu::launch };
            if let Err(error) = run(&mut gpu, &kernel, [4, 1, 1], [64, 1, 1], 0, &args) {
                wrong.push(format!("{name} (seed {seed}): {error}"));
                break;
            }
            // A warning is no alarm, but only these kernels may give one, and they have to.
            let findings = gpu.findings();
            let is_warning = |f: &Fault| f.severity == Severity::Warning;
            if findings.is_empty() == *warns || !findings.iter().all(is_warning) {
                wrong.push(format!("{name} (seed {seed}): findings {findings:#?}"));
                break;
            }
            let results: Vec<i32> = gpu.download(out, n).unwrap();
            if let Some(at) = results.iter().position(|r| *r != 1) {
                wrong.push(format!("{name} (seed {seed}): thread {at} says its result is wrong"));
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), kernels.len(), wrong.join("\n"));
}
