//! Networks that tell a class for each pixel: U-Net, DeepLabV3+, FPN, each over the stages of a residual network.
//!
//! Reference implementation: segmentation-models-pytorch 0.6 (`decoders/`), whose folders are read as `save_pretrained`
//! writes them: `config.json` and `model.safetensors`.

mod deeplab;
mod fpn;
mod unet;

use serde_json::{Value, json};

pub use deeplab::{DeepLabConfig, DeepLabV3Plus};
pub use fpn::{Fpn, FpnConfig};
pub use unet::{Unet, UnetConfig};

use crate::error::{Error, Result};
use crate::io::config::Config;
use crate::models::resnet::{Stages, StagesConfig};
use crate::nn::{BatchNorm, Conv2d, Draw, Mode, Module, Parameter, Params, join, module};
use crate::ops::conv::Conv2dConfig;
use crate::ops::elementwise::relu;
use crate::ops::resample::resize_bilinear_corners;
use crate::tensor::Tensor;

/// The encoders that there are: blocks of each stage, and whether they are bottlenecks.
const ENCODERS: [(&str, [usize; 4], bool); 3] = [
    ("resnet18", [2, 2, 2, 2], false),
    ("resnet34", [3, 4, 6, 3], false),
    ("resnet50", [3, 4, 6, 3], true),
];

/// Channels of the first stage that torchvision has.
const BASE_WIDTH: usize = 64;

/// A network's kind, and what its decoder has settings for.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoder {
    /// Ronneberger et al. 2015.
    Unet(UnetConfig),
    /// Chen et al. 2018.
    DeepLabV3Plus(DeepLabConfig),
    /// Kirillov et al. 2017.
    Fpn(FpnConfig),
}

/// Shape of a network; `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentationConfig {
    /// resnet18, resnet34 or resnet50.
    pub encoder: String,
    /// Channels of the encoder's first stage; the library has only 64.
    pub base_width: usize,
    /// Bands of the images.
    pub in_channels: usize,
    /// What pixels are told apart as; 1 is one class against none.
    pub classes: usize,
    /// The rest.
    pub decoder: Decoder,
}

impl Decoder {
    /// The name of the library's class.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unet(_) => "Unet",
            Self::DeepLabV3Plus(_) => "DeepLabV3Plus",
            Self::Fpn(_) => "FPN",
        }
    }
}

impl SegmentationConfig {
    /// Reads the configuration; fields that begin with `_` are of the data.
    ///
    /// # Errors
    /// A field has another type or value than one that is implemented: another encoder, attention, another normalisation.
    pub fn read(c: &Config) -> Result<Self> {
        let names = ENCODERS.map(|(name, ..)| (name, name));
        let encoder = c.choice("encoder_name", "resnet34", &names)?;
        c.neutral("activation", &[json!("identity")])?;
        c.neutral("aux_params", &[])?;
        c.ignore(&["encoder_weights"]);
        let decoder = match c.choice("_model_class", "none given", &KINDS)? {
            Kind::Unet => Decoder::Unet(UnetConfig::read(c)?),
            Kind::DeepLabV3Plus => Decoder::DeepLabV3Plus(DeepLabConfig::read(c)?),
            Kind::Fpn => Decoder::Fpn(FpnConfig::read(c)?),
        };
        let count = |name: &str, default| match c.usize(name, default)? {
            0 => Err(c.wrong(name, "a number above 0")),
            count => Ok(count),
        };
        let config = Self {
            encoder: encoder.to_owned(),
            base_width: count("encoder_base_width", BASE_WIDTH)?,
            in_channels: count("in_channels", 3)?,
            classes: count("classes", 1)?,
            decoder,
        };
        c.finish()?;
        Ok(config)
    }

