//! Correct kernels that look suspicious run without a complaint, in every order, and compute the right thing.

mod common;

use vgpu::{Arguments, Config, Gpu};

#[test]
fn unusual_but_correct_kernels_give_no_alarm() {
    let Some(ptx) = common::compile("correct.cu") else { return };
    let source = include_str!("kernels/correct.cu");
    let kernels: Vec<(&str, bool)> = source
        .lines()
        .filter_map(|l| {
            Some((l.strip_prefix("KERNEL(")?.split(')').next()?, l.contains("LAUNCH cooperative")))
        })
        .collect();
    assert!(kernels.len() >= 20, "{} kernels", kernels.len());
    let mut wrong = Vec::new();
    for (name, cooperative) in &kernels {
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
            let results: Vec<i32> = gpu.download(out, n).unwrap();
            if let Some(at) = results.iter().position(|r| *r != 1) {
                wrong.push(format!("{name} (seed {seed}): thread {at} says its result is wrong"));
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), kernels.len(), wrong.join("\n"));
}
