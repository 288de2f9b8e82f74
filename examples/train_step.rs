//! Times a step of training (loss, gradient, AdamW), as `benches/peers/torch_train.py` does for PyTorch. Prints one JSON
//! line.
//!
//!     cargo run --release --example train_step -- unet --batch 64

use std::path::Path;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use nadir::io::config::Config;
use nadir::models::unet::{Unet, UnetConfig};
use nadir::models::vae::{Vae, VaeConfig};
use nadir::nn::{Keep, Module, Params, parameters};
use nadir::ops::gradient::backward;
use nadir::ops::loss::squared_error;
use nadir::ops::reduce::mean;
use nadir::tensor::tape::checkpointing;
use nadir::tensor::{DType, Device, Tensor};
use nadir::train::diffusion::default_unet;
use nadir::train::random::{Purpose, Random};
use nadir::train::vae::default_config;
use nadir::train::{MixedPrecision, Optimizer, Settings, in_order, norm};

#[derive(Clone, Copy, ValueEnum)]
enum Network {
    /// The default UNet, latents of 16x16.
    Unet,
    /// The default autoencoder, pictures of 64x64.
    Vae,
}

#[derive(Parser)]
struct Arguments {
    network: Network,
    #[arg(long, default_value_t = 64)]
    batch: usize,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long, default_value_t = 4)]
    repeat: usize,
    #[arg(long, value_enum, default_value_t)]
    mixed_precision: MixedPrecision,
    /// Compute blocks again for their gradients.
    #[arg(long)]
    gradient_checkpointing: bool,
}

/// The value of a line of the process's status, in kB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
}

/// Seconds that all threads of this process have computed for, user and system.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // Ticks of 10 ms.
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn clock(
    arguments: &Arguments,
    model: &dyn Module,
    loss: impl Fn() -> nadir::Result<Tensor> + Sync,
) -> anyhow::Result<()> {
    let (all, settings) = (parameters(model), Settings::default());
    let mut optimizer = Optimizer::new(&all, true)?;
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..=arguments.repeat {
        let (start, before) = (Instant::now(), cpu_seconds());
        // As `nadir train` does it.
        let gradients = rayon::scope(|_| {
            let loss = if arguments.gradient_checkpointing { checkpointing(&loss) } else { loss() };
            backward(loss?)
        })?;
        let gradients = in_order(&all, gradients)?;
        let shortened = (1.0 / (norm(&gradients)? + 1e-6)).min(1.0);
        optimizer.update(&all, gradients, &settings, (1e-4, shortened))?;
        wall.push(start.elapsed().as_secs_f64());
        cpu.push(cpu_seconds() - before);
    }
    // The first step makes the memory that the others use.
    let (wall, cpu) = (&wall[1..], &cpu[1..]);
    let json = serde_json::json!({ "engine": "nadir", "wall": wall, "cpu": cpu, "peak_kb": peak_memory() });
    println!("{json}");
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    rayon::ThreadPoolBuilder::new().num_threads(arguments.threads).build_global()?;
    let batch = arguments.batch;
    let mut random = Random::new(1, Purpose::Step, 0);
    // Speed follows the shapes alone.
    let new = |name: &str, shape: &[usize]| match *shape {
        [n] => Tensor::full(
            [n],
            f64::from(u8::from(name.ends_with("weight"))),
            DType::F32,
            Device::Cpu,
        ),
        _ => {
            let inputs: usize = shape[1..].iter().product();
            Random::new(1, Purpose::Weights, 0).uniform(shape, (inputs as f64).sqrt().recip())
        }
    };
    let dtype = arguments.mixed_precision.dtype();
    let params = Params::initial(new, dtype, Device::Cpu).keeping(Keep::Trainable);
    let origin = Path::new("default");
    match arguments.network {
        Network::Unet => {
            let config = Config::from_value(origin, default_unet())?;
            let model = Unet::load(UnetConfig::read(&config)?, &params)?;
            let latents = random.normal([batch, 16, 16, 4])?;
            let target = random.normal([batch, 16, 16, 4])?;
            let text = random.normal([batch, 77, 128])?.to_dtype(dtype)?;
            let timesteps: Vec<f32> = (0..batch).map(|i| (i * 37 % 1000) as f32).collect();
            clock(&arguments, &model, || {
                let embedded = model.embed_timesteps(&timesteps)?;
                let predicted = model.forward(&latents, &embedded, &model.context(&text)?)?;
                mean(&squared_error(&predicted, &target)?, &[0])
            })
        }
        Network::Vae => {
            let config = Config::from_value(origin, default_config())?;
            let model = Vae::load(VaeConfig::read(&config)?, &params)?;
            let images = random.normal([batch, 64, 64, 3])?;
            clock(&arguments, &model, || {
                let decoded = model.decode(&model.encode(&images)?.mean)?.to_dtype(DType::F32)?;
                mean(&squared_error(&decoded, &images)?, &[0])
            })
        }
    }
}
