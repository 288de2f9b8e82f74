//! Text to image by latent diffusion: prompt -> tokens -> text encoder -> [UNet + sampler step] x steps ->
//! VAE decoder -> image.
//!
//! Rombach et al. 2022; Podell et al. 2023 (XL). Reference implementation: diffusers, `pipelines/stable_diffusion/`,
//! `stable_diffusion_xl/` and `latent_consistency_models/`: the same weights,
//! prompt, seed, scheduler and steps give the same image.

use std::sync::Arc;

use image::RgbImage;

use crate::error::{Error, Result};
use crate::io::picture::Picture;
use crate::models::clip::ClipText;
use crate::models::unet::{ControlNet, Unet, Vector};
use crate::models::vae::Autoencoder;
use crate::ops::elementwise::scale;
use crate::ops::layout::concat;
use crate::pipeline::control::{Net, Texts};
use crate::pipeline::evaluation::{Evaluation, Inputs};
use crate::pipeline::family::Family;
use crate::pipeline::image_prompt::Sight;
use crate::pipeline::load::Suggestions;
use crate::pipeline::prompt::{Encoded, SecondEncoder, Warning, tokenize};
use crate::pipeline::recent::Recent;
use crate::pipeline::request::{Cancel, Request};
use crate::pipeline::sampler::SamplerConfig;
use crate::pipeline::settings::Settings;
use crate::pipeline::sizes;
use crate::pipeline::slot::Denoising;
use crate::pipeline::start::{Noise, Start};
use crate::pipeline::stepping::Stepping;
use crate::pipeline::told::Told;
use crate::tensor::{Device, Tensor};
use crate::text::tokenizer::ClipTokenizer;

/// A Stable Diffusion model, ready to draw.
pub struct TextToImage {
    pub(super) tokenizer: ClipTokenizer,
    pub(super) text_encoder: ClipText,
    pub(super) second: Option<SecondEncoder>,
    pub(super) unet: Unet,
    pub(super) controlnets: Vec<ControlNet>,
    /// By which pictures are prompts.
    pub(super) sight: Option<Sight>,
    pub(super) vae: Autoencoder,
    /// For pictures that are shown before they are done.
    pub(super) preview: Option<Autoencoder>,
    pub(super) scheduler: SamplerConfig,
    pub(super) family: Family,
    pub(super) suggestions: Suggestions,
    pub(super) device: Device,
    pub(super) notes: Vec<String>,
    pub(super) fingerprint: String,
}

impl TextToImage {
    /// Prompt -> tokens -> text encoder, and the noise that the picture begins with.
    pub(super) fn begin(
        &self,
        request: &Request,
        size: (usize, usize),
        recent: &mut Recent,
    ) -> Result<(Denoising, Vec<Warning>)> {
        let noise = request.settings.noise.stream(request.seed);
        let noise = Noise::new(noise, self.latent_size(size), self.device);
        self.begin_with(noise, request, size, recent)
    }

    /// As [`Self::begin`], with other noise than the request's.
    pub(super) fn begin_with(
        &self,
        mut noise: Noise,
        request: &Request,
        size: (usize, usize),
        recent: &mut Recent,
    ) -> Result<(Denoising, Vec<Warning>)> {
        let mut sampler = self.sampler(request)?;
        let told = Told::new(&self.unet.config().vector, &request.settings)?;
        let prompt = told.prompt.into_owned();
        let (settings, cancel) =
            (&Settings { prompt, ..request.settings.clone() }, &request.cancel);
        // 1. prompt -> tokens -> hidden states -> keys and values
        let (guidance, scale) = self.guidance(settings);
        let second = self.second.as_ref();
        let (prompts, warnings) = tokenize(&self.tokenizer, second, settings, guidance.is_some())?;
        let text = recent.text(prompts, |prompt| {
            let Encoded { states, pooled } = prompt.encode(&self.text_encoder, second, cancel)?;
            let nets = self.controlnets.iter().map(|net| net.context(&states));
            let nets = nets.collect::<Result<_>>()?;
            Ok(Texts { unet: self.unet.context(&states)?, nets, pooled })
        })?;
        let text = match (&self.sight, &request.image_prompt) {
            (Some(sight), Some(prompt)) => {
                cancel.check()?;
                let tokens = recent.image_prompt(&prompt.picture, |it| sight.tokens(it))?;
                // The unconditional half, which comes first, sees nothing.
                let tokens = tokens.iter().skip(2 - text.len());
                let rows = text.iter().zip(tokens).map(|(text, tokens)| {
                    let unet =
                        self.unet.with_image(&text.unet, &sight.adapter, tokens, prompt.scale)?;
                    let (nets, pooled) = (text.nets.clone(), text.pooled.clone());
                    Ok(Arc::new(Texts { unet, nets, pooled }))
                });
                rows.collect::<Result<_>>()?
            }
            _ => text,
        };
        // 2. noise, or an image and noise
        let start = match &request.init {
            None => Start::from_noise(&*sampler, &mut noise)?,
            Some(init) => {
                cancel.check()?;
                let strength = self.strength(request);
                let image = recent.image(init, strength, size, self)?;
                let factor = self.vae.config().scaling_factor();
                Start::from_image(&image, strength, factor, &*sampler, &mut noise)?
            }
        };
        // 3. schedule, and what is known of the picture -> time embeddings
        let sizes = match self.second {
            Some(_) => sizes::told(settings, size, request.init.is_some()),
            None => Default::default(),
        };
        let vectors = told.vectors.iter().zip(&sizes).skip(told.vectors.len() - text.len());
        let vectors = vectors.zip(&text).map(|((vector, sizes), text)| {
            let (sizes, pooled) = (sizes.clone(), text.pooled.clone());
            Vector { guidance: scale, sizes, pooled, ..vector.clone() }
        });
        let vectors: Vec<Vector> = vectors.collect();
        let of_rows = |vectors: &[Vector], embed: &dyn Fn(&Vector) -> Result<Tensor>| {
            let rows = vectors.iter().map(|vector| {
                let times = embed(vector)?; // [evaluations, E]
                times.reshape([times.dim(0), 1, times.dim(1)])
            });
            let rows = rows.collect::<Result<Vec<_>>>()?;
            concat(&rows.iter().collect::<Vec<_>>(), 1) // [evaluations, rows, E]
        };
        let timesteps = of_rows(&vectors, &|vector| self.unet.embed(sampler.timesteps(), vector))?;
        let nets = self.controlnets.iter().zip(&request.controls).enumerate();
        let nets = nets.map(|(index, (net, control))| {
            cancel.check()?;
            let see = || net.hint(&control.levels(size)?); // [1, h, w, C]
            let hint = recent.hint(index, &control.picture, see)?;
            // What is told nothing is the same for all rows.
            let told = if net.is_told() { &vectors[..] } else { &vectors[..1] };
            let times = of_rows(told, &|vector| net.embed(sampler.timesteps(), vector))?;
            Ok(Net { index, control: control.clone(), times, hint })
        });
        let nets = nets.collect::<Result<Vec<_>>>()?;
        // As diffusers has it: the first decides for all.
        let pools = self.controlnets.first().is_some_and(|net| net.config().global_pool);
        let guess = request.guess_mode || pools;
        // 4. the sampler, or a table of its steps
        sampler.begin(start.first);
        let stepping = match start.is_free() {
            true => Stepping::new(&*sampler, start.first, guidance, &mut noise, self.device)?,
            false => None,
        };
        let (latents, next) = (start.latents.clone(), start.first);
        Ok((
            Denoising {
                sampler,
                noise,
                start,
                latents,
                next,
                timesteps,
                text,
                nets,
                guess,
                guidance,
                stepping,
            },
            warnings,
        ))
    }

