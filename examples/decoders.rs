//! Times how latents become a picture: by an autoencoder of Stable Diffusion's shape, and by one of TAESD's. Prints one JSON line.
//!
//!     cargo run --release --example decoders -- --threads 2
//!
//! Weights are drawn: speed does not depend on what they say.

use std::time::Instant;

use clap::Parser;
use nadir::Result;
use nadir::io::config::Config;
use nadir::models::vae::{Autoencoder, AutoencoderConfig};
use nadir::nn::Params;
use nadir::noise::NoiseSource;
use nadir::tensor::{DType, Device, Tensor};
use serde_json::{Value, json};

#[derive(Parser)]
struct Arguments {
    /// What the networks compute in: f32, bf16 or f16.
    #[arg(long, default_value = "f32")]
    dtype: String,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Pixels along each side.
    #[arg(long, default_value_t = 512)]
    size: usize,
    /// Timed calls of each, behind one that is not.
    #[arg(long, default_value_t = 3)]
    repeat: usize,
}

/// Normal values of variance 1 / fan-in, so that activations stay of order one.
fn draw(_: &str, shape: &[usize]) -> Result<Tensor> {
    let fan: usize = shape.iter().skip(1).product();
    let mut values = NoiseSource::Torch.stream(1).randn(shape.iter().product(), DType::F32)?;
    values.iter_mut().for_each(|x| *x /= (fan as f32).sqrt());
    Tensor::from_vec(values, shape)
}

/// Seconds of each call.
fn decode(config: Value, dtype: DType, arguments: &Arguments) -> Result<Vec<f64>> {
    let config = AutoencoderConfig::read(&Config::from_value("config.json", config)?)?;
    let side = arguments.size / config.factor();
    let params = Params::initial(draw, dtype, Device::Cpu);
    let model = Autoencoder::load(config, &params)?;
    let latents = draw("", &[1, side, side, 4])?;
    let mut seconds = Vec::new();
    for i in 0..=arguments.repeat {
        let start = Instant::now();
        model.decode(&latents, false, &mut || Ok(()))?;
        if i > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    Ok(seconds)
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
    let kl = json!({
        "_class_name": "AutoencoderKL",
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "down_block_types": vec!["DownEncoderBlock2D"; 4],
        "up_block_types": vec!["UpDecoderBlock2D"; 4],
        "sample_size": 512,
    });
    let kl = decode(kl, dtype, &arguments)?;
    let tiny = decode(json!({ "_class_name": "AutoencoderTiny" }), dtype, &arguments)?;
    let best = |seconds: &[f64]| seconds.iter().copied().fold(f64::INFINITY, f64::min);
    let line = json!({
        "engine": format!("nadir {}", env!("CARGO_PKG_VERSION")),
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "size": arguments.size,
        "kl_s": kl,
        "tiny_s": tiny,
        "ratio": best(&kl) / best(&tiny),
    });
    println!("{line}");
    Ok(())
}
