//! `nadir metrics`: how far sets of pictures, and pictures, are from each other.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use nadir::io::image::RgbImage;
use nadir::metrics::kernel::KernelSettings;
use nadir::metrics::{
    Extractor, Pictures, Resize, Seen, cache, frechet, inception_score, kernel, prdc,
};
use nadir::pipeline::{Event, LoadOptions, Request, Settings, TextToImage};
use nadir::tensor::Device;
use nadir::{Error, Result};

use super::clip_score::{self, ClipScoreArgs};
use super::draw::choose_device;
use super::model::{self, Model};
use super::progress::Progress;
use super::similarity::{self, Similarity};
use super::{interrupt, limits, terminal};

/// The classifier that ships.
const JUDGE: &str = "eurosat-judge";

/// The largest file of prompts.
const MAX_PROMPTS: u64 = 1 << 26;

/// Measure how far pictures are from each other
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, and it is parsed once")]
pub enum Metrics {
    Distance(Distance),
    Similarity(Similarity),
    ClipScore(ClipScoreArgs),
    Weights,
}

/// Compare two sets of pictures: FID, KID, precision and recall, Inception score
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir metrics distance chips/ eurosat-test.parquet
  nadir metrics distance chips/ real/ --fid --inception inception.safetensors --cache features/
  nadir metrics distance a/ b/ --fid --resize clean --inception inception.safetensors --json
  nadir metrics distance eurosat-test.parquet --model eurosat-64 --prompts prompts.txt -n 2000

A set is a folder of pictures, with the folders in it, or a parquet file; the first one is judged by the second. Without
--fid, --kid, --prdc or --inception-score the first three are measured.

Figures that compare with published ones need InceptionV3's weights, which do not ship: `nadir metrics weights` says where
they come from. Without --inception the classifier that ships describes the pictures, by what tells ten classes of
Sentinel-2 chips of 64x64 apart.
Exit codes: 0 done, 1 failed, 2 a request that cannot be served as it is, 130 interrupted.")]
pub struct Distance {
    /// The set that is judged, and the one that it is judged by; with --model the latter alone
    #[arg(value_name = "SET", required = true, num_args = 1..=2)]
    sets: Vec<PathBuf>,

    /// Frechet distance (FID)
    #[arg(long, help_heading = "Metrics")]
    fid: bool,

    /// Kernel distance (KID), with an interval
    #[arg(long, help_heading = "Metrics")]
    kid: bool,

    /// Precision, recall, density and coverage
    #[arg(long, visible_alias = "prc", help_heading = "Metrics")]
    prdc: bool,

    /// Inception score of the set that is judged
    #[arg(long, visible_alias = "isc", help_heading = "Metrics")]
    inception_score: bool,

    /// Subsets that KID is averaged over
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = "Metrics")]
    kid_subsets: usize,

    /// Pictures of each subset [default: 1000, or the pictures of the smaller set where that is less]
    #[arg(long, value_name = "N", help_heading = "Metrics")]
    kid_subset_size: Option<usize>,

    /// Seed of KID's subsets and the Inception score's order
    #[arg(long, value_name = "N", default_value_t = 2020, help_heading = "Metrics")]
    rng_seed: u32,

    /// InceptionV3's weights, a safetensors file with torch-fidelity's names
    #[arg(long, value_name = "FILE", help_heading = "Features")]
    inception: Option<PathBuf>,

    /// A classifier's folder, instead of the one that ships
    #[arg(long, value_name = "DIR", help_heading = "Features", conflicts_with = "inception")]
    classifier: Option<PathBuf>,

    /// How pictures become InceptionV3's 299x299: as torch-fidelity does it, or as clean-fid does
    #[arg(long, value_enum, default_value_t, help_heading = "Features", requires = "inception")]
    resize: ResizeName,

    /// Folder that keeps features, and gives those of a set that was seen before
    #[arg(long, value_name = "DIR", help_heading = "Features")]
    cache: Option<PathBuf>,

    /// Judge pictures that this model draws, which are not written: a diffusers folder or a model that ships
    #[arg(short, long, value_name = "MODEL", help_heading = "Model", requires = "prompts")]
    model: Option<String>,

    /// Text file with a prompt a line, taken in turn
    #[arg(long, value_name = "FILE", help_heading = "Model", requires = "model")]
    prompts: Option<PathBuf>,

    /// Pictures that are drawn
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1000, help_heading = "Model")]
    num_images: usize,

    /// Seed of the first one
    #[arg(short, long, value_name = "N", default_value_t = 0, help_heading = "Model")]
    seed: u64,

    /// Denoising steps [default: the model's]
    #[arg(long, value_name = "N", help_heading = "Model")]
    steps: Option<usize>,

    #[command(flatten)]
    execution: Execution,

    /// Stop at a row that cannot be used, rather than leave it out
    #[arg(long, help_heading = "Features")]
    strict: bool,
}

