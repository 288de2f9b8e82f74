//! Training a denoiser with its text encoder (Ho et al. 2020; Rombach et al. 2022), as diffusers' `train_text_to_image.py`
//! does: noise is added to the latents of a picture up to a random timestep, and the denoiser is to say what was added.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::initial::{initial, low_rank};
use super::precision::{Compute, MixedPrecision};
use super::random::Random;
use super::records::{Content, Sample};
use super::run::{Loss, Measured, Task};
use super::samples::{Painter, SampleSettings};
use super::vae::NoFile;
use crate::data::{Batch, Dataset};
use crate::error::{Error, Result};
use crate::io::TensorSource;
use crate::io::atomic;
use crate::io::config::{Config, read_json};
use crate::io::folder::Weights;
use crate::models::clip::{ClipText, ClipTextConfig};
use crate::models::unet::{Unet, UnetConfig};
use crate::models::vae::{Vae, VaeConfig};
use crate::nn::lora::{self, LowRank, Targets};
use crate::nn::{Keep, Module, Parameter, Params, parameters, save};
use crate::ops::elementwise::mul;
use crate::ops::loss::squared_error;
use crate::ops::reduce::mean;
use crate::pipeline::sampler::alphas_cumprod;
use crate::tensor::tape::no_grad;
use crate::tensor::{DType, Shape, Tensor};
use crate::text::tokenizer::ClipTokenizer;

/// What the denoiser says.
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
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise
    #[value(alias = "eps")]
    Epsilon,
    /// Noise and picture, in opposite measure to how they are mixed (Salimans & Ho 2022)
    #[default]
    #[value(name = "v_prediction", alias = "v", alias = "v-prediction")]
    VPrediction,
}

/// What is particular to this task.
#[derive(Clone, Debug, PartialEq, clap::Args)]
#[command(next_help_heading = "Diffusion")]
pub struct DiffusionSettings {
    /// What the denoiser says of a new model
    #[arg(long, value_enum, default_value_t)]
    pub prediction_type: Prediction,

    /// Weigh timesteps by their signal-to-noise ratio, at most X (Hang et al. 2023; they use 5)
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub snr_gamma: Option<f64>,

    /// Share of noise that is the same for all pixels of a channel, which teaches brightness
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub noise_offset: f64,

    /// Share of pictures whose prompt is left empty, so that guidance has something to go away from
    #[arg(long, value_name = "X", default_value_t = 0.1, allow_negative_numbers = true)]
    #[arg(alias = "prompt-dropout")]
    pub proportion_empty_prompts: f64,
}

impl DiffusionSettings {
    /// Checks what no loss can be made of.
    ///
    /// # Errors
    /// `Argument`, naming the field.
    pub fn check(&self) -> Result<()> {
        let share = self.proportion_empty_prompts;
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::argument("proportion_empty_prompts", share, "0 to 1"));
        }
        if !(0.0..=1.0).contains(&self.noise_offset) {
            return Err(Error::argument("noise_offset", self.noise_offset, "0 to 1"));
        }
        match self.snr_gamma {
            Some(gamma) if !(gamma > 0.0 && gamma.is_finite()) => {
                Err(Error::argument("snr_gamma", gamma, "a number above 0"))
            }
            _ => Ok(()),
        }
    }
}

/// Low-rank adapters (Hu et al. 2021) that are trained instead of the model's weights.
#[derive(Clone, Debug, Default, PartialEq, clap::Args)]
#[command(next_help_heading = "Low-rank adapters")]
pub struct LoraSettings {
    /// Train adapters of this rank, and leave the model as it is
    #[arg(long, value_name = "N", alias = "rank", requires = "init_from")]
    #[arg(allow_negative_numbers = true)]
    pub lora_rank: Option<usize>,

    /// Adapters are multiplied by A / rank [default: the rank]
    #[arg(long, value_name = "A", requires = "lora_rank", allow_negative_numbers = true)]
    pub lora_alpha: Option<f64>,

    /// Layers that get one: attention (its projections), linear (all linear layers), conv (convolutions too)
    #[arg(long, value_name = "LAYERS", requires = "lora_rank", default_value = "attention")]
    pub lora_targets: Targets,

    /// peft's setting, which has to be 0
    #[arg(long, value_name = "P", requires = "lora_rank", default_value_t = 0.0, hide = true)]
    #[arg(allow_negative_numbers = true)]
    pub lora_dropout: f64,
}

