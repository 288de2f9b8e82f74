//! `nadir scene`: pictures of any size, drawn in windows by one process or by many, and put together when all are there.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use nadir::io::geotiff::{Cog, CogWriter, Georeference, Resampling, picture};
use nadir::io::picture::{Picture, Samples, Scale, ShownBands};
use nadir::io::{atomic, png};
use nadir::nn::lora::Adapter;
use nadir::noise::NoiseSource;
use nadir::pipeline::canvas::{self, Canvas, Job, News, Plan, Regions, State, Tiles, Window};
use nadir::pipeline::{LoadOptions, Request, Settings, TextToImage};
use nadir::tensor::DType;
use nadir::{Error, Result};

use super::args::{Execution, Numbers, Original, adapter, typed};
use super::manifest::Shard;
use super::model::Model;
use super::progress::Progress;
use super::recipe::{Lora, Recipe};
use super::{draw, interrupt, limits};

/// How often it is looked whether another process has put the picture together.
const LOOK: Duration = Duration::from_millis(100);

/// Draw a scene of any size, in windows of the model's own size that see each other
#[derive(Debug, Args)]
#[command(mut_arg("width", |arg| arg.required(true).help("Width of the canvas in pixels, any").help_heading("Canvas")))]
#[command(mut_arg("height", |arg| arg.required(true).help("Height of the canvas in pixels, any").help_heading("Canvas")))]
#[command(mut_arg("batch", |arg| arg.default_value("4").help("Windows computed at once; the picture does not depend on it, memory and speed do")))]
#[command(mut_arg("noise", |arg| arg.hide(true)))]
#[command(mut_arg("strength", |arg| arg.hide(true)))]
#[command(mut_arg("vae_tiling", |arg| arg.hide(true)))]
#[command(after_help = "\
Examples:
  nadir scene \"a satellite image of a river\" -W 1024 -H 1024 -o river.png
  nadir scene \"a forest\" -W 4096 -H 4096 --bbox 485900,5205000,526860,5245960 --epsg 32614 -o forest.tif
  nadir scene \"a forest\" -W 1024 -H 1024 --wrap x,y -o pattern.png
  nadir scene \"a forest\" -W 40000000 -H 20000000 --window 9000000,4000000,512,512 -o cut.png
  nadir scene \"a river\" -W 8192 -H 8192 --shard 3/8 -o shared/river.tif
  nadir scene \"pasture\" -W 2048 -H 2048 --regions areas.geojson --bbox 10,50,10.2,50.2 --epsg 4326 -o land.tif
  nadir scene -W 2048 -H 2048 --labels classes.png --prompts classes.toml -o land.png
  nadir scene \"a forest\" -m models/four-bands -W 2048 -H 2048 --samples u16 --scale 0,10000 -o forest.tif

A pixel follows from its place, the seed and what is asked, and from nothing else: --window draws exactly that cut of the
scene, and it does not matter how many processes are at work or in which order. Windows and tiles that are done lie in
OUTPUT.parts beside the picture: the same command goes on with them after Ctrl-C or kill -9, and several at once, with or
without --shard, share the work. Who is last puts the picture together, and the folder goes.
Exit codes: 0 done, 1 failed, 2 a request that cannot be served as it is, 130 interrupted: what is there stays.")]
pub struct Scene {
    /// What the scene shows, where --regions or --labels say nothing else
    #[arg(value_name = "PROMPT", required_unless_present_any = ["regions", "labels"])]
    prompt: Option<String>,

    #[command(flatten)]
    settings: Settings,

    /// A .png or .tif file
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: PathBuf,

    #[command(flatten)]
    numbers: Numbers,

    /// Draw only the I-th of N bands of it; who is last puts the picture together
    #[arg(long, value_name = "I/N", help_heading = "Output", value_parser = typed::<Shard>)]
    shard: Option<Shard>,

    /// Join the canvas's right side to its left (x), its lower to its upper (y)
    #[arg(long, value_name = "SIDES", value_delimiter = ',', help_heading = "Canvas")]
    wrap: Vec<Side>,

    /// Draw this part of the canvas only, in pixels: x,y,width,height
    #[arg(long, value_name = "BOX", help_heading = "Canvas", value_parser = typed::<Part>)]
    #[arg(allow_hyphen_values = true)]
    window: Option<Part>,

    /// Pixels that a window shares with the next, up to half of it [default: half]; less is faster, and shows more
    #[arg(long, value_name = "PIXELS", help_heading = "Canvas")]
    overlap: Option<usize>,