    /// The configuration as [`Self::read`] and the library's `from_pretrained` read it. The latter builds no encoder of
    /// another base width.
    pub fn to_json(&self) -> Value {
        let mut config = json!({
            "_model_class": self.decoder.name(),
            "encoder_name": self.encoder,
            "encoder_weights": null,
            "in_channels": self.in_channels,
            "classes": self.classes,
            "activation": null,
            "aux_params": null,
        });
        if self.base_width != BASE_WIDTH {
            config["encoder_base_width"] = json!(self.base_width);
        }
        match &self.decoder {
            Decoder::Unet(decoder) => decoder.write(&mut config),
            Decoder::DeepLabV3Plus(decoder) => decoder.write(&mut config),
            Decoder::Fpn(decoder) => decoder.write(&mut config),
        }
        config
    }

    /// What height and width have to be a multiple of.
    pub fn multiple(&self) -> usize {
        match &self.decoder {
            Decoder::Unet(_) => 1,
            Decoder::DeepLabV3Plus(decoder) => decoder.output_stride,
            Decoder::Fpn(_) => 32,
        }
    }

    fn stages(&self) -> Result<StagesConfig> {
        let found = ENCODERS.into_iter().find(|(name, ..)| *name == self.encoder);
        let Some((_, mut layers, bottleneck)) = found.map(|(n, l, b)| (n, l.to_vec(), b)) else {
            let expected = ENCODERS.map(|(name, ..)| name).join(", ");
            return Err(Error::argument("encoder", &self.encoder, expected));
        };
        let output_stride = match &self.decoder {
            Decoder::DeepLabV3Plus(decoder) => decoder.output_stride,
            Decoder::Unet(decoder) => {
                layers.truncate(decoder.channels.len() - 1);
                32
            }
            Decoder::Fpn(_) => 32,
        };
        let (base_width, in_channels) = (self.base_width, self.in_channels);
        Ok(StagesConfig { layers, bottleneck, base_width, in_channels, output_stride })
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Unet,
    DeepLabV3Plus,
    Fpn,
}

const KINDS: [(&str, Kind); 3] =
    [("Unet", Kind::Unet), ("DeepLabV3Plus", Kind::DeepLabV3Plus), ("FPN", Kind::Fpn)];

/// A decoder that is loaded.
#[allow(clippy::large_enum_variant, reason = "a model has one")]
enum Half {
    Unet(Unet),
    DeepLabV3Plus(DeepLabV3Plus),
    Fpn(Fpn),
}

impl Module for Half {
    fn visit<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Parameter)) {
        match self {
            Self::Unet(decoder) => decoder.visit(prefix, visit),
            Self::DeepLabV3Plus(decoder) => decoder.visit(prefix, visit),
            Self::Fpn(decoder) => decoder.visit(prefix, visit),
        }
    }
}

/// How a decoder is run.
pub enum Pass<'a, 'b> {
    /// As it is.
    Use,
    /// In training, channels or elements being left out by these draws.
    Training(&'a mut Draw<'b>),
}

impl Pass<'_, '_> {
    /// What batch norms go by.
    fn mode(&self) -> Mode {
        match self {
            Self::Use => Mode::Use,
            Self::Training(_) => Mode::Training,
        }
    }
}

/// A convolution and the batch norm behind it, by their places in a sequence, and what is above 0 of the result.
struct ConvNormRelu<C> {
    conv: C,
    norm: BatchNorm,
}

impl<C: Module> Module for ConvNormRelu<C> {
    fn visit<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Parameter)) {
        self.conv.visit(&join(prefix, 0), visit);
        self.norm.visit(&join(prefix, 1), visit);
    }
}

impl ConvNormRelu<Conv2d> {
    /// Of a convolution that keeps the size.
    fn load(p: &Params, inputs: usize, outputs: usize, kernel: usize) -> Result<Self> {
        let config = Conv2dConfig::new(1, kernel / 2);
        let conv = Conv2d::load_unbiased(&p.pp(0), inputs, outputs, kernel, config)?;
        Self::of(conv, p, outputs)
    }

    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        self.end(&self.conv.forward(x)?, mode)
    }
}