    /// UNet + sampler step, for slots whose prompts are the rows of `evaluation`. What befalls a slot is its own result.
    pub(super) fn denoise(
        &self,
        slots: &mut [&mut Denoising],
        evaluation: &mut Evaluation,
    ) -> Result<Vec<Result<()>>> {
        let inputs = slots.iter().map(|slot| slot.input()).collect::<Result<Vec<_>>>()?;
        let inputs = Inputs::concat(&inputs)?; // [R, ..]
        // Samplers remember predictions.
        let is_remembered = slots.iter().any(|slot| slot.stepping.is_none());
        let predictions = evaluation.predict(self, &inputs, is_remembered)?; // [R, h, w, 4]
        let mut row = 0;
        let advance = |slot: &mut &mut Denoising| {
            let prediction = predictions.narrow(0, row, slot.rows())?; // [1 or 2, h, w, 4]
            row += slot.rows();
            Ok(slot.advance(&prediction))
        };
        slots.iter_mut().map(advance).collect()
    }

    /// VAE decoder -> image, and what of the image that it starts from is to stay.
    pub(super) fn finish(
        &self,
        latents: &Tensor,
        tiled: bool,
        request: &Request,
    ) -> Result<Picture> {
        let pixels = self.decode(latents, tiled, &request.cancel)?; // [1, H, W, C]
        let mut picture = Picture::of_tensor(&pixels)?.remove(0);
        if let Some(init) = &request.init {
            init.restore(&mut picture)?;
        }
        Ok(picture)
    }

    /// Bands of its pictures.
    pub fn bands(&self) -> usize {
        self.vae.config().out_channels()
    }

    /// Refuses a model whose pictures are neither grey nor RGB, where only those can be used.
    ///
    /// # Errors
    /// `Argument`: its bands are others.
    pub fn require_rgb(&self) -> Result<()> {
        match self.bands() {
            1 | 3 => Ok(()),
            bands => {
                let expected = "one of grey or RGB pictures, here";
                Err(Error::argument("model", format!("one of {bands} bands"), expected))
            }
        }
    }

    /// Images [B, H, W, C], about -1 to 1, of `latents` [B, h, w, 4] at any step.
    ///
    /// # Errors
    /// Latents of another number of channels; `Interrupted`, between blocks of the decoder.
    pub fn decode(&self, latents: &Tensor, tiled: bool, cancel: &Cancel) -> Result<Tensor> {
        decode(&self.vae, latents, tiled, cancel)
    }

    /// What `latents` [1, h, w, 4] look like at any step, by the autoencoder that is kept for this, if there is one.
    ///
    /// # Errors
    /// As [`Self::decode`]; `Argument` where it is neither grey nor RGB.
    pub fn preview(&self, latents: &Tensor, cancel: &Cancel) -> Result<RgbImage> {
        let vae = self.preview.as_ref().unwrap_or(&self.vae);
        Picture::of_tensor(&decode(vae, latents, false, cancel)?)?.remove(0).rgb()
    }
}

fn decode(vae: &Autoencoder, latents: &Tensor, tiled: bool, cancel: &Cancel) -> Result<Tensor> {
    let latents = scale(latents, vae.config().scaling_factor().recip())?;
    vae.decode(&latents, tiled, &mut || cancel.check())
}
