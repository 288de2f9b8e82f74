//! `nadir doctor`: what this machine and this build can do.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;

use nadir::cpu::{memory, simd};
use nadir::io::hub;
use nadir::pipeline::{LoadOptions, TextToImage};
use nadir::tensor::cuda;

use super::args;
use super::model::{self, Model};

#[derive(Serialize)]
struct Report {
    nadir: &'static str,
    cpu: Cpu,
    memory: Memory,
    cuda: Cuda,
    model: DefaultModel,
    hub_cache: Place,
}

#[derive(Serialize)]
struct Cpu {
    architecture: &'static str,
    /// What the processor offers of what matters here.
    features: Vec<&'static str>,
    /// What kernels run with.
    level: &'static str,
    threads: usize,
}

/// In bytes; none where the system does not say.
#[derive(Serialize)]
struct Memory {
    total: Option<u64>,
    available: Option<u64>,
    /// Of the container.
    limit: Option<u64>,
}

#[derive(Serialize)]
struct Cuda {
    /// Release of the compiler that made this build's kernels.
    compiler: Option<&'static str>,
    /// Operations that have kernels.
    families: Vec<&'static str>,
    devices: Vec<String>,
    /// What `--device auto` comes to, and why.
    choice: String,
}

#[derive(Serialize)]
struct DefaultModel {
    name: &'static str,
    folder: Option<PathBuf>,
    load_seconds: Option<f64>,
    error: Option<String>,
}

#[derive(Serialize)]
struct Place {
    folder: PathBuf,
    exists: bool,
}

/// Prints the report; success when the default model can be used.
pub fn run(args: &args::Doctor) -> ExitCode {
    let report = examine();
    let text = match args.json {
        true => serde_json::to_string_pretty(&report).unwrap_or_default(),
        false => describe(&report),
    };
    // Nobody may be reading.
    let _ = writeln!(std::io::stdout(), "{text}");
    if report.model.error.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn examine() -> Report {
    let folder = hub::Cache::from_env().root().to_path_buf();
    Report {
        nadir: env!("CARGO_PKG_VERSION"),
        cpu: Cpu {
            architecture: std::env::consts::ARCH,
            features: features(),
            level: simd::level().name(),
            threads: rayon::current_num_threads(),
        },
        memory: Memory {
            total: memory::machine().map(|space| space.total),
            available: memory::machine().map(|space| space.free),
            limit: memory::container().map(|space| space.total),
        },
        cuda: Cuda {
            compiler: cuda::compiler().ok(),
            families: cuda::families().collect(),
            devices: cuda::devices().unwrap_or_default().iter().map(ToString::to_string).collect(),
            choice: cuda::choose("auto").map_or_else(|e| e.to_string(), |(_, why)| why),
        },
        model: default_model(),
        hub_cache: Place { exists: folder.is_dir(), folder },
    }
}

fn default_model() -> DefaultModel {
    let start = Instant::now();
    let options = LoadOptions::default();
    let mut found =
        DefaultModel { name: model::DEFAULT, folder: None, load_seconds: None, error: None };
    let loaded = Model::find(None).and_then(|model| {
        let folder = found.folder.insert(model.folder);
        TextToImage::load(folder, &options)
    });
    match loaded {
        Ok(_) => found.load_seconds = Some(start.elapsed().as_secs_f64()),
        Err(error) => found.error = Some(error.to_string()),
    }
    found
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn features() -> Vec<&'static str> {
    macro_rules! detected {
        ($($name:tt)*) => {
            [$(($name, std::is_x86_feature_detected!($name))),*]
        };
    }
    let known = detected!("sse4.2" "avx" "f16c" "fma" "avx2" "avx512f" "avx512bw" "avx512vl" "avx512vnni" "avx512bf16");
    known.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect()
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<&'static str> {
    macro_rules! detected {
        ($($name:tt)*) => {
            [$(($name, std::arch::is_aarch64_feature_detected!($name))),*]
        };
    }
    let known = detected!("neon" "fp16" "bf16" "dotprod" "i8mm" "sve");
    known.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect()
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

fn describe(report: &Report) -> String {
    let Report { cpu, memory, cuda, model, hub_cache, .. } = report;
    let gib = |bytes: Option<u64>| match bytes {
        Some(bytes) => format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64),
        None => "unknown".to_owned(),
    };
    let limit = match memory.limit {
        Some(_) => format!(", limited to {}", gib(memory.limit)),
        None => String::new(),
    };
    let folder = model.folder.as_deref().map_or(String::new(), |f| format!(" in {}", f.display()));
    let state = match (&model.error, model.load_seconds) {
        (Some(error), _) => format!("DOES NOT LOAD: {error}"),
        (None, seconds) => format!("loads in {:.1} s", seconds.unwrap_or_default()),
    };
    let kernels = match cuda.compiler {
        Some(release) => format!("for {}; compiled by nvcc {release}", cuda.families.join(", ")),
        None => "none in this build".to_owned(),
    };
    let there = if hub_cache.exists { "" } else { " (does not exist)" };
    let lines = [
        ("nadir", report.nadir.to_owned()),
        ("processor", format!("{}: {}", cpu.architecture, cpu.features.join(" "))),
        ("CPU kernels", format!("{}, {} threads", cpu.level, cpu.threads)),
        ("memory", format!("{}, {} available{limit}", gib(memory.total), gib(memory.available))),
        ("CUDA kernels", kernels),
        (
            "CUDA devices",
            if cuda.devices.is_empty() { "none".to_owned() } else { cuda.devices.join("; ") },
        ),
        ("--device auto", cuda.choice.clone()),
        ("default model", format!("{}{folder}: {state}", model.name)),
        ("hub cache", format!("{}{there}", hub_cache.folder.display())),
    ];
    lines.map(|(name, text)| format!("{name:<15}{text}")).join("\n")
}
