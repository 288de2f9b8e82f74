//! UNet2DConditionModel of diffusers: the denoiser of Stable Diffusion 1.x, 2.x and XL; and DiffusionSat's SatUNet, which is
//! one that is told more of a picture.
//!
//! Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models". Reference
//! implementation: diffusers, `models/unets/unet_2d_condition.py` and `unet_2d_blocks.py`.

mod attention;
mod controlnet;
mod image_prompt;
mod vector;

use std::sync::Arc;

use serde_json::{Value, json};

use self::attention::Attention;
pub use self::controlnet::{ControlNet, ControlNetConfig, Residuals};
pub use self::image_prompt::IpAdapter;
pub use self::vector::{ClassEmbedding, Sinusoids, TextTime, Vector, VectorConfig};
use self::vector::{TimestepEmbedding, VectorEmbedding};

use crate::error::{Error, Result};
use crate::io::config::Config;
use crate::nn::{
    Conv2d, GroupNorm, ImageSize, KeyValue, LayerNorm, Linear, MultiHeadAttention, Params,
    ResnetBlock, checkpoint, module,
};
use crate::ops::conv::Conv2dConfig;
use crate::ops::elementwise::{add, silu};
use crate::ops::layout::concat;
use crate::ops::matmul::Epilogue;
use crate::ops::resample::resize_nearest;
use crate::tensor::{DType, Device, Tensor};

/// Shape of a UNet; `unet/config.json`.
#[derive(Clone, Debug)]
pub struct UnetConfig {
    /// Height and width of the latents it was trained on.
    pub sample_size: Option<usize>,
    /// Channels in: 4, or 9 for inpainting (latents, mask, masked latents).
    pub in_channels: usize,
    /// Channels out.
    pub out_channels: usize,
    /// Width of each level, the finest first.
    pub block_out_channels: Vec<usize>,
    /// Whether the levels have attention on the way down.
    pub down_attention: Vec<bool>,
    /// Whether the levels have attention on the way up, the coarsest first.
    pub up_attention: Vec<bool>,
    /// Residual blocks of each level on the way down; one more on the way up.
    pub layers_per_block: Vec<usize>,
    /// Transformer layers inside each attention block, by level. The middle has as many as the first of the coarsest level.
    pub transformer_layers: Vec<Vec<usize>>,
    /// The same on the way up, the coarsest first.
    pub up_transformer_layers: Vec<Vec<usize>>,
    /// MultiHeadAttention heads by level.
    pub heads: Vec<usize>,
    /// Whether pixels attend to each other alone, by layers of guided diffusion's kind: a model that is told no text, in the
    /// original code's UNets. No configuration of diffusers says so.
    pub own_attention: bool,
    /// Width of the text encoder's hidden states, by level.
    pub cross_attention_dim: Vec<usize>,
    /// Zeros around the input of a downsampling convolution: 1 on each side, or 0 for bottom and right only.
    pub downsample_padding: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// Epsilon of the group norms in residual blocks.
    pub norm_eps: f32,
    /// Timestep embedding: cosines first.
    pub flip_sin_to_cos: bool,
    /// Timestep embedding: shift of the frequencies.
    pub freq_shift: f32,
    /// What it is told of a picture beside the prompt.
    pub vector: VectorConfig,
}

/// Side of the images from which on a convolution's weights are worth four times their memory: an image has 64 tiles of 4x4 for
/// each weight that is read.
const LARGE: usize = 32;

impl UnetConfig {
    /// Latents along a side of an image of the training size at a level.
    fn side(&self, level: usize) -> usize {
        self.sample_size.unwrap_or(64).checked_shr(level as u32).unwrap_or(0)
    }

