//! `nadir metrics clip-score`: how well pictures go with their captions.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use nadir::data::{DataSettings, Dataset};
use nadir::io::image::{self, RgbImage};
use nadir::pipeline::clip_score::{ClipScore, clip_score};
use nadir::{Error, Result};

use super::draw::choose_device;
use super::metrics::{Execution, print};
use super::progress::Progress;
use super::{interrupt, limits, terminal};

/// Measure how well pictures go with their captions: CLIP score
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir metrics clip-score drawn/ --clip clip-vit-base-patch32
  nadir metrics clip-score rsicd-test.parquet --clip clip-vit-large-patch14 --json
  nadir metrics clip-score eurosat-test.parquet --clip clip-rsicd --caption-template \"a satellite image of {class}\"
  nadir metrics clip-score picture.png --text \"a satellite image of a river\" --clip clip-vit-base-patch32

100 times the cosine between what CLIP makes of a picture and of its caption; of several pairs the mean, or 0 where that is
negative, as torchmetrics computes it. A row goes with the first of its captions. Scores by different CLIPs do not compare:
the output says by which one they are. CLIP does not ship: `nadir metrics weights` says where it comes from.")]
pub struct ClipScoreArgs {
    /// A parquet file or a folder with a metadata.jsonl; with --text a picture
    #[arg(value_name = "SET")]
    set: PathBuf,

    /// CLIP with both encoders: a folder of transformers' CLIPModel
    #[arg(long, value_name = "DIR", help_heading = "Features")]
    clip: PathBuf,

    /// What the picture should show
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,

    /// Caption of a picture that has a class, {class} being its name
    #[arg(long, value_name = "TEXT", conflicts_with = "text")]
    caption_template: Option<String>,

    #[command(flatten)]
    execution: Execution,

    /// Stop at a row that cannot be used, rather than leave it out
    #[arg(long, help_heading = "Features")]
    strict: bool,
}

/// Pictures with a caption each.
enum Pairs {
    One(PathBuf, String),
    Rows(Dataset),
}

impl Pairs {
    fn open(args: &ClipScoreArgs) -> Result<Self> {
        if let Some(text) = &args.text {
            return Ok(Self::One(args.set.clone(), text.clone()));
        }
        let settings = DataSettings {
            // Pictures are taken as they are, whatever the size.
            resolution: Some(1),
            strict: args.strict,
            caption_template: args.caption_template.iter().cloned().collect(),
            ..DataSettings::default()
        };
        let data = Dataset::open(&args.set, settings)?;
        data.require_captions()?;
        Ok(Self::Rows(data))
    }

    fn len(&self) -> usize {
        match self {
            Self::One(..) => 1,
            Self::Rows(data) => data.len(),
        }
    }

    fn get(&self, i: usize) -> Result<(String, String, RgbImage)> {
        match self {
            Self::One(path, text) => {
                Ok((path.display().to_string(), text.clone(), image::open(path)?))
            }
            Self::Rows(data) => Ok((data.name(i).to_owned(), data.caption(i), data.picture(i)?)),
        }
    }
}

pub fn run(args: &ClipScoreArgs) -> anyhow::Result<()> {
    limits::set_threads(args.execution.threads)?;
    let batch = limits::check_batch(args.execution.batch, usize::MAX)?;
    let mut progress = Progress::new(args.execution.quiet);
    let device = choose_device(&args.execution.device, |line| progress.say(line))?;
    let pairs = Pairs::open(args)?;
    let mut warnings = Vec::new();
    if let Pairs::Rows(data) = &pairs
        && let n @ 1.. = data.faults().len()
    {
        let (set, first) = (args.set.display(), &data.faults()[0].error);
        warnings.push(format!("{n} rows of {set} are left out: {first}"));
    }
    let clip = open(&args.clip, device, &progress)?;
    let stop = interrupt::switch();
    progress.start(pairs.len());
    let (mut found, mut similarities, mut cut) = (Vec::new(), Vec::new(), 0);
    for start in (0..pairs.len()).step_by(batch) {
        stop.check()?;
        let (mut names, mut captions, mut pictures) = (Vec::new(), Vec::new(), Vec::new());
        for i in start..pairs.len().min(start + batch) {
            let (name, caption, picture) = pairs.get(i)?;
            names.push(name);
            captions.push(caption);
            pictures.push(picture);
        }
        let texts = clip.texts(&captions)?;
        cut += texts.left_out.iter().flatten().count();
        let scores = clip.pictures(&pictures)?.similarity(&texts)?;
        for ((name, caption), score) in names.into_iter().zip(captions).zip(&scores) {
            found.push(json!({ "picture": name, "caption": caption, "similarity": score }));
            progress.step();
        }
        similarities.extend(scores);
    }
    progress.finish();
    if cut > 0 {
        warnings.push(format!(
            "{cut} captions are longer than CLIP reads: of those the beginning counts"
        ));
    }
    warnings.iter().for_each(|warning| progress.warn(warning));
    let report = json!({
        "clip": { "name": clip.name(), "fingerprint": clip.fingerprint() },
        "set": args.set.display().to_string(),
        "pictures": pairs.len(),
        "clip_score": clip_score(&similarities),
        "pairs": found,
        "warnings": warnings,
    });
    match args.execution.json {
        true => print(&terminal::printable_json(&serde_json::to_string_pretty(&report)?)),
        false => print(&terminal::printable_text(&describe(&report))),
    }
}

/// Opens a CLIP.
pub fn open(
    folder: &Path,
    device: nadir::tensor::Device,
    progress: &Progress,
) -> Result<ClipScore> {
    if !folder.is_dir() {
        let advice = "Name a folder with config.json, model.safetensors, preprocessor_config.json and a tokenizer; `nadir metrics \
             weights` says where one comes from.";
        return Err(Error::file(folder, "clip", "a folder of a CLIPModel", "none", advice));
    }
    progress.busy(&format!("loading {}", folder.display()));
    ClipScore::open(folder, device)
}

fn describe(report: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!(
        "{} ({} pictures)\nby {} ({})\n\nCLIP score           {:.4}",
        text(&report["set"]),
        report["pictures"],
        text(&report["clip"]["name"]),
        text(&report["clip"]["fingerprint"]),
        report["clip_score"].as_f64().unwrap_or(f64::NAN)
    )
}
