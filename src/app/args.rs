//! Arguments as they are typed. What they mean together is decided where they are used.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::builder::styling::{AnsiColor, Style, Styles};
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use nadir::Error;
use nadir::io::checkpoint::Prediction;
use nadir::io::hub;
use nadir::io::picture::{Samples, Scale, ShownBands};
use nadir::nn::lora::Adapter;
use nadir::pipeline::{Inversion, Preprocessor, Settings};
use nadir::tensor::DType;

use super::recipe::ControlSource;

const STYLES: Styles = Styles::styled()
    .header(Style::new().bold())
    .usage(Style::new().bold())
    .literal(AnsiColor::Cyan.on_default())
    .error(AnsiColor::Red.on_default().bold());

/// Satellite imagery from text.
#[derive(Debug, Parser)]
#[command(
    name = "nadir",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    styles = STYLES,
    after_help = "\
Start here:
  nadir generate \"a satellite image of a river\"     draw a picture with the model that ships
  nadir generate --help                             all that can be set, with examples
  nadir doctor                                      what this machine and this build can do

Environment:
  NADIR_WEIGHTS   folder with the models that ship, where it is not beside the program
  NADIR_SIMD      portable, avx2 or avx512: CPU kernels for less than the machine can do
  HF_HUB_CACHE    the hub cache (then HF_HOME/hub, then ~/.cache/huggingface/hub)"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, and it is parsed once")]
pub enum Command {
    Generate(Generate),
    Replay(Replay),
    Convert(super::convert::Convert),
    Serve(Box<super::serve::Serve>),
    #[command(subcommand)]
    Data(Data),
    Corpus(super::corpus::Corpus),
    Synthesize(Box<super::synthesize::Synthesize>),
    Classify(super::classify::Classify),
    Segment(super::segment::Segment),
    SuperResolve(Box<super::super_resolve::SuperResolve>),
    Scene(Box<super::canvas::Scene>),
    #[command(subcommand)]
    Evaluate(super::evaluate::Evaluate),
    Train(super::train::Train),
    #[command(subcommand)]
    Lm(super::lm::Lm),
    #[command(subcommand)]
    Metrics(super::metrics::Metrics),
    #[command(subcommand)]
    Bench(super::bench::Bench),
    Profile(Profile),
    Doctor(Doctor),
}

/// Draw pictures of a text
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir generate \"a satellite image of a river\"
  nadir generate \"an aerial view of dense forest\" -b 4 -s 7 -o pictures/
  nadir generate \"a satellite image of a sea or lake\" --init-image chip.png --strength 0.6
  nadir generate \"a river\" --init-image chip.png --mask-image mask.png
  nadir generate \"an airport, two runways\" -m stable-diffusion-v1-5/stable-diffusion-v1-5 --variant fp16
  nadir generate \"a harbour\" -m models/my-sd -W 768 --scheduler dpm++2m_karras --steps 25
  nadir generate \"a harbour\" -m v2-1_768.safetensors --prediction v
  nadir generate \"a harbour\" -m models/my-sd --lora harbours.safetensors:0.8 --lora winter.safetensors
  nadir generate \"a harbour\" -m models/my-sd --vae models/taesd
  nadir generate \"a harbour in the style of <coast>\" -m models/my-sd --embedding \"coast.safetensors:<coast>\"
  nadir generate \"a harbour in winter\" -m models/my-sd --ip-adapter ip-adapter_sd15.safetensors \\
      --image-encoder models/image_encoder --ip-image chip.png --ip-scale 0.6
  nadir generate \"a harbour\" -o harbour.tif --bbox 485900,5205627,486540,5206267 --epsg 26914
  nadir generate \"the same in winter\" --init-image s2.tif --scale 0,10000 --strength 0.5 -o winter.tif
  nadir generate \"a forest\" -m models/four-bands --samples u16 --scale 0,10000 -o forest.tif
  nadir generate \"a forest\" -m models/four-bands --preview-bands 3,2,1 -o forest.png
  nadir generate --manifest prompts.jsonl --shard 3/8 --batch 8 -o pictures/
  nadir generate \"16_GOOGLE_LEVEL_a harbour\" -m lcybuaa/Text2Earth -W 256 -H 256
  nadir generate \"a harbour\" -m models/diffusionsat --gsd 1.2m --place 48.85,2.35 --date 2021-07-04
  nadir generate \"a river\" -b 64 --batch 8 --deadline-ms 500 --min-steps 10 -o pictures/