    /// What the residual blocks of a level are laid out for. The last level has most of the weights: in SD 1.5 its 3x3
    /// convolutions, over images of 8x8, are a twelfth of the products and half of the weights.
    fn images(&self, level: usize) -> ImageSize {
        let side = self.side(level);
        match level + 1 == self.block_out_channels.len() {
            true if side < 16 => ImageSize::Small,
            true => ImageSize::Medium,
            false => ImageSize::of(side, LARGE),
        }
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// A field has another type, or asks for what is not implemented.
    pub fn read(c: &Config) -> Result<Self> {
        c.neutral("_class_name", &[json!("UNet2DConditionModel"), json!("SatUNet")])?;
        let config = Self::read_fields(c)?;
        c.finish()?;
        Ok(config)
    }

    /// Reads the fields that a ControlNet has too.
    fn read_fields(c: &Config) -> Result<Self> {
        let widths = c.usizes("block_out_channels", &[320, 640, 1280, 1280])?;
        let levels = widths.len();
        let counts = |name, default| {
            Ok::<_, Error>(c.per_level(name, levels)?.unwrap_or_else(|| vec![default; levels]))
        };

        // By default all levels but the coarsest have attention.
        let plain_down = levels.saturating_sub(1);
        let down_attention = attention(
            c,
            "down_block_types",
            levels,
            plain_down,
            "DownBlock2D",
            "CrossAttnDownBlock2D",
        )?;
        let up_attention =
            attention(c, "up_block_types", levels, 0, "UpBlock2D", "CrossAttnUpBlock2D")?;
        c.neutral("mid_block_type", &[json!("UNetMidBlock2DCrossAttn")])?;

        // `attention_head_dim` has always meant the number of heads (diffusers issue 2011).
        let heads_field = if c.value("num_attention_heads").is_some() {
            "num_attention_heads"
        } else {
            "attention_head_dim"
        };
        let heads = counts(heads_field, 8)?;
        if widths
            .iter()
            .zip(&heads)
            .any(|(&width, &heads)| heads == 0 || !width.is_multiple_of(heads))
        {
            return Err(c.wrong(
                heads_field,
                &format!("numbers of heads that divide block_out_channels {widths:?}"),
            ));
        }
        let norm_num_groups = c.usize("norm_num_groups", 32)?;
        if norm_num_groups == 0 || widths.iter().any(|width| !width.is_multiple_of(norm_num_groups))
        {
            return Err(
                c.wrong("norm_num_groups", &format!("a divisor of block_out_channels {widths:?}"))
            );
        }
        let downsample_padding = c.usize("downsample_padding", 1)?;
        if downsample_padding > 1 {
            return Err(c.wrong("downsample_padding", "0 or 1"));
        }

        c.neutral("act_fn", &[json!("silu"), json!("swish")])?;
        c.neutral("resnet_time_scale_shift", &[json!("default")])?;
        c.neutral("resnet_out_scale_factor", &[json!(1)])?;
        c.neutral("mid_block_scale_factor", &[json!(1)])?;
        c.neutral("time_embedding_type", &[json!("positional")])?;
        c.neutral("attention_type", &[json!("default")])?;
        c.neutral("conv_in_kernel", &[json!(3)])?;
        c.neutral("conv_out_kernel", &[json!(3)])?;
        c.neutral("only_cross_attention", &[json!(false), json!(vec![false; levels])])?;
        c.ignore(&[
            "attention_head_dim",
            // Acts in training only.
            "dropout",
            // Acts with an `addition_embed_type` that is refused.
            "addition_embed_type_num_heads",
            // The names of the weights are the same, and over [B, H, W, C] so is the arithmetic.
            "use_linear_projection",
            // Scores and softmax are in f32 always, which is what upcasting is for.
            "upcast_attention",
        ]);
        let layers_per_block = counts("layers_per_block", 2)?;
        let one_more: Vec<usize> = layers_per_block.iter().rev().map(|n| n + 1).collect();
        let (down_layers, up_layers) =
            ("transformer_layers_per_block", "reverse_transformer_layers_per_block");
        let transformer_layers = c.per_part(down_layers, &layers_per_block)?;
        let transformer_layers = transformer_layers
            .unwrap_or_else(|| layers_per_block.iter().map(|&n| vec![1; n]).collect());
        let up_transformer_layers = match c.per_part(up_layers, &one_more)? {
            Some(layers) => layers,
            None => {
                let lists = c.value(down_layers).and_then(Value::as_array);
                if lists.is_some_and(|levels| levels.iter().any(Value::is_array)) {
                    return Err(
                        c.wrong(up_layers, "lists, as transformer_layers_per_block has them")
                    );
                }
                let first = |layers: &Vec<usize>| layers.first().copied().unwrap_or(1);
                let levels = transformer_layers.iter().map(first).rev();
                levels.zip(&one_more).map(|(layers, &n)| vec![layers; n]).collect()
            }
        };
        Ok(Self {
            sample_size: c.get("sample_size", "a non-negative integer")?,
            in_channels: c.usize("in_channels", 4)?,
            out_channels: c.usize("out_channels", 4)?,
            down_attention,
            up_attention,
            layers_per_block,
            transformer_layers,
            up_transformer_layers,
            heads,
            own_attention: false,
            cross_attention_dim: counts("cross_attention_dim", 1280)?,
            downsample_padding,
            norm_num_groups,
            norm_eps: c.f32("norm_eps", 1e-5)?,
            flip_sin_to_cos: c.bool("flip_sin_to_cos", true)?,
            freq_shift: c.f32("freq_shift", 0.0)?,
            vector: VectorConfig::read(c, 4 * widths.first().copied().unwrap_or_default())?,
            block_out_channels: widths,
        })
    }

    /// What timesteps are embedded by.
    fn sinusoids(&self) -> Sinusoids {
        let &Self { flip_sin_to_cos, freq_shift, .. } = self;
        Sinusoids { width: self.block_out_channels[0], flip_sin_to_cos, freq_shift }
    }
}

/// Reads a list of block classes: which levels have attention. By default all but level `plain`.
fn attention(
    c: &Config,
    name: &str,
    levels: usize,
    plain: usize,
    without: &str,
    with: &str,
) -> Result<Vec<bool>> {
    let default: Vec<_> = (0..levels).map(|i| if i == plain { without } else { with }).collect();
    let classes = c.strings(name, &default)?;
    if levels == 0 || classes.len() != levels {
        return Err(
            c.wrong(name, &format!("{levels} block classes, one for each of block_out_channels"))
        );
    }
    if classes.iter().any(|class| class != with && class != without) {
        return Err(c.wrong(name, &format!("block classes {without} and {with}")));
    }
    Ok(classes.iter().map(|class| class == with).collect())
}

/// The denoiser.
pub struct Unet {
    config: UnetConfig,
    encoder: Encoder,
    up: Vec<UpBlock>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

/// The way down and the middle, which a ControlNet has too.
struct Encoder {
    time: TimestepEmbedding,
    vector: VectorEmbedding,
    sinusoids: Sinusoids,
    in_channels: usize,
    conv_in: Conv2d,
    down: Vec<DownBlock>,
    mid: MidBlock,
    /// What it computes in.
    dtype: DType,
    /// What its first and last layer compute in.
    precise: DType,
    device: Device,
}

/// What depends on the prompt alone: keys and values of every cross attention, in order of execution.
#[derive(Clone)]
pub struct Context(Vec<KeyValue>);

module!(Encoder {
    "time_embedding": time,
    "": vector,
    "conv_in": conv_in,
    "down_blocks": down,
    "mid_block": mid,
});

module!(Unet {
    "": encoder,
    "up_blocks": up,
    "conv_norm_out": norm_out,
    "conv_out": conv_out,
});

impl Context {
    /// Keys and values of `text` [B, T, D] in every layer of `attentions`.
    fn of<'a>(attentions: impl Iterator<Item = &'a Attention>, text: &Tensor) -> Result<Self> {
        let layers = attentions.flat_map(Attention::layers);
        Ok(Self(layers.map(|layer| layer.attn2.key_value(text)).collect::<Result<_>>()?))
    }

