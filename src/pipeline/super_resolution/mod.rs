//! Sentinel-2 at a quarter of its pixels' size: LDSR-S2, latent diffusion of four bands.
//!
//! ```text
//! image -> enlarged, encoded -> latents beside noise -> [ UNet + DDIM step ] x steps -> decoded -> the image's histogram
//! ```
//!
//! Donike et al. 2025, "Trustworthy Super-Resolution of Multispectral Sentinel-2 Imagery with Latent Diffusion". Reference
//! implementation: PyPI `opensr-model` 1.0.8, `srmodel.py` and `diffusion/`.

mod config;
mod histogram;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::error::{Error, Result};
use crate::io::checkpoint::plain::{PlainCheckpoint, open_plain};
use crate::io::config::Config;
use crate::models::unet::{Context, Unet};
use crate::models::vae::{Posterior, Vae};
use crate::nn::Params;
use crate::ops::elementwise::scale;
use crate::ops::layout::concat;
use crate::ops::resample::resize_bilinear;
use crate::tensor::{DType, Device, Tensor};
use config::LdsrConfig;
use histogram::match_histogram;

use super::sampler::SamplerConfig;

/// Pixels along a side that become of one.
pub const SCALE: usize = 4;

/// How an image is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Evaluations of the UNet.
    pub steps: usize,
    /// Share of DDPM's noise in a step, from 0 to 1.
    pub eta: f64,
    /// What that noise is multiplied by.
    pub temperature: f32,
    /// Whether each band of an image gets the histogram that it had.
    pub match_histograms: bool,
}

/// What noise is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draw {
    /// The latents that the image is encoded to.
    Condition,
    /// The latents that it begins with.
    Start,
    /// A step, from 0 on.
    Step(usize),
}

/// Draws noise [B, h, w, latent channels] for the images of a batch, f32.
pub type DrawNoise<'a> = dyn FnMut(Draw) -> Result<Tensor> + 'a;

/// A model of opensr-model.
pub struct SuperResolver {
    unet: Unet,
    vae: Vae,
    sampler: SamplerConfig,
    sampling: Sampling,
    device: Device,
    path: PathBuf,
}

impl SuperResolver {
    /// Loads a safetensors file of the original names (`model.diffusion_model.*`, `first_stage_model.*`) that is of the
    /// published shape, or a folder with one such file and a `config.json` that has the fields of opensr-model's
    /// `config_10m.yaml`. A schedule in the file goes before that of the configuration.
    ///
    /// # Errors
    /// A file that is missing, damaged or of another model; a configuration that asks for what is not implemented.
    pub fn open(path: &Path, device: Device) -> Result<Self> {
        let (file, config) = match path.is_dir() {
            true => (only_file(path)?, Config::open(path.join("config.json"))?),
            false => (path.to_path_buf(), Config::from_value(path, json!({}))?),
        };
        let config = LdsrConfig::read(&config)?;
        let levels = (config.vae.block_out_channels.len(), config.vae.layers_per_block);
        let PlainCheckpoint { unet, vae, betas } = open_plain(&file, &config.blocks, levels)?;
        // What latent diffusion calls linear is linear in the square roots.
        let scheduler = json!({
            "_class_name": "DDIMScheduler",
            "beta_start": config.betas[0],
            "beta_end": config.betas[1],
            "beta_schedule": "scaled_linear",
            "trained_betas": betas,
            "num_train_timesteps": config.timesteps,
            "clip_sample": false,
            "set_alpha_to_one": false,
            "steps_offset": 1,
            "timestep_spacing": "leading",
            "prediction_type": "epsilon",
        });
        let sampler = SamplerConfig::from_value(&file, scheduler)?;
        let sampling = Sampling {
            steps: config.steps,
            eta: config.eta,
            temperature: config.temperature,
            match_histograms: true,
        };
        let params = Params::new(vae, DType::F32, device).of_model("vae");
        let vae = Vae::load(config.vae, &params)?;
        params.finish()?;
        let params = Params::new(unet, DType::F32, device).of_model("unet");
        let unet = Unet::load(config.unet, &params)?;
        params.finish()?;
        let model = Self { unet, vae, sampler, sampling, device, path: path.to_path_buf() };
        model.check(&sampling)?;
        Ok(model)
    }

    /// Bands of an image.
    pub fn bands(&self) -> usize {
        self.vae.config().in_channels
    }

    /// Height and width of the images that it has learnt from.
    pub fn window(&self) -> usize {
        self.vae.config().sample_size / SCALE
    }

    /// What height and width of an image have to be a multiple of.
    pub fn multiple(&self) -> usize {
        1 << (self.unet.config().block_out_channels.len() - 1)
    }

    /// Channels of a latent, one for each pixel of an image.
    pub fn latent_channels(&self) -> usize {
        self.vae.config().latent_channels
    }

    /// As its configuration has it.
    pub fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// Whether there is such a way.
    ///
    /// # Errors
    /// `Argument`: no steps or too many, an `eta` outside 0 to 1, a temperature that is none.
    pub fn check(&self, sampling: &Sampling) -> Result<()> {
        if !(sampling.temperature >= 0.0 && sampling.temperature.is_finite()) {
            return Err(Error::argument("temperature", sampling.temperature, "0 or more"));
        }
        self.sampler.build(sampling.steps, sampling.eta).map(|_| ())
    }