impl<C> ConvNormRelu<C> {
    fn of(conv: C, p: &Params, outputs: usize) -> Result<Self> {
        Ok(Self { conv, norm: BatchNorm::load(&p.pp(1), outputs)? })
    }

    fn end(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        relu(&self.norm.forward_in(x, mode)?)
    }
}

/// The network.
pub struct Segmenter {
    config: SegmentationConfig,
    encoder: Stages,
    decoder: Half,
    head: Conv2d,
}

module!(Segmenter {
    "encoder": encoder,
    "decoder": decoder,
    "segmentation_head.0": head,
});

impl Segmenter {
    /// Builds the model from the weights at `p`, whose names may all stand behind `model.`, as in a checkpoint of torchgeo's
    /// tasks.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(config: SegmentationConfig, p: &Params) -> Result<Self> {
        const FIRST: &str = "encoder.conv1.weight";
        let within = !p.contains(FIRST) && p.contains(&format!("model.{FIRST}"));
        let p = if within { p.pp("model") } else { p.clone() };
        let stages = config.stages()?;
        let (channels, d) = (stages.channels(), p.pp("decoder"));
        let encoder = Stages::load(&stages, &p.pp("encoder"))?;
        let (decoder, width, kernel) = match &config.decoder {
            Decoder::Unet(c) => (Half::Unet(Unet::load(c, &channels, &d)?), c.width(), 3),
            Decoder::DeepLabV3Plus(c) => {
                (Half::DeepLabV3Plus(DeepLabV3Plus::load(c, &channels, &d)?), c.channels, 1)
            }
            Decoder::Fpn(c) => (Half::Fpn(Fpn::load(c, &channels, &d)?), c.width(), 1),
        };
        let same = Conv2dConfig::new(1, kernel / 2);
        let head = Conv2d::load(&p.pp("segmentation_head.0"), width, config.classes, kernel, same)?;
        Ok(Self { config, encoder, decoder, head })
    }

    /// The shape of this model.
    pub fn config(&self) -> &SegmentationConfig {
        &self.config
    }

    /// `images` [B, H, W, in_channels], normalised as in training -> logits [B, H, W, classes].
    ///
    /// # Errors
    /// Another number of channels, or a size that is not a [multiple](SegmentationConfig::multiple).
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        self.run(images, Pass::Use)
    }

    /// As [`Self::forward`], by the statistics of the batch, which move those that are gathered; what is left out follows
    /// from `draw`.
    ///
    /// # Errors
    /// As [`Self::forward`]; `Value` when the weights are frozen.
    pub fn forward_training(&self, images: &Tensor, draw: &mut Draw) -> Result<Tensor> {
        self.run(images, Pass::Training(draw))
    }

    fn run(&self, images: &Tensor, pass: Pass) -> Result<Tensor> {
        // 1. in
        let (_, height, width, bands) = images.dims4()?;
        let (multiple, expected) = (self.config.multiple(), self.config.in_channels);
        if bands != expected {
            let message = format!("a model of {expected} bands, and images of {bands}");
            return Err(Error::shape("segmentation", message));
        }
        if height == 0 || width == 0 || height % multiple != 0 || width % multiple != 0 {
            let message = format!("{height}x{width} pixels are no multiple of {multiple}");
            return Err(Error::shape("segmentation", message));
        }
        // 2. down
        let features = self.encoder.forward(images, pass.mode())?;
        // 3. up
        let x = match &self.decoder {
            Half::Unet(decoder) => decoder.forward(&features, [height, width], pass)?,
            Half::DeepLabV3Plus(decoder) => decoder.forward(&features, pass)?,
            Half::Fpn(decoder) => decoder.forward(&features, pass)?,
        };
        // 4. out
        let logits = self.head.forward(&x)?; // [B, h, w, classes]
        if logits.dims()[1..3] == [height, width] {
            return Ok(logits);
        }
        resize_bilinear_corners(&logits, (height, width))
    }
}