Paths of the pictures go to standard output, one a line; all else goes to standard error.
Exit codes: 0 done, 1 failed, 2 a request that cannot be served as it is, 130 interrupted
(143 by SIGTERM, 129 by SIGHUP; what is finished is kept).")]
pub struct Generate {
    #[command(flatten)]
    pub prompt: Prompt,

    #[command(flatten)]
    pub settings: Settings,

    /// Model: a diffusers folder, an original checkpoint (.safetensors), `org/name` in the local hub cache, or one that ships
    ///
    /// Nothing is ever downloaded. Without it: eurosat-64, made for 64x64 Sentinel-2-like chips.
    #[arg(short, long, value_name = "MODEL", help_heading = "Model")]
    pub model: Option<String>,

    #[command(flatten)]
    pub original: Original,

    #[command(flatten)]
    pub execution: Execution,

    #[command(flatten)]
    pub time: Time,

    /// Weight files of this variant: `fp16` for `model.fp16.safetensors`
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    pub variant: Option<String>,

    /// Autoencoder in the place of the model's: a diffusers folder with an AutoencoderKL or an AutoencoderTiny
    ///
    /// TAESD (madebyollin/taesd) is of the second kind: coarser, and many times faster. A model that has one as its vae needs none.
    /// Like adapters, ControlNets and encoders it may be a path, `org/name` in the local hub cache, or a path in that.
    #[arg(long, value_name = "DIR", visible_alias = "taesd", help_heading = "Model", value_parser = beside)]
    pub vae: Option<PathBuf>,

    /// Add this low-rank adapter to the model's weights, WEIGHT times [default: 1]; may be repeated
    ///
    /// A safetensors file of diffusers, peft or kohya, for UNet and text encoder, or the folder that one of the first two
    /// has saved it in.
    #[arg(long, value_name = "FILE[:WEIGHT]", help_heading = "Model", value_parser = adapter)]
    pub lora: Vec<Adapter>,

    /// Teach the model a word: a textual inversion, which stands in prompts as TOKEN; may be repeated
    ///
    /// A safetensors file of diffusers, whose tensor is named by its token, or of the web UI or for SDXL, whose file is.
    #[arg(long, value_name = "FILE[:TOKEN]", help_heading = "Model", value_parser = inversion)]
    pub embedding: Vec<Inversion>,

    /// Number of pictures, with the seeds SEED, SEED+1, ...; each equals the one made alone
    #[arg(short = 'b', long, value_name = "N", default_value_t = 1, help_heading = "Picture")]
    #[arg(allow_negative_numbers = true)]
    #[arg(visible_alias = "num-images-per-prompt", alias = "batch-count")]
    pub num_images: usize,

    /// Seed of the first picture; -1 or nothing: a random one, which is printed
    #[arg(short, long, value_name = "N", help_heading = "Picture")]
    #[arg(allow_negative_numbers = true, value_parser = parse_seed)]
    pub seed: Option<Seed>,

    /// Start from this picture instead of from noise
    #[arg(short, long, value_name = "FILE", help_heading = "Image to image", alias = "init-img")]
    pub init_image: Option<PathBuf>,

    /// Draw only where this picture is white, and keep the init image where it is black; of one band of 16 bits or floats, where
    /// numbers are not 0
    #[arg(long, value_name = "FILE", help_heading = "Image to image", alias = "mask")]
    #[arg(requires = "init_image")]
    pub mask_image: Option<PathBuf>,

    #[command(flatten)]
    pub control: ControlArgs,

    #[command(flatten)]
    pub image_prompt: ImagePromptArgs,

    /// A .png file, a folder that gets nadir-SEED.png for each picture, or - [default: this folder]
    ///
    /// A file that is named is replaced; with several pictures its name gets the seed (FILE-SEED.png).
    /// In a folder nothing is replaced: a name that is taken gets a number. - is standard output.
    #[arg(short, long, value_name = "PATH", help_heading = "Output")]
    pub output: Option<PathBuf>,

    /// Write nothing into the file but the picture: it cannot be replayed
    #[arg(long, help_heading = "Output")]
    pub no_metadata: bool,

    /// Also write all pictures as one, side by side
    #[arg(long, help_heading = "Output")]
    pub grid: bool,