    /// Where the canvas lies: west,south,east,north, in units of --epsg; for a .tif file [default: where --labels lie]
    #[arg(long, value_name = "BOX", value_delimiter = ',', num_args = 1, requires = "epsg")]
    #[arg(allow_hyphen_values = true, help_heading = "Place")]
    bbox: Option<Vec<f64>>,

    /// EPSG code of the reference system of --bbox
    #[arg(long, value_name = "CODE", requires = "bbox", help_heading = "Place")]
    epsg: Option<u32>,

    /// Areas with a prompt, level, ... each: a GeoJSON file in longitude and latitude; needs --bbox
    #[arg(
        long,
        value_name = "FILE",
        requires = "bbox",
        conflicts_with = "labels",
        help_heading = "Regions"
    )]
    regions: Option<PathBuf>,

    /// A raster of classes, .png or .tif of one band, which is stretched over the canvas
    #[arg(long, value_name = "FILE", requires = "prompts", help_heading = "Regions")]
    labels: Option<PathBuf>,

    /// What is drawn for each class of --labels: a TOML file of lines such as 3 = "a forest"
    #[arg(long, value_name = "FILE", requires = "labels", help_heading = "Regions")]
    prompts: Option<PathBuf>,

    /// Seed of the noise
    #[arg(short, long, value_name = "N", default_value_t = 0, help_heading = "Picture")]
    seed: u64,

    /// Model: a diffusers folder, an original checkpoint (.safetensors), `org/name` in the local hub cache, or one that ships
    #[arg(short, long, value_name = "MODEL", help_heading = "Model")]
    model: Option<String>,

    #[command(flatten)]
    original: Original,

    #[command(flatten)]
    execution: Execution,

    /// Weight files of this variant: `fp16` for `model.fp16.safetensors`
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    variant: Option<String>,

    /// Add this low-rank adapter to the model's weights, WEIGHT times [default: 1]; may be repeated
    #[arg(long, value_name = "FILE[:WEIGHT]", help_heading = "Model", value_parser = adapter)]
    lora: Vec<Adapter>,

    /// From the lowest row of windows up: for tests, since no pixel depends on it
    #[arg(long, hide = true)]
    backwards: bool,
}

/// A pair of sides that are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Side {
    X,
    Y,
}

/// A part of the canvas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part(Window);

impl FromStr for Part {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split(',').map(|number| number.trim().parse::<usize>());
        match numbers.collect::<std::result::Result<Vec<_>, _>>().as_deref() {
            Ok(&[x, y, width, height]) => Ok(Self(Window { x, y, width, height })),
            _ => {
                let expected =
                    "four whole numbers of pixels from the upper left corner on: x,y,width,height";
                Err(Error::argument("window", text, expected))
            }
        }
    }
}

/// What a picture is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Png,
    Tiff,
}

impl Format {
    fn of(path: &Path) -> Result<Self> {
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        match ending.as_str() {
            "png" => Ok(Self::Png),
            "tif" | "tiff" | "gtiff" | "btf" => Ok(Self::Tiff),
            _ => {
                let expected = "a file name that ends in .png or .tif";
                Err(Error::argument("output", path.display(), expected))
            }
        }
    }
}

