//! `nadir evaluate`: what a data set of drawn pictures is worth.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use nadir::data::{DataSettings, Dataset};
use nadir::evaluation::downstream::{Downstream, DownstreamSettings};
use nadir::evaluation::published::{FLAWS, RESOLUTION, as_published};
use nadir::evaluation::scores::interval;
use nadir::{Error, Result};

use super::progress::Progress;
use super::{draw, interrupt, limits, terminal};

/// Find out what drawn pictures are worth
#[derive(Debug, Subcommand)]
pub enum Evaluate {
    Downstream(DownstreamArgs),
}

/// Train classifiers on real pictures, on drawn ones and on both, and test them on real ones
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir evaluate downstream --real eurosat-train.parquet --synthetic run/drawn --test eurosat-test.parquet \\
      --real-count 216 --real-count 2160 --seen eurosat-train.parquet -o run/downstream
  nadir evaluate downstream --as-published --synthetic run/land-cover -o run/as-published

Every network is a ResNet-18 from new weights, with the same updates; each seed has real pictures of its own choice. The
folder gets report.html, confusion-*.svg, sets/ (what each network learned from) and runs/ (the networks). Begun again, the
command goes on where it was stopped.
Exit codes: 0 done, 1 failed, 2 data that cannot be used, 130 interrupted: what is there stays.")]
pub struct DownstreamArgs {
    /// Real pictures to learn from: a parquet file, or a folder with a metadata.jsonl, with classes
    #[arg(long, value_name = "PATH", required_unless_present = "as_published")]
    real: Option<PathBuf>,

    /// Drawn pictures of the same classes
    #[arg(long, value_name = "PATH")]
    synthetic: PathBuf,

    /// Real pictures to be tested by, none of which is learned from
    #[arg(long, value_name = "PATH", required_unless_present = "as_published")]
    test: Option<PathBuf>,

    /// What the generator and its judge have learned from, to say what drawn pictures may owe to it
    #[arg(long, value_name = "PATH")]
    seen: Option<PathBuf>,

    /// Real pictures to learn from, as many of each class as there can be; may be repeated [default: all]
    #[arg(long, value_name = "N")]
    real_count: Vec<usize>,

    /// Networks of each kind
    #[arg(long, value_name = "N", default_value_t = 3)]
    seeds: u64,

    /// Updates of each network
    #[arg(long, value_name = "N", default_value_t = 1000)]
    steps: u64,

    /// Pictures of an update
    #[arg(long, value_name = "N", default_value_t = 64)]
    train_batch_size: usize,

    /// Learning rate at its highest
    #[arg(long, value_name = "X", default_value_t = 1e-3, allow_negative_numbers = true)]
    learning_rate: f64,

    /// Channels of the ResNet-18's first stage; torchvision's have 64
    #[arg(long, value_name = "N", default_value_t = 16)]
    base_width: usize,

    /// Test as a research project did that reported 49.5 %, with what is wrong about it: on drawn pictures alone
    #[arg(long, conflicts_with_all = ["real", "test", "seen", "real_count"])]
    as_published: bool,

    /// Height and width of pictures, as published
    #[arg(long, value_name = "PIXELS", default_value_t = RESOLUTION, requires = "as_published")]
    resolution: usize,

    /// Folder of what is found
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,

    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,

    /// CPU threads [default: all]
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,

    /// Errors and warnings only
    #[arg(short, long)]
    quiet: bool,
}

pub fn run(command: Evaluate) -> anyhow::Result<()> {
    let Evaluate::Downstream(args) = command;
    if args.as_published { published(&args) } else { downstream(&args) }
}

fn published(args: &DownstreamArgs) -> anyhow::Result<()> {
    limits::set_threads(args.threads)?;
    let mut progress = Progress::new(args.quiet);
    let device = draw::choose_device(&args.device, |line| progress.say(line))?;
    let cancel = interrupt::switch();
    let found = as_published(
        &args.synthetic,
        &args.output,
        args.resolution,
        device,
        &cancel,
        &mut |steps| {
            progress.start(steps as usize);
            progress.step();
        },
    )?;
    progress.finish();
    terminal::say(FLAWS);
    println!("accuracy on {} drawn pictures: {:.1} %", found.total(), 100.0 * found.accuracy());
    Ok(())
}

fn downstream(args: &DownstreamArgs) -> anyhow::Result<()> {
    limits::set_threads(args.threads)?;
    let mut progress = Progress::new(args.quiet);
    let device = draw::choose_device(&args.device, |line| progress.say(line))?;
    std::fs::create_dir_all(&args.output).map_err(|e| Error::io(&args.output, e))?;
    let open = |path: &PathBuf| -> Result<Dataset> {
        let data = Dataset::open(path, DataSettings::default())?;
        for fault in data.faults().iter().take(5) {
            terminal::say(&format!("warning: left out: {}", fault.error));
        }
        Ok(data)
    };
    progress.busy("opening data sets");
    let required = |path: &Option<PathBuf>| open(path.as_ref().unwrap_or(&args.synthetic));
    let (real, test) = (required(&args.real)?, required(&args.test)?);
    let synthetic = open(&args.synthetic)?;
    let seen = args.seen.as_ref().map(open).transpose()?;
    let mut real_counts = args.real_count.clone();
    if real_counts.is_empty() {
        real_counts.push(real.len());
    }
    let settings = DownstreamSettings {
        real_counts,
        seeds: args.seeds,
        base_width: args.base_width,
        steps: args.steps,
        batch: args.train_batch_size,
        learning_rate: args.learning_rate,
    };
    let what = Downstream {
        real: &real,
        synthetic: &synthetic,
        test: &test,
        seen: seen.as_ref(),
        folder: &args.output,
        device,
        cancel: interrupt::switch(),
    };
    let networks = (1 + 2 * settings.real_counts.len() as u64).saturating_mul(settings.seeds);
    progress.start(networks.saturating_mul(settings.steps) as usize);
    let (found, leaks) = what.run(&settings, &mut |event| match event {
        Some(what) => progress.say(what),
        None => progress.step(),
    })?;
    progress.finish();
    for one in &found {
        let accuracies: Vec<f64> =
            one.scores.iter().map(|scores| scores.confusion.accuracy()).collect();
        let accuracy = interval(&accuracies);
        progress.say(&format!(
            "{}: accuracy {:.1} % (95 %: within {:.1})",
            one.condition.name(),
            100.0 * accuracy.mean,
            100.0 * accuracy.half_width
        ));
    }
    for leak in &leaks {
        let nearest = leak.nearest.first().map_or(0.0, |(similarity, _)| *similarity);
        progress.say(&format!("nearest of {}: correlation {nearest:.2}", leak.of));
    }
    progress.print(what.page().display());
    Ok(())
}