    /// Where the picture lies, a GeoTIFF then (-o NAME.tif): west,south,east,north, in units of --epsg
    ///
    /// Without it a GeoTIFF lies where the picture lies that it starts from.
    #[arg(long, value_name = "BOX", value_delimiter = ',', num_args = 1, requires = "epsg")]
    #[arg(allow_hyphen_values = true, help_heading = "Output")]
    pub bbox: Option<Vec<f64>>,

    /// EPSG code of the reference system of --bbox
    #[arg(long, value_name = "CODE", requires = "bbox", help_heading = "Output")]
    pub epsg: Option<u32>,

    #[command(flatten)]
    pub numbers: Numbers,

    /// Only the I-th of N parts of the manifest
    #[arg(long, value_name = "I/N", help_heading = "Output", value_parser = typed::<super::manifest::Shard>)]
    pub shard: Option<super::manifest::Shard>,
}

/// What the numbers of pictures are in files.
#[derive(Clone, Copy, Debug, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct Numbers {
    /// Numbers of a GeoTIFF: u8, u16 or f32 [default: those of the raster that it starts from, or u8]
    #[arg(long, value_name = "TYPE", value_parser = typed::<Samples>)]
    pub samples: Option<Samples>,

    /// The darkest and the brightest number of rasters of 16 bits or floats, read and written: 0,10000 for reflectances
    ///
    /// Of 8 bits these are 0 and 255 always, of floats that are written 0 and 1 unless it is said. A raster of other numbers is
    /// not drawn from without it, unless the scale and offset of its bands say what stands for 0 and 1.
    #[arg(long, value_name = "LOW,HIGH", value_parser = typed::<Scale>, allow_hyphen_values = true)]
    pub scale: Option<Scale>,

    /// Bands that a PNG shows as red, green and blue, counted from 1: for a model of other bands than grey or RGB
    #[arg(long, value_name = "R,G,B", value_parser = typed::<ShownBands>)]
    pub preview_bands: Option<ShownBands>,
}

/// A picture as a prompt.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "IP-Adapter")]
pub struct ImagePromptArgs {
    /// Draw by a picture too: an IP-Adapter or an IP-Adapter Plus, safetensors
    #[arg(long, value_name = "FILE", value_parser = beside)]
    pub ip_adapter: Option<PathBuf>,

    /// The picture that is its prompt, of any size; it sees the middle
    #[arg(long, value_name = "FILE", requires = "ip_adapter")]
    pub ip_image: Option<PathBuf>,

    /// How much it counts beside the text [default: 1]
    #[arg(long, value_name = "X", requires = "ip_adapter", allow_negative_numbers = true)]
    pub ip_scale: Option<f32>,

    /// The CLIP that looks at it, a folder [default: image_encoder of the model]
    #[arg(long, value_name = "DIR", requires = "ip_adapter", value_parser = beside)]
    pub image_encoder: Option<PathBuf>,
}

/// The numbers of `--bbox`.
///
/// # Errors
/// There are not four.
pub fn bbox(numbers: &[f64]) -> nadir::Result<[f64; 4]> {
    <[f64; 4]>::try_from(numbers).map_err(|_| {
        let found = numbers.iter().map(f64::to_string).collect::<Vec<_>>().join(",");
        Error::argument("bbox", found, "four numbers: west,south,east,north")
    })
}

/// Pictures that are followed. What is given once holds for all ControlNets, else it is given for each.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "ControlNet")]
pub struct ControlArgs {
    /// Follow a picture by this ControlNet, a diffusers folder, `org/name` in the local hub cache or an original file (.safetensors);
    /// may be repeated. One that the model has comes first
    #[arg(long, value_name = "PATH", value_parser = beside)]
    pub controlnet: Vec<PathBuf>,

    /// The picture to follow, one for each ControlNet, in their order
    #[arg(long, value_name = "FILE")]
    pub control_image: Vec<PathBuf>,

    /// What is made of it: as-is, canny, canny:LOW,HIGH, or palette:FILE.json, which colours the classes of a mask
    #[arg(long, value_name = "HOW", value_parser = typed::<Preprocessor>)]
    pub control_preprocessor: Vec<Preprocessor>,

    /// How much it counts [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub control_scale: Vec<f32>,

