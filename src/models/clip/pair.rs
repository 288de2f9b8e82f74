//! CLIPModel of transformers: both encoders, and the projections to where pictures and texts are compared.

use serde_json::json;

use super::{ClipText, ClipTextConfig, ClipVision, ClipVisionConfig, end_of_text};
use crate::error::{Error, Result};
use crate::io::TensorSource;
use crate::io::config::Config;
use crate::models::transformers;
use crate::nn::{Linear, Params, module};
use crate::ops::layout::concat;
use crate::tensor::Tensor;

/// Shape of a CLIP; `config.json`.
#[derive(Clone, Debug)]
pub struct ClipConfig {
    /// The text encoder.
    pub text: ClipTextConfig,
    /// The vision encoder.
    pub vision: ClipVisionConfig,
    /// Numbers by which pictures and texts are compared.
    pub projection_dim: usize,
    /// The token that ends a text; with 2, which older files have by mistake, it is the one of the largest id.
    pub eos_token_id: i64,
}

impl ClipConfig {
    /// Reads the configuration of a model with these `weights`, which bound its counts.
    ///
    /// # Errors
    /// It is that of one encoder; a field has another type, or asks for what is not implemented.
    pub fn read(config: Config, weights: &impl TensorSource) -> Result<Self> {
        let config = config.bounded_by(weights);
        for (part, other) in [("vision_config", "text"), ("text_config", "vision")] {
            if config.value(part).is_none() {
                let kind = config.string("model_type", "another model")?;
                let advice = format!(
                    "A CLIP score needs both encoders, as the whole CLIPModel has them: this may be the {other} encoder alone."
                );
                let expected = format!("a CLIP (model_type clip) with {part}");
                return Err(Error::file(config.path(), "model", expected, kind, advice));
            }
        }
        config.neutral("model_type", &[json!("clip")])?;
        config.ignore(&transformers::NO_PART);
        config.ignore(&["architectures", "initializer_factor", "tie_word_embeddings"]);
        // What logits are multiplied by in training is a weight; this is what it begins with.
        config.ignore(&["logit_scale_init_value"]);
        let part = |name: &str| {
            // Older files have both, and then transformers takes the latter.
            let older = config.value(&format!("{name}_dict"));
            let found = config.value(name);
            let value = older.or(found).cloned().unwrap_or_default();
            let path = format!("{}: {name}", config.path().display());
            Ok::<_, Error>(Config::from_value(path, value)?.bounded_by(weights))
        };
        let (text, vision) = (part("text_config")?, part("vision_config")?);
        let read = Self {
            eos_token_id: text.get("eos_token_id", "a token id")?.unwrap_or(49407),
            text: ClipTextConfig::read(&text)?,
            vision: ClipVisionConfig::read(&vision)?,
            projection_dim: config.usize("projection_dim", 512)?,
        };
        config.finish()?;
        Ok(read)
    }
}

/// Both encoders.
pub struct Clip {
    config: ClipConfig,
    text: ClipText,
    vision: ClipVision,
    text_projection: Linear,
    visual_projection: Linear,
}

module!(Clip {
    "text_model": text,
    "vision_model": vision,
    "text_projection": text_projection,
    "visual_projection": visual_projection,
});

impl Clip {
    /// Builds the model from the weights at `p`, whose names have no `text_model` in front
    /// ([`Weights`](crate::io::folder::Weights)).
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(config: ClipConfig, p: &Params) -> Result<Self> {
        let projection =
            |name: &str, width| Linear::load(&p.pp(name), width, config.projection_dim, false);
        Ok(Self {
            text_projection: projection("text_projection", config.text.hidden_size)?,
            visual_projection: projection("visual_projection", config.vision.hidden_size)?,
            text: ClipText::load(config.text.clone(), p)?,
            vision: ClipVision::load(config.vision.clone(), &p.pp("vision_model"))?,
            config,
        })
    }

    /// The shape of this model.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// What pictures are compared by: `images` as [`ClipVision::states`] takes them -> [B, projection_dim], of any length.
    ///
    /// # Errors
    /// As [`ClipVision::states`].
    pub fn embed_images(&self, images: &Tensor) -> Result<Tensor> {
        self.visual_projection.forward(&self.vision.forward(images)?)
    }

    /// What texts are compared by: `ids` [B, T], i64, of texts that end within -> [B, projection_dim], of any length.
    ///
    /// # Errors
    /// As [`ClipText::forward`].
    pub fn embed_texts(&self, ids: &Tensor) -> Result<Tensor> {
        let (_, t) = ids.dims2()?;
        let states = self.text.forward(ids, 0)?; // [B, T, C]
        let ends = ids.to_vec::<i64>()?;
        let ends =
            ends.chunks_exact(t).map(|ids| end_of_text(ids, self.config.eos_token_id)).enumerate();
        let ends = ends.map(|(row, end)| {
            states.narrow(0, row, 1)?.narrow(1, end, 1)?.reshape([1, self.config.text.hidden_size])
        });
        let ends = ends.collect::<Result<Vec<_>>>()?;
        self.text_projection.forward(&concat(&ends.iter().collect::<Vec<_>>(), 0)?)
    }
}