impl LoraSettings {
    /// alpha, which is the rank where nothing else is said.
    ///
    /// # Errors
    /// `Argument` for what is no factor, and for dropout.
    pub(super) fn alpha(&self, rank: usize) -> Result<f64> {
        if self.lora_dropout != 0.0 {
            let expected = "0: adapters are added to their weights before these multiply, so that nothing can be dropped in between";
            return Err(Error::argument("lora_dropout", self.lora_dropout, expected));
        }
        match self.lora_alpha {
            Some(alpha) if !(alpha > 0.0 && alpha.is_finite()) => {
                Err(Error::argument("lora_alpha", alpha, "a number above 0"))
            }
            given => Ok(given.unwrap_or(rank as f64)),
        }
    }

    /// What a checkpoint of adapters says of them besides names and shapes.
    pub(super) fn particulars(&self, rank: usize, alpha: f64) -> BTreeMap<String, String> {
        [
            ("lora_rank", rank.to_string()),
            ("lora_alpha", alpha.to_string()),
            ("lora_targets", self.lora_targets.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

/// The parts of a new model.
pub struct NewModel<'a> {
    /// Folder of an autoencoder: `config.json` and weights.
    pub vae: &'a Path,
    /// Folder of a CLIP tokenizer.
    pub tokenizer: &'a Path,
    /// `config.json` of a UNet; else [`default_unet`].
    pub unet: Option<&'a Path>,
    /// `config.json` of a text encoder; else [`default_text_encoder`].
    pub text_encoder: Option<&'a Path>,
}

/// A UNet of 12.6 M weights for latents of 16x16.
pub fn default_unet() -> Value {
    json!({
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": 4,
        "block_out_channels": [64, 128, 256],
        "center_input_sample": false,
        "cross_attention_dim": 128,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "downsample_padding": 1,
        "flip_sin_to_cos": true,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 1,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 16,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "use_linear_projection": true,
    })
}

/// A text encoder of two layers for the vocabulary of a tokenizer.
pub fn default_text_encoder(tokenizer: &ClipTokenizer) -> Value {
    json!({
        "architectures": ["CLIPTextModel"],
        "bos_token_id": tokenizer.start(),
        "eos_token_id": tokenizer.end(),
        "hidden_act": "gelu",
        "hidden_size": 128,
        "intermediate_size": 512,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": tokenizer.max_length(),
        "model_type": "clip_text_model",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "pad_token_id": tokenizer.pad(),
        "projection_dim": 128,
        "vocab_size": tokenizer.vocabulary(),
    })
}

/// Noise levels of Stable Diffusion, sampled by DDIM.
pub fn default_scheduler(prediction: Prediction) -> Value {
    json!({
        "_class_name": "DDIMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": false,
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "set_alpha_to_one": false,
        "steps_offset": 1,
        "timestep_spacing": "trailing",
    })
}

/// A network with its configuration, and the file that it was loaded from.
struct Part<M> {
    model: M,
    config: Value,
    source: Option<Weights>,
}

impl<M: Module> Part<M> {
    /// A new one.
    fn new(
        origin: &Path,
        config: Value,
        seed: u64,
        compute: Compute,
        load: impl FnOnce(&Config, &Params) -> Result<M>,
    ) -> Result<Self> {
        let new = move |name: &str, shape: &[usize]| initial(seed, name, shape);
        let params = Params::initial(new, compute.precision.dtype(), compute.device);
        let params = params.keeping(Keep::Trainable);
        let model = load(&Config::from_value(origin, config.clone())?, &params)?;
        Ok(Self { model, config, source: None })
    }

    /// That in a folder with `config.json` and weights.
    fn open(
        folder: &Path,
        keep: Keep,
        compute: Compute,
        load: impl FnOnce(&Config, &Params) -> Result<M>,
    ) -> Result<Self> {
        let path = folder.join("config.json");
        let config = read_json(&path)?;
        let weights = || Weights::open(folder, None);
        let params = Params::new(weights()?, compute.precision.dtype(), compute.device);
        let params = params.keeping(keep);
        let model = load(&Config::from_value(&path, config.clone())?, &params)?;
        params.finish()?;
        Ok(Self { model, config, source: Some(weights()?) })
    }

    /// The weights that it was loaded from.
    fn stored(&self) -> Option<&dyn TensorSource> {
        self.source.as_ref().map(|source| source as &dyn TensorSource)
    }

    fn export(&self, folder: &Path, file: &str, dtype: Option<DType>) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        write_json(&folder.join("config.json"), &self.config)?;
        match &self.source {
            Some(source) => save(&self.model, source, &folder.join(file), dtype),
            None => save(&self.model, &NoFile, &folder.join(file), dtype),
        }
    }
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::io(path, e.into()))?;
    atomic::write(path, |out| writeln!(out, "{text}"))
}

/// What is trained in place of the weights of a denoiser and its text encoder.
struct Adapters {
    unet: LowRank,
    text_encoder: Option<LowRank>,
    /// What else they are, by name.
    particulars: BTreeMap<String, String>,
}

/// A denoiser and its text encoder that are trained.
pub struct DiffusionTask {
    unet: Part<Unet>,
    text_encoder: Part<ClipText>,
    vae: Part<Vae>,
    tokenizer: ClipTokenizer,
    tokenizer_folder: PathBuf,
    scheduler: Value,
    prediction: Prediction,
    /// Signal level by timestep.
    alphas_cumprod: Vec<f32>,
    settings: DiffusionSettings,
    train_text_encoder: bool,
    adapters: Option<Adapters>,
    dtype: Option<DType>,
    sampling: SampleSettings,
    compute: Compute,
}

impl DiffusionTask {
    /// A new denoiser and text encoder; `compute` may be a device alone.
    ///
    /// # Errors
    /// A file cannot be read or understood, or the parts do not fit together.
    pub fn new(
        parts: &NewModel,
        settings: DiffusionSettings,
        seed: u64,
        compute: impl Into<Compute>,
    ) -> Result<Self> {
        let compute = compute.into();
        let tokenizer = ClipTokenizer::open(parts.tokenizer)?;
        let default = Path::new("the default configuration");
        let config = |file: Option<&Path>, other: Value| match file {
            Some(file) => Ok::<_, Error>((file.to_path_buf(), read_json(file)?)),
            None => Ok((default.to_path_buf(), other)),
        };
        let (origin, text_config) = config(parts.text_encoder, default_text_encoder(&tokenizer))?;
        let text_encoder = Part::new(&origin, text_config, seed, compute, load_text_encoder)?;
        let (origin, unet_config) = config(parts.unet, default_unet())?;
        let unet = Part::new(&origin, unet_config, seed, compute, load_unet)?;
        let scheduler = default_scheduler(settings.prediction_type);
        let vae = Part::open(parts.vae, Keep::Frozen, compute, load_vae)?;
        let networks = (unet, text_encoder, vae);
        Self::assembled(networks, parts.tokenizer, scheduler, settings, true, compute)
    }

