//! `nadir classify`: what pictures show.

use std::path::{Path, PathBuf};

use clap::Args;
use image::RgbImage;
use serde_json::json;

use nadir::data::{DataSettings, Dataset};
use nadir::pipeline::classifier::{Classifier, best};
use nadir::pipeline::scene::{Source, Windows, classify};
use nadir::{Error, Result, io};

use super::scene::{Classes, SceneArgs, Work};
use super::{draw, interrupt, limits, model, terminal};

/// Pictures that are looked at at once.
const BATCH: usize = 32;

/// Say what pictures show, by a classifier
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir classify nadir-42.png
  nadir classify pictures/*.png --top 3
  nadir classify eurosat-test.parquet -m run/judge/classifier --json > seen.jsonl
  nadir classify sentinel.tif --map --overlap 32 --overlay -o land-cover.tif

A line for each picture: its name, the class and how sure the classifier is of it, in three columns. Of a data set (a parquet
file, or a folder with a metadata.jsonl) whose classes the classifier knows, the share that it names rightly follows on
standard error.
With --map a scene is looked at window by window. Its mask has a pixel for each window, less what windows share: a
Cloud-Optimized GeoTIFF at the scene's place, with the classes' colours and names, as from `nadir segment`, whose paths and
JSON objects come in place of those above.
Exit codes: 0 done, 2 a picture or a classifier that cannot be used, 130 interrupted.")]
pub struct Classify {
    /// Pictures, or data sets: a parquet file, a folder with a metadata.jsonl
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// Classifier: a folder with config.json and weights [default: the one that ships, for EuroSAT's ten classes]
    #[arg(short, long, value_name = "DIR")]
    model: Option<PathBuf>,

    /// Make a map of each GeoTIFF or picture: the class of each window
    #[arg(long, conflicts_with = "top")]
    map: bool,

    #[command(flatten)]
    scene: SceneArgs,

    /// So many of the likeliest classes of each picture
    #[arg(long, value_name = "N", default_value_t = 1)]
    top: usize,

    /// Print a JSON object for each picture: name, classes and probabilities, label where it has one
    #[arg(long)]
    json: bool,

    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,

    /// CPU threads [default: all]
    #[arg(short, long, value_name = "N")]
    threads: Option<usize>,
}

pub fn run(args: &Classify) -> anyhow::Result<()> {
    if args.top == 0 {
        return Err(Error::argument("top", 0, "at least 1").into());
    }
    limits::set_threads(args.threads)?;
    let device = draw::choose_device(&args.device, |_| ())?;
    let folder = args.model.clone().map_or_else(model::shipped_judge, Ok)?;
    let classifier = Classifier::open(&folder, device)?;
    let cancel = interrupt::switch();
    if args.map {
        return map(args, &classifier);
    }
    args.scene.refuse()?;
    for path in &args.paths {
        let is_set = path.is_dir() || path.extension().is_some_and(|end| end == "parquet");
        if !is_set {
            cancel.check()?;
            let picture = io::image::open(path)?;
            let found = classifier.classify(&[picture])?;
            say(args, &classifier, &path.display().to_string(), &found[0], None)?;
            continue;
        }
        let data = Dataset::open(path, DataSettings::default())?;
        let (mut known, mut right) = (0, 0);
        for start in (0..data.len()).step_by(BATCH) {
            cancel.check()?;
            let rows = start..data.len().min(start + BATCH);
            let pictures =
                rows.clone().map(|row| data.picture(row)).collect::<Result<Vec<RgbImage>>>()?;
            for (row, found) in rows.zip(classifier.classify(&pictures)?) {
                let class = data.classes().get(data.label(row) as usize);
                let label = class.and_then(|class| classifier.label(class).ok());
                if let Some(label) = label {
                    known += 1;
                    right += usize::from(best(&found).0 == label);
                }
                say(args, &classifier, &name(path, &data, row), &found, class)?;
            }
        }
        for fault in data.faults() {
            terminal::say(&format!("skipped: {}", fault.error));
        }
        if known > 0 {
            let share = 100.0 * right as f64 / known as f64;
            terminal::say(&format!(
                "{}: {right} of {known} as labelled, {share:.2} %",
                path.display()
            ));
        }
    }
    Ok(())
}

/// Looks at scenes window by window.
fn map(args: &Classify, classifier: &Classifier) -> anyhow::Result<()> {
    let [height, width] = classifier.size();
    let size = args.scene.window.unwrap_or(height.max(width));
    let batch = args.scene.batch_size.unwrap_or(BATCH);
    let windows = Windows { size, overlap: args.scene.overlap.unwrap_or(0), batch };
    windows.check(1)?;
    let classes = Classes { names: classifier.classes(), mean: &[], std: &[] };
    let look = |source: &mut Source, work: &mut Work| classify(source, classifier, &windows, work);
    let cell = windows.size - windows.overlap;
    args.scene.carry_out(&args.paths, (3, cell), &classes, (false, args.json), look)
}

fn name(path: &Path, data: &Dataset, row: usize) -> String {
    match data.name(row) {
        "" => format!("{}: row {}", path.display(), row + 1),
        name => name.to_owned(),
    }
}

fn say(
    args: &Classify,
    classifier: &Classifier,
    name: &str,
    found: &[f32],
    class: Option<&String>,
) -> Result<()> {
    use std::io::Write;
    let mut order: Vec<usize> = (0..found.len()).collect();
    order.sort_by(|a, b| found[*b].total_cmp(&found[*a]));
    order.truncate(args.top);
    let mut out = std::io::stdout().lock();
    let written = if args.json {
        let seen: Vec<_> = order
            .iter()
            .map(|i| json!({ "class": classifier.classes()[*i], "probability": found[*i] }))
            .collect();
        writeln!(out, "{}", json!({ "name": name, "seen": seen, "class": class }))
    } else {
        order.iter().try_for_each(|i| {
            let class = terminal::printable(&classifier.classes()[*i]);
            writeln!(out, "{}\t{class}\t{:.4}", terminal::printable(name), found[*i])
        })
    };
    written.map_err(|e| Error::io("standard output", e))
}
