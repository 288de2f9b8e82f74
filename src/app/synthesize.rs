//! `nadir synthesize`: a labelled data set of drawn pictures.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use nadir::data::masks::MaskSettings;
use nadir::data::{DataSettings, Dataset};
use nadir::io::geotiff::Georeference;
use nadir::pipeline::classifier::Classifier;
use nadir::pipeline::language::classes::{self, PromptClass};
use nadir::pipeline::language::prompts::{self, ClassPrompt, PromptSettings};
use nadir::pipeline::language::{LanguageModel, LanguageOptions, Sampling};
use nadir::pipeline::synthesis::{
    Chip, Gallery, Judge, Records, Redraw, Sources, Studio, SynthesisSettings, Verdict, count,
    read_prompts, synthesize, write_report,
};
use nadir::pipeline::{LoadOptions, Settings, TextToImage};
use nadir::tensor::{DType, Device};
use nadir::{Error, Result};

use super::args::Execution;
use super::model::{self, Model};
use super::progress::Progress;
use super::recipe::{Recipe, Source};
use super::{clip_score, draw, interrupt, limits};

/// Make a labelled data set of drawn pictures: so many of each class, judged one by one
#[derive(Debug, Args)]
#[command(mut_arg("batch", |arg| arg.default_value("8")))]
#[command(after_help = "\
Examples:
  nadir synthesize --classes data/eurosat-classes.toml --per-class 100 -o run/eurosat-drawn
  nadir synthesize --classes data/eurosat-classes.toml --per-class 1000 --training-data eurosat-train.parquet --parquet -o run/drawn
  nadir synthesize --classes data/classes.toml --lm run/phi --model models/my-sd --judge none --per-class 200 -o run/land-cover
  nadir synthesize --classes classes.toml --prompts prompts.jsonl --judge run/resnet/classifier --per-class 50 -o run/drawn
  nadir synthesize --classes classes.toml --clip clip-vit-base-patch32 --min-clip-score 25 -o run/drawn
  nadir synthesize --classes water.toml --source naip/ --mask-classes land,water --strength 0.5 --per-class 100 -o run/pairs

classes.toml is as for `nadir lm prompts`: what a language model is given for each class. What it writes, behind the class's
`picture`, is what the image model draws. A picture is taken if the judge, a classifier, sees the class that was asked for,
and if it is neither as good as one of the training data nor as one that was taken before. Others are drawn in place of
those that are not, until each class has its pictures.

With --source every picture is drawn from a real one, of which its class has the most pixels, and keeps that one's mask: the
folder gets masks/ too, and is a data set for `nadir train segment`. A mask says what was there before; how much of it is there
still, --strength and --redraw decide.

Where the real picture is a GeoTIFF, or --bbox says where pictures lie, geotiff/ has each once more, at its place.

The folder gets images/, metadata.jsonl (a data set for `nadir train` and for Hugging Face's imagefolder), draws.jsonl (every
draw, with prompt, seed and verdict), prompts.jsonl and report.html. Begun again with the same settings, the command goes on
where it was stopped, also by kill -9, and makes the same set; a larger --per-class adds to it.
Exit codes: 0 done, 1 failed, 2 a request that cannot be served as it is, 130 interrupted: what is there stays.")]
pub struct Synthesize {
    /// TOML file with the classes
    #[arg(long, value_name = "FILE")]
    classes: PathBuf,

    /// Folder of the set
    #[arg(short, long, value_name = "DIR", visible_alias = "out")]
    output: PathBuf,

    /// Pictures of each class
    #[arg(long, value_name = "N", default_value_t = 100)]
    per_class: usize,

    /// Also write the set as one file, data.parquet, in the schema of RSICD
    #[arg(long)]
    parquet: bool,

    /// Seed of the first picture; of the first prompt of each class too
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Image model: a diffusers folder, `org/name` in the local hub cache, or a model that ships
    #[arg(short, long, value_name = "MODEL", help_heading = "Model")]
    model: Option<String>,

    #[command(flatten)]
    execution: Execution,

    #[command(flatten)]
    picture: Settings,

    /// Language model that writes the prompts
    #[arg(long, value_name = "MODEL", default_value = "rsicd-lm", help_heading = "Prompts")]
    lm: String,

    /// Take prompts from this file, which `nadir lm prompts` has written
    #[arg(long, value_name = "FILE", conflicts_with = "lm", help_heading = "Prompts")]
    prompts: Option<PathBuf>,

