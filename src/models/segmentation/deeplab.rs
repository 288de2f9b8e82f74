//! DeepLabV3+: taps at several distances over the smallest images, refined by what was seen at a quarter of the size.

use serde_json::{Value, json};

use super::{ConvNormRelu, Pass};
use crate::error::Result;
use crate::io::config::Config;
use crate::nn::{
    BatchNorm, Conv2d, DilatedConv2d, Module, Parameter, Params, SeparableConv2d, dropout, join,
};
use crate::ops::conv::Conv2dConfig;
use crate::ops::layout::concat;
use crate::ops::reduce::mean;
use crate::ops::resample::{resize_bilinear, resize_bilinear_corners};
use crate::tensor::Tensor;

/// Channels that are kept of what was seen at a quarter of the size: section 3.1 of the paper.
const FINE: usize = 48;

const POINTS: Conv2dConfig = Conv2dConfig { stride: 1, padding: [0; 4] };

/// What the decoder has settings for.
#[derive(Clone, Debug, PartialEq)]
pub struct DeepLabConfig {
    /// What the encoder divides the size by: 8 or 16.
    pub output_stride: usize,
    /// Channels of each branch and of the result.
    pub channels: usize,
    /// Distances between taps.
    pub rates: Vec<usize>,
    /// Whether branches are depthwise-separable.
    pub separable: bool,
    /// Share of the joined branches that is left out in training.
    pub dropout: f64,
}

impl Default for DeepLabConfig {
    fn default() -> Self {
        let rates = vec![12, 24, 36];
        Self { output_stride: 16, channels: 256, rates, separable: true, dropout: 0.5 }
    }
}

impl DeepLabConfig {
    pub(super) fn read(c: &Config) -> Result<Self> {
        let default = Self::default();
        c.neutral("encoder_depth", &[json!(5)])?;
        c.neutral("upsampling", &[json!(4)])?;
        let config = Self {
            output_stride: c.usize("encoder_output_stride", default.output_stride)?,
            channels: c.usize("decoder_channels", default.channels)?,
            rates: c.usizes("decoder_atrous_rates", &default.rates)?,
            separable: c.bool("decoder_aspp_separable", default.separable)?,
            dropout: c.f64("decoder_aspp_dropout", default.dropout)?,
        };
        if ![8, 16].contains(&config.output_stride) {
            return Err(c.wrong("encoder_output_stride", "8 or 16"));
        }
        if config.channels == 0 {
            return Err(c.wrong("decoder_channels", "a number above 0"));
        }
        if config.rates.len() != 3 || config.rates.contains(&0) {
            return Err(c.wrong("decoder_atrous_rates", "three numbers above 0"));
        }
        if !(0.0..1.0).contains(&config.dropout) {
            return Err(c.wrong("decoder_aspp_dropout", "0 to below 1"));
        }
        Ok(config)
    }

    pub(super) fn write(&self, config: &mut Value) {
        config["encoder_depth"] = json!(5);
        config["encoder_output_stride"] = json!(self.output_stride);
        config["decoder_channels"] = json!(self.channels);
        config["decoder_atrous_rates"] = json!(self.rates);
        config["decoder_aspp_separable"] = json!(self.separable);
        config["decoder_aspp_dropout"] = json!(self.dropout);
        config["upsampling"] = json!(4);
    }
}

/// A 3x3 convolution with its taps apart, of one of two kinds.
#[allow(clippy::large_enum_variant, reason = "a model has three")]
enum Apart {
    Whole(DilatedConv2d),
    Separable(SeparableConv2d),
}

impl Module for Apart {
    fn visit<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Parameter)) {
        match self {
            Self::Whole(conv) => conv.visit(prefix, visit),
            Self::Separable(conv) => conv.visit(prefix, visit),
        }
    }
}

impl Apart {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Whole(conv) => conv.forward(x),
            Self::Separable(conv) => conv.forward(x),
        }
    }
}

/// Atrous spatial pyramid pooling (Chen et al. 2017).
struct Pyramid {
    points: ConvNormRelu<Conv2d>,
    apart: Vec<ConvNormRelu<Apart>>,
    /// Of the mean of the image.
    whole: ConvNormRelu<Conv2d>,
    project: ConvNormRelu<Conv2d>,
    dropout: f64,
}

impl Module for Pyramid {
    fn visit<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Parameter)) {
        let convs = join(prefix, "convs");
        self.points.visit(&join(&convs, 0), visit);
        for (i, branch) in self.apart.iter().enumerate() {
            branch.visit(&join(&convs, 1 + i), visit);
        }
        // Its first place is the mean's.
        let whole = join(&convs, 1 + self.apart.len());
        self.whole.conv.visit(&join(&whole, 1), visit);
        self.whole.norm.visit(&join(&whole, 2), visit);
        self.project.visit(&join(prefix, "project"), visit);
    }
}