    /// The model in a diffusers folder; its own kind of prediction holds. `compute` may be a device alone.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn open(
        folder: &Path,
        settings: DiffusionSettings,
        train_text_encoder: bool,
        compute: impl Into<Compute>,
    ) -> Result<Self> {
        let compute = compute.into();
        let keep = if train_text_encoder { Keep::Trainable } else { Keep::Frozen };
        let text_encoder =
            Part::open(&folder.join("text_encoder"), keep, compute, load_text_encoder)?;
        let unet = Part::open(&folder.join("unet"), Keep::Trainable, compute, load_unet)?;
        let vae = Part::open(&folder.join("vae"), Keep::Frozen, compute, load_vae)?;
        let scheduler = read_json(&folder.join("scheduler/scheduler_config.json"))?;
        let tokenizer = folder.join("tokenizer");
        let networks = (unet, text_encoder, vae);
        Self::assembled(networks, &tokenizer, scheduler, settings, train_text_encoder, compute)
    }

    fn assembled(
        (unet, text_encoder, vae): (Part<Unet>, Part<ClipText>, Part<Vae>),
        tokenizer: &Path,
        scheduler: Value,
        settings: DiffusionSettings,
        train_text_encoder: bool,
        compute: Compute,
    ) -> Result<Self> {
        settings.check()?;
        let origin = Path::new("scheduler_config.json");
        let config = Config::from_value(origin, scheduler.clone())?;
        let known = [("epsilon", Prediction::Epsilon), ("v_prediction", Prediction::VPrediction)];
        let prediction = config.choice("prediction_type", "epsilon", &known)?;
        let task = Self {
            alphas_cumprod: alphas_cumprod(&config)?,
            tokenizer: ClipTokenizer::open(tokenizer)?,
            tokenizer_folder: tokenizer.to_path_buf(),
            unet,
            text_encoder,
            vae,
            scheduler,
            prediction,
            settings,
            train_text_encoder,
            adapters: None,
            dtype: None,
            sampling: SampleSettings::default(),
            compute,
        };
        let misfit = |what: &str, expected: usize, found: usize| {
            let advice = "These parts are not of one model.";
            let (expected, found) = (expected.to_string(), found.to_string());
            Err(Error::file(tokenizer, what, expected, found, advice))
        };
        let (text, unet) = (task.text_encoder.model.config(), task.unet.model.config());
        if let Some(&other) = unet.cross_attention_dim.iter().find(|&&d| d != text.hidden_size) {
            return misfit("cross_attention_dim of the UNet", text.hidden_size, other);
        }
        let latent = task.vae.model.config().latent_channels;
        if let Some(&other) = [unet.in_channels, unet.out_channels].iter().find(|&&c| c != latent) {
            return misfit("channels of the UNet", latent, other);
        }
        if task.tokenizer.vocabulary() > text.vocab_size {
            return misfit("tokens", text.vocab_size, task.tokenizer.vocabulary());
        }
        Ok(task)
    }