    /// Prompts of each class, which are used in turn
    #[arg(long, value_name = "N", default_value_t = 50, help_heading = "Prompts")]
    prompts_per_class: usize,

    /// Tokens of a prompt, at most
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = "Prompts")]
    max_new_tokens: usize,

    #[command(flatten)]
    sampling: Sampling,

    /// Classifier: its folder, `auto` for the one that ships where it knows all classes, or `none`
    #[arg(long, value_name = "DIR", default_value = "auto", help_heading = "Judge")]
    judge: String,

    /// How sure the judge must be of the class, 0 to 1
    #[arg(long, value_name = "P", default_value_t = 0.0, help_heading = "Judge")]
    #[arg(allow_negative_numbers = true)]
    min_probability: f32,

    /// CLIP with both encoders, a folder of transformers' CLIPModel: scores are recorded
    #[arg(long, value_name = "DIR", help_heading = "Judge")]
    clip: Option<PathBuf>,

    /// Take no picture whose CLIP score with its prompt is below this, -100 to 100
    #[arg(long, value_name = "X", help_heading = "Judge", requires = "clip")]
    #[arg(allow_negative_numbers = true)]
    min_clip_score: Option<f64>,

    /// What the image model was trained on: a parquet file or a folder with a metadata.jsonl
    #[arg(long, value_name = "PATH", help_heading = "Judge")]
    training_data: Option<PathBuf>,

    /// Two pictures are as good as one from this correlation of 16x16 pixels on; two of EuroSAT's chips reach 0.94
    #[arg(long, value_name = "X", default_value_t = 0.95, help_heading = "Judge")]
    #[arg(allow_negative_numbers = true)]
    max_similarity: f32,

    /// Draws for each picture, on average, before a class is given up
    #[arg(long, value_name = "N", default_value_t = 20, help_heading = "Judge")]
    max_draws: usize,

    /// Real pictures with masks to draw from: a folder with images/ and masks/, or a parquet file with columns image and mask
    #[arg(long, value_name = "PATH", help_heading = "Masks")]
    source: Option<PathBuf>,

    /// Names of the masks' classes 0, 1, ..., by commas [default: the numbers that masks have]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "Masks")]
    #[arg(requires = "source")]
    mask_classes: Vec<String>,

    /// Level of a mask that stands for no class
    #[arg(long, value_name = "LEVEL", default_value_t = 255, help_heading = "Masks")]
    ignore_index: u16,

    /// What is drawn anew: all of a picture, or the pixels inside or outside of the class that it is drawn for
    #[arg(long, value_enum, default_value_t, help_heading = "Masks")]
    redraw: Redraw,

    /// Also write pictures as GeoTIFFs that lie here: west,south,east,north, in units of --epsg
    #[arg(long, value_name = "BOX", value_delimiter = ',', num_args = 1, requires = "epsg")]
    #[arg(allow_hyphen_values = true, help_heading = "Place")]
    bbox: Option<Vec<f64>>,

    /// EPSG code of the reference system of --bbox
    #[arg(long, value_name = "CODE", requires = "bbox", help_heading = "Place")]
    epsg: Option<u32>,
}