    /// Share of the steps at which it begins to count [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub control_start: Vec<f64>,

    /// Share of the steps at which it no longer counts [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub control_end: Vec<f64>,

    /// Follow pictures whatever the prompt says: the unconditional half of guidance does not see them
    #[arg(long)]
    pub guess_mode: bool,
}

impl ControlArgs {
    /// The pictures, each with what is said of it.
    ///
    /// # Errors
    /// Something is said of more or fewer pictures than there are.
    pub fn sources(&self) -> nadir::Result<Vec<ControlSource>> {
        fn each<T: Clone>(
            name: &'static str,
            given: &[T],
            default: T,
            n: usize,
        ) -> nadir::Result<Vec<T>> {
            match given {
                [] => Ok(vec![default; n]),
                [one] if n > 0 => Ok(vec![one.clone(); n]),
                all if all.len() == n => Ok(all.to_vec()),
                all => {
                    let expected = format!("one for all, or one for each of {n} --control-image");
                    Err(Error::argument(name, format!("{} of them", all.len()), expected))
                }
            }
        }
        let n = self.control_image.len();
        let how =
            each("control_preprocessor", &self.control_preprocessor, Preprocessor::AsItIs, n)?;
        let scales = each("control_scale", &self.control_scale, 1.0, n)?;
        let starts = each("control_start", &self.control_start, 0.0, n)?;
        let ends = each("control_end", &self.control_end, 1.0, n)?;
        let sources = self.control_image.iter().enumerate().map(|(i, path)| ControlSource {
            path: path.clone(),
            preprocessor: how[i].clone(),
            scale: scales[i],
            start: starts[i],
            end: ends[i],
            hash: String::new(),
        });
        Ok(sources.collect())
    }
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Prompt {
    /// What the picture shows; `(word:1.3)` gives a word more weight
    #[arg(value_name = "PROMPT")]
    pub positional: Option<String>,

    /// The prompt, for those who like to name it
    #[arg(id = "prompt", short = 'p', long = "prompt", value_name = "TEXT")]
    pub named: Option<String>,

    /// A picture for each row of this file: .jsonl, .csv or .parquet, with columns prompt, seed, steps, control_image, ...
    ///
    /// Names follow from the whole request, and one that is there is done: several processes may share a folder, and one
    /// that was stopped goes on. What a row does not say the command line does; its seed is --seed and the row's number.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub manifest: Option<PathBuf>,
}

/// What an original checkpoint does not say of itself.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Model")]
pub struct Original {
    /// Tokenizer of an original checkpoint, which has none [default: CLIP's, which ships]
    ///
    /// A folder with tokenizer.json, or vocab.json and merges.txt.
    #[arg(long, value_name = "FOLDER")]
    pub tokenizer: Option<PathBuf>,

    /// What the UNet of an original checkpoint predicts: epsilon or v [default: what its metadata say; of 1.x and XL epsilon]
    #[arg(long, value_name = "TYPE", value_parser = typed::<Prediction>)]
    pub prediction: Option<Prediction>,
}

/// Where and how to compute: what no picture's content depends on, but for the rounding of `dtype`.
#[derive(Debug, Args)]
pub struct Execution {
    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Model")]
    pub device: String,

    /// Numbers that weights and activations are held in: f32, bf16 or f16 [default: f32]
    #[arg(long, value_name = "TYPE", help_heading = "Model", value_parser = typed::<DType>)]
    pub dtype: Option<DType>,

    /// CPU threads [default: all]; the picture does not depend on them
    #[arg(short, long, value_name = "N", help_heading = "Model")]
    #[arg(allow_negative_numbers = true)]
    pub threads: Option<usize>,

    /// Pictures computed at once; they do not depend on it, memory and speed do
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Model")]
    #[arg(allow_negative_numbers = true)]
    pub batch: usize,

    /// Errors and warnings only
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
}

/// How long pictures may take. What cannot be kept is refused before anything is drawn, with what can.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Time")]
pub struct Time {
    /// Milliseconds for each batch of pictures, from its prompts to its last one
    ///
    /// The machine is measured for some seconds; then batch (--min-batch to --batch) and steps (down to --min-steps) are chosen, and,
    /// unless --scheduler names one, a sampler for few steps where there is no time for all. At the end it is said how long batches
    /// took.
    #[arg(long, value_name = "N")]
    pub deadline_ms: Option<u64>,

