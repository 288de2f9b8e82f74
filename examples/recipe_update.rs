//! One update of `nadir train diffusion --recipe rsicd-sd15` without what it writes: four batches of one picture, a step
//! of AdamW, the average. `benches/peers/recipe.py` holds it beside PyTorch's. Prints one JSON line.
//!
//!     cargo run --release --example recipe_update -- MODEL PICTURES

use std::path::PathBuf;
use std::time::Instant;

use clap::Parser;
use nadir::data::{DataSettings, Dataset};
use nadir::ops::elementwise::scale;
use nadir::ops::gradient::{Gradients, backward_into};
use nadir::tensor::Device;
use nadir::tensor::tape::checkpointing;
use nadir::train::diffusion::{DiffusionSettings, DiffusionTask, Prediction};
use nadir::train::random::{Purpose, Random};
use nadir::train::{Optimizer, Settings, Task, in_order, norm};

#[derive(Parser)]
struct Arguments {
    /// Folder of a Stable Diffusion model, as `benches/peers/make_sd15_folder.py` makes it.
    model: PathBuf,
    /// Folder of one picture of 224x224, with a metadata.jsonl.
    pictures: PathBuf,
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// Batches of an update, as the recipe has it.
const BATCHES: usize = 4;

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    rayon::ThreadPoolBuilder::new().num_threads(arguments.threads).build_global()?;
    let settings = Settings { learning_rate: 1e-6, use_ema: true, ..Settings::default() };
    let of_task = DiffusionSettings {
        prediction_type: Prediction::Epsilon,
        snr_gamma: None,
        noise_offset: 0.0,
        proportion_empty_prompts: 0.0,
    };
    let data = DataSettings { resolution: Some(224), ..DataSettings::default() };
    let data = Dataset::open(&arguments.pictures, data)?;
    let task = DiffusionTask::open(&arguments.model, of_task, false, Device::Cpu)?;
    let parameters = task.parameters();
    let mut optimizer = Optimizer::new(&parameters, settings.use_ema)?;
    let start = Instant::now();
    let mut random = Random::new(settings.seed, Purpose::Step, 0);
    let (mut total, mut sums) = (0.0, Gradients::default());
    for batch in data.stream(1, settings.seed, 0, 1)?.take(BATCHES) {
        let loss = checkpointing(|| task.loss(&batch?, &mut random))?.total;
        total += f64::from(loss.to_vec::<f32>()?[0]) / BATCHES as f64;
        backward_into(scale(&loss, 1.0 / BATCHES as f32)?, &mut sums)?;
    }
    let gradients = in_order(&parameters, sums)?;
    let length = norm(&gradients)?;
    let shortened = (settings.max_grad_norm / (length + 1e-6)).min(1.0);
    optimizer.update(&parameters, gradients, &settings, (settings.learning_rate, shortened))?;
    let wall = start.elapsed().as_secs_f64();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse()?;
    let found = serde_json::json!({ "engine": "nadir", "loss": total, "norm": length, "wall": wall, "peak_kb": peak });
    println!("{found}");
    Ok(())
}