impl Pyramid {
    fn load(config: &DeepLabConfig, inputs: usize, p: &Params) -> Result<Self> {
        let (convs, outputs) = (p.pp("convs"), config.channels);
        let branch = |(i, &rate): (usize, &usize)| {
            let p = convs.pp(1 + i);
            let conv = match config.separable {
                true => {
                    let conv = SeparableConv2d::load(&p.pp(0), inputs, outputs, 3, rate)?;
                    Apart::Separable(conv)
                }
                false => Apart::Whole(DilatedConv2d::load(&p.pp(0), inputs, outputs, 3, 1, rate)?),
            };
            ConvNormRelu::of(conv, &p, outputs)
        };
        let apart = config.rates.iter().enumerate().map(branch).collect::<Result<Vec<_>>>()?;
        let whole = convs.pp(1 + apart.len());
        let conv = Conv2d::load_unbiased(&whole.pp(1), inputs, outputs, 1, POINTS)?;
        let whole = ConvNormRelu { conv, norm: BatchNorm::load(&whole.pp(2), outputs)? };
        let joined = (2 + apart.len()) * outputs;
        Ok(Self {
            points: ConvNormRelu::load(&convs.pp(0), inputs, outputs, 1)?,
            apart,
            whole,
            project: ConvNormRelu::load(&p.pp("project"), joined, outputs, 1)?,
            dropout: config.dropout,
        })
    }

    /// `x` [B, h, w, inputs] -> [B, h, w, outputs]
    fn forward(&self, x: &Tensor, pass: Pass) -> Result<Tensor> {
        let mode = pass.mode();
        let (batch, height, width, inputs) = x.dims4()?;
        let mut branches = vec![self.points.forward(x, mode)?];
        for branch in &self.apart {
            branches.push(branch.end(&branch.conv.forward(x)?, mode)?);
        }
        let whole = mean(x, &[1, 2])?.reshape([batch, 1, 1, inputs])?;
        let whole = self.whole.forward(&whole, mode)?;
        branches.push(resize_bilinear(&whole, (height, width))?);
        let joined = concat(&branches.iter().collect::<Vec<_>>(), 3)?;
        let x = self.project.forward(&joined, mode)?;
        match pass {
            Pass::Use => Ok(x),
            Pass::Training(draw) => dropout(&x, self.dropout, draw),
        }
    }
}

/// The decoder.
pub struct DeepLabV3Plus {
    pyramid: Pyramid,
    /// Of the pyramid.
    coarse: ConvNormRelu<SeparableConv2d>,
    fine: ConvNormRelu<Conv2d>,
    joined: ConvNormRelu<SeparableConv2d>,
}

impl Module for DeepLabV3Plus {
    fn visit<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Parameter)) {
        self.pyramid.visit(&join(prefix, "aspp.0"), visit);
        self.coarse.conv.visit(&join(prefix, "aspp.1"), visit);
        self.coarse.norm.visit(&join(prefix, "aspp.2"), visit);
        self.fine.visit(&join(prefix, "block1"), visit);
        self.joined.visit(&join(prefix, "block2"), visit);
    }
}

impl DeepLabV3Plus {
    /// `encoder` has the channels of the features, of the largest images first.
    pub(super) fn load(config: &DeepLabConfig, encoder: &[usize], p: &Params) -> Result<Self> {
        let (aspp, outputs) = (p.pp("aspp"), config.channels);
        let separable = |p: &Params, inputs| SeparableConv2d::load(p, inputs, outputs, 3, 1);
        let block2 = p.pp("block2");
        Ok(Self {
            pyramid: Pyramid::load(config, encoder[encoder.len() - 1], &aspp.pp(0))?,
            coarse: ConvNormRelu {
                conv: separable(&aspp.pp(1), outputs)?,
                norm: BatchNorm::load(&aspp.pp(2), outputs)?,
            },
            fine: ConvNormRelu::load(&p.pp("block1"), encoder[1], FINE, 1)?,
            joined: ConvNormRelu::of(separable(&block2.pp(0), FINE + outputs)?, &block2, outputs)?,
        })
    }

    /// `features` of images of [B, H, W, ..] -> [B, H / 4, W / 4, channels]
    pub(super) fn forward(&self, features: &[Tensor], pass: Pass) -> Result<Tensor> {
        let mode = pass.mode();
        let separable = |layer: &ConvNormRelu<SeparableConv2d>, x: &Tensor| {
            layer.end(&layer.conv.forward(x)?, mode)
        };
        let coarse = self.pyramid.forward(&features[features.len() - 1], pass)?;
        let coarse = separable(&self.coarse, &coarse)?;
        let fine = self.fine.forward(&features[1], mode)?; // [B, H/4, W/4, 48]
        let coarse = resize_bilinear_corners(&coarse, (fine.dim(1), fine.dim(2)))?;
        separable(&self.joined, &concat(&[&coarse, &fine], 3)?)
    }
}
