//! ControlNet: a second way down, which sees a picture beside the latents, and what it adds to the UNet's.
//!
//! Zhang et al. 2023, "Adding Conditional Control to Text-to-Image Diffusion Models". Reference implementation: diffusers,
//! `models/controlnets/controlnet.py`.

use serde_json::json;

use super::{Context, Encoder, Times, UnetConfig, Vector, repeat_rows};
use crate::error::{Error, Result};
use crate::io::config::Config;
use crate::nn::{Conv2d, Params, module};
use crate::ops::conv::Conv2dConfig;
use crate::ops::elementwise::add;
use crate::ops::layout::concat;
use crate::ops::matmul::{Activation, Epilogue};
use crate::ops::reduce::mean;
use crate::tensor::Tensor;

/// Shape of a ControlNet; its `config.json`.
#[derive(Clone, Debug)]
pub struct ControlNetConfig {
    /// The way down and the middle, as the UNet has them.
    pub unet: UnetConfig,
    /// Channels of the picture that it sees.
    pub conditioning_channels: usize,
    /// Widths of the layers that bring the picture to the size of the latents, half of it with each but the first.
    pub conditioning_widths: Vec<usize>,
    /// Whether the picture's channels are turned about.
    pub bgr: bool,
    /// Whether it gives one value a channel, for the whole picture.
    pub global_pool: bool,
}

impl ControlNetConfig {
    /// Reads the configuration.
    ///
    /// # Errors
    /// A field has another type, or asks for what is not implemented; a ControlNet of another kind.
    pub fn read(c: &Config) -> Result<Self> {
        c.neutral("_class_name", &[json!("ControlNetModel")])?;
        let unet = UnetConfig::read_fields(c)?;
        if unet.vector.metadata > 0 {
            let expected =
                "false: DiffusionSat's own ControlNets are not supported, those of diffusers are";
            return Err(c.wrong("use_metadata", expected));
        }
        if unet.vector.class.is_some() || unet.vector.guidance > 0 {
            let field =
                if unet.vector.guidance > 0 { "time_cond_proj_dim" } else { "class_embed_type" };
            return Err(c.wrong(field, "null: diffusers' pipelines tell ControlNets no such thing"));
        }
        let widths = c.usizes("conditioning_embedding_out_channels", &[16, 32, 96, 256])?;
        if widths.is_empty() {
            return Err(c.wrong("conditioning_embedding_out_channels", "at least one width"));
        }
        let orders = [("rgb", false), ("bgr", true)];
        let config = Self {
            unet,
            conditioning_channels: c.usize("conditioning_channels", 3)?,
            conditioning_widths: widths,
            bgr: c.choice("controlnet_conditioning_channel_order", "rgb", &orders)?,
            global_pool: c.bool("global_pool_conditions", false)?,
        };
        c.finish()?;
        Ok(config)
    }

    /// Pixels of the picture along a side of a latent.
    pub fn factor(&self) -> usize {
        1 << (self.conditioning_widths.len() - 1).min(16)
    }
}

/// What a ControlNet adds to a UNet.
pub struct Residuals {
    /// To what the way down leaves for the way up; [B, h, w, C] each.
    pub(super) down: Vec<Tensor>,
    /// Behind the middle.
    pub(super) mid: Tensor,
}

impl Residuals {
    /// Of every second image of a batch twice as large, [B, ..] -> [2 B, ..]: the ones between get nothing.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn for_every_second(self) -> Result<Self> {
        let spread = |x: Tensor| {
            let (b, h, w, c) = x.dims4()?;
            let x = x.reshape([b, 1, h, w, c])?;
            let zeros = Tensor::zeros([b, 1, h, w, c], x.dtype(), x.device())?;
            concat(&[&zeros, &x], 1)?.reshape([2 * b, h, w, c]) // [B, 2, h, w, C] -> [2 B, h, w, C]
        };
        let down = self.down.into_iter().map(spread).collect::<Result<_>>()?;
        Ok(Self { down, mid: spread(self.mid)? })
    }
}

