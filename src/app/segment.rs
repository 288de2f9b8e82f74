//! `nadir segment`: a class for each pixel.

use std::path::PathBuf;

use clap::Args;

use nadir::pipeline::pixel_classifier::PixelClassifier;
use nadir::pipeline::scene::{Source, Windows, segment};
use nadir::tensor::Device;

use super::progress::Progress;
use super::scene::{Classes, SceneArgs, Work};
use super::{draw, limits};

/// Height and width of a window, where none is asked for: much more than what a pixel's class depends on.
const WINDOW: usize = 512;

/// Tell a class for each pixel of pictures and scenes
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir segment scene.tif -m run/water/segmenter
  nadir segment scene.tif -m run/water/segmenter -o water.tif --overlay --colors land=#ccb28a,water=#2b6cc4
  nadir segment chips/ -m run/fields/segmenter -o masks/ --json > areas.jsonl
  nadir segment sentinel.tif -m run/fields/segmenter --bands 4,3,2,8 --window 1024 --overlap 128 --device cuda
  nadir segment picture.png -m run/water/segmenter -o mask.tif --bbox 485900,5205627,490570,5209247 --epsg 26914

A TIFF gives a Cloud-Optimized GeoTIFF at the same place, with the classes' colours and names and 255 where the scene has no
data; it may be larger than memory. Other pictures give a PNG with a palette. A scene is looked at through windows that
overlap; what they find is blended by weights that fall off as a raised cosine.
The model is a folder that `nadir train segment` has written, or segmentation-models-pytorch's save_pretrained. Classes and
normalisation are those of its config.json (_classes, _mean, _std), without which they are numbers and ImageNet's. One that
was trained with --normalize picture normalises each band by its own mean and deviation over the pixels that have data.
The masks' paths go to standard output, or with --json an object each: pixels and share of each class, and its area where
the reference system is one of lengths.
Exit codes: 0 done, 2 a picture, a model or an output that cannot be used, 130 interrupted: of the scene under way nothing
stays.")]
pub struct Segment {
    /// Pictures, GeoTIFF scenes, or folders of them
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,

    /// Segmenter: a folder with config.json and weights
    #[arg(short, long, value_name = "DIR")]
    model: PathBuf,

    #[command(flatten)]
    scene: SceneArgs,

    /// Print a JSON object for each mask: pixels, share and area of each class
    #[arg(long, help_heading = "Output")]
    json: bool,

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

pub fn run(args: &Segment) -> anyhow::Result<()> {
    limits::set_threads(args.threads)?;
    let progress = Progress::new(args.quiet);
    let device = draw::choose_device(&args.device, |line| progress.say(line))?;
    let model = PixelClassifier::open(&args.model, device)?;
    if !model.states_normalization() {
        progress.warn(&format!(
            "{}: config.json has no _mean and _std: levels are normalised as for ImageNet",
            model.folder().display()
        ));
    }
    let size = args.scene.window.unwrap_or(WINDOW);
    let batch = args.scene.batch_size.unwrap_or(if device == Device::Cpu { 1 } else { 8 });
    let windows = Windows { size, overlap: args.scene.overlap.unwrap_or(size / 8), batch };
    windows.check(model.multiple())?;
    if windows.overlap == 0 {
        progress.warn("--overlap 0: windows stand side by side, and their edges may show");
    }
    let classes = Classes { names: model.classes(), mean: model.mean(), std: model.std() };
    let look = |source: &mut Source, work: &mut Work| segment(source, &model, &windows, work);
    let shown = (args.quiet, args.json);
    args.scene.carry_out(&args.paths, (model.bands(), 1), &classes, shown, look)
}