    /// The same, where `settings` say so with adapters that are trained instead of the weights.
    ///
    /// # Errors
    /// `Argument` for a rank or a scale that cannot be.
    pub fn adapting(mut self, settings: &LoraSettings, seed: u64) -> Result<Self> {
        let Some(rank) = settings.lora_rank else { return Ok(self) };
        let alpha = settings.alpha(rank)?;
        let new = |part: &str, module: &dyn Module| {
            LowRank::new(module, settings.lora_targets, rank, alpha, |name, shape| {
                low_rank(seed, &format!("{part}.{name}"), shape)
            })
        };
        let text_encoder = self.train_text_encoder.then_some(&self.text_encoder.model);
        self.adapters = Some(Adapters {
            unet: new("unet", &self.unet.model)?,
            text_encoder: text_encoder.map(|module| new("text_encoder", module)).transpose()?,
            particulars: settings.particulars(rank, alpha),
        });
        Ok(self)
    }

    /// The same, exported in `dtype` rather than f32.
    pub fn exporting(self, dtype: Option<DType>) -> Self {
        Self { dtype, ..self }
    }

    /// The same, which draws pictures of these prompts amid training.
    pub fn sampling(self, sampling: SampleSettings) -> Self {
        Self { sampling, ..self }
    }

    /// Hidden states [B, T, D] of prompts.
    fn encode(&self, prompts: &[&str]) -> Result<Tensor> {
        let mut ids = Vec::new();
        for prompt in prompts {
            ids.extend(self.tokenizer.encode(prompt)?.ids.into_iter().map(i64::from));
        }
        let ids = Tensor::from_vec(ids, [prompts.len(), self.tokenizer.max_length()])?; // [B, T]
        self.text_encoder.model.forward(&ids, 0)
    }

    /// A sample of the latents of pictures, scaled for the denoiser.
    fn latents(&self, images: &Tensor, random: &mut Random) -> Result<Vec<f32>> {
        let (vae, factor) = (&self.vae.model, self.vae.model.config().factor());
        let (_, h, w, _) = images.dims4()?;
        if h % factor + w % factor > 0 {
            let expected = format!("a multiple of {factor}, the pixels along a latent");
            return Err(Error::argument("resolution", format!("{w}x{h}"), expected));
        }
        let posterior = no_grad(|| vae.encode(&images.to_device(self.compute.device)?))?;
        let noise = random.normal(*posterior.mean.shape())?.to_vec::<f32>()?;
        let [mean, logvar] = [posterior.mean, posterior.logvar].map(|t| t.to_dtype(DType::F32));
        let (mean, logvar) = (mean?.to_vec::<f32>()?, logvar?.to_vec::<f32>()?);
        let scale = vae.config().scaling_factor;
        let values = mean.iter().zip(logvar).zip(noise);
        Ok(values.map(|((m, l), n)| (m + (0.5 * l.clamp(-30.0, 20.0)).exp() * n) * scale).collect())
    }

    /// Gives the networks' weights what the adapters, as they are now, add to them.
    fn apply_adapters(&self) -> Result<()> {
        let Some(Adapters { unet, text_encoder, .. }) = &self.adapters else { return Ok(()) };
        unet.apply(&self.unet.model)?;
        text_encoder.iter().try_for_each(|all| all.apply(&self.text_encoder.model))
    }