    /// Of a model that is told no text.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// The contexts of a batch from those of its parts, which have the same number of tokens.
    ///
    /// # Errors
    /// `Shape` when they have not, or when there are none.
    pub fn concat(parts: &[&Self]) -> Result<Self> {
        let layers = parts.first().map_or(0, |first| first.0.len());
        let layer = |i| KeyValue::concat(&parts.iter().map(|part| &part.0[i]).collect::<Vec<_>>());
        Ok(Self((0..layers).map(layer).collect::<Result<_>>()?))
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.0.first().map_or(0, KeyValue::tokens)
    }
}

impl Encoder {
    /// The layers, and the widths of what they leave for the way up, in the order in which they do.
    fn load(config: &UnetConfig, p: &Params) -> Result<(Self, Vec<usize>)> {
        let widths = &config.block_out_channels;
        let first = widths[0];
        // Guidance multiplies the error of the prediction several times, so its first and last layer, which
        // take next to no time, are in f32, as is what the timesteps are embedded by.
        let precise = p.with_dtype(if p.dtype() == DType::F64 { DType::F64 } else { DType::F32 });
        let (sinusoids, temb) = (config.sinusoids(), 4 * first);
        let mut skips = vec![first];
        let mut input = first;
        let mut down = Vec::new();
        for (level, &width) in widths.iter().enumerate() {
            let block = DownBlock::load(config, &p.pp("down_blocks").pp(level), level, input)?;
            input = width;
            skips
                .extend(vec![input; block.resnets.len() + usize::from(block.downsample.is_some())]);
            down.push(block);
        }
        let encoder = Self {
            mid: MidBlock::load(config, &p.pp("mid_block"))?,
            time: TimestepEmbedding::load_guided(
                &precise.pp("time_embedding"),
                first,
                temb,
                config.vector.guidance,
            )?,
            vector: VectorEmbedding::load(config.vector, &precise, sinusoids, temb)?,
            sinusoids,
            in_channels: config.in_channels,
            conv_in: Conv2d::load_3x3(&precise.pp("conv_in"), config.in_channels, first)?,
            down,
            dtype: p.dtype(),
            precise: precise.dtype(),
            device: p.device(),
        };
        Ok((encoder, skips))
    }

