//! Feature pyramid network: each size's features and what the smaller ones saw, all brought to a quarter of the size.

use serde_json::{Value, json};

use super::Pass;
use crate::error::Result;
use crate::io::config::Config;
use crate::nn::{Conv2d, GroupNorm, Params, dropout_channels, module};
use crate::ops::conv::Conv2dConfig;
use crate::ops::elementwise::{add, relu};
use crate::ops::layout::concat;
use crate::ops::resample::{resize_bilinear_corners, upsample_nearest};
use crate::tensor::Tensor;

/// As the library has them.
const GROUPS: usize = 32;
const EPS: f32 = 1e-5;
/// Sizes that are looked at.
const LEVELS: usize = 4;

/// What the decoder has settings for.
#[derive(Clone, Debug, PartialEq)]
pub struct FpnConfig {
    /// Channels of the pyramid.
    pub pyramid_channels: usize,
    /// Channels of what is brought to a quarter of the size, a multiple of 32.
    pub segmentation_channels: usize,
    /// Whether those are laid side by side, rather than added.
    pub concatenated: bool,
    /// Share of the channels that is left out in training.
    pub dropout: f64,
}

impl Default for FpnConfig {
    fn default() -> Self {
        Self {
            pyramid_channels: 256,
            segmentation_channels: 128,
            concatenated: false,
            dropout: 0.2,
        }
    }
}

impl FpnConfig {
    pub(super) fn read(c: &Config) -> Result<Self> {
        let default = Self::default();
        c.neutral("encoder_depth", &[json!(5)])?;
        c.neutral("upsampling", &[json!(4)])?;
        c.neutral("decoder_interpolation", &[json!("nearest")])?;
        let config = Self {
            pyramid_channels: c.usize("decoder_pyramid_channels", default.pyramid_channels)?,
            segmentation_channels: c
                .usize("decoder_segmentation_channels", default.segmentation_channels)?,
            concatenated: c.choice(
                "decoder_merge_policy",
                "add",
                &[("add", false), ("cat", true)],
            )?,
            dropout: c.f64("decoder_dropout", default.dropout)?,
        };
        if config.pyramid_channels == 0 {
            return Err(c.wrong("decoder_pyramid_channels", "a number above 0"));
        }
        let channels = config.segmentation_channels;
        if channels == 0 || !channels.is_multiple_of(GROUPS) {
            return Err(c.wrong("decoder_segmentation_channels", "a multiple of 32"));
        }
        if !(0.0..1.0).contains(&config.dropout) {
            return Err(c.wrong("decoder_dropout", "0 to below 1"));
        }
        Ok(config)
    }

    pub(super) fn write(&self, config: &mut Value) {
        config["encoder_depth"] = json!(5);
        config["decoder_pyramid_channels"] = json!(self.pyramid_channels);
        config["decoder_segmentation_channels"] = json!(self.segmentation_channels);
        config["decoder_merge_policy"] = json!(if self.concatenated { "cat" } else { "add" });
        config["decoder_dropout"] = json!(self.dropout);
        config["decoder_interpolation"] = json!("nearest");
        config["upsampling"] = json!(4);
    }

    /// Channels of what the decoder gives.
    pub(super) fn width(&self) -> usize {
        self.segmentation_channels * if self.concatenated { LEVELS } else { 1 }
    }
}

/// A convolution, a group norm, what is above 0 of it, doubled in size if need be.
struct Block {
    conv: Conv2d,
    norm: GroupNorm,
}

module!(Block { "block.0": conv, "block.1": norm });

impl Block {
    fn load(p: &Params, inputs: usize, outputs: usize) -> Result<Self> {
        let p = p.pp("block");
        let same = Conv2dConfig::new(1, 1);
        Ok(Self {
            conv: Conv2d::load_unbiased(&p.pp(0), inputs, outputs, 3, same)?,
            norm: GroupNorm::load(&p.pp(1), outputs, GROUPS, EPS)?,
        })
    }

    fn forward(&self, x: &Tensor, doubled: bool) -> Result<Tensor> {
        let x = relu(&self.norm.forward(&self.conv.forward(x)?)?)?;
        if !doubled {
            return Ok(x);
        }
        let (_, height, width, _) = x.dims4()?;
        resize_bilinear_corners(&x, (2 * height, 2 * width))
    }
}

/// The way of one size to a quarter of the image's.
struct Branch {
    blocks: Vec<Block>,
    doubled: bool,
}

module!(Branch { "block": blocks });

/// The decoder.
pub struct Fpn {
    p5: Conv2d,
    p4: Conv2d,
    p3: Conv2d,
    p2: Conv2d,
    branches: Vec<Branch>,
    concatenated: bool,
    dropout: f64,
}

module!(Fpn {
    "p5": p5,
    "p4.skip_conv": p4,
    "p3.skip_conv": p3,
    "p2.skip_conv": p2,
    "seg_blocks": branches,
});

impl Fpn {
    /// `encoder` has the channels of the features, of the largest images first.
    pub(super) fn load(config: &FpnConfig, encoder: &[usize], p: &Params) -> Result<Self> {
        let (inputs, outputs) = (config.pyramid_channels, config.segmentation_channels);
        let lateral = |name: &str, level: usize| {
            Conv2d::load_1x1(&p.pp(name), encoder[encoder.len() - 1 - level], inputs)
        };
        let branch = |i: usize| -> Result<Branch> {
            let (p, doublings) = (p.pp("seg_blocks").pp(i).pp("block"), LEVELS - 1 - i);
            let block =
                |j: usize| Block::load(&p.pp(j), if j == 0 { inputs } else { outputs }, outputs);
            let blocks = (0..doublings.max(1)).map(block).collect::<Result<_>>()?;
            Ok(Branch { blocks, doubled: doublings > 0 })
        };
        Ok(Self {
            p5: lateral("p5", 0)?,
            p4: lateral("p4.skip_conv", 1)?,
            p3: lateral("p3.skip_conv", 2)?,
            p2: lateral("p2.skip_conv", 3)?,
            branches: (0..LEVELS).map(branch).collect::<Result<_>>()?,
            concatenated: config.concatenated,
            dropout: config.dropout,
        })
    }

    /// `features` of images of [B, H, W, ..] -> [B, H / 4, W / 4, channels]
    pub(super) fn forward(&self, features: &[Tensor], pass: Pass) -> Result<Tensor> {
        // 1. down the pyramid, smallest first
        let [.., c2, c3, c4, c5] = features else { unreachable!("an encoder has four stages") };
        let mut pyramid = vec![self.p5.forward(c5)?];
        for (lateral, beside) in [(&self.p4, c4), (&self.p3, c3), (&self.p2, c2)] {
            let above = upsample_nearest(&pyramid[pyramid.len() - 1], 2)?;
            pyramid.push(add(&above, &lateral.forward(beside)?)?);
        }
        // 2. each to a quarter of the size
        let mut all = Vec::new();
        for (branch, level) in self.branches.iter().zip(pyramid) {
            let mut x = level;
            for block in &branch.blocks {
                x = block.forward(&x, branch.doubled)?;
            }
            all.push(x);
        }
        // 3. together
        let x = match self.concatenated {
            true => concat(&all.iter().collect::<Vec<_>>(), 3)?,
            false => {
                let mut sum = all[0].clone();
                for x in &all[1..] {
                    sum = add(&sum, x)?;
                }
                sum
            }
        };
        match pass {
            Pass::Use => Ok(x),
            Pass::Training(draw) => dropout_channels(&x, self.dropout, draw),
        }
    }
}