    /// `images` [B, h, w, bands], reflectances 0 to 1 (what is brighter, too) -> [B, 4 h, 4 w, bands], 0 and more, f32 on the
    /// CPU. `data` [B, h, w] says which pixels are some: histograms are of these. An image does not depend on others, and each
    /// step of the UNet is told to `proceed`.
    ///
    /// # Errors
    /// Shapes that do not fit; `NotFinite`; what `noise` and `proceed` answer.
    pub fn enlarge(
        &self,
        images: &Tensor,
        data: &[bool],
        sampling: &Sampling,
        noise: &mut DrawNoise,
        proceed: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        let condition = self.encode(images, &noise(Draw::Condition)?)?;
        let latents = self.denoise(&condition, sampling, noise, proceed)?;
        let large = self.vae.decode(&latents)?; // [B, 4 h, 4 w, bands]
        let dims = large.dims4()?;
        let mut large = large.to_device(Device::Cpu)?.to_vec::<f32>()?;
        if large.iter().any(|value| !value.is_finite()) {
            let advice = "weights or a configuration that are not those of its training";
            let message = format!("{}: no numbers come out: {advice}", self.path.display());
            return Err(Error::NotFinite(message));
        }
        if sampling.match_histograms {
            match_bands(&mut large, &images.to_device(Device::Cpu)?, data)?;
        }
        large.iter_mut().for_each(|value| *value = value.max(0.0));
        Tensor::from_vec(large, [dims.0, dims.1, dims.2, dims.3])
    }

    /// The latents [B, h, w, latent channels] of `images` [B, h, w, bands] enlarged, drawn by `noise` of their shape.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn encode(&self, images: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let (_, h, w, _) = images.dims4()?;
        let images = images.to_device(self.device)?;
        let large = resize_bilinear(&images, (SCALE * h, SCALE * w))?; // [B, 4 h, 4 w, bands]
        let Posterior { mean, logvar } = self.vae.encode(&large)?; // [B, h, w, latent]
        if noise.dims() != mean.dims() {
            let expected = format!("{}", mean.shape());
            return Err(Error::expected_shape("encode", "noise", &expected, noise.shape()));
        }
        let mut latents = noise.to_device(Device::Cpu)?.to_vec::<f32>()?;
        let (mean, logvar) = (mean.to_vec::<f32>()?, logvar.to_vec::<f32>()?);
        for ((x, mean), logvar) in latents.iter_mut().zip(mean).zip(logvar) {
            *x = mean + (0.5 * logvar.clamp(-30.0, 20.0)).exp() * *x;
        }
        Tensor::from_vec(latents, noise.shape())?.to_device(self.device)
    }

    /// From noise to latents [B, h, w, latent channels], beside `condition` of the same shape.
    ///
    /// # Errors
    /// As [`Self::enlarge`].
    pub fn denoise(
        &self,
        condition: &Tensor,
        sampling: &Sampling,
        noise: &mut DrawNoise,
        proceed: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        let mut sampler = self.sampler.build(sampling.steps, sampling.eta)?;
        let times = self.unet.embed_timesteps(sampler.timesteps())?; // [steps, widths]
        let mut latents = noise(Draw::Start)?.to_device(self.device)?;
        sampler.begin(0);
        for i in 0..sampler.timesteps().len() {
            proceed()?;
            let output = self.predict(&latents, condition, &times.narrow(0, i, 1)?)?;
            let (temperature, device) = (sampling.temperature, self.device);
            let mut draw = || {
                let noise = noise(Draw::Step(i))?.to_device(device)?;
                scale(&noise, temperature)
            };
            latents = sampler.step(i, &output, &latents, &mut draw)?;
        }
        Ok(latents)
    }

    /// The noise in `latents` [B, h, w, latent channels] at `times` of [`Unet::embed_timesteps`].
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn predict(&self, latents: &Tensor, condition: &Tensor, times: &Tensor) -> Result<Tensor> {
        let input = concat(&[latents, condition], 3)?; // [B, h, w, 2 latent channels]
        self.unet.forward(&input, times, &Context::none())
    }

    /// The denoiser.
    pub fn unet(&self) -> &Unet {
        &self.unet
    }

    /// The autoencoder.
    pub fn vae(&self) -> &Vae {
        &self.vae
    }
}

/// Gives each band of each of the large images the histogram that it has in `images`, over what is `data`.
fn match_bands(large: &mut [f32], images: &Tensor, data: &[bool]) -> Result<()> {
    let (_, h, w, bands) = images.dims4()?;
    let images = images.to_vec::<f32>()?;
    let (small, factor) = (h * w, SCALE * SCALE);
    let of_image = images.chunks_exact(small * bands).zip(data.chunks_exact(small));
    for (large, (image, data)) in large.chunks_exact_mut(factor * small * bands).zip(of_image) {
        let is_data = |i: usize| data[i / (SCALE * w) / SCALE * w + i % (SCALE * w) / SCALE];
        for band in 0..bands {
            let pixels = large.chunks_exact_mut(bands).enumerate();
            let mut values: Vec<&mut f32> =
                pixels.filter(|(i, _)| is_data(*i)).map(|(_, pixel)| &mut pixel[band]).collect();
            let seen = image.chunks_exact(bands).zip(data).filter(|(_, is_data)| **is_data);
            let mut reference: Vec<f32> = seen.map(|(pixel, _)| pixel[band]).collect();
            match_histogram(&mut values, &mut reference);
        }
    }
    Ok(())
}

/// The only safetensors file of a folder.
fn only_file(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
    let files = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut files = files.collect::<std::io::Result<Vec<_>>>().map_err(|e| Error::io(folder, e))?;
    files.retain(|file| file.extension().is_some_and(|end| end == "safetensors"));
    match files.as_slice() {
        [file] => Ok(file.clone()),
        files => {
            let found = format!("{} of them", files.len());
            let advice = "Put config.json and the weights into a folder of their own.";
            Err(Error::file(folder, "weights", "one .safetensors file", found, advice))
        }
    }
}