/// Where it is computed, and what is shown.
#[derive(Debug, Args)]
pub struct Execution {
    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Execution")]
    pub device: String,

    /// CPU threads [default: all]; nothing depends on them but speed
    #[arg(short, long, value_name = "N", help_heading = "Execution")]
    pub threads: Option<usize>,

    /// Pictures at a time; nothing depends on it but memory and speed
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Execution")]
    pub batch: usize,

    /// Print a JSON object
    #[arg(long, help_heading = "Output")]
    pub json: bool,

    /// Errors and warnings only
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum ResizeName {
    #[default]
    Tensorflow,
    Clean,
}

pub fn run(command: Metrics) -> anyhow::Result<()> {
    match command {
        Metrics::Distance(args) => distance(&args),
        Metrics::Similarity(args) => similarity::run(&args),
        Metrics::ClipScore(args) => clip_score::run(&args),
        Metrics::Weights => print(WEIGHTS.trim_end()),
    }
}

/// What is said of the figures, to the reader and in the report.
struct Warnings {
    progress: Progress,
    said: Vec<String>,
}

impl Warnings {
    fn say(&mut self, warning: String) {
        self.progress.warn(&warning);
        self.said.push(warning);
    }
}

/// A set as it was seen.
struct Set {
    name: String,
    count: usize,
    size: [u32; 2],
    seen: Seen,
}

fn distance(args: &Distance) -> anyhow::Result<()> {
    let (judged, by) = match (&args.model, &args.sets[..]) {
        (Some(_), [by]) => (None, by),
        (None, [judged, by]) => (Some(judged), by),
        (Some(_), _) => {
            let expected = "one set: with --model the other is drawn";
            return Err(Error::argument("set", "two sets", expected).into());
        }
        (None, _) => {
            let expected = "two sets, or one and a --model";
            return Err(Error::argument("set", "one set", expected).into());
        }
    };
    limits::set_threads(args.execution.threads)?;
    let batch = limits::check_batch(args.execution.batch, usize::MAX)?;
    if let Some(folder) = &args.cache {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    }
    let progress = Progress::new(args.execution.quiet);
    let device = choose_device(&args.execution.device, |line| progress.say(line))?;
    let mut warnings = Warnings { progress, said: Vec::new() };
    let extractor = open_extractor(args, device)?;
    if !extractor.is_standard() {
        warnings.say(format!(
            "features are those of {}, not InceptionV3's: these figures compare with others by the same classifier, and with \
             no published one",
            extractor.name()
        ));
    }
    let looking = Looking { args, extractor: &extractor, batch };
    let by = looking.at(by, &mut warnings)?;
    let judged = match judged {
        Some(path) => looking.at(path, &mut warnings)?,
        None => looking.drawn(device, by.size, &mut warnings)?,
    };
    let report = measure(args, &extractor, &judged, &by, warnings)?;
    match args.execution.json {
        true => print(&terminal::printable_json(&serde_json::to_string_pretty(&report)?)),
        false => print(&terminal::printable_text(&describe(&report))),
    }
}

fn open_extractor(args: &Distance, device: Device) -> Result<Extractor> {
    if let Some(file) = &args.inception {
        let resize = match args.resize {
            ResizeName::Tensorflow => Resize::TensorFlow,
            ResizeName::Clean => Resize::Clean,
        };
        return Extractor::inception(file, resize, device);
    }
    let folder = match &args.classifier {
        Some(folder) => folder.clone(),
        None => {
            let shelves = model::shelves();
            let judge = shelves.iter().map(|shelf| shelf.join(JUDGE)).find(|dir| dir.is_dir());
            judge.ok_or_else(|| {
                let expected = "--inception FILE, or the classifier that ships where it is found";
                Error::argument("classifier", "none", expected)
            })?
        }
    };
    Extractor::classifier(&folder, device)
}

/// Sets on their way through a network.
struct Looking<'a> {
    args: &'a Distance,
    extractor: &'a Extractor,
    batch: usize,
}