    /// Pictures a second, likewise
    #[arg(long, value_name = "R", conflicts_with = "deadline_ms", allow_negative_numbers = true)]
    pub images_per_second: Option<f64>,

    /// As few pictures at once as will do [default: 1]
    #[arg(long, value_name = "N")]
    pub min_batch: Option<usize>,

    /// As few steps as will do [default: --steps, or half of the model's own]
    #[arg(long, value_name = "N")]
    pub min_steps: Option<usize>,
}

/// Make a picture again from what its file says
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir replay nadir-42.png
  nadir replay nadir-42.png -o again.png
  nadir replay nadir-42.png --model models/my-sd
  nadir replay nadir-42.png --dry-run

The result is equal bit for bit on the same build, processor family, device and dtype.")]
pub struct Replay {
    /// A PNG that nadir wrote
    #[arg(value_name = "IMAGE")]
    pub image: PathBuf,

    /// A .png file, a folder, or - for standard output [default: this folder, under a name that is free]
    #[arg(short, long, value_name = "PATH", help_heading = "Output")]
    pub output: Option<PathBuf>,

    /// Print as JSON what would be drawn, and draw nothing
    #[arg(long, help_heading = "Output")]
    pub dry_run: bool,

    /// The model, where it has moved since [default: what the picture names]
    #[arg(short, long, value_name = "MODEL", help_heading = "Model")]
    pub model: Option<String>,

    /// The init image, where it has moved since [default: what the picture names]
    #[arg(short, long, value_name = "FILE", help_heading = "Image to image", alias = "init-img")]
    pub init_image: Option<PathBuf>,

    /// The mask, where it has moved since [default: what the picture names]
    #[arg(long, value_name = "FILE", help_heading = "Image to image", alias = "mask")]
    pub mask_image: Option<PathBuf>,

    /// Bands that a PNG shows, of a GeoTIFF that has others than grey or RGB: RED,GREEN,BLUE, counted from 1
    #[arg(long, value_name = "R,G,B", value_parser = typed::<ShownBands>, help_heading = "Output")]
    pub preview_bands: Option<ShownBands>,

    /// The tokenizer of an original checkpoint, where it has moved since [default: what the picture names]
    #[arg(long, value_name = "FOLDER", help_heading = "Model")]
    pub tokenizer: Option<PathBuf>,

    /// The autoencoder beside the model, where it has moved since [default: what the picture names]
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub vae: Option<PathBuf>,

    /// The adapter, where it has moved since; of several all, in their order [default: what the picture names]
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub lora: Vec<PathBuf>,

    /// The textual inversion, where it has moved since; of several all, in their order [default: what the picture names]
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub embedding: Vec<PathBuf>,

    #[command(flatten)]
    pub execution: Execution,
}

/// Look at data sets
#[derive(Debug, Subcommand)]
pub enum Data {
    Inspect(Inspect),
}

/// Say what a data set holds: rows, classes, captions, sizes, what cannot be used
///
/// Every picture is decoded, as training does before it begins.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir data inspect rsicd-train.parquet
  nadir data inspect rsicd-train.parquet --sheet contact-sheet.png
  nadir data inspect pictures/                        a folder with a metadata.jsonl
  nadir data inspect eurosat.parquet --caption-template \"a satellite image of {class}\"
  nadir data inspect rsicd-train.parquet --json | jq .classes

A parquet file has a column image (bytes, path), and filename and captions (a list of texts) as RSICD on the hub has,
or label (a number) and class (its name). A line of a metadata.jsonl is an object with file_name, and text or captions,
label, class.

Exit codes: 0 done, 2 the file cannot be used (with --strict: or one of its rows).")]
pub struct Inspect {
    /// A parquet file, or a folder with a metadata.jsonl
    #[arg(value_name = "PATH")]
    pub path: PathBuf,

    /// Write pictures of every class into one PNG: a row for each, in the order of the labels
    #[arg(short, long, value_name = "FILE", visible_alias = "contact-sheet")]
    pub sheet: Option<PathBuf>,

    /// Show captions as this sentence makes them of classes; {class} is the name
    #[arg(long, value_name = "TEXT")]
    pub caption_template: Vec<String>,

    /// JSON file with other words for classes, {"Forest": ["forest", "woodland"]}
    #[arg(long, value_name = "FILE")]
    pub class_words: Option<PathBuf>,

