//! Training an autoencoder: the distance between a picture and what comes back of it, and a little of the divergence
//! that keeps latents near the standard Gaussian (Kingma & Welling 2014; Rombach et al. 2022, section 3.1, without its
//! perceptual and adversarial parts).

use std::path::Path;

use serde_json::{Value, json};

use super::initial::initial;
use super::precision::{Compute, MixedPrecision};
use super::random::Random;
use super::records::{Content, Sample};
use super::run::{Loss, Measured, Task};
use crate::data::{Batch, Dataset};
use crate::error::{Error, Result};
use crate::io::config::{Config, read_json};
use crate::io::folder::Weights;
use crate::io::image::from_tensor;
use crate::io::{TensorSource, atomic};
use crate::models::vae::{Posterior, Vae, VaeConfig};
use crate::nn::{Keep, Parameter, Params, parameters, save};
use crate::ops::elementwise::{add, clamp, scale};
use crate::ops::layout::concat;
use crate::ops::loss::{absolute_error, kl_divergence, sample_gaussian, squared_error};
use crate::ops::reduce::mean;
use crate::tensor::{DType, Tensor};

/// Pictures that are shown beside what comes back of them.
const SAMPLES: usize = 6;

/// What the distance between pictures is.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
)]
pub enum Reconstruction {
    /// Mean of absolute differences
    #[default]
    L1,
    /// Mean of squared differences
    Mse,
}

/// What a new autoencoder looks like when nothing else is said: four pixels a latent, four channels, 2.6 M weights.
pub fn default_config() -> Value {
    json!({
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": [32, 64, 128],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "force_upcast": false,
        "in_channels": 3,
        "latent_channels": 4,
        "layers_per_block": 1,
        "mid_block_add_attention": false,
        "norm_num_groups": 16,
        "out_channels": 3,
        "sample_size": 64,
        "scaling_factor": 1.0,
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
        "use_post_quant_conv": true,
        "use_quant_conv": true,
    })
}

/// An autoencoder that is trained.
pub struct VaeTask {
    vae: Vae,
    config: Value,
    /// What it was loaded from, if from a file.
    source: Option<Weights>,
    reconstruction: Reconstruction,
    kl_weight: f64,
    compute: Compute,
}

impl VaeTask {
    /// A new model of this configuration; `compute` may be a device alone.
    ///
    /// # Errors
    /// The configuration cannot be understood; `origin` says in errors where it came from.
    pub fn new(
        origin: &Path,
        config: Value,
        seed: u64,
        compute: impl Into<Compute>,
    ) -> Result<Self> {
        let compute = compute.into();
        let new = move |name: &str, shape: &[usize]| initial(seed, name, shape);
        let params = Params::initial(new, compute.precision.dtype(), compute.device);
        Self::load(origin, config, &params.keeping(Keep::Trainable), None, compute)
    }

    /// The model in a folder with `config.json` and weights; `compute` may be a device alone.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(folder: &Path, compute: impl Into<Compute>) -> Result<Self> {
        let compute = compute.into();
        let path = folder.join("config.json");
        let config = read_json(&path)?;
        let weights = || Weights::open(folder, None);
        let params = Params::new(weights()?, compute.precision.dtype(), compute.device);
        let params = params.keeping(Keep::Trainable);
        let task = Self::load(&path, config, &params, Some(weights()?), compute)?;
        params.finish()?;
        Ok(task)
    }

    fn load(
        origin: &Path,
        config: Value,
        params: &Params,
        source: Option<Weights>,
        compute: Compute,
    ) -> Result<Self> {
        let vae =
            Vae::load(VaeConfig::read(&Config::from_value(origin, config.clone())?)?, params)?;
        let (reconstruction, kl_weight) = (Reconstruction::default(), 1e-3);
        Ok(Self { vae, config, source, reconstruction, kl_weight, compute })
    }

    /// The same with another loss; `kl_weight` is that of the divergence a pixel and channel.
    pub fn with_loss(self, reconstruction: Reconstruction, kl_weight: f64) -> Self {
        Self { reconstruction, kl_weight, ..self }
    }

    fn encode(&self, images: &Tensor) -> Result<Posterior> {
        let Posterior { mean, logvar } = self.vae.encode(images)?;
        // As diffusers' DiagonalGaussianDistribution.
        let logvar = clamp(&logvar.to_dtype(DType::F32)?, -30.0, 20.0)?;
        Ok(Posterior { mean: mean.to_dtype(DType::F32)?, logvar })
    }

    fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.vae.decode(latents)?.to_dtype(DType::F32)
    }

    fn check(&self, batch: &Batch) -> Result<()> {
        let (_, h, w, _) = batch.images.dims4()?;
        let factor = self.vae.config().factor();
        if h % factor + w % factor > 0 {
            let expected = format!("a multiple of {factor}, the pixels along a latent");
            return Err(Error::argument("resolution", format!("{w}x{h}"), expected));
        }
        Ok(())
    }
}