impl Looking<'_> {
    /// A set that is there.
    fn at(&self, path: &Path, warnings: &mut Warnings) -> Result<Set> {
        let progress = Progress::new(self.args.execution.quiet);
        progress.busy(&format!("reading {}", path.display()));
        let pictures = Pictures::open(path, self.args.strict)?;
        if let n @ 1.. = pictures.faults().len() {
            let first = &pictures.faults()[0].error;
            warnings.say(format!("{n} rows of {} are left out: {first}", path.display()));
        }
        let stop = interrupt::switch();
        let survey = pictures.survey(|| stop.check())?;
        let name = path.display().to_string();
        self.check(&name, pictures.len(), survey.size, warnings)?;
        let of = |seen| Set { name, count: pictures.len(), size: survey.size, seen };
        let file = self
            .args
            .cache
            .as_ref()
            .map(|dir| cache::file(dir, &survey.fingerprint, self.extractor));
        if let Some(file) = &file {
            match cache::read(file, &survey.fingerprint, pictures.len()) {
                Ok(Some(seen)) => return Ok(of(seen)),
                Ok(None) => {}
                Err(error) => warnings.say(format!("the cache is not used: {error}")),
            }
        }
        let mut progress = progress;
        progress.start(pictures.len());
        let mut parts = Vec::new();
        for start in (0..pictures.len()).step_by(self.batch) {
            stop.check()?;
            let end = pictures.len().min(start + self.batch);
            let batch = (start..end).map(|i| pictures.get(i)).collect::<Result<Vec<_>>>()?;
            parts.push(self.extractor.see(&batch)?);
            (start..end).for_each(|_| progress.step());
        }
        progress.finish();
        let seen = Seen::joined(&parts)?;
        if let Some(file) = &file {
            cache::write(file, &survey.fingerprint, self.extractor, &seen)?;
        }
        Ok(of(seen))
    }

    /// A set that a model draws.
    fn drawn(
        &self,
        device: Device,
        [width, height]: [u32; 2],
        warnings: &mut Warnings,
    ) -> Result<Set> {
        let args = self.args;
        let prompts = prompts(args.prompts.as_deref().unwrap_or(Path::new("")))?;
        let count = args.num_images;
        let model = Model::find(args.model.as_deref())?;
        let mut progress = Progress::new(args.execution.quiet);
        progress.busy(&format!("loading {}", model.name));
        let options =
            LoadOptions { device, supplement: model.supplement.clone(), ..LoadOptions::default() };
        let pipeline = TextToImage::load(&model.folder, &options)?;
        pipeline.require_rgb()?;
        let size = pipeline.default_size();
        let size = [size.0 as u32, size.1 as u32];
        let name = format!("{count} pictures drawn by {}", model.name);
        if size != [width, height] && self.extractor.size().is_none() {
            warnings.say(different_sizes(size, [width, height]));
        }
        self.check(&name, count, size, warnings)?;
        let cancel = interrupt::switch();
        let request = |i: usize| {
            let prompt = prompts[i % prompts.len()].clone();
            let settings = Settings { prompt, steps: args.steps, ..Settings::default() };
            let seed = args.seed.wrapping_add(i as u64);
            Ok(Request {
                settings: pipeline.resolve(&settings, None)?,
                seed,
                cancel: cancel.clone(),
                ..Request::default()
            })
        };
        let requests = (0..count).map(request).collect::<Result<Vec<_>>>()?;
        progress.start(count);
        let mut waiting: Vec<(usize, RgbImage)> = Vec::new();
        let mut rows: Vec<(usize, Seen)> = Vec::with_capacity(count);
        let mut see = |waiting: &mut Vec<(usize, RgbImage)>| -> Result<()> {
            let (places, pictures): (Vec<usize>, Vec<RgbImage>) = waiting.drain(..).unzip();
            let seen = self.extractor.see(&pictures)?;
            for (row, place) in places.into_iter().enumerate() {
                let features = seen.features.narrow(0, row, 1)?;
                rows.push((place, Seen { features, logits: seen.logits.narrow(0, row, 1)? }));
            }
            Ok(())
        };
        pipeline.generate(requests, self.batch.min(count), &mut |event| {
            if let Event::Finished { slot, result } = event {
                waiting.push((slot.0, result?.rgb()?));
                progress.step();
                if waiting.len() >= self.batch {
                    see(&mut waiting)?;
                }
            }
            Ok(())
        })?;
        if !waiting.is_empty() {
            see(&mut waiting)?;
        }
        progress.finish();
        // In the order of their seeds, whichever were done first.
        rows.sort_by_key(|(place, _)| *place);
        let rows: Vec<Seen> = rows.into_iter().map(|(_, seen)| seen).collect();
        Ok(Set { name, count, size, seen: Seen::joined(&rows)? })
    }

    /// What can be said of a set before it is looked at.
    fn check(
        &self,
        name: &str,
        count: usize,
        size: [u32; 2],
        warnings: &mut Warnings,
    ) -> Result<()> {
        if count < 2 {
            let expected = "two at least: a single one has no spread";
            return Err(Error::argument("set", format!("{name}, of {count} picture"), expected));
        }
        let [width, height] = size;
        match self.extractor.size() {
            Some(own) if own != size => {
                let expected = format!(
                    "pictures of {}x{}, which {} was trained on: others would have to be scaled or padded. Take --inception",
                    own[0], own[1], self.extractor.name()
                );
                return Err(Error::argument("set", format!("{name}, of {width}x{height}"), expected));
            }
            None if width != height => warnings.say(format!(
                "the pictures of {name} are {width}x{height}: they are squeezed to a square, as torch-fidelity does it"
            )),
            _ => {}
        }
        if count <= self.extractor.width() && self.measures_fid() {
            warnings.say(format!(
                "{name} has {count} pictures, and features have {} numbers: the covariance has not full rank, and FID comes out \
                 too large. Take more pictures, or KID, which has no such bias",
                self.extractor.width()
            ));
        }
        Ok(())
    }

    fn measures_fid(&self) -> bool {
        self.args.fid || self.args.measures_all()
    }
}