    /// Stop at a row that cannot be used, rather than count it
    #[arg(long)]
    pub strict: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Say which kernels a picture takes on a GPU, how often, and how long they are
///
/// On a card times are measured by events around every launch, in a second run behind one that loads the kernels. On the
/// virtual device, whose times mean nothing, instructions and memory traffic are counted.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir profile \"a satellite image of a river\" --device cuda --steps 4
  nadir profile \"a harbour\" -m models/my-sd --dtype bf16 --steps 4 --batch 4
  VGPU_COUNTERS=counts.jsonl cargo xtask vgpu nadir profile \"a river\" --steps 1

Nothing is written but the table.")]
pub struct Profile {
    #[command(flatten)]
    pub prompt: Prompt,

    #[command(flatten)]
    pub settings: Settings,

    /// Model: a diffusers folder, `org/name` in the local hub cache, or a model that ships
    #[arg(short, long, value_name = "MODEL", help_heading = "Model")]
    pub model: Option<String>,

    /// Weight files of this variant: `fp16` for `model.fp16.safetensors`
    #[arg(long, value_name = "NAME", help_heading = "Model")]
    pub variant: Option<String>,

    /// What the rows of the table are: kernels, or the parts of the model that launched them
    #[arg(long, value_enum, default_value_t, value_name = "ROWS", help_heading = "Table")]
    pub by: ProfileBy,

