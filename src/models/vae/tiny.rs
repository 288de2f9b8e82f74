//! AutoencoderTiny of diffusers, which TAESD is: an autoencoder of plain convolutions, distilled from a larger one, whose
//! latents it shares. Its pictures are coarser and made many times faster.
//!
//! O. Boer Bohan, "Tiny AutoEncoder for Stable Diffusion" (github.com/madebyollin/taesd). Reference implementation:
//! diffusers, `models/autoencoders/autoencoder_tiny.py`, and `EncoderTiny` and `DecoderTiny` of `vae.py`.

use serde_json::json;

use super::tiled;
use crate::error::Result;
use crate::io::config::Config;
use crate::nn::{Conv2d, ImageSize, Module, Parameter, Params, join, module};
use crate::ops::conv::Conv2dConfig;
use crate::ops::elementwise::{Activation, activate, add, relu, scale, tanh};
use crate::ops::matmul::Epilogue;
use crate::ops::resample::upsample_nearest;
use crate::tensor::{DType, Device, Tensor};

/// Pixels along a side of a tile; diffusers fixes it.
pub(super) const TILE: usize = 512;

/// Shape of a tiny autoencoder; `vae/config.json`.
#[derive(Clone, Debug)]
pub struct TinyVaeConfig {
    /// Channels of an image.
    pub in_channels: usize,
    /// Channels of a decoded image.
    pub out_channels: usize,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Channels of the encoder, the same at each level.
    pub encoder_width: usize,
    /// Likewise of the decoder.
    pub decoder_width: usize,
    /// Residual blocks of each level of the encoder, the finest first.
    pub num_encoder_blocks: Vec<usize>,
    /// Residual blocks of each level of the decoder, the coarsest first.
    pub num_decoder_blocks: Vec<usize>,
    /// How many times as large each level of the decoder is as the one before.
    pub upsampling_scaling_factor: usize,
    /// Within residual blocks; what leaves them goes through ReLU.
    act: Act,
    /// Latents within this lie in 0..1 where they are stored as bytes, which nothing that draws does.
    pub latent_magnitude: f32,
    /// What latents of 0 are there.
    pub latent_shift: f32,
    /// The diffusion model sees latents times this.
    pub scaling_factor: f32,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Relu,
    Smooth(Activation),
}

impl TinyVaeConfig {
    /// Reads the configuration.
    ///
    /// # Errors
    /// A field has another type, or asks for what is not implemented.
    pub fn read(c: &Config) -> Result<Self> {
        c.neutral("_class_name", &[json!("AutoencoderTiny")])?;
        let levels = |widths: &str, blocks: &str, default: &[usize]| {
            let blocks = (blocks, c.usizes(blocks, default)?);
            let found = c.usizes(widths, &[64; 4])?;
            match found.first() {
                Some(&width)
                    if width > 0
                        && found.len() == blocks.1.len()
                        && found.iter().all(|w| *w == width) =>
                {
                    Ok((width, blocks.1))
                }
                // Its blocks keep their channels, so that levels of several widths do not fit together.
                _ => Err(c.wrong(
                    widths,
                    &format!("one width, {} times, once for each of {}", blocks.1.len(), blocks.0),
                )),
            }
        };
        let (encoder_width, num_encoder_blocks) =
            levels("encoder_block_out_channels", "num_encoder_blocks", &[1, 3, 3, 3])?;
        let (decoder_width, num_decoder_blocks) =
            levels("decoder_block_out_channels", "num_decoder_blocks", &[3, 3, 3, 1])?;
        let activations = [
            ("relu", Act::Relu),
            ("silu", Act::Smooth(Activation::Silu)),
            ("swish", Act::Smooth(Activation::Silu)),
            ("gelu", Act::Smooth(Activation::Gelu)),
        ];
        let config = Self {
            in_channels: c.usize("in_channels", 3)?,
            out_channels: c.usize("out_channels", 3)?,
            latent_channels: c.usize("latent_channels", 4)?,
            encoder_width,
            decoder_width,
            upsampling_scaling_factor: c
                .get("upsampling_scaling_factor", "a non-negative integer")?
                .unwrap_or(2),
            act: c.choice("act_fn", "relu", &activations)?,
            latent_magnitude: c.f32("latent_magnitude", 3.0)?,
            latent_shift: c.f32("latent_shift", 0.5)?,
            scaling_factor: c.f32("scaling_factor", 1.0)?,
            num_encoder_blocks,
            num_decoder_blocks,
        };
        c.neutral("upsample_fn", &[json!("nearest")])?;
        c.neutral("shift_factor", &[json!(0.0), json!(0)])?;
        // The first repeats the decoder's widths, and diffusers computes in any dtype whatever the second says.
        c.ignore(&["block_out_channels", "force_upcast"]);
        c.finish()?;
        let enlarged = u32::try_from(config.num_decoder_blocks.len() - 1)
            .ok()
            .and_then(|levels| config.upsampling_scaling_factor.checked_pow(levels));
        if config.num_encoder_blocks.len() > 16 || enlarged != Some(config.factor()) {
            let expected = format!("what makes up for {} halvings", config.halvings());
            return Err(c.wrong("upsampling_scaling_factor", &expected));
        }
        Ok(config)
    }