    /// SiLU of what all blocks share of `timesteps` `[N]` and a picture: [N, 4 * width].
    fn embedding(&self, timesteps: &[f32], vector: &Vector) -> Result<Tensor> {
        let mut temb = self.time_embedding(timesteps, vector.guidance)?; // [N, 4 * width]
        if let Some(vector) = self.vector.of(vector)? {
            temb = add(&temb, &vector)?;
        }
        silu(&temb)?.to_dtype(self.dtype)
    }

    fn time_embedding(&self, timesteps: &[f32], guidance: Option<f32>) -> Result<Tensor> {
        let t = self.sinusoids.of(timesteps)?; // [N, width]
        let t = t.to_dtype(self.precise)?.to_device(self.device)?;
        self.time.forward_guided(&t, guidance) // [N, 4 * width]
    }

    /// What each of `resnets` makes of `temb` of [`Self::embedding`], side by side.
    fn times<'a>(
        &self,
        temb: &Tensor,
        resnets: impl Iterator<Item = &'a Arc<ResnetBlock>>,
    ) -> Result<Tensor> {
        let times = resnets.filter_map(|resnet| resnet.time(temb).transpose());
        let times = times.collect::<Result<Vec<_>>>()?;
        concat(&times.iter().collect::<Vec<_>>(), 1)?.to_dtype(self.precise)
    }

    /// In order of execution.
    fn resnets(&self) -> impl Iterator<Item = &Arc<ResnetBlock>> {
        let down = self.down.iter().flat_map(|block| &block.resnets);
        down.chain([&self.mid.resnet1, &self.mid.resnet2])
    }

    /// In order of execution.
    fn attentions(&self) -> impl Iterator<Item = &Attention> {
        self.down.iter().flat_map(|block| &block.attentions).chain([&self.mid.attention])
    }

    /// `latents` [B, h, w, in_channels] and, of a ControlNet, `hint` [B, h, w, width] -> [B, h / 8, w / 8, 4 * width], and
    /// what is left for the way up.
    fn forward(
        &self,
        latents: &Tensor,
        hint: Option<&Tensor>,
        times: &mut Times,
        context: &mut Contexts,
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let (_, _, _, channels) = latents.dims4()?;
        if channels != self.in_channels {
            let expected = format!("[B, h, w, {}]", self.in_channels);
            return Err(Error::expected_shape("unet", "latents", &expected, latents.shape()));
        }
        // 1. down
        let epilogue = Epilogue { residual: hint, ..Epilogue::default() };
        let h = self.conv_in.forward_with(&latents.to_dtype(self.precise)?, epilogue)?;
        let mut h = h.to_dtype(self.dtype)?; // [B, h, w, width]
        let mut skips = vec![h.clone()];
        for block in &self.down {
            h = block.forward(h, times, context, &mut skips)?;
        }
        // 2. middle
        Ok((self.mid.forward(&h, times, context)?, skips)) // [B, h / 8, w / 8, 4 * width]
    }
}

