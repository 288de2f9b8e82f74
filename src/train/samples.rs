//! Pictures that are drawn amid training, to see how far it has come.

use std::path::Path;

use image::RgbImage;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::io::image::from_tensor;
use crate::models::unet::{Context, Unet};
use crate::models::vae::Vae;
use crate::noise::NoiseSource;
use crate::ops::elementwise::scale;
use crate::ops::layout::concat;
use crate::pipeline::guidance::Guidance;
use crate::pipeline::sampler::SamplerConfig;
use crate::tensor::{DType, Device, Tensor};

/// What is drawn.
#[derive(Clone, Debug, PartialEq, clap::Args)]
#[command(next_help_heading = "Validation")]
pub struct SampleSettings {
    /// Prompts of pictures that are drawn with every validation, by fixed seeds and the exported weights
    #[arg(long, value_name = "TEXT", num_args = 1.., alias = "validation-prompt")]
    pub validation_prompts: Vec<String>,

    /// Denoising steps of such a picture
    #[arg(long, value_name = "N", default_value_t = 20, allow_negative_numbers = true)]
    pub validation_inference_steps: usize,

    /// Weight of its prompt against the empty one
    #[arg(long, value_name = "X", default_value_t = 4.0, allow_negative_numbers = true)]
    pub validation_guidance_scale: f32,
}

impl Default for SampleSettings {
    fn default() -> Self {
        Self {
            validation_prompts: Vec::new(),
            validation_inference_steps: 20,
            validation_guidance_scale: 4.0,
        }
    }
}

impl SampleSettings {
    /// Checks what no picture can be drawn by.
    ///
    /// # Errors
    /// `Argument`, naming the field.
    pub fn check(&self) -> Result<()> {
        let (steps, guidance) = (self.validation_inference_steps, self.validation_guidance_scale);
        if !(1..=1000).contains(&steps) {
            return Err(Error::argument("validation_inference_steps", steps, "1 to 1000"));
        }
        if !guidance.is_finite() {
            return Err(Error::argument("validation_guidance_scale", guidance, "a finite number"));
        }
        Ok(())
    }
}

/// The networks of a denoiser as they are.
pub(super) struct Painter<'a> {
    pub unet: &'a Unet,
    pub vae: &'a Vae,
    /// Its `scheduler_config.json`.
    pub scheduler: &'a Value,
    pub device: Device,
}

impl Painter<'_> {
    /// The picture that `generate` draws with this seed: `texts` are the hidden states [1, T, D] of the empty prompt and
    /// of the prompt, `size` is height and width in pixels.
    ///
    /// # Errors
    /// A schedule without such steps, latents that are not finite.
    pub fn draw(
        &self,
        texts: [&Tensor; 2],
        [height, width]: [usize; 2],
        seed: u64,
        settings: &SampleSettings,
    ) -> Result<RgbImage> {
        let (steps, guidance) =
            (settings.validation_inference_steps, settings.validation_guidance_scale);
        let config =
            SamplerConfig::from_value(Path::new("scheduler_config.json"), self.scheduler.clone())?;
        let mut sampler = config.for_stable_diffusion(false).build(steps, 0.0)?;
        let (factor, channels) = (self.vae.config().factor(), self.vae.config().latent_channels);
        let (h, w) = (height / factor, width / factor);
        let mut stream = NoiseSource::Torch.stream(seed);
        let mut noise = || {
            let values =
                Tensor::from_vec(stream.randn(h * w * channels, DType::F32)?, [1, channels, h, w])?;
            values.permute(&[0, 2, 3, 1])?.contiguous()?.to_device(self.device) // [1, h, w, C]
        };
        // No guidance, no second row.
        let guidance = Guidance::new(guidance, 0.0);
        let contexts =
            texts.iter().map(|text| self.unet.context(text)).collect::<Result<Vec<_>>>()?;
        let contexts: Vec<&Context> =
            contexts.iter().skip(usize::from(guidance.is_none())).collect();
        let rows = contexts.len();
        let context = Context::concat(&contexts)?;
        let times = self.unet.embed_timesteps(sampler.timesteps())?; // [evaluations, T]
        let mut latents = scale(&noise()?, sampler.init_noise_sigma())?;
        sampler.begin(0);
        for i in 0..sampler.timesteps().len() {
            let input = scale(&latents, sampler.input_scale(i))?;
            let input = concat(&vec![&input; rows], 0)?; // [1 or 2, h, w, C]
            let time = times.narrow(0, i, 1)?;
            let time = concat(&vec![&time; rows], 0)?; // [1 or 2, T]
            let predicted = self.unet.forward(&input, &time, &context)?;
            let output = match guidance {
                Some(guidance) => guidance.apply(&predicted)?,
                None => predicted,
            };
            latents = sampler.step(i, &output, &latents, &mut noise)?;
        }
        let latents = scale(&latents, self.vae.config().scaling_factor.recip())?;
        Ok(from_tensor(&self.vae.decode(&latents)?)?.remove(0))
    }
}
