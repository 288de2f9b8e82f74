//! Times loading, one guidance step (UNet at batch 2) and decoding of a diffusers folder, as
//! `benches/peers/` does for other engines. Prints one JSON line.
//!
//!     cargo run --release --example step -- FOLDER --inputs inputs.safetensors --decode

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use nadir::io::TensorSource;
use nadir::io::config::Config;
use nadir::io::folder::PipelineFolder;
use nadir::io::safetensors::{SafeTensors, save};
use nadir::models::clip::{ClipText, ClipTextConfig};
use nadir::models::unet::{Unet, UnetConfig};
use nadir::models::vae::{Vae, VaeConfig};
use nadir::nn::Params;
use nadir::tensor::{DType, Device, Tensor, release_unused_memory};

#[derive(Parser)]
struct Arguments {
    folder: PathBuf,
    /// Latents [2, 4, h, w], text [2, 77, D] and timestep [1].
    #[arg(long)]
    inputs: PathBuf,
    /// Where predicted noise and decoded image go.
    #[arg(long)]
    output: Option<PathBuf>,
    /// What the networks compute in: f32, bf16 or f16.
    #[arg(long, default_value = "f32")]
    dtype: String,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Timed calls of each; 0 times loading alone.
    #[arg(long, default_value_t = 3)]
    repeat: usize,
    /// Times the decoder too.
    #[arg(long)]
    decode: bool,
}

/// A line of the process's status in bytes: `VmRSS` is the memory held now, `VmHWM` the most so far. 0 where the
/// system does not say.
fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Seconds of each of `repeat` calls, and the last one's value.
fn clock<T>(
    repeat: usize,
    mut call: impl FnMut() -> nadir::Result<T>,
) -> nadir::Result<(Vec<f64>, Option<T>)> {
    let mut seconds = Vec::new();
    let mut last = None;
    for _ in 0..repeat {
        let start = Instant::now();
        last = Some(call()?);
        seconds.push(start.elapsed().as_secs_f64());
    }
    Ok((seconds, last))
}

fn load<T>(
    folder: &PipelineFolder,
    name: &str,
    dtype: DType,
    build: impl FnOnce(&Config, &Params) -> nadir::Result<T>,
) -> nadir::Result<T> {
    let params = Params::new(folder.weights(name)?, dtype, Device::Cpu);
    let model = build(&folder.config(name)?, &params)?;
    params.finish()?;
    Ok(model)
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let dtype = match arguments.dtype.as_str() {
        "f32" => DType::F32,
        "bf16" => DType::BF16,
        "f16" => DType::F16,
        other => anyhow::bail!("--dtype {other}: expected f32, bf16 or f16"),
    };
    rayon::ThreadPoolBuilder::new().num_threads(arguments.threads).build_global()?;

    let start = Instant::now();
    let folder = PipelineFolder::open(&arguments.folder, None)?;
    let unet = load(&folder, "unet", dtype, |config, p| Unet::load(UnetConfig::read(config)?, p))?;
    let vae = load(&folder, "vae", dtype, |config, p| Vae::load(VaeConfig::read(config)?, p))?;
    // Held as a pipeline holds it, so that memory compares.
    let text_encoder = load(&folder, "text_encoder", dtype, |config, p| {
        ClipText::load(ClipTextConfig::read(config)?, p)
    })?;
    release_unused_memory(); // as `TextToImage::load` does
    let loading = start.elapsed().as_secs_f64();
    let (held, loading_peak) = (memory("VmRSS"), memory("VmHWM"));

    let inputs = SafeTensors::open(&arguments.inputs)?;
    let latents = inputs.read("latents")?.permute(&[0, 2, 3, 1])?.contiguous()?; // [2, h, w, 4]
    let text = inputs.read("text")?.to_dtype(dtype)?; // [2, 77, D]
    let timestep = inputs.read("timestep")?;
    // A pipeline computes the timesteps' embeddings and the keys and values of the text once. Peers do it in every
    // step, so it counts here.
    let (step, noise) = clock(arguments.repeat, || {
        let temb = unet.embed_timesteps(timestep.as_slice()?)?;
        unet.forward(&latents, &temb, &unet.context(&text)?)
    })?;
    let one = latents.narrow(0, 0, 1)?.contiguous()?; // [1, h, w, 4]
    let (decode, image) = match arguments.decode {
        true => clock(arguments.repeat, || vae.decode(&one))?,
        false => (Vec::new(), None),
    };
    drop(text_encoder);

    if let Some(path) = &arguments.output {
        let planes = |x: &Tensor| x.permute(&[0, 3, 1, 2])?.contiguous()?.to_dtype(DType::F32); // [B, C, H, W]
        let mut tensors = Vec::new();
        for (name, x) in [("noise", &noise), ("image", &image)] {
            if let Some(x) = x {
                tensors.push((name.to_owned(), planes(x)?));
            }
        }
        save(path, &tensors, &BTreeMap::new())?;
    }
    let line = serde_json::json!({
        "engine": format!("nadir {}", env!("CARGO_PKG_VERSION")),
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "load_s": loading,
        "step_s": step,
        "decode_s": decode,
        "loaded_rss_bytes": held,
        "loading_peak_rss_bytes": loading_peak,
        "peak_rss_bytes": memory("VmHWM"),
    });
    println!("{line}");
    Ok(())
}
