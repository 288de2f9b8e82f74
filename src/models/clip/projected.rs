//! CLIPTextModelWithProjection of transformers: the second text encoder of Stable Diffusion XL (OpenCLIP-bigG), which tells of
//! a text as a whole too.

use super::{ClipText, ClipTextConfig, end_of_text};
use crate::error::Result;
use crate::io::config::Config;
use crate::nn::{Linear, Params, module};
use crate::ops::layout::concat;
use crate::tensor::Tensor;

/// Shape of a text encoder with a projection; `text_encoder_2/config.json`.
#[derive(Clone, Debug)]
pub struct ClipTextProjectedConfig {
    /// The text encoder.
    pub text: ClipTextConfig,
    /// Numbers that a text as a whole is told by.
    pub projection_dim: usize,
    /// The token that ends a text; with 2, which older files have by mistake, it is the one of the largest id.
    pub eos_token_id: i64,
}

impl ClipTextProjectedConfig {
    /// Reads the configuration.
    ///
    /// # Errors
    /// As [`ClipTextConfig::read`].
    pub fn read(c: &Config) -> Result<Self> {
        Ok(Self {
            projection_dim: c.usize("projection_dim", 512)?,
            eos_token_id: c.get("eos_token_id", "a token id")?.unwrap_or(49407),
            text: ClipTextConfig::read(c)?,
        })
    }
}

/// The text encoder.
pub struct ClipTextProjected {
    config: ClipTextProjectedConfig,
    text: ClipText,
    projection: Linear,
}

module!(ClipTextProjected { "": text, "text_projection": projection });

impl ClipTextProjected {
    /// Builds the model from the weights at `p`, whose names have no `text_model` in front
    /// ([`Weights`](crate::io::folder::Weights)).
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(config: ClipTextProjectedConfig, p: &Params) -> Result<Self> {
        let (width, outputs) = (config.text.hidden_size, config.projection_dim);
        Ok(Self {
            text: ClipText::load(config.text.clone(), p)?,
            projection: Linear::load(&p.pp("text_projection"), width, outputs, false)?,
            config,
        })
    }

    /// The shape of this model.
    pub fn config(&self) -> &ClipTextProjectedConfig {
        &self.config
    }

    /// `ids` [B, T], i64 -> hidden states [B, T, hidden_size] without the last `left_out` layers and the final norm, and of
    /// all layers what tells a text as a whole [B, projection_dim].
    ///
    /// # Errors
    /// As [`ClipText::forward`].
    pub fn forward(&self, ids: &Tensor, left_out: usize) -> Result<(Tensor, Tensor)> {
        let (_, t) = ids.dims2()?;
        // 1. layers
        let states = self.text.hidden(ids, left_out)?; // [B, T, C]
        let last = self.text.finish(&states, left_out)?;
        // 2. where each text ends
        let ids = ids.to_vec::<i64>()?;
        let ends = ids.chunks_exact(t).enumerate().map(|(row, ids)| {
            let end = end_of_text(ids, self.config.eos_token_id);
            last.narrow(0, row, 1)?.narrow(1, end, 1)?.reshape([1, self.config.text.hidden_size])
        });
        let ends = ends.collect::<Result<Vec<_>>>()?;
        let ends = concat(&ends.iter().collect::<Vec<_>>(), 0)?; // [B, C]
        // 3. projection
        Ok((states, self.projection.forward(&ends)?)) // [B, projection_dim]
    }
}
