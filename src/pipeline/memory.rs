//! How much memory a request takes, told from a model's configurations and the headers of its weights alone.

use std::path::Path;

use crate::error::Result;
use crate::io::TensorSource;
use crate::models::unet::UnetConfig;
use crate::models::vae::AutoencoderConfig;
use crate::pipeline::load::{LoadOptions, Suggestions, open_controlnets, vae_dtype};
use crate::pipeline::settings::Settings;
use crate::tensor::DType;

/// What the UNet holds at once at its finest level, in units of that level's width: the inner part of a transformer
/// block (8 and 4), its input and residual, scratch of convolutions. With what waits for the way up it comes to 35;
/// Stable Diffusion 1.5 at 512x512 in f32 was seen to take 39. Rather too little, so that nothing is refused that fits.
const UNET_WORKING_SET: u64 = 30;

/// The same of a level without attention, as the finest of Stable Diffusion XL: input, output and inner part of a residual
/// block and what the way down left, and scratch. Too little rather than too much.
const RESNET_WORKING_SET: u64 = 8;

/// What the decoder holds at once at its last level, in units of the width of the level before: seen 4.2, as above.
const DECODER_WORKING_SET: u64 = 4;

/// An estimate of the memory that drawing takes.
pub struct MemoryEstimate {
    unet: UnetConfig,
    vae: AutoencoderConfig,
    suggestions: Suggestions,
    weights: u64,
    /// Bytes of an element in the UNet and in the autoencoder.
    sizes: [u64; 2],
}

impl MemoryEstimate {
    /// For the model in a diffusers folder.
    ///
    /// # Errors
    /// A component is missing or its configuration cannot be read.
    pub fn open(folder: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        let folder = options.open(folder)?;
        let unet = UnetConfig::read(&folder.network("unet")?.0)?;
        let vae = AutoencoderConfig::read(&folder.network("vae")?.0)?;
        let dtypes = [options.dtype, vae_dtype(options.dtype, &vae)];
        let mut weights = 0;
        let mut parts = vec![("text_encoder", dtypes[0]), ("unet", dtypes[0]), ("vae", dtypes[1])];
        if folder.component("text_encoder_2")?.is_some() {
            parts.push(("text_encoder_2", dtypes[0]));
        }
        let mut sources = Vec::new();
        for (part, dtype) in parts {
            sources.push((folder.weights(part)?, dtype));
        }
        let controlnets = open_controlnets(&folder, options)?.into_iter();
        sources.extend(controlnets.map(|(_, _, weights)| (weights, dtypes[0])));
        for (source, dtype) in sources {
            for shape in source.names().iter().filter_map(|name| Some(source.info(name)?.shape)) {
                // Saturating throughout: a header may say anything.
                let elements = shape.iter().fold(1u64, |n, &d| n.saturating_mul(d as u64));
                weights = elements.saturating_mul(dtype.size() as u64).saturating_add(weights);
            }
        }
        let sizes = dtypes.map(|dtype: DType| dtype.size() as u64);
        let suggestions = Suggestions::of(&folder)?;
        Ok(Self { unet, vae, suggestions, weights, sizes })
    }

    /// Width and height in pixels of what the settings ask for.
    ///
    /// # Errors
    /// `Argument`: see [`Settings::size`].
    pub fn size(&self, settings: &Settings) -> Result<(usize, usize)> {
        let side = self.unet.sample_size.unwrap_or(64) * self.vae.factor();
        settings.size((side, side), self.vae.factor())
    }

    /// Bytes that are needed at once to draw `batch` pictures at a time: weights, and the larger of a step and the
    /// decoding of one picture. It is rather too low than too high.
    ///
    /// # Errors
    /// `Argument`: see [`Settings::size`].
    pub fn peak(&self, settings: &Settings, batch: usize) -> Result<u64> {
        let (width, height) = self.size(settings)?;
        let factor = self.vae.factor();
        let scale = settings.guidance_scale.unwrap_or(self.suggestions.guidance_scale);
        let rows = batch as u64 * if scale > 1.0 && self.unet.vector.guidance == 0 { 2 } else { 1 };
        let latents = ((width / factor) * (height / factor)) as u64;
        let step =
            (latents * self.unet_channels()).saturating_mul(self.sizes[0]).saturating_mul(rows);

        // Tiles are of the size of the training images.
        let tile = |side: usize| if settings.vae_tiling { side.min(self.vae.tile()) } else { side };
        let pixels = (tile(width) * tile(height)) as u64;
        let decoding = pixels
            .saturating_mul(self.vae.last_width() as u64 * DECODER_WORKING_SET)
            .saturating_mul(self.sizes[1]);
        Ok(self.weights.saturating_add(step.max(decoding)))
    }

    /// Channels that the UNet holds at once for each element of the latents: what waits for the way up, and the
    /// largest working set of a level.
    fn unet_channels(&self) -> u64 {
        let widths = &self.unet.block_out_channels;
        let skips = widths.iter().zip(&self.unet.layers_per_block).enumerate();
        let skips = skips.map(|(level, (&width, &layers))| {
            ((width as u64).saturating_mul(layers as u64 + 1)) >> (2 * level).min(63)
        });
        let attends = self.unet.down_attention.iter().zip(self.unet.up_attention.iter().rev());
        let levels = widths.iter().zip(attends).enumerate();
        let working = levels.map(|(level, (&width, (&down, &up)))| {
            let set = if down || up { UNET_WORKING_SET } else { RESNET_WORKING_SET };
            (width as u64).saturating_mul(set) >> (2 * level).min(63)
        });
        skips.fold(working.max().unwrap_or(0), u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shape of Stable Diffusion 1.5, whose step was seen to add 0.41 GB and whose decoding 1.12 GB in f32.
    #[test]
    fn the_estimate_is_near_what_was_measured_and_not_above() {
        let sd15 = MemoryEstimate {
            unet: unet_of_sd15(),
            vae: vae_of_sd15(),
            suggestions: Suggestions::default(),
            weights: 0,
            sizes: [4, 4],
        };
        let gb = |settings: &Settings, batch| sd15.peak(settings, batch).unwrap() as f64 / 1e9;
        let settings = Settings::default();
        let decoding = gb(&settings, 1);
        assert!((0.95..=1.12).contains(&decoding), "{decoding}");
        let tiled = Settings { vae_tiling: true, width: Some(512), height: Some(512), ..settings };
        let step = gb(&tiled, 100) / 100.0;
        assert!((0.25..=0.41).contains(&step), "{step}");
        let alone = Settings { guidance_scale: Some(1.0), ..tiled.clone() };
        assert_eq!(gb(&alone, 200), gb(&tiled, 100));
    }

    fn unet_of_sd15() -> UnetConfig {
        let json = serde_json::json!({
            "_class_name": "UNet2DConditionModel", "sample_size": 64, "cross_attention_dim": 768,
        });
        UnetConfig::read(&crate::io::config::Config::from_value("unet", json).unwrap()).unwrap()
    }

    fn vae_of_sd15() -> AutoencoderConfig {
        let json = serde_json::json!({
            "_class_name": "AutoencoderKL", "sample_size": 512, "layers_per_block": 2,
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": vec!["DownEncoderBlock2D"; 4], "up_block_types": vec!["UpDecoderBlock2D"; 4],
        });
        AutoencoderConfig::read(&crate::io::config::Config::from_value("vae", json).unwrap())
            .unwrap()
    }
}