impl Unet {
    /// Builds the model from the weights at `p`.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(config: UnetConfig, p: &Params) -> Result<Self> {
        let (encoder, mut skips) = Encoder::load(&config, p)?;
        let widths = &config.block_out_channels;
        let (first, levels) = (widths[0], widths.len());
        let precise = p.with_dtype(encoder.precise);
        let mut input = widths[levels - 1];
        let mut up = Vec::new();
        for (i, level) in (0..levels).rev().enumerate() {
            let p = p.pp("up_blocks").pp(i);
            up.push(UpBlock::load(&config, &p, level, config.up_attention[i], input, &mut skips)?);
            input = widths[level];
        }
        Ok(Self {
            encoder,
            up,
            norm_out: GroupNorm::load(
                &p.pp("conv_norm_out"),
                first,
                config.norm_num_groups,
                config.norm_eps,
            )?,
            conv_out: Conv2d::load_3x3(&precise.pp("conv_out"), first, config.out_channels)?,
            config,
        })
    }

    /// The shape of this model.
    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// What the blocks of a model that [is told nothing](VectorConfig::is_empty) beside the prompt make of `timesteps`
    /// `[N]`: see [`Self::embed`].
    ///
    /// # Errors
    /// `Value` for a model that is told more.
    pub fn embed_timesteps(&self, timesteps: &[f32]) -> Result<Tensor> {
        self.embed(timesteps, &Vector::default())
    }

    /// What every residual block makes of `timesteps` `[N]` and of what is told of a picture, side by side in order of
    /// execution: [N, sum of their widths], f32 (f64 for an f64 model).
    ///
    /// It depends on the schedule and the picture alone: computed once, not in every step.
    ///
    /// # Errors
    /// `Value` for other numbers than [`UnetConfig::vector`] says.
    pub fn embed(&self, timesteps: &[f32], vector: &Vector) -> Result<Tensor> {
        let temb = self.encoder.embedding(timesteps, vector)?; // [N, 4 * width]
        let up = self.up.iter().flat_map(|block| &block.resnets);
        self.encoder.times(&temb, self.encoder.resnets().chain(up))
    }

    /// The embedding of `timesteps` `[N]` that all blocks share: [N, 4 * width], f32 (f64 for an f64 model).
    ///
    /// # Errors
    /// `Value` for a model that is told the scale of guidance.
    pub fn time_embedding(&self, timesteps: &[f32]) -> Result<Tensor> {
        self.encoder.time_embedding(timesteps, None)
    }

    /// In order of execution.
    fn cross_attentions(&self) -> impl Iterator<Item = &MultiHeadAttention> {
        let up = self.up.iter().flat_map(|block| &block.attentions);
        let layers = self.encoder.attentions().chain(up).flat_map(Attention::layers);
        layers.map(|layer| &layer.attn2)
    }

    /// Keys and values of `text` [B, T, D] in every cross attention.
    ///
    /// # Errors
    /// D is not the model's.
    pub fn context(&self, text: &Tensor) -> Result<Context> {
        let up = self.up.iter().flat_map(|block| &block.attentions);
        Context::of(self.encoder.attentions().chain(up), text)
    }

    /// Denoises: `latents` [B, h, w, in_channels], `times` of [`Self::embed_timesteps`], for each image or one for all,
    /// `context` of the same batch -> prediction [B, h, w, out_channels], f32 (f64 for an f64 model).
    ///
    /// # Errors
    /// Shapes that do not fit the model.
    pub fn forward(&self, latents: &Tensor, times: &Tensor, context: &Context) -> Result<Tensor> {
        self.forward_with(latents, times, context, &[])
    }

    /// As [`Self::forward`], with what ControlNets add to it.
    ///
    /// # Errors
    /// As there, and ControlNets of another shape.
    pub fn forward_with(
        &self,
        latents: &Tensor,
        times: &Tensor,
        context: &Context,
        added: &[Residuals],
    ) -> Result<Tensor> {
        let (batch, ..) = latents.dims4()?;
        let times = &mut Times { rows: repeat_rows(times, batch)?, start: 0 };
        let mut context = context.0.iter();
        // 1. down, and the middle
        let (mut h, mut skips) = self.encoder.forward(latents, None, times, &mut context)?;
        for Residuals { down, mid } in added {
            if down.len() != skips.len() {
                return Err(Error::shape("unet", "the ControlNet is of another model"));
            }
            for (skip, residual) in skips.iter_mut().zip(down) {
                *skip = add(skip, residual)?;
            }
            h = add(&h, mid)?;
        }
        // 2. up
        for block in &self.up {
            h = block.forward(h, times, &mut context, &mut skips)?;
        }
        // 3. out
        let h = h.to_dtype(self.encoder.precise)?;
        self.conv_out.forward(&self.norm_out.forward_silu(&h)?) // [B, h, w, out_channels]
    }
}