    #[command(flatten)]
    pub execution: Execution,
}

/// See [`Profile::by`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ProfileBy {
    #[default]
    Kernel,
    Module,
}

/// Say what this machine and this build can do
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir doctor
  nadir doctor --json | jq .cuda

Exit codes: 0 the default model can be used, 1 it cannot.")]
pub struct Doctor {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The flag for a field of the library's: what an argument is called inside is what the library calls it.
pub fn flag(field: &str) -> String {
    fn long(command: &clap::Command, field: &str) -> Option<String> {
        let own = command.get_arguments().find(|arg| arg.get_id() == field);
        let own = own.and_then(|arg| arg.get_long()).map(|long| format!("--{long}"));
        own.or_else(|| command.get_subcommands().find_map(|command| long(command, field)))
    }
    long(&Cli::command(), field).unwrap_or_else(|| field.to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seed {
    Random,
    Number(u64),
}

/// A file or folder beside a model: a path, `org/name` in the local hub cache, or a path in that.
///
/// # Errors
/// `org/name` is not in the cache.
pub fn beside(text: &str) -> Result<PathBuf, Error> {
    hub::locate_beside(Path::new(text))
}

/// A low-rank adapter, which is [`beside`] a model.
///
/// # Errors
/// As [`typed`] and [`beside`].
pub fn adapter(text: &str) -> Result<Adapter, String> {
    let adapter: Adapter = typed(text)?;
    let path = hub::locate_beside(&adapter.path).map_err(|error| error.to_string())?;
    Ok(Adapter { path, ..adapter })
}

/// A textual inversion, likewise.
///
/// # Errors
/// As [`adapter`].
pub fn inversion(text: &str) -> Result<Inversion, String> {
    let inversion: Inversion = typed(text)?;
    let path = hub::locate_beside(&inversion.path).map_err(|error| error.to_string())?;
    Ok(Inversion { path, ..inversion })
}

/// A value of the library's, whose error names the flag once more than is needed here.
pub fn typed<T: FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| match error {
        Error::Argument { expected, .. } => expected,
        other => other.to_string(),
    })
}

fn parse_seed(text: &str) -> Result<Seed, String> {
    if text == "-1" {
        return Ok(Seed::Random);
    }
    let range = "expected a whole number from 0 to 2^64 - 1, or -1 for a random one";
    text.parse().map(Seed::Number).map_err(|_| range.to_owned())
}

/// Underscores in the names of long flags become dashes: `--num_inference_steps` is how Python's tools spell it.
pub fn dashed(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut flags = true;
    let dash = |arg: OsString| {
        flags &= arg != "--";
        match arg.to_str() {
            Some(text) if flags && text.starts_with("--") => {
                let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
                (name.replace('_', "-") + value).into()
            }
            _ => arg,
        }
    };
    args.into_iter().map(dash).collect()
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    fn parse(args: &[&str]) -> Result<Generate, clap::Error> {
        let args = ["nadir", "generate"].iter().chain(args).map(OsString::from);
        match Cli::try_parse_from(dashed(args))?.command {
            Command::Generate(generate) => Ok(generate),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn names_of_diffusers_and_of_stable_diffusion_cpp_are_understood() {
        let diffusers = "--prompt=a_river --negative_prompt=b --num_inference_steps 7 --guidance_scale 2 \
            --num_images_per_prompt 3 --seed 5 --guidance_rescale 0.5 --clip_skip 1 --eta 1 --width 8 --height 16";
        let sd_cpp = "-p a_river -n b --steps 7 --cfg-scale 2 -b 3 -s 5 --guidance-rescale 0.5 --clip-skip 1 \
            --eta 1 -W 8 -H 16";
        for line in [diffusers, sd_cpp] {
            let args: Vec<_> = line.split_whitespace().collect();
            let parsed = parse(&args).unwrap();
            assert_eq!(parsed.prompt.named.as_deref(), Some("a_river"));
            assert_eq!((parsed.num_images, parsed.seed), (3, Some(Seed::Number(5))));
            let settings = parsed.settings;
            assert_eq!(settings.negative_prompt, "b");
            assert_eq!((settings.steps, settings.guidance_scale), (Some(7), Some(2.0)));
            assert_eq!((settings.guidance_rescale, settings.clip_skip), (0.5, 1));
            assert_eq!((settings.eta, settings.width, settings.height), (1.0, Some(8), Some(16)));
        }
        let settings = parse(&["x", "--sampling-method", "euler"]).unwrap().settings;
        assert_eq!(settings.scheduler.as_deref(), Some("euler"));
    }

    #[test]
    fn arguments_default_to_what_the_library_does() {
        assert_eq!(parse(&["x"]).unwrap().settings, Settings::default());
    }

    #[test]
    fn every_field_of_the_library_has_a_flag() {
        let settings = serde_json::to_value(Settings {
            scheduler: Some(String::new()),
            prompt_2: "a".into(),
            negative_prompt_2: "b".into(),
            strength: Some(0.0),
            level: Some(16),
            gsd: "1.2m".parse().ok(),
            place: "48.85,2.35".parse().ok(),
            date: "2021-07-04".parse().ok(),
            cloud: Some(0.1),
            class_labels: Some(vec![1.0]),
            original_size: "8,8".parse().ok(),
            crops_coords_top_left: "8,8".parse().ok(),
            target_size: "8,8".parse().ok(),
            negative_original_size: "8,8".parse().ok(),
            negative_crops_coords_top_left: "8,8".parse().ok(),
            negative_target_size: "8,8".parse().ok(),
            ..Settings::default()
        });
        for field in settings.unwrap().as_object().unwrap().keys() {
            let field = if field == "num_inference_steps" { "steps" } else { field };
            assert!(flag(field).starts_with("--"), "{field}");
        }
        let flags = [
            ("guidance_scale", "--cfg-scale"),
            ("prompt", "--prompt"),
            ("init_image", "--init-image"),
            ("device", "--device"),
            ("threads", "--threads"),
            ("nothing", "nothing"),
        ];
        flags.iter().for_each(|(field, expected)| assert_eq!(flag(field), *expected));
    }

    #[test]
    fn one_prompt_is_needed_and_it_may_be_empty() {
        let kind = |args: &[&str]| parse(args).unwrap_err().kind();
        assert_eq!(kind(&[]), ErrorKind::MissingRequiredArgument);
        assert_eq!(kind(&["a", "-p", "b"]), ErrorKind::ArgumentConflict);
        assert_eq!(parse(&[""]).unwrap().prompt.positional.as_deref(), Some(""));
        assert_eq!(parse(&["--", "--a_b"]).unwrap().prompt.positional.as_deref(), Some("--a_b"));
    }

    #[test]
    fn seeds() {
        assert_eq!(parse_seed("18446744073709551615"), Ok(Seed::Number(u64::MAX)));
        assert_eq!(parse(&["x", "-s", "-1"]).unwrap().seed, Some(Seed::Random));
        for wrong in ["-2", "1.5"] {
            let error = parse(&["x", "-s", wrong]).unwrap_err().to_string();
            assert!(error.contains("--seed") && error.contains("whole number"), "{error}");
        }
    }
}
