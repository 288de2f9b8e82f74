//! `nadir metrics similarity`: pictures against each other, pair by pair.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use nadir::io::folder::Weights;
use nadir::io::image::{self, RgbImage};
use nadir::metrics::Pictures;
use nadir::metrics::similarity::{Ssim, Window, psnr, ssim};
use nadir::models::lpips::{Lpips, Trunk};
use nadir::nn::Params;
use nadir::tensor::{DType, Tensor};
use nadir::{Error, Result};

use super::draw::choose_device;
use super::metrics::{Execution, print};
use super::progress::Progress;
use super::{interrupt, limits, terminal};

/// Compare pictures pair by pair: PSNR, SSIM, LPIPS
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir metrics similarity before.png after.png
  nadir metrics similarity ours/ theirs/ --window gaussian
  nadir metrics similarity ours/ theirs/ --lpips lpips-alex.safetensors --json

Pictures of two folders go together in the order of their names. SSIM is scikit-image's: a window of 7x7 pixels, or with
--window gaussian a bell of deviation 1.5, by samples' variances. LPIPS needs weights: `nadir metrics weights`.")]
pub struct Similarity {
    /// A picture, a folder of them or a parquet file
    #[arg(value_name = "A")]
    first: PathBuf,

    /// As many of the same sizes
    #[arg(value_name = "B")]
    second: PathBuf,

    /// What SSIM looks through: uniform or gaussian
    #[arg(long, value_name = "WINDOW", default_value = "uniform", value_parser = ["uniform", "gaussian"])]
    #[arg(help_heading = "Metrics")]
    window: String,

    /// Weights of AlexNet or VGG16 and of LPIPS, a safetensors file
    #[arg(long, value_name = "FILE", help_heading = "Metrics")]
    lpips: Option<PathBuf>,

    #[command(flatten)]
    execution: Execution,
}

/// One picture, or many.
enum Side {
    One(PathBuf),
    Many(Pictures),
}

impl Side {
    fn open(path: &Path) -> Result<Self> {
        let is_data = path.is_dir() || path.extension().is_some_and(|e| e == "parquet");
        if is_data {
            Ok(Self::Many(Pictures::open(path, true)?))
        } else {
            Ok(Self::One(path.into()))
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many(pictures) => pictures.len(),
        }
    }

    fn get(&self, i: usize) -> Result<(String, RgbImage)> {
        match self {
            Self::One(path) => Ok((path.display().to_string(), image::open(path)?)),
            Self::Many(pictures) => Ok((pictures.name(i), pictures.get(i)?)),
        }
    }
}

pub fn run(args: &Similarity) -> anyhow::Result<()> {
    limits::set_threads(args.execution.threads)?;
    let mut progress = Progress::new(args.execution.quiet);
    let (first, second) = (Side::open(&args.first)?, Side::open(&args.second)?);
    if first.len() != second.len() {
        let found = format!("{} and {} pictures", first.len(), second.len());
        return Err(Error::argument("set", found, "as many on both sides").into());
    }
    let measure = match &args.lpips {
        Some(file) => {
            let device = choose_device(&args.execution.device, |line| progress.say(line))?;
            let weights = Weights::open_file(file)?;
            let params = Params::new(weights, DType::F32, device);
            // Their third convolutions differ: AlexNet's is the layer 6, VGG16's the layer 5.
            let is_alex = ["features.6.weight", "net.slice3.6.weight"]
                .iter()
                .any(|name| params.contains(name));
            let measure = Lpips::load(&params, if is_alex { Trunk::Alex } else { Trunk::Vgg });
            Some(measure.and_then(|measure| params.finish().map(|_| measure))?)
        }
        None => None,
    };
    let window = match args.window.as_str() {
        "gaussian" => Window::Gaussian(1.5),
        _ => Window::Uniform(7),
    };
    let settings = Ssim { window, ..Ssim::default() };
    let stop = interrupt::switch();
    progress.start(first.len());
    let mut pairs = Vec::new();
    for i in 0..first.len() {
        stop.check()?;
        let ((of_a, a), (of_b, b)) = (first.get(i)?, second.get(i)?);
        if a.dimensions() != b.dimensions() {
            let found = format!("{}x{}", b.width(), b.height());
            let expected = format!("{}x{} pixels as {of_a}", a.width(), a.height());
            let advice = "Scale one of them first.";
            return Err(Error::file(of_b, "picture", expected, found, advice).into());
        }
        let (x, y) = (levels(&a)?, levels(&b)?);
        let mut pair = json!({
            "a": of_a,
            "b": of_b,
            // Of equal pictures it is infinite, which JSON has not: null.
            "psnr": psnr(&x, &y, 255.0)?,
            "ssim": ssim(&x, &y, &settings)?,
        });
        if let Some(measure) = &measure {
            let (x, y) = (image::to_tensor(&a)?, image::to_tensor(&b)?);
            pair["lpips"] = json!(measure.distance(&x, &y)?[0]);
        }
        pairs.push(pair);
        progress.step();
    }
    progress.finish();
    if args.execution.json {
        let report = serde_json::to_string_pretty(&json!({ "pairs": pairs }))?;
        return print(&terminal::printable_json(&report));
    }
    print(&terminal::printable_text(&describe(&pairs)))
}

/// [H, W, 3], f64.
fn levels(picture: &RgbImage) -> Result<Tensor> {
    let shape = [picture.height() as usize, picture.width() as usize, 3];
    Tensor::from_vec(picture.as_raw().iter().map(|&x| f64::from(x)).collect(), shape)
}

fn describe(pairs: &[Value]) -> String {
    let of = |pair: &Value, key: &str| pair[key].as_f64().unwrap_or(f64::INFINITY);
    let line = |name: &str, figures: &dyn Fn(&str) -> f64| {
        let mut line = format!("{:>7.2} dB  ssim {:.5}", figures("psnr"), figures("ssim"));
        if pairs[0].get("lpips").is_some() {
            line += &format!("  lpips {:.5}", figures("lpips"));
        }
        format!("{line}  {name}\n")
    };
    let mut text = String::new();
    for pair in pairs {
        text += &line(pair["a"].as_str().unwrap_or_default(), &|key| of(pair, key));
    }
    if pairs.len() > 1 {
        let mean =
            |key: &str| pairs.iter().map(|pair| of(pair, key)).sum::<f64>() / pairs.len() as f64;
        text += &line("mean", &mean);
    }
    text.truncate(text.trim_end().len());
    text
}