/// The keys and values that are still to be used.
type Contexts<'a> = std::slice::Iter<'a, KeyValue>;

/// What residual blocks make of the timesteps, of those that are still to come from `start` on.
struct Times {
    /// [B, sum of widths]
    rows: Tensor,
    start: usize,
}

impl Times {
    /// The next block's [B, width], a view.
    fn next(&mut self, resnet: &ResnetBlock) -> Result<Tensor> {
        let width = resnet.outputs();
        self.start += width;
        self.rows.narrow(1, self.start - width, width)
    }
}

/// Residual blocks and attention at one resolution, then a halving.
struct DownBlock {
    resnets: Vec<Arc<ResnetBlock>>,
    attentions: Vec<Attention>,
    downsample: Option<Conv2d>,
}

module!(DownBlock {
    "resnets": resnets,
    "attentions": attentions,
    "downsamplers.0.conv": downsample,
});

impl DownBlock {
    fn load(config: &UnetConfig, p: &Params, level: usize, mut input: usize) -> Result<Self> {
        let width = config.block_out_channels[level];
        let mut block = Self { resnets: Vec::new(), attentions: Vec::new(), downsample: None };
        for i in 0..config.layers_per_block[level] {
            block.resnets.push(load_resnet(config, &p.pp("resnets").pp(i), level, input)?);
            if config.down_attention[level] {
                let layers = config.transformer_layers[level][i];
                let p = p.pp("attentions").pp(i);
                block.attentions.push(Attention::load(config, &p, level, layers)?);
            }
            input = width;
        }
        if level + 1 < config.block_out_channels.len() {
            // top, bottom, left, right
            let padding = if config.downsample_padding == 0 { [0, 1, 0, 1] } else { [1; 4] };
            let halve = Conv2dConfig { stride: 2, padding };
            block.downsample =
                Some(Conv2d::load(&p.pp("downsamplers.0.conv"), width, width, 3, halve)?);
        }
        Ok(block)
    }

    /// `x` [B, h, w, C]; leaves every intermediate result in `skips`.
    fn forward(
        &self,
        mut x: Tensor,
        times: &mut Times,
        ctx: &mut Contexts,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(&x, Some(&times.next(resnet)?))?; // [B, h, w, width]
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(&x, ctx)?;
            }
            skips.push(x.clone());
        }
        if let Some(conv) = &self.downsample {
            x = conv.forward(&x)?; // [B, h / 2, w / 2, width]
            skips.push(x.clone());
        }
        Ok(x)
    }
}

/// Residual block, attention, residual block at the coarsest resolution.
struct MidBlock {
    resnet1: Arc<ResnetBlock>,
    attention: Attention,
    resnet2: Arc<ResnetBlock>,
}

module!(MidBlock {
    "resnets.0": resnet1,
    "attentions.0": attention,
    "resnets.1": resnet2,
});

impl MidBlock {
    fn load(config: &UnetConfig, p: &Params) -> Result<Self> {
        let level = config.block_out_channels.len() - 1;
        let width = config.block_out_channels[level];
        let layers = config.transformer_layers[level].first().copied().unwrap_or(1);
        Ok(Self {
            resnet1: load_resnet(config, &p.pp("resnets.0"), level, width)?,
            attention: Attention::load(config, &p.pp("attentions.0"), level, layers)?,
            resnet2: load_resnet(config, &p.pp("resnets.1"), level, width)?,
        })
    }

    fn forward(&self, x: &Tensor, times: &mut Times, ctx: &mut Contexts) -> Result<Tensor> {
        let x = self.resnet1.forward(x, Some(&times.next(&self.resnet1)?))?;
        let x = self.attention.forward(&x, ctx)?;
        self.resnet2.forward(&x, Some(&times.next(&self.resnet2)?))
    }
}

/// Residual blocks and attention over what the way down left, then a doubling.
struct UpBlock {
    resnets: Vec<Arc<ResnetBlock>>,
    attentions: Vec<Attention>,
    upsample: Option<Conv2d>,
}

module!(UpBlock {
    "resnets": resnets,
    "attentions": attentions,
    "upsamplers.0.conv": upsample,
});

