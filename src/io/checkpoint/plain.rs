//! Original checkpoints of latent diffusion models that are told no text: a UNet and an autoencoder under the names of
//! `checkpoint.rs`, and the noise schedule of the training.

use std::path::Path;
use std::sync::Arc;

use super::names::{Blocks, Names};
use super::{UNET, VAE};
use crate::error::{Error, Result};
use crate::io::TensorSource;
use crate::io::folder::Weights;
use crate::io::safetensors::{SafeTensors, refuse_pickle};
use crate::tensor::DType;

/// What such a file has.
pub(crate) struct PlainCheckpoint {
    /// Under diffusers' names, but for what has none: the attentions' `norm`, `qkv` and `proj_out`.
    pub unet: Weights,
    /// Under diffusers' names.
    pub vae: Weights,
    /// Variance of the noise that each training timestep adds, where the file tells it.
    pub betas: Option<Vec<f32>>,
}

/// Opens a file whose UNet's `blocks` are these and whose autoencoder has so many levels, and residual blocks of each.
///
/// # Errors
/// The file is no safetensors, has no such networks, or a UNet that attends to texts.
pub(crate) fn open_plain(
    path: &Path,
    blocks: &Blocks,
    (levels, layers): (usize, usize),
) -> Result<PlainCheckpoint> {
    refuse_pickle(path, &[])?;
    let source = SafeTensors::open(path)?;
    let wrong = |found: String| {
        let expected = "a latent diffusion model that is told no text (model.diffusion_model.* with \
                        middle_block.1.qkv, first_stage_model.*)";
        let advice = "nadir super-resolve takes models of opensr-model (LDSR-S2).";
        Error::file(path, "model", expected, found, advice)
    };
    let vae = VAE[0];
    for first in [format!("{UNET}input_blocks.0.0.weight"), format!("{vae}encoder.conv_in.weight")]
    {
        if source.info(&first).is_none() {
            return Err(wrong(format!("no tensor {first:?}")));
        }
    }
    let own = format!("{UNET}middle_block.1.qkv.weight");
    if source.info(&own).is_none() {
        let text = format!("{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight");
        return Err(wrong(match source.info(&text) {
            Some(_) => format!("a UNet that is told a text (by its tensor {text:?})"),
            None => format!("no tensor {own:?}"),
        }));
    }
    let betas = source
        .info("betas")
        .is_some()
        .then(|| source.read("betas")?.to_dtype(DType::F32)?.to_vec::<f32>());
    let source = Arc::new(source);
    let weights = |names| Weights::original(source.clone(), Arc::new(names), None);
    Ok(PlainCheckpoint {
        unet: weights(Names::unet(UNET, blocks))?,
        vae: weights(Names::vae(vae, levels, layers))?,
        betas: betas.transpose()?,
    })
}