pub fn run(args: Synthesize) -> anyhow::Result<()> {
    let classes = classes::open(&args.classes)?;
    let names: Vec<String> = classes.iter().map(|class| class.name.clone()).collect();
    if !(0.0..=1.0).contains(&args.min_probability) {
        return Err(Error::argument("min_probability", args.min_probability, "0 to 1").into());
    }
    let dtype = args.execution.dtype.unwrap_or(DType::F32);
    let mut settings = SynthesisSettings {
        per_class: args.per_class,
        max_draws: args.max_draws,
        seed: args.seed,
        max_similarity: args.max_similarity,
        min_clip_score: args.min_clip_score,
        picture: args.picture.clone(),
        batch: args.execution.batch,
    };
    settings.check()?;
    if args.source.is_none() && (args.picture.strength.is_some() || args.redraw != Redraw::All) {
        let name = if args.redraw == Redraw::All { "strength" } else { "redraw" };
        return Err(Error::argument(name, "no --source", "real pictures to draw from").into());
    }
    limits::set_threads(args.execution.threads)?;
    let mut progress = Progress::new(args.execution.quiet);
    let mut notes = Vec::new();
    let device = draw::choose_device(&args.execution.device, |line| progress.say(line))?;

    // 1. What draws, and what judges.
    let model = Model::find(args.model.as_deref())?;
    let options = LoadOptions {
        dtype,
        device,
        supplement: model.supplement.clone(),
        ..LoadOptions::default()
    };
    let sampler = model.sampler_name(settings.picture.scheduler.as_deref())?;
    let mut recipe =
        Recipe { dtype, ..Recipe::new(model.name.clone(), settings.picture.clone(), args.seed) };
    recipe.device = device.to_string();
    limits::check_memory(&model, &options, &recipe, settings.batch, false)?;
    progress.busy(&format!("loading {}", model.name));
    let pipeline = TextToImage::load(&model.folder, &options)?;
    pipeline.require_rgb()?;
    pipeline.notes().iter().for_each(|note| progress.warn(note));
    settings.picture = pipeline.resolve(&settings.picture, None)?;
    if args.source.is_some() {
        let own = pipeline.default_strength(args.redraw != Redraw::All);
        settings.picture.strength.get_or_insert(own);
    }
    recipe.model_hash = pipeline.fingerprint().to_owned();
    let judge = open_judge(&args.judge, &names, device, args.min_probability, &mut notes)?;
    let clip = args.clip.as_ref().map(|folder| clip_score::open(folder, device, &progress));
    let clip = clip.transpose()?;
    if let Some(clip) = &clip {
        let least = args.min_clip_score.map_or("none is rejected by them".into(), |least| {
            format!("pictures below {least} are rejected")
        });
        notes.push(format!(
            "CLIP scores are by {} ({}); {least}.",
            clip.name(),
            clip.fingerprint()
        ));
    }
    let sources = open_sources(&args, &settings.picture, &progress, &mut notes)?;
    let place = place(&args, &settings.picture)?;

    // 2. The folder, and the prompts.
    let record = json!({
        "format": 1,
        "classes": classes,
        "seed": args.seed,
        "model": recipe.model_hash,
        "dtype": dtype.to_string(),
        "picture": settings.picture,
        "judge": judge.as_ref().map(|(fingerprint, _)| fingerprint),
        "min_probability": args.min_probability,
        "clip": clip.as_ref().map(|clip| clip.fingerprint()),
        "min_clip_score": args.min_clip_score,
        "training_data": args.training_data,
        "max_similarity": args.max_similarity,
        "prompts": prompts_of(&args),
        "bbox": args.bbox,
        "epsg": args.epsg,
        "source": sources.as_ref().map(|sources| json!({
            "path": args.source,
            "fingerprint": sources.fingerprint(),
            "classes": sources.classes(),
            "ignore_index": args.ignore_index,
            "redraw": args.redraw,
        })),
    });
    let mut records = Records::open(&args.output, &record)?;
    records.keep_quota(args.per_class)?;
    if records.prompts().is_none() {
        let written = match &args.prompts {
            Some(path) => read_prompts(path)?,
            None => write_prompts(&args, &classes, device, dtype, &progress)?,
        };
        records.keep_prompts(written)?;
    }
    let training = args.training_data.as_ref().map(|path| gallery(path, &progress)).transpose()?;
    notes.iter().for_each(|note| progress.say(note));

    // 3. Pictures.
    let describe = |prompt: &str, seed: u64, chip: Option<&Chip>| {
        if args.redraw != Redraw::All {
            // What was painted over is no file that could be named.
            return Ok(Vec::new());
        }
        let settings = Settings { prompt: prompt.to_owned(), ..settings.picture.clone() };
        let source = |chip: &Chip| Source { path: chip.name.clone().into(), hash: String::new() };
        let init_image = chip.map(source);
        Ok(Vec::from(Recipe { settings, seed, init_image, ..recipe.clone() }.texts(&sampler)?))
    };
    let studio = Studio {
        model: &pipeline,
        judge: judge.as_ref().map(|(_, judge)| judge),
        clip: clip.as_ref(),
        sources: sources.as_ref(),
        place: place.as_ref(),
        training: training.as_ref(),
        describe: &describe,
        cancel: interrupt::switch(),
    };
    progress.start(classes.len().saturating_mul(args.per_class));
    let made = synthesize(&studio, &classes, &mut records, &settings, &mut |draw| {
        if draw.verdict == Verdict::Accepted {
            progress.step();
        }
    });
    progress.finish();
    // What is there can be looked at, whether it is complete or not.
    write_report(&records, &names, &notes, &record)?;
    made?;
    if args.parquet {
        records.write_parquet(&records.path("data.parquet"))?;
    }
    let counts = count(records.draws());
    let counts: Vec<_> =
        counts.iter().map(|(verdict, n)| format!("{n} {}", verdict.name())).collect();
    progress.say(&format!("{} draws: {}", records.draws().len(), counts.join(", ")));
    progress.print(records.path("report.html").display());
    Ok(())
}