    fn halvings(&self) -> usize {
        self.num_encoder_blocks.len() - 1
    }

    /// Pixels along each side of a latent pixel.
    pub fn factor(&self) -> usize {
        1 << self.halvings()
    }
}

/// The autoencoder.
pub struct TinyVae {
    config: TinyVaeConfig,
    encoder: Layers,
    decoder: Layers,
    dtype: DType,
    device: Device,
}

module!(TinyVae { "encoder.layers": encoder, "decoder.layers": decoder });

impl TinyVae {
    /// Builds the model from the weights at `p`.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(config: TinyVaeConfig, p: &Params) -> Result<Self> {
        Ok(Self {
            encoder: Layers::encoder(&config, &p.pp("encoder.layers"))?,
            decoder: Layers::decoder(&config, &p.pp("decoder.layers"))?,
            dtype: p.dtype(),
            device: p.device(),
            config,
        })
    }

    /// What it computes in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The shape of this model.
    pub fn config(&self) -> &TinyVaeConfig {
        &self.config
    }

    /// `images` [B, H, W, in_channels] in -1..1 -> latents [B, h, w, latent_channels], not yet times `scaling_factor`.
    ///
    /// # Errors
    /// Another number of channels.
    pub fn encode(&self, images: &Tensor) -> Result<Tensor> {
        let x = images.to_dtype(self.dtype)?.to_device(self.device)?;
        // -1..1 to 0..1
        let x = self.shifted(&scale(&x, 0.5)?, 0.5)?;
        self.encoder.forward(x, self.config.act, &mut || Ok(()))
    }

    /// `latents` [B, h, w, latent_channels], divided by `scaling_factor` -> images [B, H, W, out_channels], about -1..1.
    ///
    /// # Errors
    /// Another number of channels.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.decode_unless(latents, &mut || Ok(()))
    }

    /// As [`Self::decode`]. `proceed` is asked before each block.
    ///
    /// # Errors
    /// As [`Self::decode`]; what `proceed` answers.
    pub fn decode_unless(
        &self,
        latents: &Tensor,
        proceed: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        let x = latents.to_dtype(self.dtype)?.to_device(self.device)?;
        let bounded = scale(&tanh(&scale(&x, 1.0 / 3.0)?)?, 3.0)?;
        let x = self.decoder.forward(bounded, self.config.act, proceed)?; // [B, H, W, out_channels]
        // 0..1 to -1..1
        self.shifted(&scale(&x, 2.0)?, -1.0)
    }

    /// As [`Self::decode`], in overlapping tiles: see [`Vae::decode_tiled`](super::Vae::decode_tiled).
    ///
    /// # Errors
    /// As [`Self::decode`]; what `proceed` answers.
    pub fn decode_tiled(
        &self,
        latents: &Tensor,
        proceed: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        tiled(latents, TILE, self.config.factor(), &mut |part| self.decode_unless(part, proceed))
    }

    /// `x` and `by` at each element.
    fn shifted(&self, x: &Tensor, by: f32) -> Result<Tensor> {
        let by = Tensor::from_vec(vec![by], [])?;
        add(x, &by.to_dtype(self.dtype)?.to_device(self.device)?)
    }
}

/// Layers in a row, each with its number in the file: what has no weights is counted too.
struct Layers(Vec<(usize, Layer)>);

enum Layer {
    Conv(Conv2d),
    /// Its result activated.
    Activated(Conv2d),
    /// Of the input, every pixel repeated so many times along each side.
    Magnified(Conv2d, usize),
    Block(Box<Block>),
}