impl Distance {
    fn measures_all(&self) -> bool {
        !(self.fid || self.kid || self.prdc || self.inception_score)
    }
}

fn different_sizes([w, h]: [u32; 2], [width, height]: [u32; 2]) -> String {
    format!(
        "the sets have pictures of {w}x{h} and {width}x{height}: how sharp they are at one size is measured too"
    )
}

fn prompts(path: &Path) -> Result<Vec<String>> {
    let text = nadir::io::read_file(path, MAX_PROMPTS)?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let prompts: Vec<String> = lines.map(str::to_owned).collect();
    if prompts.is_empty() {
        let advice = "Write one a line.";
        return Err(Error::file(path, "content", "prompts", "none", advice));
    }
    Ok(prompts)
}

/// The report, as JSON has it.
fn measure(
    args: &Distance,
    extractor: &Extractor,
    judged: &Set,
    by: &Set,
    mut warnings: Warnings,
) -> Result<Value> {
    let mut figures = Map::new();
    let all = args.measures_all();
    if args.model.is_none() && judged.size != by.size {
        warnings.say(different_sizes(judged.size, by.size));
    }
    let (a, b) = (judged.seen.features()?, by.seen.features()?);
    if args.fid || all {
        warnings.progress.busy("frechet distance");
        figures.insert("fid".into(), json!(frechet::distance(&a, &b)?));
    }
    if args.kid || all {
        warnings.progress.busy("kernel distance");
        let most = a.count().min(b.count());
        let subset_size = args.kid_subset_size.unwrap_or(most.min(1000));
        if args.kid_subset_size.is_none() && subset_size < 1000 {
            warnings.say(format!("KID is over subsets of {subset_size} pictures, not 1,000"));
        }
        let settings = KernelSettings {
            subsets: args.kid_subsets,
            subset_size,
            seed: args.rng_seed,
            ..KernelSettings::default()
        };
        let found = kernel::distance(&a, &b, &settings)?;
        let kid = json!({
            "mean": found.mean,
            "std": found.deviation,
            "interval_95": found.interval,
            "subsets": settings.subsets,
            "subset_size": settings.subset_size,
        });
        figures.insert("kid".into(), kid);
    }
    if args.prdc || all {
        warnings.progress.busy("precision and recall");
        let found = prdc::precision_recall(&a, &b, prdc::NEIGHBOR_OF_PRECISION)?;
        figures.insert("precision".into(), json!(found.precision));
        figures.insert("recall".into(), json!(found.recall));
        let found = prdc::density_coverage(&a, &b, prdc::NEIGHBOR_OF_DENSITY)?;
        figures.insert("density".into(), json!(found.density));
        figures.insert("coverage".into(), json!(found.coverage));
    }
    if args.inception_score {
        let logits = judged.seen.logits()?;
        let found = inception_score::score(&logits, inception_score::SPLITS, args.rng_seed)?;
        let score = json!({"mean": found.mean, "std": found.deviation});
        figures.insert("inception_score".into(), score);
    }
    let set = |set: &Set| json!({"name": set.name, "pictures": set.count, "size": set.size});
    let features = json!({
        "network": extractor.name(),
        "width": extractor.width(),
        "compares_with_published": extractor.is_standard(),
    });
    Ok(json!({
        "judged": set(judged),
        "by": set(by),
        "features": features,
        "metrics": figures,
        "warnings": warnings.said,
    }))
}

