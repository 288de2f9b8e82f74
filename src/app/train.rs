//! `nadir train`: from arguments to a run, and what is shown of it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;

use nadir::Error;
use nadir::data::{DataSettings, Dataset, Examples, Normalize};
use nadir::io::atomic;
use nadir::io::config::read_json;
use nadir::models::resnet::ResNetConfig;
use nadir::tensor::DType;
use nadir::train::checkpoint::Resume;
use nadir::train::classify::ClassifyTask;
use nadir::train::diffusion::{DiffusionSettings, DiffusionTask, LoraSettings, NewModel};
use nadir::train::vae::{self, Reconstruction, VaeTask};
use nadir::train::{Compute, Event, Outcome, Progress, Run, SampleSettings, Settings, Task};

use super::draw::choose_device;
use super::train_lm::{self, TrainLm, TrainTokenizer};
use super::train_segment::{TrainSegment, train_segment};
use super::training_recipe::{ClassifyRecipe, DiffusionRecipe};
use super::{interrupt, limits, terminal};

/// Lines in a log are this far apart.
const INTERVAL: Duration = Duration::from_secs(10);

/// Train a network on pictures, or a language model on texts
#[derive(Debug, Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Train {
    #[command(subcommand)]
    task: What,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, and it is parsed once")]
enum What {
    Vae(TrainVae),
    Classify(TrainClassify),
    Segment(TrainSegment),
    Diffusion(TrainDiffusion),
    Lm(TrainLm),
    Tokenizer(TrainTokenizer),
}

/// What every task on pictures is given.
#[derive(Debug, Args)]
struct Common {
    /// Parquet file, or folder of pictures with a metadata.jsonl
    #[arg(long = "train-data", value_name = "PATH", alias = "train-data-dir", alias = "dataset")]
    train_data: PathBuf,

    #[command(flatten)]
    run: RunArgs,

    #[command(flatten)]
    data: DataSettings,
}

/// What every task is given.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Folder for checkpoints, metrics and the model
    #[arg(short, long = "output-dir", value_name = "FOLDER", alias = "output")]
    pub output_dir: PathBuf,

    /// Go on from a checkpoint: a folder, or `latest` for the last one in the output folder
    #[arg(long, value_name = "CHECKPOINT", help_heading = "Training")]
    resume_from_checkpoint: Option<Resume>,

    /// Times that every picture or text is seen, in place of a number of steps; a checkpoint is saved behind each
    #[arg(long, value_name = "N", help_heading = "Training", allow_negative_numbers = true)]
    #[arg(conflicts_with_all = ["max_train_steps", "checkpointing_steps"])]
    num_train_epochs: Option<u64>,

    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Training")]
    device: String,

    /// CPU threads [default: all]; nothing depends on them
    #[arg(short, long, value_name = "N", help_heading = "Training")]
    #[arg(allow_negative_numbers = true)]
    threads: Option<usize>,

    /// Errors and warnings only
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    pub settings: Settings,
}

/// Train an autoencoder between pictures and latents
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  nadir train vae --train-data eurosat-train.parquet -o run/vae --train-batch-size 8 \\
      --max-train-steps 30000 --learning-rate 1e-3 --lr-scheduler cosine --lr-warmup-steps 200 \\
      --use-ema --ema-decay 0.999 --random-flip --random-rotate --validation-split 0.01

The folder gets vae/ (a diffusers AutoencoderKL), checkpoint-STEP/, metrics.csv, logs/ for TensorBoard and report.html.")]
struct TrainVae {
    #[command(flatten)]
    common: Common,

    /// Begin with the weights in this folder, which has a config.json
    #[arg(long, value_name = "FOLDER", conflicts_with = "config")]
    init_from: Option<PathBuf>,

    /// config.json of a new model [default: 4 pixels a latent, 4 channels, 2.6 M weights]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Distance between a picture and what comes back of it
    #[arg(long, value_enum, default_value_t, help_heading = "Training")]
    reconstruction_loss: Reconstruction,

