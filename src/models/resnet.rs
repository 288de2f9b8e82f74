//! Residual networks that tell classes apart, and their stages, which other networks begin with.
//!
//! He et al. 2016, "Deep Residual Learning for Image Recognition". Reference implementation: torchvision,
//! `models/resnet.py`, whose names the weights have; a stride of 2 is in a bottleneck's 3x3 convolution, as there.

use serde_json::json;

use crate::error::Result;
use crate::io::config::Config;
use crate::nn::{
    BatchNorm, Conv2d, DilatedConv2d, Linear, Mode, Module, Parameter, Params, join, module,
};
use crate::ops::conv::Conv2dConfig;
use crate::ops::elementwise::{add, relu};
use crate::ops::pool::{Window, max_pool2d};
use crate::ops::reduce::mean;
use crate::tensor::{DType, Device, Tensor};

/// Channels of a bottleneck's output for each of its own.
const EXPANSION: usize = 4;

/// Shape of a network; `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ResNetConfig {
    /// Residual blocks of each of the four stages.
    pub layers: Vec<usize>,
    /// Whether a block narrows its channels between two 1x1 convolutions.
    pub bottleneck: bool,
    /// Channels of the first stage; torchvision has only 64.
    pub base_width: usize,
    /// What is told apart.
    pub num_classes: usize,
}

impl ResNetConfig {
    /// ResNet-18.
    pub fn resnet18(base_width: usize, num_classes: usize) -> Self {
        Self { layers: vec![2, 2, 2, 2], bottleneck: false, base_width, num_classes }
    }

    /// ResNet-50.
    pub fn resnet50(base_width: usize, num_classes: usize) -> Self {
        Self { layers: vec![3, 4, 6, 3], bottleneck: true, base_width, num_classes }
    }

    /// Reads the configuration, of whose fields those of the data are left alone.
    ///
    /// # Errors
    /// A field has another type or a value that makes no network.
    pub fn read(c: &Config) -> Result<Self> {
        c.neutral("_class_name", &[json!("ResNet")])?;
        let config = Self {
            layers: c.usizes("layers", &[2, 2, 2, 2])?,
            bottleneck: c.bool("bottleneck", false)?,
            base_width: c.usize("base_width", 64)?,
            num_classes: c.usize("num_classes", 1000)?,
        };
        if config.layers.len() != 4 || config.layers.contains(&0) {
            return Err(c.wrong("layers", "four numbers above 0"));
        }
        if config.base_width == 0 || config.num_classes == 0 {
            let name = if config.base_width == 0 { "base_width" } else { "num_classes" };
            return Err(c.wrong(name, "a number above 0"));
        }
        c.ignore(&["classes", "mean", "std", "resolution"]);
        c.finish()?;
        Ok(config)
    }

    /// The configuration as [`Self::read`] reads it.
    pub fn to_json(&self) -> serde_json::Value {
        json!({
            "_class_name": "ResNet",
            "layers": self.layers,
            "bottleneck": self.bottleneck,
            "base_width": self.base_width,
            "num_classes": self.num_classes,
        })
    }

    /// Channels that the last stage gives.
    pub fn features(&self) -> usize {
        8 * self.base_width * if self.bottleneck { EXPANSION } else { 1 }
    }
}

/// BasicBlock, or Bottleneck where there is a third convolution.
struct Block {
    conv1: DilatedConv2d,
    bn1: BatchNorm,
    conv2: DilatedConv2d,
    bn2: BatchNorm,
    conv3: Option<Conv2d>,
    bn3: Option<BatchNorm>,
    shortcut: Option<Shortcut>,
}

module!(Block {
    "conv1": conv1,
    "bn1": bn1,
    "conv2": conv2,
    "bn2": bn2,
    "conv3": conv3,
    "bn3": bn3,
    "downsample": shortcut,
});

/// What brings a block's input to the shape of its output.
struct Shortcut {
    conv: Conv2d,
    norm: BatchNorm,
}

module!(Shortcut { "0": conv, "1": norm });

/// What a stage's convolutions of more than one tap go by.
#[derive(Clone, Copy)]
struct Step {
    /// Of the first block.
    stride: usize,
    /// Of all.
    dilation: usize,
}