    /// The loss of each picture `[B]`.
    fn losses(&self, batch: &Batch, random: &mut Random) -> Result<Tensor> {
        let count = batch.captions.len();
        self.apply_adapters()?;
        // 1. latents, and what is drawn for them
        let clean = self.latents(&batch.images, random)?;
        let (channels, factor) =
            (self.vae.model.config().latent_channels, self.vae.model.config().factor());
        let (_, h, w, _) = batch.images.dims4()?;
        let shape = [count, h / factor, w / factor, channels];
        let mut noise = random.normal(shape)?.to_vec::<f32>()?; // [B, h, w, C]
        let len = clean.len() / count;
        if self.settings.noise_offset > 0.0 {
            let offsets = random.normal([count, channels])?.to_vec::<f32>()?;
            for (i, x) in noise.iter_mut().enumerate() {
                let offset = offsets[i / len * channels + i % channels];
                *x += self.settings.noise_offset as f32 * offset;
            }
        }
        let timesteps: Vec<usize> =
            (0..count).map(|_| random.below(self.alphas_cumprod.len())).collect();
        let empty: Vec<bool> =
            (0..count).map(|_| random.unit() < self.settings.proportion_empty_prompts).collect();
        // 2. what the denoiser sees, and what it is to say
        let (mut noisy, mut target) = (clean.clone(), noise.clone());
        for i in 0..clean.len() {
            let alpha_bar = self.alphas_cumprod[timesteps[i / len]];
            let (signal, sigma) = (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt());
            noisy[i] = signal * clean[i] + sigma * noise[i];
            if self.prediction == Prediction::VPrediction {
                target[i] = signal * noise[i] - sigma * clean[i];
            }
        }
        let sent = |values: Vec<f32>, shape: Shape| {
            Tensor::from_vec(values, shape)?.to_device(self.compute.device)
        };
        let (noisy, target) = (sent(noisy, shape.into())?, sent(target, shape.into())?);
        // 3. the prediction
        let prompts = batch.captions.iter().zip(&empty);
        let prompts: Vec<&str> =
            prompts.map(|(text, &empty)| if empty { "" } else { text.as_str() }).collect();
        let context = self.unet.model.context(&self.encode(&prompts)?)?;
        let times: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
        let embedded = self.unet.model.embed_timesteps(&times)?;
        let predicted = self.unet.model.forward(&noisy, &embedded, &context)?;
        // 4. losses
        let losses = squared_error(&predicted, &target)?; // [B]
        let Some(gamma) = self.settings.snr_gamma else { return Ok(losses) };
        let weights = timesteps.iter().map(|&t| self.weight(t, gamma) as f32).collect();
        mul(&losses, &sent(weights, [count].into())?)
    }

    /// Min-SNR weight of a timestep.
    fn weight(&self, timestep: usize, gamma: f64) -> f64 {
        let alpha_bar = f64::from(self.alphas_cumprod[timestep]);
        let snr = alpha_bar / (1.0 - alpha_bar);
        match self.prediction {
            Prediction::Epsilon => snr.min(gamma) / snr,
            Prediction::VPrediction => snr.min(gamma) / (snr + 1.0),
        }
    }
}

fn load_unet(config: &Config, params: &Params) -> Result<Unet> {
    let shape = UnetConfig::read(config)?;
    if !shape.vector.is_empty() {
        let (found, advice) = ("a UNet that is told more", "It can be drawn with, not trained.");
        let expected = "a UNet that is told no more of a picture than its text";
        return Err(Error::file(config.path(), "class embedding", expected, found, advice));
    }
    Unet::load(shape, params)
}

fn load_text_encoder(config: &Config, params: &Params) -> Result<ClipText> {
    ClipText::load(ClipTextConfig::read(config)?, params)
}

fn load_vae(config: &Config, params: &Params) -> Result<Vae> {
    Vae::load(VaeConfig::read(config)?, params)
}

