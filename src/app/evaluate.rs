//! `nadir evaluate`: what a data set of drawn pictures is worth.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use nadir::data::masks::{MaskSettings, has_masks};
use nadir::data::{DataSettings, Dataset};
use nadir::evaluation::downstream::{self, Downstream, DownstreamSettings, Found};
use nadir::evaluation::leak::Leak;
use nadir::evaluation::published::{FLAWS, RESOLUTION, as_published};
use nadir::evaluation::scores::{Confusion, interval};
use nadir::evaluation::segmentation::{MaskedSet, SegmentDownstream};
use nadir::tensor::Device;
use nadir::{Error, Result};

use super::progress::Progress;
use super::{draw, interrupt, limits, terminal};

/// Find out what drawn pictures are worth
#[derive(Debug, Subcommand)]
pub enum Evaluate {
    Downstream(DownstreamArgs),
}

/// Train classifiers or segmenters on real pictures, on drawn ones and on both, and test them on real ones
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir evaluate downstream --real eurosat-train.parquet --synthetic run/drawn --test eurosat-test.parquet \\
      --real-count 216 --real-count 2160 --seen eurosat-train.parquet -o run/downstream
  nadir evaluate downstream --real naip/west --synthetic run/pairs --test naip/east --mask-classes land,water \\
      --resolution 64 --real-count 20 -o run/downstream
  nadir evaluate downstream --as-published --synthetic run/land-cover -o run/as-published

Every network is a ResNet-18, where pictures have masks a U-Net on one, from new weights, with the same updates; each seed has real pictures of its own choice. The
folder gets report.html, confusion-*.svg, sets/ (what each network learned from) and runs/ (the networks). Begun again, the
command goes on where it was stopped.
Exit codes: 0 done, 1 failed, 2 data that cannot be used, 130 interrupted: what is there stays.")]
pub struct DownstreamArgs {
    /// Real pictures to learn from: a parquet file, or a folder with a metadata.jsonl, with classes
    #[arg(long, value_name = "PATH", required_unless_present = "as_published")]
    real: Option<PathBuf>,

    /// What is learned: the class of a picture, or that of each pixel [default: pixels where all sets have masks]
    #[arg(long, value_enum, conflicts_with = "as_published")]
    task: Option<Task>,

    /// Names of the masks' classes 0, 1, ..., by commas [default: the numbers that masks have]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    mask_classes: Vec<String>,

    /// Level of a mask that stands for no class
    #[arg(long, value_name = "LEVEL", default_value_t = 255)]
    ignore_index: u16,

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

