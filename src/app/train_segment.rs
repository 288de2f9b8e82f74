//! `nadir train segment`: from arguments to a run.

use std::path::PathBuf;

use clap::Args;
use nadir::Error;
use nadir::data::masks::{MaskSettings, MaskedPictures};
use nadir::models::segmentation::{
    Decoder, DeepLabConfig, FpnConfig, SegmentationConfig, UnetConfig,
};
use nadir::tensor::DType;
use nadir::train::segment::{MaskLoss, SegmentTask};

use super::train::{RunArgs, carry_out, prepare};
use super::training_recipe::SegmentRecipe;

/// Train a network that tells a class for each pixel
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nadir train segment --train-data chips/ -o run/water --classes land,water --resolution 128 --network unet \\
      --encoder resnet18 --base-width 16 --loss cross-entropy --loss dice --train-batch-size 8 --max-train-steps 600 \\
      --learning-rate 1e-3 --lr-scheduler cosine --random-flip --vertical-flip --random-rotate
  nadir train segment --train-data chips/ -o run/fields --recipe downstream --init-from models/unet

A folder has images/NAME.tif and masks/NAME.png; TIFFs are read with all of their bands, of 8 or 16 bits. A parquet file
has columns image and mask. Levels of masks are classes. Bands are normalised by their mean and deviation over the data, or with
--normalize picture over each picture, where light differs between pictures more than between classes.
The folder gets segmenter/ (config.json and model.safetensors, which segmentation-models-pytorch's from_pretrained reads
where --base-width is 64), checkpoint-STEP/, metrics.csv, logs/ for TensorBoard and report.html.")]
pub struct TrainSegment {
    /// Folder with images/ and masks/, or parquet file with columns image and mask
    #[arg(long = "train-data", value_name = "PATH", alias = "train-data-dir", alias = "dataset")]
    train_data: PathBuf,

    /// What is held out: likewise
    #[arg(long, value_name = "PATH", conflicts_with = "validation_split")]
    validation_data: Option<PathBuf>,

    #[command(flatten)]
    run: RunArgs,

    #[command(flatten)]
    data: MaskSettings,

    /// Settings of a published run, where no others are given
    #[arg(long, value_enum)]
    recipe: Option<SegmentRecipe>,

    /// Begin with the network in this folder, which has a config.json
    #[arg(long, value_name = "FOLDER")]
    init_from: Option<PathBuf>,

    /// Kind of a new network
    #[arg(long, value_enum, default_value_t = Network::Unet, conflicts_with = "init_from")]
    network: Network,

    /// What a new network begins with
    #[arg(long, value_enum, default_value_t = Encoder::Resnet18, conflicts_with = "init_from")]
    encoder: Encoder,

    /// Channels of a new network's first stage, and its decoder's in proportion; torchvision's networks have 64
    #[arg(long, value_name = "N", default_value_t = 64, conflicts_with = "init_from")]
    #[arg(allow_negative_numbers = true)]
    base_width: usize,

    /// What is minimised; of several, their sum
    #[arg(long, value_enum, default_values_t = [MaskLoss::CrossEntropy], help_heading = "Training")]
    loss: Vec<MaskLoss>,

    /// Numbers that the model is exported in: f32, bf16 or f16 [default: f32]
    #[arg(long, value_name = "TYPE", value_parser = super::args::typed::<DType>)]
    export_dtype: Option<DType>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Network {
    Unet,
    #[value(name = "deeplabv3plus")]
    DeepLabV3Plus,
    Fpn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Encoder {
    Resnet18,
    Resnet34,
    Resnet50,
}

impl TrainSegment {
    /// A new network for pictures of so many bands, and so many classes.
    fn shape(&self, in_channels: usize, classes: usize) -> SegmentationConfig {
        let encoder = match self.encoder {
            Encoder::Resnet18 => "resnet18",
            Encoder::Resnet34 => "resnet34",
            Encoder::Resnet50 => "resnet50",
        };
        let width = self.base_width;
        let share = |channels: usize| (channels * width / 64).max(4);
        let decoder = match self.network {
            Network::Unet => {
                let channels = UnetConfig::default().channels.into_iter().map(share).collect();
                Decoder::Unet(UnetConfig { channels })
            }
            Network::DeepLabV3Plus => {
                let default = DeepLabConfig::default();
                Decoder::DeepLabV3Plus(DeepLabConfig {
                    channels: share(default.channels),
                    ..default
                })
            }
            Network::Fpn => {
                let default = FpnConfig::default();
                let segmentation_channels =
                    share(default.segmentation_channels).next_multiple_of(32);
                Decoder::Fpn(FpnConfig {
                    pyramid_channels: share(default.pyramid_channels),
                    segmentation_channels,
                    ..default
                })
            }
        };
        SegmentationConfig {
            encoder: encoder.to_owned(),
            base_width: width,
            in_channels,
            classes,
            decoder,
        }
    }
}

pub fn train_segment(args: TrainSegment) -> anyhow::Result<()> {
    if args.base_width == 0 || args.base_width > 1024 {
        return Err(Error::argument("base_width", args.base_width, "1 to 1024").into());
    }
    let settings = &args.run.settings;
    // Batch norm moves what it gathers whenever it is computed: a block cannot be computed twice.
    if settings.gradient_checkpointing {
        let expected = "false: segmenters keep what they compute";
        return Err(Error::argument("gradient_checkpointing", true, expected).into());
    }
    prepare(&args.run)?;
    let all = MaskedPictures::open(&args.train_data, args.data.clone())?;
    let (data, held_out) = match (&args.validation_data, settings.validation_split) {
        (Some(path), _) => {
            let classes = all.classes().to_vec();
            let held_out =
                MaskedPictures::open(path, MaskSettings { classes, ..args.data.clone() })?;
            if held_out.bands() != all.bands() {
                let expected = format!("{}, as those that are trained on", all.bands());
                let found = held_out.bands().to_string();
                let advice = "A network takes pictures of one kind.";
                return Err(Error::file(path, "bands", expected, found, advice).into());
            }
            (all, Some(held_out))
        }
        (None, 0.0) => (all, None),
        (None, share) => {
            let (data, held_out) = all.split(share, settings.seed)?;
            (data, Some(held_out))
        }
    };
    let name = args.train_data.display().to_string();
    carry_out(&args.run, "crops", &name, (&data, held_out.as_ref()), |data, compute| {
        let task = match &args.init_from {
            Some(folder) => SegmentTask::open(folder, data, compute)?,
            None => {
                let shape = |bands, classes| args.shape(bands, classes);
                SegmentTask::new(data, shape, settings.seed, compute)?
            }
        };
        Ok(task.losing(&args.loss)?.exporting(args.export_dtype))
    })
}