/// The network.
pub struct ControlNet {
    config: ControlNetConfig,
    encoder: Encoder,
    hint: HintEmbedding,
    zero_down: Vec<Conv2d>,
    zero_mid: Conv2d,
}

module!(ControlNet {
    "": encoder,
    "controlnet_cond_embedding": hint,
    "controlnet_down_blocks": zero_down,
    "controlnet_mid_block": zero_mid,
});

impl ControlNet {
    /// Builds the model from the weights at `p`.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(config: ControlNetConfig, p: &Params) -> Result<Self> {
        let (encoder, widths) = Encoder::load(&config.unet, p)?;
        let first = config.unet.block_out_channels[0];
        let deepest = config.unet.block_out_channels.last().copied().unwrap_or(first);
        let precise = p.with_dtype(encoder.precise);
        let zero = |(i, &width): (usize, &usize)| {
            Conv2d::load_1x1(&p.pp("controlnet_down_blocks").pp(i), width, width)
        };
        Ok(Self {
            hint: HintEmbedding::load(&config, &precise.pp("controlnet_cond_embedding"), first)?,
            zero_down: widths.iter().enumerate().map(zero).collect::<Result<_>>()?,
            zero_mid: Conv2d::load_1x1(&p.pp("controlnet_mid_block"), deepest, deepest)?,
            encoder,
            config,
        })
    }

    /// The shape of this model.
    pub fn config(&self) -> &ControlNetConfig {
        &self.config
    }

    /// As [`super::Unet::embed_timesteps`], of its own blocks.
    ///
    /// # Errors
    /// Those of the device.
    pub fn embed_timesteps(&self, timesteps: &[f32]) -> Result<Tensor> {
        self.embed(timesteps, &Vector::default())
    }

    /// As [`super::Unet::embed`], of its own blocks; of what the UNet is told it is told sizes and the prompt as a whole, where it
    /// is Stable Diffusion XL's.
    ///
    /// # Errors
    /// Sizes or a prompt of another length; those of the device.
    pub fn embed(&self, timesteps: &[f32], vector: &Vector) -> Result<Tensor> {
        let vector = match self.is_told() {
            true => Vector {
                sizes: vector.sizes.clone(),
                pooled: vector.pooled.clone(),
                ..Vector::default()
            },
            false => Vector::default(),
        };
        let temb = self.encoder.embedding(timesteps, &vector)?;
        self.encoder.times(&temb, self.encoder.resnets())
    }

    /// Whether it is told anything of a picture.
    pub fn is_told(&self) -> bool {
        self.config.unet.vector.text_time.is_some()
    }

    /// As [`super::Unet::context`], of its own attention.
    ///
    /// # Errors
    /// As there.
    pub fn context(&self, text: &Tensor) -> Result<Context> {
        Context::of(self.encoder.attentions(), text)
    }

    /// What it makes of a picture [B, H, W, conditioning_channels] of levels from 0 to 1, once for all steps:
    /// [B, h, w, width].
    ///
    /// # Errors
    /// Another number of channels.
    pub fn hint(&self, picture: &Tensor) -> Result<Tensor> {
        let (_, _, _, channels) = picture.dims4()?;
        if channels != self.config.conditioning_channels {
            let expected = format!("[B, H, W, {}]", self.config.conditioning_channels);
            return Err(Error::expected_shape("controlnet", "picture", &expected, picture.shape()));
        }
        let picture = match self.config.bgr {
            true => {
                let turned = (0..channels).rev().map(|i| picture.narrow(3, i, 1));
                concat(&turned.collect::<Result<Vec<_>>>()?.iter().collect::<Vec<_>>(), 3)?
            }
            false => picture.clone(),
        };
        let (dtype, device) = (self.encoder.precise, self.encoder.device);
        self.hint.forward(&picture.to_dtype(dtype)?.to_device(device)?)
    }

    /// What it adds, `scale` times. `latents` [B, h, w, C], `hint` of [`Self::hint`], `times` of [`Self::embed_timesteps`]
    /// and `context` of the same batch. With `guess` what is finer counts less, from a tenth on, whatever the prompt says.
    ///
    /// # Errors
    /// Shapes that do not fit the model.
    pub fn forward(
        &self,
        latents: &Tensor,
        hint: &Tensor,
        times: &Tensor,
        context: &Context,
        scale: f32,
        guess: bool,
    ) -> Result<Residuals> {
        let times = &mut Times { rows: repeat_rows(times, latents.dim(0))?, start: 0 };
        let (h, skips) = self.encoder.forward(latents, Some(hint), times, &mut context.0.iter())?;
        let count = skips.len();
        let scale = |i: usize| match guess && !self.config.global_pool {
            // logspace(-1, 0, count + 1)
            true => scale * 10f64.powf(i as f64 / count as f64 - 1.0) as f32,
            false => scale,
        };
        let give = |conv: &Conv2d, x: &Tensor, i: usize| {
            let x = conv.forward_with(x, Epilogue { scale: scale(i), ..Epilogue::default() })?;
            if self.config.global_pool { pooled(&x) } else { Ok(x) }
        };
        let down = self.zero_down.iter().zip(&skips).enumerate();
        let down = down.map(|(i, (conv, x))| give(conv, x, i)).collect::<Result<_>>()?;
        Ok(Residuals { down, mid: give(&self.zero_mid, &h, count)? })
    }
}