/// The judge and what tells it from others; `notes` get what the reader of the set should know.
fn open_judge(
    asked: &str,
    classes: &[String],
    device: Device,
    min_probability: f32,
    notes: &mut Vec<String>,
) -> Result<Option<(String, Judge)>> {
    let folder = match asked {
        "none" => {
            notes.push("No judge has looked at these pictures: what they show is what was asked for, not what was seen.".into());
            return Ok(None);
        }
        "auto" => model::shipped_judge()?,
        folder => PathBuf::from(folder),
    };
    let classifier = Classifier::open(&folder, device)?;
    if asked == "auto"
        && let Some(unknown) = classes.iter().find(|class| classifier.label(class).is_err())
    {
        notes.push(format!(
            "No judge has looked at these pictures: the classifier that ships does not know the class {unknown:?}. What they \
             show is what was asked for, not what was seen."
        ));
        return Ok(None);
    }
    let fingerprint = classifier.fingerprint().to_owned();
    Ok(Some((fingerprint, Judge::new(classifier, classes, min_probability)?)))
}

/// Where all pictures are said to lie, if they are.
fn place(args: &Synthesize, picture: &Settings) -> Result<Option<Georeference>> {
    let (Some(bbox), Some(epsg)) = (&args.bbox, args.epsg) else { return Ok(None) };
    let [width, height] = [picture.width, picture.height].map(Option::unwrap_or_default);
    Georeference::from_bbox(super::args::bbox(bbox)?, epsg, width, height).map(Some)
}

/// The real pictures that are drawn from; `notes` get what the reader of the set should know.
fn open_sources(
    args: &Synthesize,
    picture: &Settings,
    progress: &Progress,
    notes: &mut Vec<String>,
) -> Result<Option<Sources>> {
    let Some(path) = &args.source else { return Ok(None) };
    progress.busy(&format!("looking at {}", path.display()));
    let settings = MaskSettings {
        classes: args.mask_classes.clone(),
        ignore_index: args.ignore_index,
        ..MaskSettings::default()
    };
    let size = [picture.width, picture.height].map(Option::unwrap_or_default);
    let sources = Sources::open(path, &settings, args.redraw, size)?;
    let strength = picture.strength.unwrap_or_default();
    let what = match args.redraw {
        Redraw::All => "all of it",
        Redraw::Inside => "the pixels of its class",
        Redraw::Outside => "all but the pixels of its class",
    };
    notes.push(format!(
        "Masks are those of the {} real pictures in {}: each picture was drawn from one of them, {what} anew, at strength \
         {strength}. Where something else was drawn than was there, the mask is wrong.",
        sources.len(),
        path.display()
    ));
    Ok(Some(sources))
}

/// What prompts depend on.
fn prompts_of(args: &Synthesize) -> Value {
    match &args.prompts {
        Some(path) => json!(path),
        None => json!({
            "lm": args.lm,
            "per_class": args.prompts_per_class,
            "max_new_tokens": args.max_new_tokens,
            "sampling": args.sampling,
        }),
    }
}

fn write_prompts(
    args: &Synthesize,
    classes: &[PromptClass],
    device: Device,
    dtype: DType,
    progress: &Progress,
) -> anyhow::Result<Vec<ClassPrompt>> {
    progress.busy("writing prompts");
    let folder = Model::find(Some(&args.lm))?.folder;
    let options = LanguageOptions { dtype, int8: false, device, adapters: Vec::new() };
    let model = LanguageModel::open(&folder, &options)?;
    let settings = PromptSettings {
        per_class: args.prompts_per_class,
        max_draws: args.max_draws,
        sampling: args.sampling,
        seed: args.seed,
        max_new_tokens: args.max_new_tokens,
        batch: args.execution.batch,
    };
    let cancel = interrupt::switch();
    Ok(prompts::write(&model, classes, &settings, &mut |_| cancel.check())?.prompts)
}

/// Small copies of all pictures that a model was trained on.
fn gallery(path: &Path, progress: &Progress) -> Result<Gallery> {
    progress.busy(&format!("looking at {}", path.display()));
    let cancel = interrupt::switch();
    let data = Dataset::open(path, DataSettings::default())?;
    let mut gallery = Gallery::default();
    for row in 0..data.len() {
        gallery.add(&data.picture(row)?)?;
        cancel.check()?;
    }
    Ok(gallery)
}
