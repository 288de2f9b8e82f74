//! CLIPTextModel of transformers: the text encoder of SD 1.x (CLIP-L) and 2.x (OpenCLIP-H).

use std::sync::Arc;

use serde_json::json;

use super::{ACTIVATIONS, Layer, LayerShape, NO_PART};
use crate::error::{Error, Result};
use crate::io::config::Config;
use crate::models::transformers;
use crate::nn::{Embedding, LayerNorm, Params, module};
use crate::ops::elementwise::add;
use crate::ops::matmul::Activation;
use crate::tensor::Tensor;

/// Shape of a text encoder; `text_encoder/config.json`.
#[derive(Clone, Debug)]
pub struct ClipTextConfig {
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Width of the hidden states.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// MultiHeadAttention heads.
    pub num_attention_heads: usize,
    /// The longest sequence, 77 in every published model.
    pub max_position_embeddings: usize,
    /// Activation of the feed-forward layers.
    pub hidden_act: Activation,
    /// Epsilon of the norms.
    pub layer_norm_eps: f32,
}

impl ClipTextConfig {
    /// Reads the configuration.
    ///
    /// # Errors
    /// A field has another type, or asks for what is not implemented.
    pub fn read(c: &Config) -> Result<Self> {
        c.neutral("model_type", &[json!("clip_text_model")])?;
        c.ignore(&transformers::NO_PART);
        c.ignore(&NO_PART);
        let config = Self {
            vocab_size: c.usize("vocab_size", 49408)?,
            hidden_size: c.usize("hidden_size", 512)?,
            intermediate_size: c.usize("intermediate_size", 2048)?,
            num_hidden_layers: c.usize("num_hidden_layers", 12)?,
            num_attention_heads: c.usize("num_attention_heads", 8)?,
            max_position_embeddings: c.usize("max_position_embeddings", 77)?,
            hidden_act: c.choice("hidden_act", "quick_gelu", &ACTIVATIONS)?,
            layer_norm_eps: c.f32("layer_norm_eps", 1e-5)?,
        };
        config.layer().check(c)?;
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
            causal: true,
        }
    }
}

/// The text encoder.
pub struct ClipText {
    config: ClipTextConfig,
    tokens: Embedding,
    positions: Embedding,
    layers: Vec<Arc<Layer>>,
    norm: LayerNorm,
}

module!(ClipText {
    "embeddings.token_embedding": tokens,
    "embeddings.position_embedding": positions,
    "encoder.layers": layers,
    "final_layer_norm": norm,
});

impl ClipText {
    /// Builds the model from the weights at `p`.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(config: ClipTextConfig, p: &Params) -> Result<Self> {
        let (e, layers) = (p.pp("embeddings"), p.pp("encoder.layers"));
        let (c, positions) = (config.hidden_size, config.max_position_embeddings);
        Ok(Self {
            tokens: Embedding::load(&e.pp("token_embedding"), config.vocab_size, c)?,
            positions: Embedding::load(&e.pp("position_embedding"), positions, c)?,
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::load(config.layer(), &layers.pp(i)))
                .collect::<Result<_>>()?,
            norm: LayerNorm::load(&p.pp("final_layer_norm"), c, config.layer_norm_eps)?,
            config,
        })
    }

    /// The shape of this model.
    pub fn config(&self) -> &ClipTextConfig {
        &self.config
    }

    /// `ids` [B, T], i64 -> hidden states [B, T, hidden_size] behind the final norm.
    ///
    /// The last `clip_skip` layers are left out, as diffusers counts them: 0 uses all.
    ///
    /// # Errors
    /// A sequence longer than the position table, an id outside of the vocabulary, `clip_skip` above the
    /// number of layers.
    pub fn forward(&self, ids: &Tensor, clip_skip: usize) -> Result<Tensor> {
        self.norm.forward(&self.hidden(ids, clip_skip)?)
    }

    /// As [`Self::forward`], before the final norm.
    ///
    /// # Errors
    /// As there.
    pub fn hidden(&self, ids: &Tensor, clip_skip: usize) -> Result<Tensor> {
        let (_, t) = ids.dims2()?;
        let limit = self.config.max_position_embeddings;
        if t > limit {
            return Err(Error::shape(
                "clip",
                format!("{t} tokens, but there are {limit} position embeddings"),
            ));
        }
        let Some(used) = self.layers.len().checked_sub(clip_skip) else {
            let expected = format!("the text encoder has {} layers", self.layers.len());
            return Err(Error::argument("clip_skip", clip_skip, expected));
        };
        // 1. embeddings
        let mut x = add(&self.tokens.forward(ids)?, &self.positions.first(t)?)?; // [B, T, C]
        // 2. layers
        for layer in &self.layers[..used] {
            x = layer.forward(&x)?;
        }
        Ok(x)
    }

    /// The last `left_out` layers and the final norm, of `hidden` [B, T, C] of [`Self::hidden`].
    pub(super) fn finish(&self, hidden: &Tensor, left_out: usize) -> Result<Tensor> {
        let mut x = hidden.clone();
        for layer in &self.layers[self.layers.len().saturating_sub(left_out)..] {
            x = layer.forward(&x)?;
        }
        self.norm.forward(&x)
    }
}