    /// Weight of the divergence of latents from the standard Gaussian, a pixel and channel
    #[arg(long, value_name = "X", default_value_t = 1e-3, help_heading = "Training")]
    #[arg(allow_negative_numbers = true)]
    kl_weight: f64,
}

/// Train a denoiser, and its text encoder, on pictures with captions
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir train diffusion --train-data eurosat-train.parquet -o run/model --vae run/vae/vae --tokenizer tokenizer \\
      --caption-template \"a satellite image of {class}\" --train-batch-size 64 --max-train-steps 20000 \\
      --learning-rate 3e-4 --lr-warmup-steps 200 --use-ema --snr-gamma 5 --random-flip --random-rotate
  nadir train diffusion --train-data rsicd.parquet -o run/model --init-from models/my-sd --recipe rsicd-sd15
  nadir train diffusion --train-data harbours/ -o run/harbours --init-from models/my-sd --lora-rank 8 \\
      --learning-rate 1e-4 --max-train-steps 1000

The folder gets a model that generate draws with (nadir generate -m run/model ...), checkpoint-STEP/, metrics.csv,
logs/ for TensorBoard and report.html. With --lora-rank it gets pytorch_lora_weights.safetensors in place of a model
(nadir generate -m models/my-sd --lora run/harbours ...).")]
struct TrainDiffusion {
    #[command(flatten)]
    common: Common,

    /// Settings of a published run, where no others are given
    #[arg(long, value_enum)]
    recipe: Option<DiffusionRecipe>,

    /// Begin with the model in this diffusers folder
    #[arg(long, value_name = "FOLDER", alias = "pretrained-model-name-or-path")]
    #[arg(conflicts_with_all = ["vae", "tokenizer", "unet_config", "text_encoder_config"])]
    #[arg(required_unless_present = "vae")]
    init_from: Option<PathBuf>,

    /// Train the text encoder of that model too; a new one is always trained
    #[arg(long)]
    train_text_encoder: bool,

    /// Folder of the autoencoder of a new model
    #[arg(long, value_name = "FOLDER", requires = "tokenizer")]
    vae: Option<PathBuf>,

    /// Folder of the tokenizer of a new model
    #[arg(long, value_name = "FOLDER", requires = "vae")]
    tokenizer: Option<PathBuf>,

    /// config.json of a new UNet [default: three levels of 64, 128 and 256 channels]
    #[arg(long, value_name = "FILE")]
    unet_config: Option<PathBuf>,

    /// config.json of a new text encoder [default: two layers of 128 channels]
    #[arg(long, value_name = "FILE")]
    text_encoder_config: Option<PathBuf>,

    /// Numbers that the model is exported in: f32, bf16 or f16 [default: f32]
    #[arg(long, value_name = "TYPE", value_parser = super::args::typed::<DType>)]
    export_dtype: Option<DType>,

    #[command(flatten)]
    lora: LoraSettings,

    #[command(flatten)]
    diffusion: DiffusionSettings,

    #[command(flatten)]
    sampling: SampleSettings,
}

/// Train a network that tells classes apart
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir train classify --train-data eurosat-train.parquet -o run/judge --base-width 32 --train-batch-size 64 \\
      --max-train-steps 5000 --learning-rate 2e-3 --lr-scheduler cosine --lr-warmup-steps 200 \\
      --random-flip --random-rotate --label-smoothing 0.1 --validation-split 0.1
  nadir train classify --train-data pictures.parquet -o run/resnet --init-from models/resnet18

A row's class is its label and class column, or stands in front of the picture's name (airport_1.jpg). Pictures are
normalised as torchvision's classifiers have it. The folder gets classifier/ (config.json, and weights under
torchvision's names), checkpoint-STEP/, metrics.csv, logs/ for TensorBoard and report.html.")]
struct TrainClassify {
    #[command(flatten)]
    common: Common,

    /// Settings of a published run, where no others are given
    #[arg(long, value_enum)]
    recipe: Option<ClassifyRecipe>,

