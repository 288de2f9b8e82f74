//! Every planted mistake is found: the right class, in the right kernel, at the right line.
#![cfg(vgpu_supported)]

mod common;

use vgpu::{Arguments, Config, Gpu};

/// A kernel of `bugs.cu` with its markers.
struct Planted {
    name: String,
    kinds: Vec<String>,
    lines: Vec<usize>,
    shared: usize,
}

fn planted() -> Vec<Planted> {
    let source = include_str!("kernels/bugs.cu");
    let mut all: Vec<Planted> = Vec::new();
    for (number, line) in source.lines().enumerate() {
        if let Some(rest) = line.strip_prefix("KERNEL(") {
            let name = rest.split(')').next().unwrap().to_string();
            let shared = line.split("shared=").nth(1).map_or(0, |s| s.trim().parse().unwrap());
            all.push(Planted { name, kinds: Vec::new(), lines: Vec::new(), shared });
        }
        if let (Some(kind), Some(kernel)) = (line.split("// BUG ").nth(1), all.last_mut()) {
            kernel.kinds.extend(kind.split_whitespace().map(String::from));
            kernel.lines.push(number + 1);
        }
    }
    all
}

#[test]
fn every_planted_bug_is_found_where_it_is() {
    let Some(ptx) = common::compile("bugs.cu") else { return };
    let all = planted();
    assert!(all.len() >= 55, "{} planted bugs", all.len());
    let mut wrong = Vec::new();
    for bug in &all {
        for seed in [0, 1, 2] {
            // A small budget: a loop that waits for nothing should not be waited for.
            let mut gpu = Gpu::new(Config { seed, budget: 200_000, ..Config::default() }).unwrap();
            let kernel = gpu.load(&ptx).unwrap().function(&bug.name).unwrap();
            let n = 512;
            let data = gpu.upload(&vec![0i32; n]).unwrap();
            let (freed, fresh) = (gpu.allocate(n * 4).unwrap(), gpu.allocate(n * 4).unwrap());
            gpu.free(freed).unwrap();
            let args = Arguments::new().pointer(data).pointer(freed).pointer(fresh).int(n as i32);
            let result = gpu.launch(&kernel, [2, 1, 1], [64, 1, 1], bug.shared, &args);
            let Err(error) = result else {
                wrong.push(format!("{} (seed {seed}): not found", bug.name));
                continue;
            };
            let fault = error.fault().unwrap_or_else(|| panic!("{}: {error}", bug.name));
            let source = fault.source.clone().unwrap_or_default();
            let line_matches = bug.lines.iter().any(|l| {
                source.split(" (").next().unwrap().ends_with(&format!("bugs.cu:{l}"))
                    || source.contains(&format!("bugs.cu:{l})"))
            });
            if !(bug.kinds.contains(&format!("{:?}", fault.kind))
                && fault.kernel == bug.name
                && line_matches)
            {
                wrong.push(format!(
                    "{} (seed {seed}), expected {:?} at {:?}:\n{fault}",
                    bug.name, bug.kinds, bug.lines
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), all.len(), wrong.join("\n"));
}
