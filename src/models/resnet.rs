//! Residual networks that tell classes apart.
//!
//! He et al. 2016, "Deep Residual Learning for Image Recognition". Reference implementation: torchvision,
//! `models/resnet.py`, whose names the weights have; a stride of 2 is in a bottleneck's 3x3 convolution, as there.

use serde_json::json;

use crate::error::Result;
use crate::io::config::Config;
use crate::nn::{BatchNorm, Conv2d, Linear, Params, module};
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

/// Whether batch norms go by their batch's statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Use,
    Training,
}

/// A convolution without bias, and the batch norm behind it.
fn normalized(conv: &Conv2d, norm: &BatchNorm, x: &Tensor, mode: Mode) -> Result<Tensor> {
    let x = conv.forward(x)?;
    match mode {
        Mode::Use => norm.forward(&x),
        Mode::Training => norm.forward_training(&x),
    }
}

/// BasicBlock, or Bottleneck where there is a third convolution.
struct Block {
    conv1: Conv2d,
    bn1: BatchNorm,
    conv2: Conv2d,
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

impl Block {
    fn load(
        p: &Params,
        input: usize,
        width: usize,
        stride: usize,
        bottleneck: bool,
    ) -> Result<Self> {
        let conv = |name: &str, input, output, kernel: usize, stride| {
            let config = Conv2dConfig::new(stride, kernel / 2);
            Conv2d::load_unbiased(&p.pp(name), input, output, kernel, config)
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
        Ok(Self {
            conv1: conv("conv1", input, width, first.0, first.1)?,
            bn1: norm("bn1", width)?,
            conv2: conv("conv2", width, width, second.0, second.1)?,
            bn2: norm("bn2", width)?,
            conv3: bottleneck.then(|| conv("conv3", width, output, 1, 1)).transpose()?,
            bn3: bottleneck.then(|| norm("bn3", output)).transpose()?,
            shortcut: shortcut.transpose()?,
        })
    }

    /// `x` [B, H, W, input] -> [B, H / stride, W / stride, output]
    fn forward(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        let mut h = relu(&normalized(&self.conv1, &self.bn1, x, mode)?)?;
        h = normalized(&self.conv2, &self.bn2, &h, mode)?;
        if let (Some(conv3), Some(bn3)) = (&self.conv3, &self.bn3) {
            h = normalized(conv3, bn3, &relu(&h)?, mode)?;
        }
        let shortcut = self.shortcut.as_ref().map(|s| normalized(&s.conv, &s.norm, x, mode));
        relu(&add(&h, shortcut.transpose()?.as_ref().unwrap_or(x))?)
    }
}

/// The network.
pub struct ResNet {
    config: ResNetConfig,
    conv1: Conv2d,
    bn1: BatchNorm,
    layer1: Vec<Block>,
    layer2: Vec<Block>,
    layer3: Vec<Block>,
    layer4: Vec<Block>,
    fc: Linear,
    dtype: DType,
    device: Device,
}

module!(ResNet {
    "conv1": conv1,
    "bn1": bn1,
    "layer1": layer1,
    "layer2": layer2,
    "layer3": layer3,
    "layer4": layer4,
    "fc": fc,
});

impl ResNet {
    /// Builds the model from the weights at `p`.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(config: ResNetConfig, p: &Params) -> Result<Self> {
        let width = config.base_width;
        let stage = |number: usize| -> Result<Vec<Block>> {
            let p = p.pp(format!("layer{number}"));
            let own = width << (number - 1);
            let output = own * if config.bottleneck { EXPANSION } else { 1 };
            let before = if number == 1 { width } else { output / 2 };
            let block = |i: usize| {
                let (input, stride) = match i {
                    0 => (before, if number == 1 { 1 } else { 2 }),
                    _ => (output, 1),
                };
                Block::load(&p.pp(i), input, own, stride, config.bottleneck)
            };
            (0..config.layers[number - 1]).map(block).collect()
        };
        Ok(Self {
            conv1: Conv2d::load_unbiased(&p.pp("conv1"), 3, width, 7, Conv2dConfig::new(2, 3))?,
            bn1: BatchNorm::load(&p.pp("bn1"), width)?,
            layer1: stage(1)?,
            layer2: stage(2)?,
            layer3: stage(3)?,
            layer4: stage(4)?,
            fc: Linear::load(&p.pp("fc"), config.features(), config.num_classes, true)?,
            dtype: p.dtype(),
            device: p.device(),
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
        self.fc.forward(&self.features(images)?)
    }

    /// `images` [B, H, W, 3] -> what the last layer sees of them, [B, [`features`](ResNetConfig::features)].
    ///
    /// # Errors
    /// Another number of channels.
    pub fn features(&self, images: &Tensor) -> Result<Tensor> {
        self.stages(images, Mode::Use)
    }

    /// As [`Self::forward`], by the statistics of the batch, which move those that are gathered.
    ///
    /// # Errors
    /// Another number of channels; `Value` when the weights are frozen.
    pub fn forward_training(&self, images: &Tensor) -> Result<Tensor> {
        self.fc.forward(&self.stages(images, Mode::Training)?)
    }

    fn stages(&self, images: &Tensor, mode: Mode) -> Result<Tensor> {
        // 1. in: a quarter of the size
        let mut x = images.to_dtype(self.dtype)?.to_device(self.device)?;
        x = relu(&normalized(&self.conv1, &self.bn1, &x, mode)?)?; // [B, H/2, W/2, base_width]
        x = max_pool2d(&x, Window { size: 3, stride: 2, padding: 1 })?;
        // 2. four stages, each but the first of half the size and twice the width
        for block in [&self.layer1, &self.layer2, &self.layer3, &self.layer4].into_iter().flatten()
        {
            x = block.forward(&x, mode)?;
        }
        // 3. out
        mean(&x, &[1, 2]) // [B, features]
    }
}