impl Block {
    fn load(p: &Params, input: usize, width: usize, step: Step, bottleneck: bool) -> Result<Self> {
        let Step { stride, dilation } = step;
        let conv = |name: &str, input, output, kernel, stride| {
            DilatedConv2d::load(&p.pp(name), input, output, kernel, stride, dilation)
        };
        let norm = |name: &str, channels| BatchNorm::load(&p.pp(name), channels);
        let output = width * if bottleneck { EXPANSION } else { 1 };
        let shortcut = (stride != 1 || input != output).then(|| -> Result<Shortcut> {
            let p = p.pp("downsample");
            let config = Conv2dConfig::new(stride, 0);
            let conv = Conv2d::load_unbiased(&p.pp(0), input, output, 1, config)?;
            Ok(Shortcut { conv, norm: BatchNorm::load(&p.pp(1), output)? })
        });
        let (first, second) =
            if bottleneck { ((1, 1), (3, stride)) } else { ((3, stride), (3, 1)) };
        let last = || {
            let p = p.pp("conv3");
            Conv2d::load_unbiased(&p, width, output, 1, Conv2dConfig::new(1, 0))
        };
        Ok(Self {
            conv1: conv("conv1", input, width, first.0, first.1)?,
            bn1: norm("bn1", width)?,
            conv2: conv("conv2", width, width, second.0, second.1)?,
            bn2: norm("bn2", width)?,
            conv3: bottleneck.then(last).transpose()?,
            bn3: bottleneck.then(|| norm("bn3", output)).transpose()?,
            shortcut: shortcut.transpose()?,
        })
    }

    /// `x` [B, H, W, input] -> [B, H / stride, W / stride, output]
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut h = relu(&self.bn1.forward_in(&self.conv1.forward(x)?, mode)?)?;
        h = self.bn2.forward_in(&self.conv2.forward(&h)?, mode)?;
        if let (Some(conv3), Some(bn3)) = (&self.conv3, &self.bn3) {
            h = bn3.forward_in(&conv3.forward(&relu(&h)?)?, mode)?;
        }
        let shortcut = self.shortcut.as_ref().map(|s| s.norm.forward_in(&s.conv.forward(x)?, mode));
        relu(&add(&h, shortcut.transpose()?.as_ref().unwrap_or(x))?)
    }
}

/// What a network that begins with the stages of a residual network says of them.
#[derive(Clone, Debug, PartialEq)]
pub struct StagesConfig {
    /// Residual blocks of each stage.
    pub layers: Vec<usize>,
    /// Whether a block narrows its channels between two 1x1 convolutions.
    pub bottleneck: bool,
    /// Channels of the first stage.
    pub base_width: usize,
    /// Channels of the images.
    pub in_channels: usize,
    /// What the size is divided by at most: stages behind that keep it, and their taps lie further apart instead.
    pub output_stride: usize,
}

impl StagesConfig {
    /// Channels behind the first convolution, and behind each stage.
    pub fn channels(&self) -> Vec<usize> {
        let expansion = if self.bottleneck { EXPANSION } else { 1 };
        let stage = |i: usize| (self.base_width << i) * expansion;
        std::iter::once(self.base_width).chain((0..self.layers.len()).map(stage)).collect()
    }

    /// How the stage of this number, from 0, goes over its input.
    fn step(&self, number: usize) -> Step {
        let before = 4 << number.saturating_sub(1);
        let behind = 4 << number;
        match number {
            0 => Step { stride: 1, dilation: 1 },
            _ if behind <= self.output_stride => Step { stride: behind / before, dilation: 1 },
            _ => Step { stride: 1, dilation: behind / self.output_stride },
        }
    }
}

/// All of a residual network but its end.
pub struct Stages {
    conv1: Conv2d,
    bn1: BatchNorm,
    layers: Vec<Stage>,
    dtype: DType,
    device: Device,
}

/// The blocks of one stage, whose name is not a number behind a dot.
struct Stage {
    name: String,
    blocks: Vec<Block>,
}

impl Module for Stages {
    fn visit<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Parameter)) {
        self.conv1.visit(&join(prefix, "conv1"), visit);
        self.bn1.visit(&join(prefix, "bn1"), visit);
        for Stage { name, blocks } in &self.layers {
            blocks.visit(&join(prefix, name), visit);
        }
    }
}

