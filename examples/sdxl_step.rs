//! Times one prediction of a UNet of Stable Diffusion XL's shape, as `benches/peers/sdxl.py` does for PyTorch, on weights that
//! are made while it is loaded. Prints one JSON line.
//!
//!     cargo run --release --example sdxl_step -- --side 64 --output noise.safetensors

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use nadir::io::config::Config;
use nadir::io::safetensors::save;
use nadir::models::unet::{Unet, UnetConfig, Vector};
use nadir::nn::Params;
use nadir::tensor::{DType, Device, Tensor, release_unused_memory};

#[derive(Parser)]
struct Arguments {
    /// Latents along a side: 128 for 1024 pixels.
    #[arg(long, default_value_t = 64)]
    side: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Timed calls.
    #[arg(long, default_value_t = 2)]
    repeat: usize,
    /// Where the prediction goes.
    #[arg(long)]
    output: Option<PathBuf>,
}

const BLOCK: usize = 1_000_003;

/// Mixed counters, from -1 to 1.
fn block() -> Vec<f32> {
    let value = |i: usize| {
        let mut x = i as u32;
        x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
        x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
        x ^= x >> 16;
        (x >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..BLOCK).map(value).collect()
}

/// As `draw` of `sdxl.py`.
fn draw(block: &[f32], name: &str, shape: &[usize]) -> nadir::Result<Tensor> {
    let count: usize = shape.iter().product();
    let mut at = crc32fast::hash(name.as_bytes()) as usize % BLOCK;
    let mut values = Vec::with_capacity(count);
    while values.len() < count {
        let end = BLOCK.min(at + count - values.len());
        values.extend_from_slice(&block[at..end]);
        at = end % BLOCK;
    }
    let (offset, factor) = match (shape.len(), name.ends_with("weight")) {
        (1, true) => (1.0, 0.3),
        (1, false) => (0.0, 0.2),
        _ => (0.0, (3.0 / shape[1..].iter().product::<usize>() as f64).sqrt() as f32),
    };
    values.iter_mut().for_each(|x| *x = offset + factor * *x);
    Tensor::from_vec(values, shape)
}

/// Bytes of a line of the process's status; 0 where the system does not say.
fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn main() -> anyhow::Result<()> {
    let Arguments { side, threads, repeat, output } = Arguments::parse();
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let start = Instant::now();
    let json = serde_json::from_str(include_str!("../benches/peers/sdxl_unet.json"))?;
    let config = UnetConfig::read(&Config::from_value("sdxl_unet.json", json)?)?;
    let values = block();
    let weights = values.clone();
    let initial = move |name: &str, shape: &[usize]| draw(&weights, name, shape);
    let unet = Unet::load(config, &Params::initial(initial, DType::F32, Device::Cpu))?;
    release_unused_memory();
    let loading = start.elapsed().as_secs_f64();
    let (held, loading_peak) = (memory("VmRSS"), memory("VmHWM"));

    // Drawn as matrices are, and brought to 1.7 again.
    let input = |name: &str, shape: &[usize]| {
        let factor = (shape[1..].iter().product::<usize>() as f64).sqrt() as f32;
        let values = draw(&values, name, shape)?.to_vec::<f32>()?;
        Tensor::from_vec(values.into_iter().map(|x| x * factor).collect(), shape)
    };
    let sample = input("sample", &[1, 4, side, side])?.permute(&[0, 2, 3, 1])?.contiguous()?;
    let text = input("text", &[77, 2048])?.reshape([1, 77, 2048])?;
    let pixels = (8 * side) as f32;
    let vector = Vector {
        sizes: vec![pixels, pixels, 0.0, 0.0, pixels, pixels],
        pooled: input("pooled", &[1, 1280])?.to_vec()?,
        ..Vector::default()
    };
    let (mut context, mut step, mut noise) = (Vec::new(), Vec::new(), None);
    for _ in 0..repeat {
        // Keys and values of the text: once a picture, whatever its steps.
        let start = Instant::now();
        let keys = unet.context(&text)?;
        context.push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let times = unet.embed(&[501.0], &vector)?;
        noise = Some(unet.forward(&sample, &times, &keys)?); // [1, h, w, 4]
        step.push(start.elapsed().as_secs_f64());
    }
    if let (Some(path), Some(noise)) = (&output, &noise) {
        let noise = noise.permute(&[0, 3, 1, 2])?.contiguous()?; // [1, 4, h, w]
        save(path, &[("noise".to_owned(), noise)], &BTreeMap::new())?;
    }
    let line = serde_json::json!({
        "engine": format!("nadir {}", env!("CARGO_PKG_VERSION")),
        "load_s": loading,
        "context_s": context,
        "step_s": step,
        "loaded_rss_bytes": held,
        "loading_peak_rss_bytes": loading_peak,
        "peak_rss_bytes": memory("VmHWM"),
    });
    println!("{line}");
    Ok(())
}
