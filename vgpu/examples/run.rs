//! Loads a PTX file and runs its kernels, each once by one warp on 4 KiB of memory: what a check finds is printed.
//!
//!     cargo run -p vgpu --example run FILE
//!
//! Exit code 2 where the file is refused or a kernel is stopped, with the file and the line.

use std::process::ExitCode;

#[cfg(not(vgpu_supported))]
fn main() -> ExitCode {
    eprintln!("vgpu works on Linux on x86-64 only, and not in a build with --cfg nadir_portable");
    ExitCode::FAILURE
}

#[cfg(vgpu_supported)]
fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("usage: run FILE");
        return ExitCode::from(2);
    };
    match run(&path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{path}: {message}");
            ExitCode::from(2)
        }
    }
}

#[cfg(vgpu_supported)]
fn run(path: &str) -> Result<(), String> {
    use vgpu::{Arguments, Config, Gpu};

    /// Instructions of a warp: a damaged loop has no end.
    const BUDGET: u64 = 100_000;
    const WORDS: usize = 1024;

    let text = std::fs::read(path).map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&text);
    let mut gpu =
        Gpu::new(Config { budget: BUDGET, ..Config::default() }).map_err(|e| e.to_string())?;
    let module = gpu.load(&text).map_err(|e| e.to_string())?;
    let mut stopped = Vec::new();
    for name in module.names() {
        let kernel = module.function(name).map_err(|e| e.to_string())?;
        let data = gpu.upload(&[0u32; WORDS]).map_err(|e| e.to_string())?;
        let mut args = Arguments::new();
        while args.len() + 8 <= kernel.argument_bytes() {
            args = args.pointer(data);
        }
        while args.len() < kernel.argument_bytes() {
            args = args.bytes(&[0]);
        }
        if let Err(e) = gpu.launch(&kernel, [1; 3], [32, 1, 1], 0, &args) {
            stopped.push(format!("{name}: {e}"));
        }
    }
    if stopped.is_empty() { Ok(()) } else { Err(stopped.join("\n")) }
}