impl Stages {
    /// Builds the stages from the weights at `p`.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(config: &StagesConfig, p: &Params) -> Result<Self> {
        let (width, channels) = (config.base_width, config.channels());
        let stage = |number: usize| -> Result<Stage> {
            let name = format!("layer{}", number + 1);
            let (p, own, output) = (p.pp(&name), width << number, channels[number + 1]);
            let step = config.step(number);
            let block = |i: usize| {
                let (input, stride) =
                    if i == 0 { (channels[number], step.stride) } else { (output, 1) };
                let load = |step| Block::load(&p.pp(i), input, own, step, config.bottleneck);
                load(Step { stride, ..step })
            };
            let blocks = (0..config.layers[number]).map(block).collect::<Result<_>>()?;
            Ok(Stage { name, blocks })
        };
        let first = Conv2dConfig::new(2, 3);
        let conv1 = Conv2d::load_unbiased(&p.pp("conv1"), config.in_channels, width, 7, first)?;
        Ok(Self {
            conv1,
            bn1: BatchNorm::load(&p.pp("bn1"), width)?,
            layers: (0..config.layers.len()).map(stage).collect::<Result<_>>()?,
            dtype: p.dtype(),
            device: p.device(),
        })
    }

    /// `images` [B, H, W, in_channels] -> [B, H / 2, W / 2, ..] behind the first convolution, [B, H / 4, W / 4, ..] behind the
    /// first stage, and so on behind each.
    ///
    /// # Errors
    /// Another number of channels; `Value` in training when the weights are frozen.
    pub fn forward(&self, images: &Tensor, mode: Mode) -> Result<Vec<Tensor>> {
        // 1. in
        let images = images.to_dtype(self.dtype)?.to_device(self.device)?;
        let mut x = relu(&self.bn1.forward_in(&self.conv1.forward(&images)?, mode)?)?;
        let mut all = vec![x.clone()]; // [B, H/2, W/2, base_width]
        x = max_pool2d(&x, Window { size: 3, stride: 2, padding: 1 })?;
        // 2. stages, each but the first of half the size and twice the width
        for Stage { blocks, .. } in &self.layers {
            for block in blocks {
                x = block.forward(&x, mode)?;
            }
            all.push(x.clone());
        }
        Ok(all)
    }
}

/// The network.
pub struct ResNet {
    config: ResNetConfig,
    stages: Stages,
    fc: Linear,
}

module!(ResNet { "": stages, "fc": fc });

impl ResNet {
    /// Builds the model from the weights at `p`.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(config: ResNetConfig, p: &Params) -> Result<Self> {
        let stages = StagesConfig {
            layers: config.layers.clone(),
            bottleneck: config.bottleneck,
            base_width: config.base_width,
            in_channels: 3,
            output_stride: 32,
        };
        Ok(Self {
            stages: Stages::load(&stages, p)?,
            fc: Linear::load(&p.pp("fc"), config.features(), config.num_classes, true)?,
            config,
        })
    }

    /// The shape of this model.
    pub fn config(&self) -> &ResNetConfig {
        &self.config
    }

    /// `images` [B, H, W, 3], normalised as in training -> logits [B, classes].
    ///
    /// # Errors
    /// Another number of channels.
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        self.logits(&self.features(images)?)
    }

    /// `images` [B, H, W, 3] -> what the last layer sees of them, [B, [`features`](ResNetConfig::features)].
    ///
    /// # Errors
    /// Another number of channels.
    pub fn features(&self, images: &Tensor) -> Result<Tensor> {
        self.mean(images, Mode::Use)
    }

    /// What [`Self::features`] gives -> logits [B, classes].
    ///
    /// # Errors
    /// Another number of features.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        self.fc.forward(features)
    }

    /// As [`Self::forward`], by the statistics of the batch, which move those that are gathered.
    ///
    /// # Errors
    /// Another number of channels; `Value` when the weights are frozen.
    pub fn forward_training(&self, images: &Tensor) -> Result<Tensor> {
        self.fc.forward(&self.mean(images, Mode::Training)?)
    }

    fn mean(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        let all = self.stages.forward(images, mode)?;
        mean(&all[all.len() - 1], &[1, 2]) // [B, features]
    }
}