    /// Begin with the network in this folder, which has a config.json
    #[arg(long, value_name = "FOLDER")]
    init_from: Option<PathBuf>,

    /// Shape of a new network
    #[arg(long, value_enum, default_value_t = Network::Resnet18, conflicts_with = "init_from")]
    network: Network,

    /// Channels of a new network's first stage; torchvision's networks have 64
    #[arg(long, value_name = "N", default_value_t = 64, conflicts_with = "init_from")]
    #[arg(allow_negative_numbers = true)]
    base_width: usize,

    /// Share of the targets that is spread over all classes
    #[arg(long, value_name = "X", default_value_t = 0.0, help_heading = "Training")]
    #[arg(allow_negative_numbers = true)]
    label_smoothing: f32,

    /// Numbers that the model is exported in: f32, bf16 or f16 [default: f32]
    #[arg(long, value_name = "TYPE", value_parser = super::args::typed::<DType>)]
    export_dtype: Option<DType>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Network {
    Resnet18,
    Resnet50,
}

pub fn run(args: Train) -> anyhow::Result<()> {
    match args.task {
        What::Vae(args) => train_vae(args),
        What::Classify(args) => train_classify(args),
        What::Segment(args) => train_segment(args),
        What::Diffusion(args) => train_diffusion(args),
        What::Lm(args) => train_lm::train_lm(args),
        What::Tokenizer(args) => train_lm::train_tokenizer(&args),
    }
}

/// Refuses adapters of a new model, which the parser lets pass where what a new one is made of is given.
pub fn check_adapters(lora: &LoraSettings, init_from: Option<&Path>) -> nadir::Result<()> {
    match (lora.lora_rank, init_from) {
        (Some(rank), None) => {
            let expected = "adapters are of a model that there is: give --init-from";
            Err(Error::argument("lora_rank", rank, expected))
        }
        _ => Ok(()),
    }
}

fn train_diffusion(args: TrainDiffusion) -> anyhow::Result<()> {
    check_adapters(&args.lora, args.init_from.as_deref())?;
    args.diffusion.check()?;
    args.sampling.check()?;
    let (settings, seed) = (args.diffusion.clone(), args.common.run.settings.seed);
    train(&args.common, |data, compute| {
        data.require_captions()?;
        let task = match (&args.init_from, &args.vae, &args.tokenizer) {
            (None, Some(vae), Some(tokenizer)) => {
                let (unet, text_encoder) =
                    (args.unet_config.as_deref(), args.text_encoder_config.as_deref());
                let parts = NewModel { vae, tokenizer, unet, text_encoder };
                DiffusionTask::new(&parts, settings, seed, compute)
            }
            (folder, ..) => {
                let folder = folder.as_deref().unwrap_or(Path::new(""));
                DiffusionTask::open(folder, settings, args.train_text_encoder, compute)
            }
        };
        let task = task?.adapting(&args.lora, seed)?.exporting(args.export_dtype);
        Ok(task.sampling(args.sampling.clone()))
    })
}

fn train_classify(args: TrainClassify) -> anyhow::Result<()> {
    let mut common = args.common;
    common.data.normalize = Normalize::IMAGENET;
    let seed = common.run.settings.seed;
    let (network, width) = (args.network, args.base_width);
    let shape = move |classes| match network {
        Network::Resnet18 => ResNetConfig::resnet18(width, classes),
        Network::Resnet50 => ResNetConfig::resnet50(width, classes),
    };
    if width == 0 || width > 1024 {
        return Err(Error::argument("base_width", width, "1 to 1024").into());
    }
    if !(0.0..=1.0).contains(&args.label_smoothing) {
        return Err(Error::argument("label_smoothing", args.label_smoothing, "0 to 1").into());
    }
    // Batch norm moves what it gathers whenever it is computed: a block cannot be computed twice.
    if common.run.settings.gradient_checkpointing {
        let expected = "false: classifiers keep what they compute";
        return Err(Error::argument("gradient_checkpointing", true, expected).into());
    }
    train(&common, |data, compute| {
        let task = match &args.init_from {
            Some(folder) => ClassifyTask::open(folder, data, compute)?,
            None => ClassifyTask::new(data, shape, seed, compute)?,
        };
        Ok(task.smoothing(args.label_smoothing).exporting(args.export_dtype))
    })
}

fn train_vae(args: TrainVae) -> anyhow::Result<()> {
    if !(args.kl_weight >= 0.0 && args.kl_weight.is_finite()) {
        return Err(Error::argument("kl_weight", args.kl_weight, "0 or more").into());
    }
    let seed = args.common.run.settings.seed;
    train(&args.common, |_, compute| {
        let task = match (&args.init_from, &args.config) {
            (Some(folder), _) => VaeTask::open(folder, compute)?,
            (None, Some(file)) => VaeTask::new(file, read_json(file)?, seed, compute)?,
            (None, None) => {
                let origin = Path::new("the default configuration");
                VaeTask::new(origin, vae::default_config(), seed, compute)?
            }
        };
        Ok(task.with_loss(args.reconstruction_loss, args.kl_weight))
    })
}

/// What this process was asked for.
fn command() -> String {
    let args = std::env::args_os().skip(1);
    args.map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Opens the pictures, makes the task, and runs it.
fn train<T: Task>(
    common: &Common,
    task: impl FnOnce(&Dataset, Compute) -> nadir::Result<T>,
) -> anyhow::Result<()> {
    let settings = &common.run.settings;
    prepare(&common.run)?;
    let all = Dataset::open(&common.train_data, common.data.clone())?;
    for fault in all.faults().iter().take(5) {
        terminal::say(&format!("warning: left out: {}", fault.error));
    }
    let (data, held_out) = match settings.validation_split {
        0.0 => (all, None),
        share => {
            let (data, held_out) = all.split(share, settings.seed)?;
            (data, Some(held_out))
        }
    };
    let name = common.train_data.display().to_string();
    carry_out(&common.run, "pictures", &name, (&data, held_out.as_ref()), task)
}

/// Refuses what no run can be made of, before anything is read.
pub fn prepare(args: &RunArgs) -> anyhow::Result<()> {
    args.settings.check()?;
    if args.num_train_epochs == Some(0) {
        return Err(Error::argument("num_train_epochs", 0, "at least 1").into());
    }
    limits::set_threads(args.threads)?;
    std::fs::create_dir_all(&args.output_dir).map_err(|e| Error::io(&args.output_dir, e))?;
    Ok(atomic::check_writable(&args.output_dir)?)
}

/// Makes the task, and runs it on `data` and what of it is held out, which are `unit` from `name`.
pub fn carry_out<D: Examples, T: Task<D>>(
    args: &RunArgs,
    unit: &'static str,
    name: &str,
    (data, held_out): (&D, Option<&D>),
    task: impl FnOnce(&D, Compute) -> nadir::Result<T>,
) -> anyhow::Result<()> {
    let mut settings = args.settings.clone();
    if let Some(epochs) = args.num_train_epochs {
        let epoch = (data.len() as u64).div_ceil(settings.pictures());
        settings.checkpointing_steps = epoch;
        settings.max_train_steps = epoch.saturating_mul(epochs);
    }
    let mut log = Log::new(args.quiet, unit);
    let device = choose_device(&args.device, |line| log.say(line))?;
    let precision = settings.mixed_precision;
    let task = task(data, Compute { device, precision })?;
    let weights: usize = task.parameters().iter().map(|(_, p)| p.shape().elements()).sum();
    let held = held_out.map_or(0, D::len);
    log.say(&format!("{} {unit}, {held} held out; {weights} weights", data.len()));
    let cancel = interrupt::switch();
    let about = [
        ("command", command()),
        ("data", name.to_owned()),
        (unit, format!("{}, {held} held out", data.len())),
        ("weights", weights.to_string()),
        ("device", device.to_string()),
        ("mixed precision", precision.name().to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value));
    let run = Run {
        task: &task,
        settings: &settings,
        data,
        held_out,
        folder: &args.output_dir,
        about: &about,
        resume: args.resume_from_checkpoint.as_ref(),
        cancel: &cancel,
    };
    match run.run(&mut |event| log.show(event))? {
        Outcome::Done => Ok(()),
        Outcome::Stayed(step) => {
            log.say(&format!("ended behind step {step}: losses stay"));
            Ok(())
        }
        Outcome::Stopped(_) => Err(Error::Interrupted.into()),
    }
}

/// Shows a run: a bar on a terminal, now and then a line elsewhere.
struct Log {
    quiet: bool,
    /// What batches are made of.
    unit: &'static str,
    bar: Option<ProgressBar>,
    last: Instant,
    /// Behind how many steps this process began, and when.
    began: Option<(u64, Instant)>,
    /// Of the steps since the last line.
    losses: Vec<f64>,
}

impl Log {
    fn new(quiet: bool, unit: &'static str) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{wide_bar:.cyan/dim} {pos}/{len}  {msg}");
            let bar = ProgressBar::new(0);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Self { quiet, unit, bar, last: Instant::now(), began: None, losses: Vec::new() }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            _ if self.quiet => {}
            Some(bar) => bar.suspend(|| terminal::say(line)),
            None => terminal::say(line),
        }
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::Resumed(step) => self.say(&format!("resumed behind step {step}")),
            Event::Converted(before, now) => self.say(&format!(
                "the checkpoint was trained with --mixed_precision {}; its f32 weights go on with {}",
                before.name(),
                now.name()
            )),
            Event::Step(progress) => self.step(&progress),
            Event::Validated(step, found) => {
                let found: Vec<_> = found.iter().map(|(n, x)| format!("{n} {x:.4}")).collect();
                self.say(&format!("step {step}, held out: {}", found.join(", ")));
            }
            Event::Saved(path) => self.say(&format!("saved {}", path.display())),
            Event::Failed(message) => terminal::say(&format!("warning: not saved: {message}")),
        }
    }

