//! `nadir super-resolve`: a Sentinel-2 scene with a quarter of its pixels' size.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use nadir::io::atomic;
use nadir::io::geotiff::{Cog, CogWriter, Georeference, SampleKind, picture};
use nadir::pipeline::Cancel;
use nadir::pipeline::scene::{Enlargement, Onlooker, Source, Windows, enlarge, nodata};
use nadir::pipeline::super_resolution::{SCALE, Sampling, SuperResolver};
use nadir::tensor::Device;
use nadir::{Error, Result};

use super::progress::Progress;
use super::{args, draw, interrupt, limits};

/// Reflectances of Sentinel-2 in 16 bits.
const REFLECTANCE: [f64; 2] = [0.0, 10_000.0];

/// Give a Sentinel-2 scene pixels of 2.5 m: LDSR-S2, latent diffusion of red, green, blue and near infrared
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir super-resolve scene.tif -m opensr-ldsrs2_v1_0_0.safetensors -o scene-2m5.tif
  nadir super-resolve sentinel.tif -m models/ldsr -o out.tif --bands 4,3,2,8 --steps 50 --device cuda --batch-size 8
  nadir super-resolve l2a.tif -m models/ldsr -o out.tif --scale 1000,11000 --overlap 32 --seed 7

The scene is a GeoTIFF of the bands that the model knows, in its order: red, green, blue, near infrared of 10 m (B04, B03,
B02, B08). It may be larger than memory; what comes of it is a Cloud-Optimized GeoTIFF of four pixels for one on each side, at
the same place, in the same numbers, without data where the scene has none. The scene is looked at through windows that
overlap; what they give is blended by weights that fall off as a raised cosine. Noise belongs to the place: a pixel does not
depend on the batch nor on the number of threads.
The model is a .safetensors file of the published shape (nadir convert --script tells how to make one of a .ckpt), or a folder
with one and a config.json that has the fields of opensr-model's config_10m.yaml.
Detail that is made up is no measurement: another seed gives other detail, which tells where it is uncertain.
Exit codes: 0 done, 2 a scene, a model or an output that cannot be used, 130 interrupted: nothing stays.")]
pub struct SuperResolve {
    /// The scene, a GeoTIFF
    #[arg(value_name = "SCENE")]
    scene: PathBuf,

    /// Model: a .safetensors file, or a folder with one and a config.json
    #[arg(short, long, value_name = "PATH")]
    model: PathBuf,

    /// What is written, a .tif file; one that is there is replaced
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: PathBuf,

    /// Numbers of the bands that the model sees, in its order, the first being 1 [default: all but one for opacity]
    #[arg(long, value_name = "BANDS", value_delimiter = ',', help_heading = "Scene")]
    bands: Option<Vec<usize>>,

    /// Numbers that stand for reflectances of 0 and of 1 [default: as the scale and offset of its bands say, else
    /// 0,10000 for a scene of 16 bits]
    #[arg(long, value_name = "LOW,HIGH", value_delimiter = ',', num_args = 1)]
    #[arg(allow_hyphen_values = true, help_heading = "Scene")]
    scale: Option<Vec<f64>>,

    /// Height and width in pixels of the scene of what is made at once [default: as the model was trained, 128]
    #[arg(long, value_name = "PIXELS", help_heading = "Scene")]
    window: Option<usize>,

    /// Pixels of the scene that a window shares with the next, at most half of it [default: an eighth]
    #[arg(long, value_name = "PIXELS", help_heading = "Scene")]
    overlap: Option<usize>,

    /// Windows at a time; nothing depends on it but memory and speed
    #[arg(long, value_name = "N", help_heading = "Scene", alias = "batch")]
    batch_size: Option<usize>,

    /// Where a scene lies that does not say so: west,south,east,north, in units of --epsg
    #[arg(long, value_name = "BOX", value_delimiter = ',', num_args = 1, requires = "epsg")]
    #[arg(allow_hyphen_values = true, help_heading = "Scene")]
    bbox: Option<Vec<f64>>,

    /// EPSG code of the reference system of --bbox
    #[arg(long, value_name = "CODE", requires = "bbox", help_heading = "Scene")]
    epsg: Option<u32>,

    /// Steps from noise to the scene [default: the model's, 100]
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    steps: Option<usize>,

    /// Seed of the noise
    #[arg(short, long, value_name = "N", default_value_t = 0, help_heading = "Sampling")]
    seed: u64,

    /// Share of DDPM's noise in each step, 0 to 1 [default: the model's, 0]
    #[arg(long, value_name = "X", help_heading = "Sampling", allow_negative_numbers = true)]
    eta: Option<f64>,

    /// What the noise of --eta is multiplied by [default: the model's, 1]
    #[arg(long, value_name = "X", help_heading = "Sampling", allow_negative_numbers = true)]
    temperature: Option<f32>,

    /// Leave the bands of a window as the model makes them, rather than giving each the histogram that it has in the scene
    #[arg(long, help_heading = "Sampling")]
    no_histogram_matching: bool,

    /// Errors and warnings only
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,

    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Execution")]
    device: String,

