//! AutoencoderKL of diffusers: between pixels and latents.
//!
//! Kingma & Welling 2014, "Auto-Encoding Variational Bayes"; Rombach et al. 2022, section 4.3. Reference
//! implementation: diffusers, `models/autoencoders/autoencoder_kl.py` and `vae.py`.

mod autoencoder;
pub mod tiny;

use std::sync::Arc;

use serde_json::json;

pub use autoencoder::{Autoencoder, AutoencoderConfig, Encoded};

use crate::error::Result;
use crate::io::config::Config;
use crate::nn::{
    Conv2d, GroupNorm, ImageSize, MultiHeadAttention, Params, ResnetBlock, checkpoint, module,
};
use crate::ops::conv::Conv2dConfig;
use crate::ops::layout::concat;
use crate::tensor::{DType, Device, Tensor};

/// Epsilon of every norm in the autoencoder; diffusers fixes it.
const EPS: f32 = 1e-6;

/// Shape of an autoencoder; `vae/config.json`.
#[derive(Clone, Debug)]
pub struct VaeConfig {
    /// Channels of an image.
    pub in_channels: usize,
    /// Channels of a decoded image.
    pub out_channels: usize,
    /// Channels of a latent.
    pub latent_channels: usize,
    /// Width of each level, the finest first.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks of each level in the encoder; one more in the decoder.
    pub layers_per_block: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Height and width of the training images, and of tiles.
    pub sample_size: usize,
    /// The diffusion model sees latents times this.
    pub scaling_factor: f32,
    /// Whether activations leave the range of f16.
    pub force_upcast: bool,
    /// Whether the middle blocks have attention.
    pub mid_block_add_attention: bool,
    /// Whether there is a convolution behind the encoder.
    pub use_quant_conv: bool,
    /// Whether there is a convolution before the decoder.
    pub use_post_quant_conv: bool,
}

/// Side of the images from which on a convolution's weights are worth four times their memory. A picture is decoded once where the
/// UNet takes tens of steps, so that only larger images repay it: in SD 1.5 those of 64x64 are a twelfth of the decoder's products
/// and half of its weights.
const LARGE: usize = 128;