/// The mean of every channel of an image in all places of it, [B, h, w, C].
fn pooled(x: &Tensor) -> Result<Tensor> {
    let (b, h, w, c) = x.dims4()?;
    let means = mean(x, &[1, 2])?; // [B, C]
    let zeros = Tensor::zeros([1, h, w, c], x.dtype(), x.device())?;
    let rows = (0..b).map(|i| add(&zeros, &means.narrow(0, i, 1)?.reshape([c])?));
    concat(&rows.collect::<Result<Vec<_>>>()?.iter().collect::<Vec<_>>(), 0)
}

/// `ControlNetConditioningEmbedding`: convolutions that bring a picture to the size of the latents.
struct HintEmbedding {
    conv_in: Conv2d,
    blocks: Vec<Conv2d>,
    conv_out: Conv2d,
}

module!(HintEmbedding { "conv_in": conv_in, "blocks": blocks, "conv_out": conv_out });

impl HintEmbedding {
    fn load(config: &ControlNetConfig, p: &Params, outputs: usize) -> Result<Self> {
        let widths = &config.conditioning_widths;
        let mut blocks = Vec::new();
        for pair in widths.windows(2) {
            let at = |i: usize| p.pp("blocks").pp(i);
            blocks.push(Conv2d::load_3x3(&at(blocks.len()), pair[0], pair[0])?);
            let halve = Conv2dConfig { stride: 2, padding: [1; 4] };
            blocks.push(Conv2d::load(&at(blocks.len()), pair[0], pair[1], 3, halve)?);
        }
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let inputs = config.conditioning_channels;
        Ok(Self {
            conv_in: Conv2d::load_3x3(&p.pp("conv_in"), inputs, first)?,
            blocks,
            conv_out: Conv2d::load_3x3(&p.pp("conv_out"), last, outputs)?,
        })
    }

    /// `x` [B, H, W, C] -> [B, H / factor, W / factor, outputs]
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let silu = || Epilogue { act: Activation::Silu, ..Epilogue::default() };
        let mut x = self.conv_in.forward_with(x, silu())?;
        for conv in &self.blocks {
            x = conv.forward_with(&x, silu())?;
        }
        self.conv_out.forward(&x)
    }
}
