//! CLIPVisionModel of transformers: a vision transformer over square patches, told of by its class token.

use std::sync::Arc;

use serde_json::json;

use super::{ACTIVATIONS, Layer, LayerShape, NO_PART};
use crate::error::{Error, Result};
use crate::io::config::Config;
use crate::models::transformers;
use crate::nn::{Conv2d, Embedding, LayerNorm, Parameter, Params, module};
use crate::ops::conv::Conv2dConfig;
use crate::ops::elementwise::add;
use crate::ops::layout::concat;
use crate::ops::matmul::Activation;
use crate::tensor::Tensor;

/// Shape of a vision encoder; `config.json`, or `vision_config` in it.
#[derive(Clone, Debug)]
pub struct ClipVisionConfig {
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Height and width of a picture.
    pub image_size: usize,
    /// Height and width of a patch; what is left of a picture on the right and below is not seen.
    pub patch_size: usize,
    /// Activation of the feed-forward layers.
    pub hidden_act: Activation,
    /// Epsilon of the norms.
    pub layer_norm_eps: f32,
}

impl ClipVisionConfig {
    /// Reads the configuration.
    ///
    /// # Errors
    /// A field has another type, or asks for what is not implemented.
    pub fn read(c: &Config) -> Result<Self> {
        c.neutral("model_type", &[json!("clip_vision_model")])?;
        c.neutral("num_channels", &[json!(3)])?;
        c.ignore(&transformers::NO_PART);
        c.ignore(&NO_PART);
        let config = Self {
            hidden_size: c.usize("hidden_size", 768)?,
            intermediate_size: c.usize("intermediate_size", 3072)?,
            num_hidden_layers: c.usize("num_hidden_layers", 12)?,
            num_attention_heads: c.usize("num_attention_heads", 12)?,
            image_size: c.usize("image_size", 224)?,
            patch_size: c.usize("patch_size", 32)?,
            hidden_act: c.choice("hidden_act", "quick_gelu", &ACTIVATIONS)?,
            layer_norm_eps: c.f32("layer_norm_eps", 1e-5)?,
        };
        config.layer().check(c)?;
        if config.patch_size == 0 || config.patch_size > config.image_size {
            return Err(c.wrong("patch_size", &format!("1 to image_size {}", config.image_size)));
        }
        c.finish()?;
        Ok(config)
    }

    fn layer(&self) -> LayerShape {
        LayerShape {
            width: self.hidden_size,
            inner: self.intermediate_size,
            heads: self.num_attention_heads,
            act: self.hidden_act,
            eps: self.layer_norm_eps,
            causal: false,
        }
    }
}

/// The vision encoder.
pub struct ClipVision {
    config: ClipVisionConfig,
    class: Parameter,
    patches: Conv2d,
    positions: Embedding,
    norm_in: LayerNorm,
    layers: Vec<Arc<Layer>>,
    norm_out: LayerNorm,
}

module!(ClipVision {
    "embeddings.class_embedding": class,
    "embeddings.patch_embedding": patches,
    "embeddings.position_embedding": positions,
    "pre_layrnorm": norm_in,
    "encoder.layers": layers,
    "post_layernorm": norm_out,
});

impl ClipVision {
    /// Builds the model from the weights at `p`, or at `vision_model` below it.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(config: ClipVisionConfig, p: &Params) -> Result<Self> {
        let below = p.pp("vision_model");
        let p = if below.contains("embeddings.class_embedding") { &below } else { p };
        let (e, layers) = (p.pp("embeddings"), p.pp("encoder.layers"));
        let (c, eps, patch) = (config.hidden_size, config.layer_norm_eps, config.patch_size);
        let positions = (config.image_size / patch).pow(2) + 1;
        let apart = Conv2dConfig::new(patch, 0);
        Ok(Self {
            class: e.tensor("class_embedding", &[c])?,
            patches: Conv2d::load_unbiased(&e.pp("patch_embedding"), 3, c, patch, apart)?,
            positions: Embedding::load(&e.pp("position_embedding"), positions, c)?,
            // As the field is called in every file.
            norm_in: LayerNorm::load(&p.pp("pre_layrnorm"), c, eps)?,
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::load(config.layer(), &layers.pp(i)))
                .collect::<Result<_>>()?,
            norm_out: LayerNorm::load(&p.pp("post_layernorm"), c, eps)?,
            config,
        })
    }

    /// The shape of this model.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// Normalised `images` [B, image_size, image_size, 3] -> hidden states [B, 1 + patches, hidden_size], the class token
    /// first, before the last norm.
    ///
    /// # Errors
    /// `Shape` for pictures of another size.
    pub fn states(&self, images: &Tensor) -> Result<Tensor> {
        self.states_before(images, 0)
    }

    /// As [`Self::states`], before the last `left_out` layers.
    ///
    /// # Errors
    /// As [`Self::states`].
    pub fn states_before(&self, images: &Tensor, left_out: usize) -> Result<Tensor> {
        let (batch, height, width, _) = images.dims4()?;
        let side = self.config.image_size;
        if (height, width) != (side, side) {
            let expected = format!("[B, {side}, {side}, 3]");
            return Err(Error::expected_shape("clip", "images", &expected, images.shape()));
        }
        // 1. embeddings
        let patches = self.patches.forward(images)?; // [B, side / patch, side / patch, C]
        let (_, rows, columns, c) = patches.dims4()?;
        let patches = patches.reshape([batch, rows * columns, c])?; // [B, N, C]
        let class = self.class.value().to_dtype(patches.dtype())?.reshape([1, 1, c])?;
        let class = concat(&vec![&class; batch], 0)?; // [B, 1, C]
        let x = concat(&[&class, &patches], 1)?; // [B, 1 + N, C]
        let x = add(&x, &self.positions.first(1 + rows * columns)?)?;
        // 2. layers
        let mut x = self.norm_in.forward(&x)?;
        for layer in &self.layers[..self.layers.len().saturating_sub(left_out)] {
            x = layer.forward(&x)?;
        }
        Ok(x)
    }

    /// What the class token has become, [B, hidden_size], behind the last norm.
    ///
    /// # Errors
    /// As [`Self::states`].
    pub fn forward(&self, images: &Tensor) -> Result<Tensor> {
        let class = self.states(images)?.narrow(1, 0, 1)?; // [B, 1, C]
        let class = class.reshape([class.dim(0), self.config.hidden_size])?;
        self.norm_out.forward(&class)
    }
}