impl Task for DiffusionTask {
    fn name(&self) -> &'static str {
        "diffusion"
    }

    fn parameters(&self) -> Vec<(String, &Parameter)> {
        let of = |part, all: Vec<(String, _)>| {
            all.into_iter().map(move |(name, parameter)| (format!("{part}.{name}"), parameter))
        };
        if let Some(Adapters { unet, text_encoder, .. }) = &self.adapters {
            let text_encoder = text_encoder.iter().flat_map(LowRank::parameters).collect();
            let all = of("unet", unet.parameters().collect());
            return all.chain(of("text_encoder", text_encoder)).collect();
        }
        let mut all: Vec<_> = of("unet", parameters(&self.unet.model)).collect();
        if self.train_text_encoder {
            all.extend(of("text_encoder", parameters(&self.text_encoder.model)));
        }
        all
    }

    fn precision(&self) -> MixedPrecision {
        self.compute.precision
    }

    fn particulars(&self) -> BTreeMap<String, String> {
        self.adapters.as_ref().map_or_else(BTreeMap::new, |adapters| adapters.particulars.clone())
    }

    fn loss(&self, batch: &Batch, random: &mut Random) -> Result<Loss> {
        Ok(Loss { total: mean(&self.losses(batch, random)?, &[0])?, parts: Vec::new() })
    }

    /// The loss at random timesteps.
    fn validate(&self, batch: &Batch, random: &mut Random) -> Result<Measured> {
        let losses = self.losses(batch, random)?.to_vec::<f32>()?;
        Ok(vec![("validation_loss", losses.iter().map(|x| f64::from(*x)).sum())])
    }

    /// The validation prompts, each by a seed of its own.
    fn samples(&self, data: &Dataset, seed: u64) -> Result<Vec<Sample>> {
        if self.sampling.validation_prompts.is_empty() {
            return Ok(Vec::new());
        }
        self.apply_adapters()?;
        let painter = Painter {
            unet: &self.unet.model,
            vae: &self.vae.model,
            scheduler: &self.scheduler,
            device: self.compute.device,
        };
        let empty = self.encode(&[""])?;
        let draw = |(prompt, seed): (&String, u64)| {
            let texts = [&empty, &self.encode(&[prompt])?];
            let picture = painter.draw(texts, data.size(), seed, &self.sampling)?;
            Ok(Sample { caption: prompt.clone(), content: Content::Picture(picture) })
        };
        self.sampling.validation_prompts.iter().zip(seed..).map(draw).collect()
    }

    /// A folder as `StableDiffusionPipeline.save_pretrained` writes it; of adapters the file alone that its
    /// `load_lora_weights` reads.
    fn export(&self, folder: &Path, _: &Measured) -> Result<()> {
        if let Some(Adapters { unet, text_encoder, .. }) = &self.adapters {
            let dtype = self.dtype.unwrap_or(DType::F32);
            let mut tensors = unet.tensors("unet.", self.unet.stored(), dtype)?;
            if let Some(adapters) = text_encoder {
                // As transformers had it before its fifth version, which all readers understand.
                let prefix = "text_encoder.text_model.";
                tensors.extend(adapters.tensors(prefix, self.text_encoder.stored(), dtype)?);
            }
            return lora::export(folder, &tensors);
        }
        let diffusers = "diffusion_pytorch_model.safetensors";
        self.unet.export(&folder.join("unet"), diffusers, self.dtype)?;
        let text_encoder = folder.join("text_encoder");
        self.text_encoder.export(&text_encoder, "model.safetensors", self.dtype)?;
        self.vae.export(&folder.join("vae"), diffusers, self.dtype)?;
        let scheduler = folder.join("scheduler");
        std::fs::create_dir_all(&scheduler).map_err(|e| Error::io(&scheduler, e))?;
        write_json(&scheduler.join("scheduler_config.json"), &self.scheduler)?;
        let tokenizer = folder.join("tokenizer");
        std::fs::create_dir_all(&tokenizer).map_err(|e| Error::io(&tokenizer, e))?;
        for file in ClipTokenizer::files(&self.tokenizer_folder) {
            let bytes = std::fs::read(&file).map_err(|e| Error::io(&file, e))?;
            let name = file.file_name().unwrap_or_default();
            atomic::write(&tokenizer.join(name), |out| out.write_all(&bytes))?;
        }
        let class = self.scheduler["_class_name"].clone();
        let index = json!({
            "_class_name": "StableDiffusionPipeline",
            "feature_extractor": [null, null],
            "image_encoder": [null, null],
            "requires_safety_checker": false,
            "safety_checker": [null, null],
            "scheduler": ["diffusers", class],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        });
        write_json(&folder.join("model_index.json"), &index)
    }
}