    fn step(&mut self, progress: &Progress) {
        let &mut (first, began) = self.began.get_or_insert((progress.step - 1, Instant::now()));
        if progress.loss.is_finite() {
            self.losses.push(progress.loss);
        }
        // The first step of this process has set the clock.
        let done = progress.step - first - 1;
        let rate = done as f64 / began.elapsed().as_secs_f64();
        let left = (progress.steps - progress.step) as f64 / rate;
        let mean = self.losses.iter().sum::<f64>() / self.losses.len() as f64;
        let skipped = match progress.skipped {
            0 => String::new(),
            n => format!(", {n} skipped"),
        };
        let parts: Vec<_> = progress.parts.iter().map(|(n, x)| format!("{n} {x:.4}")).collect();
        let parts =
            if parts.is_empty() { parts.join("") } else { format!(" ({})", parts.join(", ")) };
        let line = format!(
            "loss {mean:.5}{parts}, rate {:.2e}, norm {:.2}{skipped}, {:.1} {}/s, {} left",
            progress.rate,
            progress.gradient_norm,
            progress.speed,
            self.unit,
            duration(left)
        );
        if let Some(bar) = &self.bar {
            bar.set_length(progress.steps);
            bar.set_position(progress.step);
            bar.set_message(line);
        } else if self.last.elapsed() >= INTERVAL {
            self.say(&format!("step {}/{}, {line}", progress.step, progress.steps));
        }
        if self.last.elapsed() >= INTERVAL {
            self.last = Instant::now();
            self.losses.clear();
        }
    }
}

/// "1 h 05 min", "3 min", "12 s".
fn duration(seconds: f64) -> String {
    match seconds {
        s if !s.is_finite() => "?".to_owned(),
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.0} h {:02.0} min", (s / 3600.0).floor(), (s % 3600.0 / 60.0).floor()),
    }
}