pub fn run(args: Scene) -> anyhow::Result<()> {
    // 1. what needs no model
    let format = Format::of(&args.output)?;
    let folder = args.output.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
    atomic::check_folder(&args.output, folder)?;
    if args.bbox.is_some() && format == Format::Png {
        let expected = "a .tif file, which can say where it lies";
        return Err(Error::argument("output", args.output.display(), expected).into());
    }
    let Numbers { samples, scale, preview_bands } = args.numbers;
    draw::check_form(samples, preview_bands, format == Format::Tiff)?;
    let scale = samples.unwrap_or_default().own_scale(scale)?;
    let mut settings = args.settings.clone();
    refuse(&settings)?;
    let canvas = Canvas {
        width: settings.width.take().unwrap_or_default(),
        height: settings.height.take().unwrap_or_default(),
        wrap: [Side::X, Side::Y].map(|side| args.wrap.contains(&side)),
        overlap: args.overlap,
    };
    settings.prompt = args.prompt.clone().unwrap_or_default();
    settings.check()?;
    let place = place(&args, format, &canvas)?;
    let regions = regions(&args, &canvas, place.as_ref())?;
    limits::set_threads(args.execution.threads)?;
    let mut progress = Progress::new(args.execution.quiet);

    // 2. the model, and what the scene asks of it
    let model = Model::find(args.model.as_deref())?.with(&args.original);
    let device = draw::choose_device(&args.execution.device, |line| progress.say(line))?;
    let dtype = args.execution.dtype.unwrap_or(DType::F32);
    let options = LoadOptions {
        dtype,
        device,
        variant: args.variant.clone(),
        supplement: model.supplement.clone(),
        adapters: args.lora.clone(),
        ..LoadOptions::default()
    };
    let batch = limits::check_batch(args.execution.batch, usize::MAX)?;
    let recipe = Recipe {
        dtype,
        device: device.to_string(),
        lora: args.lora.iter().cloned().map(Lora::from).collect(),
        ..Recipe::new(model.name.clone(), settings.clone(), args.seed)
    };
    limits::check_memory(&model, &options, &recipe, batch, false)?;
    progress.busy(&format!("loading {}", model.name));
    let pipeline = TextToImage::load(&model.folder, &options)?;
    pipeline.notes().iter().for_each(|note| progress.warn(note));
    settings = pipeline.resolve(&settings, None)?;
    let plan = Plan::new(&pipeline, canvas, args.window.map(|Part(window)| window))?;
    pipeline.sampler(&Request { settings: settings.clone(), ..Request::default() })?;
    if let Some(regions) = &regions {
        check_regions(&pipeline, regions, &settings)?;
    }
    progress.say(&told(&plan));

    // 3. the windows
    let mut record = serde_json::to_value(&settings)?;
    for (name, value) in [
        ("format", json!(1)),
        ("model", json!(pipeline.fingerprint())),
        ("dtype", json!(dtype.to_string())),
        ("seed", json!(args.seed)),
        ("canvas", json!([plan.canvas().width, plan.canvas().height])),
        ("wrap", json!(plan.canvas().wrap)),
        ("overlap", json!(plan.overlap())),
        ("part", json!([plan.part().x, plan.part().y, plan.part().width, plan.part().height])),
        ("bbox", json!(args.bbox)),
        ("epsg", json!(args.epsg)),
        ("regions", json!(regions.as_ref().map(Regions::fingerprint))),
    ] {
        record[name] = value;
    }
    // Only what is said: scenes that were begun before go on.
    for (name, value) in [
        ("samples", args.numbers.samples.map(|samples| samples.to_string())),
        ("scale", args.numbers.scale.map(|scale| scale.to_string())),
        ("preview_bands", args.numbers.preview_bands.map(|bands| bands.to_string())),
        (
            "place",
            place
                .as_ref()
                .filter(|_| args.bbox.is_none())
                .map(|place| format!("{:?}", place.transform)),
        ),
    ] {
        if let Some(value) = value {
            record[name] = json!(value);
        }
    }
    let samples = args.numbers.samples.unwrap_or_default();
    let bands = pipeline.bands();
    let tiles = match format {
        Format::Tiff if samples != Samples::U8 || bands != 3 => Tiles::Numbers { bands },
        _ => {
            ShownBands::of(args.numbers.preview_bands, bands)?;
            Tiles::Shown(args.numbers.preview_bands)
        }
    };
    let state = State::open(&args.output, &record, tiles)?;
    let shard = args.shard.unwrap_or(Shard { index: 0, count: 1 });
    let job = Job {
        model: &pipeline,
        plan: &plan,
        settings: &|window| match &regions {
            Some(regions) => regions.settings(window, &settings),
            None => settings.clone(),
        },
        seed: args.seed,
        batch,
        shard: (shard.index, shard.count),
        backwards: args.backwards,
        cancel: interrupt::switch(),
    };
    let drawn = if state.is_done() {
        Ok(())
    } else {
        canvas::draw(&job, &state, &mut |news| match news {
            News::Begun(windows) => progress.start(windows),
            News::Step => progress.step(),
            News::Warning(warning) => progress.warn(&warning.to_string()),
            _ => {}
        })
    };
    progress.finish();
    if let Err(Error::Interrupted) = drawn {
        let kept = "what is drawn is kept: the same command goes on";
        return Err(anyhow::Error::from(Error::Interrupted).context(kept));
    }
    drawn?;

    // 4. the picture
    let cancel = interrupt::switch();
    loop {
        cancel.check()?;
        if state.is_done() {
            progress.say("another process has put the picture together");
            break;
        }
        let left = plan.missing(&state);
        if left > 0 {
            progress.say(&format!("this part is drawn; others have {left} tiles to draw"));
            break;
        }
        if let Some(claim) = state.claim_picture()? {
            progress.busy("putting the picture together");
            let numbers = (tiles, samples, scale);
            write(&args.output, format, &plan, &state, numbers, place, &record)?;
            state.finish()?;
            drop(claim);
            progress.print(args.output.display());
            break;
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Settings that a scene has no use for.
fn refuse(settings: &Settings) -> Result<()> {
    if let Some(strength) = settings.strength {
        return Err(Error::argument("strength", strength, "nothing: a scene begins with noise"));
    }
    if settings.noise != NoiseSource::default() {
        let expected = "nothing: a scene's noise belongs to its places";
        return Err(Error::argument("noise", settings.noise, expected));
    }
    if settings.vae_tiling {
        return Err(Error::argument(
            "vae_tiling",
            true,
            "nothing: a scene is decoded in tiles anyway",
        ));
    }
    Ok(())
}

/// What of the canvas is drawn otherwise than the rest.
fn regions(args: &Scene, canvas: &Canvas, place: Option<&Georeference>) -> Result<Option<Regions>> {
    if let (Some(areas), Some(place)) = (&args.regions, place) {
        return Regions::open_areas(areas, canvas, place).map(Some);
    }
    let (Some(labels), Some(prompts)) = (&args.labels, &args.prompts) else { return Ok(None) };
    Regions::open_levels(labels, prompts, canvas, args.prompt.is_some()).map(Some)
}

/// Checks that the model can draw all regions.
fn check_regions(model: &TextToImage, regions: &Regions, base: &Settings) -> Result<()> {
    for (name, settings) in regions.all(base) {
        let request = Request { settings, ..Request::default() };
        model.sampler(&request).map_err(|error| {
            let (expected, advice) = ("what the model can draw", "Correct it.");
            Error::file(name, "region", expected, error.to_string(), advice)
        })?;
    }
    Ok(())
}

/// Where the canvas lies: where it is said to, or where the labels do that are stretched over it.
fn place(args: &Scene, format: Format, canvas: &Canvas) -> Result<Option<Georeference>> {
    let (Some(bbox), Some(epsg)) = (&args.bbox, args.epsg) else {
        return match (&args.labels, format) {
            (Some(labels), Format::Tiff) => picture::place(labels, canvas.width, canvas.height),
            _ => Ok(None),
        };
    };
    Georeference::from_bbox(super::args::bbox(bbox)?, epsg, canvas.width, canvas.height).map(Some)
}

/// What is drawn, and what a part costs beyond itself.
fn told(plan: &Plan) -> String {
    let ((width, height), (own, beyond)) = (plan.window(), plan.windows());
    let Window { width: columns, height: rows, .. } = plan.part();
    let mut told = format!(
        "{columns}x{rows} pixels: {own} windows of {width}x{height} that share {} with the next",
        plan.overlap()
    );
    if beyond > 0 {
        told += &format!("; {beyond} more beyond the edges, which these see");
    }
    told
}

fn write(
    path: &Path,
    format: Format,
    plan: &Plan,
    state: &State,
    (tiles, samples, scale): (Tiles, Samples, Scale),
    place: Option<Georeference>,
    record: &Value,
) -> Result<()> {
    let part = plan.part();
    let text = record.to_string();
    match format {
        Format::Png => {
            let size = [part.width as u32, part.height as u32];
            png::write_rows(path, size, &[(png::SCENE, &text)], |rows| {
                canvas::assemble(plan, state, rows)
            })
        }
        Format::Tiff => {
            let bands = match tiles {
                Tiles::Shown(_) => 3,
                Tiles::Numbers { bands } => bands,
            };
            let cog = Cog {
                georeference: place.map(|place| place.part(part.x as f64, part.y as f64, 1.0)),
                units: picture::units(None, None, (samples, scale), bands)?,
                metadata: vec![("NADIR_SCENE".to_owned(), text)],
                resampling: Resampling::Average,
                ..Cog::new(part.width, part.height, bands, samples.kind())
            };
            let mut writer = CogWriter::create(path, cog, true)?;
            match tiles {
                Tiles::Shown(_) => {
                    canvas::assemble(plan, state, &mut |rows| writer.write_rows(rows))?;
                }
                Tiles::Numbers { bands } => {
                    canvas::assemble_numbers(plan, state, &mut |rows| {
                        let size = [rows.len() / bands / part.width, part.width, bands];
                        let rows = Picture::new(size, rows.to_vec(), None)?;
                        writer.write_rows(&rows.numbers(samples, scale))
                    })?;
                }
            }
            writer.finish()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_four_numbers() {
        let window = Window { x: 1, y: 2, width: 3, height: 4 };
        assert_eq!("1, 2,3,4".parse::<Part>().unwrap(), Part(window));
        for wrong in ["", "1,2,3", "1,2,3,4,5", "-1,2,3,4", "a,b,c,d", "1,2,3,99999999999999999999"]
        {
            assert!(wrong.parse::<Part>().is_err(), "{wrong}");
        }
    }
}
