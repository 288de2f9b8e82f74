//! U-Net: what is seen at one size joins, doubled, what was seen at the next.

use serde_json::{Value, json};

use super::{ConvNormRelu, Pass};
use crate::error::Result;
use crate::io::config::Config;
use crate::nn::{Conv2d, Params, module};
use crate::ops::layout::concat;
use crate::ops::resample::resize_nearest;
use crate::tensor::Tensor;

/// What the decoder has settings for.
#[derive(Clone, Debug, PartialEq)]
pub struct UnetConfig {
    /// Channels of its blocks, of the smallest images first; as many as times the encoder halves an image, 3 to 5.
    pub channels: Vec<usize>,
}

impl Default for UnetConfig {
    fn default() -> Self {
        Self { channels: vec![256, 128, 64, 32, 16] }
    }
}

impl UnetConfig {
    pub(super) fn read(c: &Config) -> Result<Self> {
        c.neutral("decoder_use_norm", &[json!("batchnorm"), json!(true)])?;
        c.neutral("decoder_use_batchnorm", &[json!(true)])?;
        c.neutral("decoder_attention_type", &[])?;
        c.neutral("decoder_interpolation", &[json!("nearest")])?;
        let depth = c.usize("encoder_depth", 5)?;
        if !(3..=5).contains(&depth) {
            return Err(c.wrong("encoder_depth", "3, 4 or 5"));
        }
        let channels = c.usizes("decoder_channels", &Self::default().channels)?;
        if channels.len() != depth || channels.contains(&0) {
            let expected = format!("{depth} numbers above 0, as many as encoder_depth");
            return Err(c.wrong("decoder_channels", &expected));
        }
        Ok(Self { channels })
    }

    pub(super) fn write(&self, config: &mut Value) {
        config["encoder_depth"] = json!(self.channels.len());
        config["decoder_channels"] = json!(self.channels);
        config["decoder_use_norm"] = json!("batchnorm");
        config["decoder_attention_type"] = Value::Null;
        config["decoder_interpolation"] = json!("nearest");
    }

    /// Channels of the last block.
    pub(super) fn width(&self) -> usize {
        self.channels[self.channels.len() - 1]
    }
}

/// One size's.
struct Block {
    conv1: ConvNormRelu<Conv2d>,
    conv2: ConvNormRelu<Conv2d>,
}

module!(Block { "conv1": conv1, "conv2": conv2 });

/// The decoder.
pub struct Unet {
    blocks: Vec<Block>,
}

module!(Unet { "blocks": blocks });

impl Unet {
    /// `encoder` has the channels of the features, of the largest images first.
    pub(super) fn load(config: &UnetConfig, encoder: &[usize], p: &Params) -> Result<Self> {
        let deepest = encoder.len() - 1;
        let block = |(i, &output): (usize, &usize)| {
            let p = p.pp("blocks").pp(i);
            let below = if i == 0 { encoder[deepest] } else { config.channels[i - 1] };
            let beside = if i < deepest { encoder[deepest - 1 - i] } else { 0 };
            Ok(Block {
                conv1: ConvNormRelu::load(&p.pp("conv1"), below + beside, output, 3)?,
                conv2: ConvNormRelu::load(&p.pp("conv2"), output, output, 3)?,
            })
        };
        Ok(Self { blocks: config.channels.iter().enumerate().map(block).collect::<Result<_>>()? })
    }

    /// `features` of an image of height and width `size` -> [B, height, width, channels]
    pub(super) fn forward(
        &self,
        features: &[Tensor],
        size: [usize; 2],
        pass: Pass,
    ) -> Result<Tensor> {
        let (deepest, larger) = features.split_last().expect("an encoder has stages");
        let mut x = deepest.clone();
        let mut larger = larger.iter().rev();
        for block in &self.blocks {
            let beside = larger.next();
            let [height, width] = beside.map_or(size, |beside| [beside.dim(1), beside.dim(2)]);
            x = resize_nearest(&x, (height, width))?;
            if let Some(beside) = beside {
                x = concat(&[&x, beside], 3)?;
            }
            x = block.conv1.forward(&x, pass.mode())?;
            x = block.conv2.forward(&x, pass.mode())?;
        }
        Ok(x)
    }
}