impl VaeConfig {
    /// Reads the configuration.
    ///
    /// # Errors
    /// A field has another type, or asks for what is not implemented.
    pub fn read(c: &Config) -> Result<Self> {
        c.neutral("_class_name", &[json!("AutoencoderKL")])?;
        let widths = c.usizes("block_out_channels", &[64])?;
        let levels = widths.len();
        for (name, class) in
            [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")]
        {
            let classes = c.strings(name, &vec![class; levels])?;
            if levels == 0 || classes.len() != levels || classes.iter().any(|found| found != class)
            {
                return Err(c.wrong(
                    name,
                    &format!("{levels} times {class}, once for each of block_out_channels"),
                ));
            }
        }
        let norm_num_groups = c.usize("norm_num_groups", 32)?;
        if norm_num_groups == 0 || widths.iter().any(|width| !width.is_multiple_of(norm_num_groups))
        {
            return Err(
                c.wrong("norm_num_groups", &format!("a divisor of block_out_channels {widths:?}"))
            );
        }
        c.neutral("act_fn", &[json!("silu"), json!("swish")])?;
        let config = Self {
            in_channels: c.usize("in_channels", 3)?,
            out_channels: c.usize("out_channels", 3)?,
            latent_channels: c.usize("latent_channels", 4)?,
            layers_per_block: c.usize("layers_per_block", 1)?,
            norm_num_groups,
            sample_size: c.get("sample_size", "a non-negative integer")?.unwrap_or(32),
            scaling_factor: c.f32("scaling_factor", 0.18215)?,
            force_upcast: c.bool("force_upcast", true)?,
            mid_block_add_attention: c.bool("mid_block_add_attention", true)?,
            use_quant_conv: c.bool("use_quant_conv", true)?,
            use_post_quant_conv: c.bool("use_post_quant_conv", true)?,
            block_out_channels: widths,
        };
        // `shift_factor`, `latents_mean` and `latents_std` must be null, which `finish` sees to.
        c.finish()?;
        Ok(config)
    }

    /// What a level's convolutions are laid out for, at the training size.
    fn images(&self, level: usize) -> ImageSize {
        ImageSize::of(self.sample_size.checked_shr(level as u32).unwrap_or(0), LARGE)
    }

    /// Pixels along each side of a latent pixel.
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

/// The autoencoder.
pub struct Vae {
    config: VaeConfig,
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
    dtype: DType,
    device: Device,
}

/// The distribution of latents that an image is encoded to.
pub struct Posterior {
    /// [B, h, w, latent_channels]
    pub mean: Tensor,
    /// Natural logarithm of the variance, as the network gives it; [B, h, w, latent_channels].
    pub logvar: Tensor,
}

module!(Vae {
    "encoder": encoder,
    "quant_conv": quant_conv,
    "post_quant_conv": post_quant_conv,
    "decoder": decoder,
});

impl Vae {
    /// Builds the model from the weights at `p`.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(config: VaeConfig, p: &Params) -> Result<Self> {
        let latent = config.latent_channels;
        let conv = |name, channels| Conv2d::load_1x1(&p.pp(name), channels, channels);
        Ok(Self {
            encoder: Encoder::load(&config, &p.pp("encoder"))?,
            quant_conv: config
                .use_quant_conv
                .then(|| conv("quant_conv", 2 * latent))
                .transpose()?,
            post_quant_conv: config
                .use_post_quant_conv
                .then(|| conv("post_quant_conv", latent))
                .transpose()?,
            decoder: Decoder::load(&config, &p.pp("decoder"))?,
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
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// `images` [B, H, W, in_channels] in -1..1 -> latents [B, h, w, latent_channels], not yet times `scaling_factor`.
    ///
    /// # Errors
    /// Another number of channels.
    pub fn encode(&self, images: &Tensor) -> Result<Posterior> {
        let x = images.to_dtype(self.dtype)?.to_device(self.device)?;
        let mut x = self.encoder.forward(&x)?; // [B, h, w, 2 * latent]
        if let Some(conv) = &self.quant_conv {
            x = conv.forward(&x)?;
        }
        let latent = self.config.latent_channels;
        Ok(Posterior {
            mean: x.narrow(3, 0, latent)?.contiguous()?,
            logvar: x.narrow(3, latent, latent)?.contiguous()?,
        })
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
        let mut x = latents.to_dtype(self.dtype)?.to_device(self.device)?;
        if let Some(conv) = &self.post_quant_conv {
            x = conv.forward(&x)?;
        }
        self.decoder.forward(&x, proceed)
    }

    /// As [`Self::decode`], in overlapping tiles of the training size that are blended into each other: the
    /// memory of one tile, whatever the size of the image. Colours may drift from tile to tile. The image is
    /// f32, on the CPU. `proceed` is asked before each block of each tile.
    ///
    /// # Errors
    /// As [`Self::decode`]; what `proceed` answers.
    pub fn decode_tiled(
        &self,
        latents: &Tensor,
        proceed: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        let (sample, factor) = (self.config.sample_size, self.config.factor());
        tiled(latents, sample, factor, &mut |part| self.decode_unless(part, proceed))
    }
}

/// Latents [B, h, w, C] by way of tiles of `sample` pixels a side, of which `factor` are a latent.
fn tiled(
    latents: &Tensor,
    sample: usize,
    factor: usize,
    decode: &mut dyn FnMut(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let (_, h, w, _) = latents.dims4()?;
    // Neighbours share a quarter of a tile; each is shown up to where the next begins.
    let tile = (sample / factor / 4 * 4).max(4);
    let step = tile / 4 * 3;
    let (blend, shown) = (tile / 4 * factor, step * factor);

    let mut rows: Vec<Tensor> = Vec::new();
    let mut above: Vec<Tile> = Vec::new();
    for top in (0..h).step_by(step) {
        let mut row: Vec<Tile> = Vec::new();
        let mut strips = Vec::new();
        for (j, left) in (0..w).step_by(step).enumerate() {
            let part =
                latents.narrow(1, top, tile.min(h - top))?.narrow(2, left, tile.min(w - left))?;
            let mut decoded = Tile::new(&decode(&part.contiguous()?)?)?;
            if let Some(above) = above.get(j) {
                decoded.blend(above, 1, blend);
            }
            if let Some(left) = row.last() {
                decoded.blend(left, 2, blend);
            }
            let image = Tensor::from_slice(&decoded.pixels, decoded.dims)?;
            let image = image.narrow(1, 0, shown.min(image.dim(1)))?;
            strips.push(image.narrow(2, 0, shown.min(image.dim(2)))?);
            row.push(decoded);
        }
        rows.push(concat(&strips.iter().collect::<Vec<_>>(), 2)?); // [B, shown, W, C]
        above = row;
    }
    concat(&rows.iter().collect::<Vec<_>>(), 1) // [B, H, W, C]
}

/// A decoded part of an image.
struct Tile {
    pixels: Vec<f32>,
    /// [B, H, W, C]
    dims: [usize; 4],
}

impl Tile {
    fn new(image: &Tensor) -> Result<Self> {
        let (b, h, w, c) = image.dims4()?;
        Ok(Self { pixels: image.to_dtype(DType::F32)?.to_vec()?, dims: [b, h, w, c] })
    }

    /// Fades from the end of `before` to the beginning of this along `axis` (1: rows, 2: columns).
    fn blend(&mut self, before: &Self, axis: usize, extent: usize) {
        let extent = extent.min(before.dims[axis]).min(self.dims[axis]);
        let shared: [usize; 4] = std::array::from_fn(|d| self.dims[d].min(before.dims[d]));
        let at = |dims: &[usize; 4], i: [usize; 4]| {
            ((i[0] * dims[1] + i[1]) * dims[2] + i[2]) * dims[3] + i[3]
        };
        for b in 0..shared[0] {
            for y in 0..if axis == 1 { extent } else { shared[1] } {
                for x in 0..if axis == 2 { extent } else { shared[2] } {
                    let (mut from, position) = ([b, y, x, 0], [b, y, x][axis]);
                    from[axis] = before.dims[axis] - extent + position;
                    let weight = position as f32 / extent as f32;
                    let (from, to) = (at(&before.dims, from), at(&self.dims, [b, y, x, 0]));
                    for c in 0..shared[3] {
                        let to = &mut self.pixels[to + c];
                        *to = before.pixels[from + c] * (1.0 - weight) + *to * weight;
                    }
                }
            }
        }
    }
}

fn load_resnet(
    config: &VaeConfig,
    p: &Params,
    input: usize,
    output: usize,
) -> Result<Arc<ResnetBlock>> {
    ResnetBlock::load(p, input, output, None, config.norm_num_groups, EPS)
}

/// Pixels to moments: residual blocks with halvings between the levels.
struct Encoder {
    conv_in: Conv2d,
    down: Vec<DownLevel>,
    mid: MidBlock,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// Residual blocks at one size, and the convolution that halves it.
struct DownLevel {
    resnets: Vec<Arc<ResnetBlock>>,
    halving: Option<Conv2d>,
}

module!(DownLevel { "resnets": resnets, "downsamplers.0.conv": halving });

module!(Encoder {
    "conv_in": conv_in,
    "down_blocks": down,
    "mid_block": mid,
    "conv_norm_out": norm_out,
    "conv_out": conv_out,
});

impl Encoder {
    fn load(config: &VaeConfig, p: &Params) -> Result<Self> {
        let widths = &config.block_out_channels;
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        // diffusers pads below and to the right only; top, bottom, left, right.
        let halve = Conv2dConfig { stride: 2, padding: [0, 1, 0, 1] };
        let mut input = first;
        let mut down = Vec::new();
        for (level, &width) in widths.iter().enumerate() {
            let p = p.pp("down_blocks").pp(level).over(config.images(level));
            let mut resnets = Vec::new();
            for i in 0..config.layers_per_block {
                resnets.push(load_resnet(config, &p.pp("resnets").pp(i), input, width)?);
                input = width;
            }
            let is_last = level + 1 == widths.len();
            let halving = (!is_last)
                .then(|| Conv2d::load(&p.pp("downsamplers.0.conv"), width, width, 3, halve));
            down.push(DownLevel { resnets, halving: halving.transpose()? });
        }
        Ok(Self {
            conv_in: Conv2d::load_3x3(&p.pp("conv_in"), config.in_channels, first)?,
            down,
            mid: MidBlock::load(config, &p.pp("mid_block"))?,
            norm_out: GroupNorm::load(&p.pp("conv_norm_out"), last, config.norm_num_groups, EPS)?,
            conv_out: Conv2d::load_3x3(&p.pp("conv_out"), last, 2 * config.latent_channels)?,
        })
    }

    /// `x` [B, H, W, in_channels] -> [B, h, w, 2 * latent]
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.conv_in.forward(x)?; // [B, H, W, width]
        for DownLevel { resnets, halving } in &self.down {
            for resnet in resnets {
                x = resnet.forward(&x, None)?;
            }
            if let Some(conv) = halving {
                x = conv.forward(&x)?; // [B, H / 2, W / 2, width]
            }
        }
        let x = self.mid.forward(&x)?;
        self.conv_out.forward(&self.norm_out.forward_silu(&x)?)
    }
}

/// Latents to pixels: residual blocks with doublings between the levels.
struct Decoder {
    conv_in: Conv2d,
    mid: MidBlock,
    up: Vec<UpLevel>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// Residual blocks at one size, and the convolution behind its doubling.
struct UpLevel {
    resnets: Vec<Arc<ResnetBlock>>,
    doubling: Option<Conv2d>,
}

module!(UpLevel { "resnets": resnets, "upsamplers.0.conv": doubling });

module!(Decoder {
    "conv_in": conv_in,
    "mid_block": mid,
    "up_blocks": up,
    "conv_norm_out": norm_out,
    "conv_out": conv_out,
});

impl Decoder {
    fn load(config: &VaeConfig, p: &Params) -> Result<Self> {
        let widths = &config.block_out_channels;
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let mut input = last;
        let mut up = Vec::new();
        for (i, &width) in widths.iter().rev().enumerate() {
            let level = widths.len() - 1 - i;
            let p = p.pp("up_blocks").pp(i).over(config.images(level));
            let mut resnets = Vec::new();
            for j in 0..config.layers_per_block + 1 {
                resnets.push(load_resnet(config, &p.pp("resnets").pp(j), input, width)?);
                input = width;
            }
            let doubling = (level > 0).then(|| {
                let p = p.pp("upsamplers.0.conv").over(config.images(level - 1));
                Conv2d::load_3x3(&p, width, width)
            });
            up.push(UpLevel { resnets, doubling: doubling.transpose()? });
        }
        Ok(Self {
            conv_in: Conv2d::load_3x3(&p.pp("conv_in"), config.latent_channels, last)?,
            mid: MidBlock::load(config, &p.pp("mid_block"))?,
            up,
            norm_out: GroupNorm::load(&p.pp("conv_norm_out"), first, config.norm_num_groups, EPS)?,
            conv_out: Conv2d::load_3x3(&p.pp("conv_out"), first, config.out_channels)?,
        })
    }

    /// `x` [B, h, w, latent] -> [B, H, W, out_channels]
    fn forward(&self, x: &Tensor, proceed: &mut dyn FnMut() -> Result<()>) -> Result<Tensor> {
        proceed()?;
        let mut x = self.mid.forward(&self.conv_in.forward(x)?)?; // [B, h, w, width]
        for UpLevel { resnets, doubling } in &self.up {
            for resnet in resnets {
                proceed()?;
                x = resnet.forward(&x, None)?;
            }
            if let Some(conv) = doubling {
                proceed()?;
                x = conv.forward_doubled(&x)?; // [B, 2h, 2w, width]
            }
        }
        self.conv_out.forward(&self.norm_out.forward_silu(&x)?)
    }
}

/// Residual block, attention with one head, residual block.
struct MidBlock {
    resnet1: Arc<ResnetBlock>,
    attention: Option<Arc<MidAttention>>,
    resnet2: Arc<ResnetBlock>,
}

/// MultiHeadAttention between all pixels, one head, behind a norm.
struct MidAttention {
    norm: GroupNorm,
    attention: MultiHeadAttention,
}

module!(MidAttention { "group_norm": norm, "": attention });

impl MidAttention {
    /// `x` [B, h, w, C]
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (b, h, w, c) = x.dims4()?;
        let pixels = [b, h * w, c]; // [B, T, C]
        let normal = self.norm.forward(x)?.reshape(pixels)?;
        self.attention.forward(&normal, &x.reshape(pixels)?)?.reshape([b, h, w, c])
    }
}

module!(MidBlock {
    "resnets.0": resnet1,
    "attentions.0": attention,
    "resnets.1": resnet2,
});

impl MidBlock {
    fn load(config: &VaeConfig, p: &Params) -> Result<Self> {
        let level = config.block_out_channels.len() - 1;
        let (width, p) = (config.block_out_channels[level], p.over(config.images(level)));
        let attention = config.mid_block_add_attention.then(|| {
            let p = p.pp("attentions.0");
            let norm = GroupNorm::load(&p.pp("group_norm"), width, config.norm_num_groups, EPS)?;
            let attention = MultiHeadAttention::load_diffusers(&p, width, width, 1, true)?;
            Ok(Arc::new(MidAttention { norm, attention }))
        });
        Ok(Self {
            resnet1: load_resnet(config, &p.pp("resnets.0"), width, width)?,
            attention: attention.transpose()?,
            resnet2: load_resnet(config, &p.pp("resnets.1"), width, width)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.resnet1.forward(x, None)?; // [B, h, w, C]
        if let Some(attention) = &self.attention {
            x = checkpoint(attention, &[&x], |block, inputs| block.forward(&inputs[0]))?;
        }
        self.resnet2.forward(&x, None)
    }
}