/// The report for a reader.
fn describe(report: &Value) -> String {
    let set = |key: &str| {
        let set = &report[key];
        let name = set["name"].as_str().unwrap_or_default();
        format!("{name} ({} pictures of {}x{})", set["pictures"], set["size"][0], set["size"][1])
    };
    let mut text = format!("{}\nagainst {}\n", set("judged"), set("by"));
    text += &format!("by {}\n\n", report["features"]["network"].as_str().unwrap_or_default());
    let metrics = &report["metrics"];
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    for (key, title) in [
        ("fid", "Frechet distance"),
        ("precision", "precision"),
        ("recall", "recall"),
        ("density", "density"),
        ("coverage", "coverage"),
    ] {
        if let Some(value) = metrics.get(key) {
            text += &format!("{title:<20} {:.4}\n", number(value));
        }
    }
    if let Some(kid) = metrics.get("kid") {
        let [mean, std] = ["mean", "std"].map(|key| number(&kid[key]));
        let [low, high] = [0, 1].map(|i| number(&kid["interval_95"][i]));
        text +=
            &format!("{:<20} {mean:.5} ± {std:.5} ({low:.5} to {high:.5})\n", "kernel distance");
    }
    if let Some(score) = metrics.get("inception_score") {
        let [mean, std] = ["mean", "std"].map(|key| number(&score[key]));
        text += &format!("{:<20} {mean:.4} ± {std:.4}\n", "Inception score");
    }
    text.truncate(text.trim_end().len());
    text
}

pub fn print(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").map_err(|e| Error::io("standard output", e))?;
    Ok(())
}

const WEIGHTS: &str = include_str!("../../docs/metrics-weights.md");