impl Task for VaeTask {
    fn name(&self) -> &'static str {
        "vae"
    }

    fn parameters(&self) -> Vec<(String, &Parameter)> {
        parameters(&self.vae)
    }

    fn precision(&self) -> MixedPrecision {
        self.compute.precision
    }

    fn loss(&self, batch: &Batch, random: &mut Random) -> Result<Loss> {
        self.check(batch)?;
        let images = &batch.images.to_device(self.compute.device)?;
        let posterior = self.encode(images)?;
        let noise = random.normal(*posterior.mean.shape())?.to_device(self.compute.device)?;
        let latents = sample_gaussian(&posterior.mean, &posterior.logvar, &noise)?;
        let decoded = self.decode(&latents)?;
        let distance = match self.reconstruction {
            Reconstruction::L1 => absolute_error(&decoded, images)?,
            Reconstruction::Mse => squared_error(&decoded, images)?,
        };
        let distance = mean(&distance, &[0])?;
        let divergence = mean(&kl_divergence(&posterior.mean, &posterior.logvar)?, &[0])?;
        let pixels = images.len() / images.dim(0);
        let weight = self.kl_weight / pixels as f64;
        let total = add(&distance, &scale(&divergence, weight as f32)?)?;
        let parts =
            vec![("reconstruction", distance.detach()), ("divergence", divergence.detach())];
        Ok(Loss { total, parts })
    }

    /// The loss of the means' decoding; of the same limited to -1..1 the signal-to-noise ratio in dB, picture by picture;
    /// and the latents' mean square.
    fn validate(&self, batch: &Batch, _: &mut Random) -> Result<Measured> {
        self.check(batch)?;
        let images = batch.images.to_device(self.compute.device)?;
        let posterior = self.encode(&images)?;
        let latents = &posterior.mean;
        let decoded = self.decode(latents)?;
        let distance = match self.reconstruction {
            Reconstruction::L1 => absolute_error(&decoded, &images)?,
            Reconstruction::Mse => squared_error(&decoded, &images)?,
        };
        let sum = |x: Vec<f32>| x.into_iter().map(f64::from).sum::<f64>();
        let distance = sum(distance.to_vec()?);
        let divergence = sum(kl_divergence(latents, &posterior.logvar)?.to_vec()?);
        let pixels = (images.len() / images.dim(0)) as f64;
        let errors = squared_error(&clamp(&decoded, -1.0, 1.0)?, &images)?.to_vec::<f32>()?;
        // Levels are 2 apart at most; a difference below 8 bits' resolution is none.
        let psnr = |error: &f32| 10.0 * (4.0 / f64::from(*error).max(1e-6)).log10();
        let zeros = Tensor::zeros(*latents.shape(), latents.dtype(), latents.device())?;
        Ok(vec![
            ("validation_loss", distance + self.kl_weight / pixels * divergence),
            ("psnr", errors.iter().map(psnr).sum()),
            ("latent_square", sum(squared_error(latents, &zeros)?.to_vec()?)),
        ])
    }

    /// Pictures of `data` on the left, what comes back of them on the right.
    fn samples(&self, data: &Dataset, _: u64) -> Result<Vec<Sample>> {
        let Some(batch) = data.pass(SAMPLES.min(data.len()), 1)?.next() else {
            return Ok(Vec::new());
        };
        let batch = batch?;
        self.check(&batch)?;
        let images = batch.images.to_device(self.compute.device)?;
        let decoded = self.decode(&self.encode(&images)?.mean)?;
        let pairs = from_tensor(&concat(&[&images, &decoded], 2)?)?.into_iter().zip(batch.rows); // [B, H, 2 W, 3]
        let sample = |(picture, row)| Sample {
            caption: data.name(row).to_owned(),
            content: Content::Picture(picture),
        };
        Ok(pairs.map(sample).collect())
    }

    /// A folder of diffusers' AutoencoderKL. With what was measured it says by what latents are to be multiplied so that
    /// their mean square is 1, as a denoiser wants them.
    fn export(&self, folder: &Path, measured: &Measured) -> Result<()> {
        let mut config = self.config.clone();
        if let Some((_, square)) = measured.iter().find(|(name, _)| *name == "latent_square") {
            config["scaling_factor"] = json!(square.sqrt().recip());
        }
        let folder = folder.join("vae");
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let path = folder.join("config.json");
        let text = serde_json::to_string_pretty(&config).map_err(|e| Error::io(&path, e.into()))?;
        atomic::write(&path, |out| out.write_all(text.as_bytes()))?;
        let path = folder.join("diffusion_pytorch_model.safetensors");
        match &self.source {
            Some(source) => save(&self.vae, source, &path, None),
            None => save(&self.vae, &NoFile, &path, None),
        }
    }
}

/// The source of a model that was not loaded: all of its weights are its own.
pub(super) struct NoFile;

impl TensorSource for NoFile {
    fn names(&self) -> Vec<String> {
        Vec::new()
    }
    fn info(&self, _: &str) -> Option<crate::io::TensorInfo> {
        None
    }
    fn read(&self, name: &str) -> Result<Tensor> {
        Err(Error::Weights(format!("{name} is in no file")))
    }
    fn origin(&self, _: &str) -> String {
        "no file".to_owned()
    }
}