impl UpBlock {
    fn load(
        config: &UnetConfig,
        p: &Params,
        level: usize,
        attention: bool,
        mut input: usize,
        skips: &mut Vec<usize>,
    ) -> Result<Self> {
        let width = config.block_out_channels[level];
        let mut block = Self { resnets: Vec::new(), attentions: Vec::new(), upsample: None };
        for i in 0..config.layers_per_block[level] + 1 {
            // The way down left one for each block, and one for each halving and for conv_in.
            let Some(skip) = skips.pop() else {
                unreachable!("as many blocks up as results on the way down")
            };
            block.resnets.push(load_resnet(config, &p.pp("resnets").pp(i), level, input + skip)?);
            if attention {
                let from_coarsest = config.block_out_channels.len() - 1 - level;
                let layers = config.up_transformer_layers[from_coarsest][i];
                let p = p.pp("attentions").pp(i);
                block.attentions.push(Attention::load(config, &p, level, layers)?);
            }
            input = width;
        }
        if level > 0 {
            let p = p.pp("upsamplers.0.conv").over(ImageSize::of(config.side(level - 1), LARGE));
            block.upsample = Some(Conv2d::load_3x3(&p, width, width)?);
        }
        Ok(block)
    }

    /// `x` [B, h, w, C]; takes its part from the end of `skips`.
    fn forward(
        &self,
        mut x: Tensor,
        times: &mut Times,
        ctx: &mut Contexts,
        skips: &mut Vec<Tensor>,
    ) -> Result<Tensor> {
        for (i, resnet) in self.resnets.iter().enumerate() {
            let Some(skip) = skips.pop() else { unreachable!("as in load") };
            let time = times.next(resnet)?;
            x = resnet.forward_with_skip(&x, &skip, Some(&time))?; // [B, h, w, C + skip] -> [B, h, w, width]
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(&x, ctx)?;
            }
        }
        if let (Some(conv), Some(next)) = (&self.upsample, skips.last()) {
            // An odd size was rounded up on the way down: the next skip connection says to what.
            let size = (next.dim(1), next.dim(2));
            x = match size == (2 * x.dim(1), 2 * x.dim(2)) {
                true => conv.forward_doubled(&x)?, // [B, 2h, 2w, width]
                false => conv.forward(&resize_nearest(&x, size)?)?,
            };
        }
        Ok(x)
    }
}

fn load_resnet(
    config: &UnetConfig,
    p: &Params,
    level: usize,
    input: usize,
) -> Result<Arc<ResnetBlock>> {
    let (output, temb) = (config.block_out_channels[level], 4 * config.block_out_channels[0]);
    let p = &p.over(config.images(level));
    ResnetBlock::load(p, input, output, Some(temb), config.norm_num_groups, config.norm_eps)
}

/// Transformer2DModel: attention over the pixels of a feature map.
struct Transformer {
    norm: GroupNorm,
    proj_in: Linear,
    layers: Vec<TransformerLayer>,
    proj_out: Linear,
}

module!(Transformer {
    "norm": norm,
    "proj_in": proj_in,
    "transformer_blocks": layers,
    "proj_out": proj_out,
});

impl Transformer {
    fn load(config: &UnetConfig, p: &Params, level: usize, layers: usize) -> Result<Arc<Self>> {
        /// diffusers fixes this one, whatever `norm_eps` says.
        const EPS: f32 = 1e-6;
        let width = config.block_out_channels[level];
        let layer = |i| {
            let p = p.pp("transformer_blocks").pp(i);
            TransformerLayer::load(
                &p,
                width,
                config.cross_attention_dim[level],
                config.heads[level],
            )
        };
        Ok(Arc::new(Self {
            norm: GroupNorm::load(&p.pp("norm"), width, config.norm_num_groups, EPS)?,
            proj_in: Linear::load(&p.pp("proj_in"), width, width, true)?,
            layers: (0..layers).map(layer).collect::<Result<_>>()?,
            proj_out: Linear::load(&p.pp("proj_out"), width, width, true)?,
        }))
    }

    /// `x` [B, h, w, C]; a [segment](crate::tensor::tape::checkpoint).
    fn forward(self: &Arc<Self>, x: &Tensor, ctx: &mut Contexts) -> Result<Tensor> {
        let mut inputs = vec![x];
        for _ in &self.layers {
            let missing = || Error::shape("unet", "the context is of another model");
            inputs.extend(ctx.next().ok_or_else(missing)?.tensors());
        }
        checkpoint(self, &inputs, |block, inputs| block.attend(&inputs[0], &inputs[1..]))
    }