    /// CPU threads [default: all]; nothing depends on them but speed
    #[arg(short, long, value_name = "N", help_heading = "Execution")]
    threads: Option<usize>,
}

pub fn run(args: &SuperResolve) -> anyhow::Result<()> {
    limits::set_threads(args.threads)?;
    let mut progress = Progress::new(args.quiet);
    check_output(&args.output, &args.scene)?;
    let device = draw::choose_device(&args.device, |line| progress.say(line))?;
    progress.busy("loading the model");
    let model = SuperResolver::open(&args.model, device)?;
    let mut source = Source::open(&args.scene, model.bands(), args.bands.as_deref())?;
    let own = model.sampling();
    let how = Enlargement {
        scale: args.scale(&source)?,
        seed: args.seed,
        sampling: Sampling {
            steps: args.steps.unwrap_or(own.steps),
            eta: args.eta.unwrap_or(own.eta),
            temperature: args.temperature.unwrap_or(own.temperature),
            match_histograms: !args.no_histogram_matching,
        },
    };
    let size = args.window.unwrap_or(model.window());
    let batch = args.batch_size.unwrap_or(if device == Device::Cpu { 1 } else { 4 });
    let windows = Windows { size, overlap: args.overlap.unwrap_or(size / 8), batch };
    // Before a file is begun.
    windows.check(model.multiple())?;
    how.check()?;
    model.check(&how.sampling)?;
    if windows.overlap == 0 {
        progress.warn("--overlap 0: windows stand side by side, and their edges may show");
    }
    let place = args.place(&source)?;
    if place.as_ref().is_none_or(|place| place.transform.is_none()) {
        progress.warn(&format!(
            "{}: no transform: what comes of it has no place either; --bbox and --epsg give it one",
            args.scene.display()
        ));
    }
    let about = source.about();
    let (width, height) = (SCALE * about.width, SCALE * about.height);
    let cog = Cog {
        georeference: place.map(|place| place.part(0.0, 0.0, 1.0 / SCALE as f64)),
        nodata: nodata(about),
        units: source.units(),
        ..Cog::new(width, height, model.bands(), about.samples)
    };
    let writer = CogWriter::create(&args.output, cog, true)?;
    let mut work = Work { progress: &mut progress, cancel: interrupt::switch(), writer };
    enlarge(&mut source, &model, &windows, &how, &mut work)?;
    work.writer.finish()?;
    progress.finish();
    progress.print(args.output.display());
    Ok(())
}

/// The output is a TIFF in a folder that is there, and not the scene.
fn check_output(output: &Path, scene: &Path) -> Result<()> {
    let is_tiff = output
        .extension()
        .is_some_and(|end| ["tif", "tiff"].iter().any(|tiff| end.eq_ignore_ascii_case(tiff)));
    if !is_tiff {
        let expected = "a file name that ends in .tif";
        return Err(Error::argument("output", output.display(), expected));
    }
    let parent = output.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
    atomic::check_folder(output, parent)?;
    match (fs::canonicalize(output), fs::canonicalize(scene)) {
        (Ok(a), Ok(b)) if a == b => {
            Err(Error::argument("output", output.display(), "another file than the scene itself"))
        }
        _ => Ok(()),
    }
}

impl SuperResolve {
    /// What numbers of the scene mean.
    fn scale(&self, source: &Source) -> Result<[f64; 2]> {
        match &self.scale {
            Some(scale) => <[f64; 2]>::try_from(scale.as_slice()).map_err(|_| {
                let found = scale.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
                Error::argument("scale", found, "two numbers: LOW,HIGH")
            }),
            None if !source.units().is_empty() => {
                Ok(picture::scale_of_units(&source.units(), source.path())?.bounds())
            }
            None if source.about().samples == SampleKind::U16 => Ok(REFLECTANCE),
            None => {
                let found = "none, for a scene of 8 bits,";
                let expected = "say which numbers stand for reflectances of 0 and of 1: LOW,HIGH";
                Err(Error::argument("scale", found, expected))
            }
        }
    }

    /// Where the scene lies: as its file says, or as these arguments do.
    fn place(&self, source: &Source) -> Result<Option<Georeference>> {
        let about = source.about();
        match (&self.bbox, self.epsg) {
            (Some(numbers), Some(epsg)) => {
                let bbox = args::bbox(numbers)?;
                Georeference::from_bbox(bbox, epsg, about.width, about.height).map(Some)
            }
            _ => Ok(about.georeference.clone()),
        }
    }
}

/// The large scene while it is made.
struct Work<'a> {
    progress: &'a mut Progress,
    cancel: Cancel,
    writer: CogWriter,
}

impl Onlooker for Work<'_> {
    fn start(&mut self, steps: usize) {
        self.progress.start(steps);
    }

    fn step(&mut self, steps: usize) -> Result<()> {
        (0..steps).for_each(|_| self.progress.step());
        self.cancel.check()
    }

    fn rows(&mut self, numbers: &[u8]) -> Result<()> {
        self.writer.write_rows(numbers)
    }
}