    /// Height and width of pictures, as published, or of the parts of pictures with masks [default: 512, with masks 64]
    #[arg(long, value_name = "PIXELS")]
    resolution: Option<usize>,

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Task {
    Classify,
    Segment,
}

impl DownstreamArgs {
    /// What was asked for, or what the data sets are for.
    fn is_of_pixels(&self) -> Result<bool> {
        let sets = [self.real.as_ref(), self.test.as_ref(), Some(&self.synthetic)];
        match self.task {
            Some(task) => Ok(task == Task::Segment),
            None => {
                sets.into_iter().flatten().try_fold(true, |all, set| Ok(all && has_masks(set)?))
            }
        }
    }
}

pub fn run(command: Evaluate) -> anyhow::Result<()> {
    let Evaluate::Downstream(args) = command;
    if args.as_published {
        return published(&args);
    }
    if args.is_of_pixels()? {
        return segment(&args);
    }
    if args.resolution.is_some() {
        let expected = "--as-published, or pictures with masks";
        return Err(
            Error::argument("resolution", "a classifier of whole pictures", expected).into()
        );
    }
    classify(&args)
}

fn published(args: &DownstreamArgs) -> anyhow::Result<()> {
    limits::set_threads(args.threads)?;
    let mut progress = Progress::new(args.quiet);
    let device = draw::choose_device(&args.device, |line| progress.say(line))?;
    let cancel = interrupt::switch();
    let found = as_published(
        &args.synthetic,
        &args.output,
        args.resolution.unwrap_or(RESOLUTION),
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

/// Data sets of one kind.
struct Sets<S> {
    real: S,
    synthetic: S,
    test: S,
    seen: Option<S>,
}

impl<S> Sets<S> {
    fn open(args: &DownstreamArgs, open: impl Fn(&Path) -> Result<S>) -> Result<Self> {
        // Without --as-published the command line asks for both.
        let required = |path: &Option<PathBuf>| open(path.as_ref().unwrap_or(&args.synthetic));
        Ok(Self {
            real: required(&args.real)?,
            test: required(&args.test)?,
            synthetic: open(&args.synthetic)?,
            seen: args.seen.as_deref().map(open).transpose()?,
        })
    }
}

fn classify(args: &DownstreamArgs) -> anyhow::Result<()> {
    let (progress, device) = begin(args)?;
    let open = |path: &Path| -> Result<Dataset> {
        let data = Dataset::open(path, DataSettings::default())?;
        for fault in data.faults().iter().take(5) {
            terminal::say(&format!("warning: left out: {}", fault.error));
        }
        Ok(data)
    };
    let sets = Sets::open(args, open)?;
    let what = Downstream {
        real: &sets.real,
        synthetic: &sets.synthetic,
        test: &sets.test,
        seen: sets.seen.as_ref(),
        folder: &args.output,
        device,
        cancel: interrupt::switch(),
    };
    let score = ("accuracy", Confusion::accuracy as _);
    compare(args, progress, sets.real.len(), score, |settings, watch| what.run(settings, watch))
}

/// The same of pictures with masks.
fn segment(args: &DownstreamArgs) -> anyhow::Result<()> {
    let (progress, device) = begin(args)?;
    let masks = MaskSettings {
        resolution: args.resolution.unwrap_or(64),
        classes: args.mask_classes.clone(),
        ignore_index: args.ignore_index,
        ..MaskSettings::default()
    };
    let sets = Sets::open(args, |path| MaskedSet::open(path, &masks))?;
    let what = SegmentDownstream {
        real: &sets.real,
        synthetic: &sets.synthetic,
        test: &sets.test,
        seen: sets.seen.as_ref(),
        masks: &masks,
        folder: &args.output,
        device,
        cancel: interrupt::switch(),
    };
    let score = ("mean IoU", Confusion::mean_iou as _);
    compare(args, progress, sets.real.len(), score, |settings, watch| what.run(settings, watch))
}

/// What comes before data sets are opened.
fn begin(args: &DownstreamArgs) -> anyhow::Result<(Progress, Device)> {
    limits::set_threads(args.threads)?;
    let progress = Progress::new(args.quiet);
    let device = draw::choose_device(&args.device, |line| progress.say(line))?;
    std::fs::create_dir_all(&args.output).map_err(|e| Error::io(&args.output, e))?;
    progress.busy("opening data sets");
    Ok((progress, device))
}

/// Runs a comparison that has so many real pictures, and says what came of it by this score.
fn compare(
    args: &DownstreamArgs,
    mut progress: Progress,
    real: usize,
    (name, score): (&str, fn(&Confusion) -> f64),
    run: impl FnOnce(
        &DownstreamSettings,
        &mut dyn FnMut(Option<&str>),
    ) -> Result<(Vec<Found>, Vec<Leak>)>,
) -> anyhow::Result<()> {
    let settings = settings(args, real);
    let networks = (1 + 2 * settings.real_counts.len() as u64).saturating_mul(settings.seeds);
    progress.start(networks.saturating_mul(settings.steps) as usize);
    let (found, leaks) = run(&settings, &mut |event| match event {
        Some(what) => progress.say(what),
        None => progress.step(),
    })?;
    progress.finish();
    for one in found {
        let scores: Vec<f64> = one.scores.iter().map(|scores| score(&scores.confusion)).collect();
        let score = interval(&scores);
        progress.say(&format!(
            "{}: {name} {:.1} % (95 %: within {:.1})",
            one.condition.name(),
            100.0 * score.mean,
            100.0 * score.half_width
        ));
    }
    for leak in leaks {
        let nearest = leak.nearest.first().map_or(0.0, |(similarity, _)| *similarity);
        progress.say(&format!("nearest of {}: correlation {nearest:.2}", leak.of));
    }
    progress.print(downstream::page(&args.output).display());
    Ok(())
}

/// The settings of a comparison that has so many real pictures.
fn settings(args: &DownstreamArgs, real: usize) -> DownstreamSettings {
    let mut real_counts = args.real_count.clone();
    if real_counts.is_empty() {
        real_counts.push(real);
    }
    DownstreamSettings {
        real_counts,
        seeds: args.seeds,
        base_width: args.base_width,
        steps: args.steps,
        batch: args.train_batch_size,
        learning_rate: args.learning_rate,
    }
}