    /// `x` [B, h, w, C], keys and values of each layer's text
    fn attend(&self, x: &Tensor, texts: &[Tensor]) -> Result<Tensor> {
        let (b, h, w, c) = x.dims4()?;
        let pixels = x.reshape([b, h * w, c])?; // [B, T, C]
        let mut y = self.proj_in.forward(&self.norm.forward(x)?.reshape([b, h * w, c])?)?;
        let each = texts.len() / self.layers.len();
        for (layer, text) in self.layers.iter().zip(texts.chunks_exact(each)) {
            y = layer.forward(&y, &KeyValue::of(text))?;
        }
        let y = self
            .proj_out
            .forward_with(&y, Epilogue { residual: Some(&pixels), ..Epilogue::default() })?;
        y.reshape([b, h, w, c])
    }
}

/// BasicTransformerBlock: self attention, cross attention to the text, gated feed-forward.
struct TransformerLayer {
    norm1: LayerNorm,
    attn1: MultiHeadAttention,
    norm2: LayerNorm,
    attn2: MultiHeadAttention,
    norm3: LayerNorm,
    ff1: Linear,
    ff2: Linear,
}

module!(TransformerLayer {
    "norm1": norm1,
    "attn1": attn1,
    "norm2": norm2,
    "attn2": attn2,
    "norm3": norm3,
    "ff.net.0.proj": ff1,
    "ff.net.2": ff2,
});

impl TransformerLayer {
    fn load(p: &Params, width: usize, context: usize, heads: usize) -> Result<Self> {
        const EPS: f32 = 1e-5;
        let inner = 4 * width;
        Ok(Self {
            norm1: LayerNorm::load(&p.pp("norm1"), width, EPS)?,
            attn1: MultiHeadAttention::load_diffusers(&p.pp("attn1"), width, width, heads, false)?,
            norm2: LayerNorm::load(&p.pp("norm2"), width, EPS)?,
            attn2: MultiHeadAttention::load_diffusers(
                &p.pp("attn2"),
                width,
                context,
                heads,
                false,
            )?,
            norm3: LayerNorm::load(&p.pp("norm3"), width, EPS)?,
            ff1: Linear::load_geglu(&p.pp("ff.net.0.proj"), width, 2 * inner)?,
            ff2: Linear::load(&p.pp("ff.net.2"), inner, width, true)?,
        })
    }

    /// `x` [B, T, C]
    fn forward(&self, x: &Tensor, text: &KeyValue) -> Result<Tensor> {
        let x = self.attn1.forward(&self.norm1.forward(x)?, x)?;
        let x = self.attn2.cross(&self.norm2.forward(&x)?, text, &x)?;
        let h = self.ff1.forward_geglu(&self.norm3.forward(&x)?)?; // [B, T, C] -> [B, T, 4C]
        self.ff2.forward_with(&h, Epilogue { residual: Some(&x), ..Epilogue::default() })
    }
}

/// `x` [batch, C] as it is, [1, C] repeated for each image.
fn repeat_rows(x: &Tensor, batch: usize) -> Result<Tensor> {
    match x.dims2()? {
        (rows, _) if rows == batch => Ok(x.clone()),
        (1, _) => concat(&vec![x; batch], 0),
        _ => Err(Error::expected_shape(
            "unet",
            "times",
            &format!("[{batch}, C] or [1, C]"),
            x.shape(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn convolutions_are_laid_out_for_the_images_of_their_level() {
        let sizes = |sample_size: usize, levels: usize| {
            let widths = &[320, 640, 1280, 1280][..levels];
            let json = serde_json::json!({
                "_class_name": "UNet2DConditionModel", "sample_size": sample_size, "block_out_channels": widths,
                "down_block_types": vec!["DownBlock2D"; levels], "up_block_types": vec!["UpBlock2D"; levels],
            });
            let config = UnetConfig::read(&Config::from_value("unet", json).unwrap()).unwrap();
            (0..levels).map(|level| config.images(level)).collect::<Vec<_>>()
        };
        use ImageSize::{Large, Medium, Small};
        // Stable Diffusion 1.5, 2.1 at 768 pixels, XL, and a model of 64 pixels with latents a fourth of it.
        assert_eq!(sizes(64, 4), [Large, Large, Medium, Small]);
        assert_eq!(sizes(96, 4), [Large, Large, Medium, Small]);
        assert_eq!(sizes(128, 3), [Large, Large, Medium]);
        assert_eq!(sizes(16, 3), [Medium, Medium, Small]);
    }
}