impl Module for Layers {
    fn visit<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Parameter)) {
        for (number, layer) in &self.0 {
            let prefix = join(prefix, number);
            match layer {
                Layer::Conv(conv) | Layer::Activated(conv) | Layer::Magnified(conv, _) => {
                    conv.visit(&prefix, visit);
                }
                Layer::Block(block) => block.visit(&prefix, visit),
            }
        }
    }
}

impl Layers {
    fn encoder(config: &TinyVaeConfig, p: &Params) -> Result<Self> {
        let (width, p) = (config.encoder_width, p.over(ImageSize::Large));
        let mut layers = Vec::new();
        for (level, &blocks) in config.num_encoder_blocks.iter().enumerate() {
            let at = p.pp(layers.len());
            let conv = match level {
                0 => Conv2d::load_3x3(&at, config.in_channels, width)?,
                _ => Conv2d::load_unbiased(&at, width, width, 3, Conv2dConfig::new(2, 1))?,
            };
            layers.push(Layer::Conv(conv));
            for _ in 0..blocks {
                layers.push(Layer::Block(Block::load(&p.pp(layers.len()), width)?.into()));
            }
        }
        let last = Conv2d::load_3x3(&p.pp(layers.len()), width, config.latent_channels)?;
        layers.push(Layer::Conv(last));
        Ok(Self(layers.into_iter().enumerate().collect()))
    }

    fn decoder(config: &TinyVaeConfig, p: &Params) -> Result<Self> {
        let (width, p) = (config.decoder_width, p.over(ImageSize::Large));
        let first = Conv2d::load_3x3(&p.pp(0), config.latent_channels, width)?;
        let mut layers = vec![(0, Layer::Activated(first))];
        // The activation is the second.
        let mut number = 2;
        for (level, &blocks) in config.num_decoder_blocks.iter().enumerate() {
            for _ in 0..blocks {
                layers.push((number, Layer::Block(Block::load(&p.pp(number), width)?.into())));
                number += 1;
            }
            if level + 1 < config.num_decoder_blocks.len() {
                // The magnification is one of its own.
                number += 1;
                let same = Conv2dConfig::new(1, 1);
                let conv = Conv2d::load_unbiased(&p.pp(number), width, width, 3, same)?;
                layers.push((number, Layer::Magnified(conv, config.upsampling_scaling_factor)));
                number += 1;
            }
        }
        let last = Conv2d::load_3x3(&p.pp(number), width, config.out_channels)?;
        layers.push((number, Layer::Conv(last)));
        Ok(Self(layers))
    }

    /// `x` [B, H, W, C] -> [B, H', W', C']
    fn forward(
        &self,
        mut x: Tensor,
        act: Act,
        proceed: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        for (_, layer) in &self.0 {
            proceed()?;
            x = match layer {
                Layer::Conv(conv) => conv.forward(&x)?,
                Layer::Activated(conv) => act.of(&conv.forward(&x)?)?,
                Layer::Magnified(conv, 2) => conv.forward_doubled(&x)?,
                Layer::Magnified(conv, n) => conv.forward(&upsample_nearest(&x, *n)?)?,
                Layer::Block(block) => block.forward(&x, act)?,
            };
        }
        Ok(x)
    }
}

impl Act {
    fn of(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Relu => relu(x),
            Self::Smooth(activation) => activate(x, activation),
        }
    }
}

/// `AutoencoderTinyBlock`: three convolutions, activated in between, + input, ReLU.
struct Block {
    conv1: Conv2d,
    conv2: Conv2d,
    conv3: Conv2d,
}

module!(Block { "conv.0": conv1, "conv.2": conv2, "conv.4": conv3 });

impl Block {
    fn load(p: &Params, width: usize) -> Result<Self> {
        let conv = |i: usize| Conv2d::load_3x3(&p.pp("conv").pp(i), width, width);
        Ok(Self { conv1: conv(0)?, conv2: conv(2)?, conv3: conv(4)? })
    }

    /// `x` [B, H, W, C]
    fn forward(&self, x: &Tensor, act: Act) -> Result<Tensor> {
        let y = act.of(&self.conv1.forward(x)?)?;
        let y = act.of(&self.conv2.forward(&y)?)?;
        relu(&self.conv3.forward_with(&y, Epilogue { residual: Some(x), ..Epilogue::default() })?)
    }
}
