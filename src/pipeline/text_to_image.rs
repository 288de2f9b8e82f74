//! Text to image by latent diffusion: prompt -> tokens -> text encoder -> [UNet + sampler step] x steps ->
//! VAE decoder -> image.
//!
//! Rombach et al. 2022. Reference implementation: diffusers, `pipelines/stable_diffusion/`: the same weights,
//! prompt, seed, scheduler and steps give the same image.

use std::path::Path;

use image::RgbImage;

use crate::error::{Error, Result};
use crate::io::TensorSource;
use crate::io::config::Config;
use crate::io::folder::PipelineFolder;
use crate::io::image::from_tensor;
use crate::models::clip::{ClipText, ClipTextConfig};
use crate::models::unet::{Unet, UnetConfig};
use crate::models::vae::{Vae, VaeConfig};
use crate::nn::Params;
use crate::ops::elementwise::scale;
use crate::ops::layout::concat;
use crate::pipeline::guidance::guide;
use crate::pipeline::prompt;
use crate::pipeline::request::{Request, Watch};
use crate::pipeline::sampler::{Sampler, SamplerConfig};
use crate::pipeline::start::{Noise, Start, check_painting};
use crate::tensor::{DType, Device, Tensor, release_unused_memory};
use crate::text::tokenizer::ClipTokenizer;

/// How to hold a model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// What the networks compute in.
    pub dtype: DType,
    /// Where they compute.
    pub device: Device,
    /// Weight files to prefer: `fp16` for `model.fp16.safetensors`.
    pub variant: Option<String>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { dtype: DType::F32, device: Device::Cpu, variant: None }
    }
}

/// A Stable Diffusion model, ready to draw.
pub struct TextToImage {
    tokenizer: ClipTokenizer,
    text_encoder: ClipText,
    unet: Unet,
    vae: Vae,
    scheduler: SamplerConfig,
    device: Device,
    notes: Vec<String>,
}

impl TextToImage {
    /// Loads a diffusers folder.
    ///
    /// # Errors
    /// A component that is missing, damaged or of a kind that nadir does not know.
    pub fn load(folder: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        let folder = PipelineFolder::open(folder, options.variant.as_deref())?;
        check_classes(&folder)?;
        let mut notes = Vec::new();
        let tokenizer = ClipTokenizer::open(folder.folder("tokenizer")?)?;
        let text_encoder =
            load(&folder, "text_encoder", options, options.dtype, &mut notes, |config, params| {
                ClipText::load(ClipTextConfig::read(config)?, params)
            })?;
        let unet = load(&folder, "unet", options, options.dtype, &mut notes, |config, params| {
            Unet::load(UnetConfig::read(config)?, params)
        })?;
        let config = VaeConfig::read(&folder.config("vae")?)?;
        // Activations of many autoencoders overflow f16, and the image would be black.
        let dtype = if options.dtype == DType::F16 && config.force_upcast {
            DType::F32
        } else {
            options.dtype
        };
        let vae = load(&folder, "vae", options, dtype, &mut notes, |_, params| {
            Vae::load(config.clone(), params)
        })?;
        let scheduler =
            SamplerConfig::open(folder.folder("scheduler")?.join("scheduler_config.json"))?;
        let device = options.device;
        let model = Self { tokenizer, text_encoder, unet, vae, scheduler, device, notes };
        model.check_fit(&folder)?;
        // What the weights were read into, of sizes that no step asks for.
        release_unused_memory();
        Ok(model)
    }

    /// What the user should know about the files that were loaded.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Width and height in pixels that the model was trained on.
    pub fn default_size(&self) -> (usize, usize) {
        // 64 is what diffusers takes for the oldest folders.
        let side = self.unet.config().sample_size.unwrap_or(64) * self.vae.config().factor();
        (side, side)
    }

    /// The sampler of a request, with its steps laid out.
    ///
    /// # Errors
    /// An unknown sampler, or one that cannot take so many steps.
    pub fn sampler(&self, request: &Request) -> Result<Box<dyn Sampler>> {
        let mask = request.init.as_ref().is_some_and(|init| init.mask.is_some());
        let mut config = self.scheduler.clone();
        if let Some(name) = &request.scheduler {
            config = config.with_sampler(name)?;
        }
        config.for_stable_diffusion(mask).build(request.steps, f64::from(request.eta))
    }

    /// Draws one image for each seed, in order.
    ///
    /// # Errors
    /// A request that is not possible, a stop by `watch` ([`Error::Interrupted`]; images that were ready have
    /// been shown to it), or latents that are not finite.
    pub fn generate(&self, request: &Request, watch: &mut dyn Watch) -> Result<Vec<RgbImage>> {
        request.check()?;
        let size = request.size(self.default_size(), self.vae.config().factor())?;
        check_painting(self.paints(), request.init.as_ref())?;
        // A guidance of 1 is the prompt alone; diffusers takes anything below for the same.
        let guided = request.guidance_scale > 1.0;
        let text = prompt::encode(&self.tokenizer, &self.text_encoder, request, guided, watch)?; // [1 or 2, T, D]
        let mut images = Vec::with_capacity(request.seeds.len());
        for seeds in request.seeds.chunks(request.batch) {
            let latents = self.denoise(request, seeds, size, &text, watch)?; // [B, h, w, 4]
            for i in 0..seeds.len() {
                let pixels = self.decode(&latents.narrow(0, i, 1)?, request.vae_tiling)?; // [1, H, W, 3]
                let image = from_tensor(&pixels)?.remove(0);
                watch.image(images.len(), &image)?;
                images.push(image);
            }
        }
        Ok(images)
    }

    /// Latents [B, h, w, 4] of the images with these seeds, given the hidden states [1 or 2, T, D] of the prompts.
    fn denoise(
        &self,
        request: &Request,
        seeds: &[u64],
        (width, height): (usize, usize),
        text: &Tensor,
        watch: &mut dyn Watch,
    ) -> Result<Tensor> {
        let factor = self.vae.config().factor();
        let size = [height / factor, width / factor, self.vae.config().latent_channels];
        let streams = seeds.iter().map(|&seed| request.noise.stream(seed)).collect();
        let mut noise = Noise::new(streams, size, self.device);
        let mut sampler = self.sampler(request)?;
        // 1. what does not change from step to step
        let temb = self.unet.embed_timesteps(sampler.timesteps())?; // [steps, 4 width]
        let guided = text.dim(0) == 2;
        let context = self.unet.context(&repeat_each(text, seeds.len())?)?; // of [B or 2 B, T, D]
        // 2. where to start
        let start = match &request.init {
            None => Start::from_noise(&*sampler, &mut noise)?,
            Some(init) => {
                let first = sampler.start_index(init.strength)?;
                let size = (width as u32, height as u32);
                Start::from_image(
                    init,
                    size,
                    self.paints(),
                    &self.vae,
                    &*sampler,
                    first,
                    &mut noise,
                )?
            }
        };
        // 3. step by step
        let steps = sampler.timesteps().len();
        watch.started(steps - start.first);
        sampler.begin(start.first);
        let mut latents = start.latents.clone();
        for i in start.first..steps {
            if watch.cancelled() {
                return Err(Error::Interrupted);
            }
            let mut input = scale(&latents, sampler.input_scale(i))?;
            if let Some(beside) = &start.beside {
                input = concat(&[&input, beside], 3)?; // [B, h, w, 9]
            }
            if guided {
                input = concat(&[&input, &input], 0)?; // [2 B, h, w, C]
            }
            let mut output = self.unet.forward(&input, &temb.narrow(0, i, 1)?, &context)?; // [B or 2 B, h, w, 4]
            if guided {
                output = guide(&output, request.guidance_scale, request.guidance_rescale)?; // [B, h, w, 4]
            }
            latents = sampler.step(i, &output, &latents, &mut || noise.draw())?;
            latents = start.hold(latents, &*sampler, i + 1)?;
            watch.latents(i, &latents);
            watch.step(i - start.first);
        }
        check_finite(&latents)?;
        Ok(latents)
    }

    /// Images [B, H, W, 3], about -1 to 1, of `latents` [B, h, w, 4].
    ///
    /// # Errors
    /// Latents of another number of channels.
    pub fn decode(&self, latents: &Tensor, tiled: bool) -> Result<Tensor> {
        let latents = scale(latents, self.vae.config().scaling_factor.recip())?;
        if tiled { self.vae.decode_tiled(&latents) } else { self.vae.decode(&latents) }
    }

    /// Whether the UNet takes a mask and a masked image beside the latents.
    fn paints(&self) -> bool {
        self.unet.config().in_channels == 2 * self.vae.config().latent_channels + 1
    }

    /// Components that do not belong together are found now, not in the middle of a run.
    fn check_fit(&self, folder: &PipelineFolder) -> Result<()> {
        let (text, unet, vae) = (self.text_encoder.config(), self.unet.config(), self.vae.config());
        let misfit = |what: &str, expected: usize, found: usize| {
            let advice = "These components are not of one model.";
            Err(Error::file(folder.root(), what, expected.to_string(), found.to_string(), advice))
        };
        if let Some(&other) = unet.cross_attention_dim.iter().find(|&&d| d != text.hidden_size) {
            return misfit("cross_attention_dim of the unet", text.hidden_size, other);
        }
        if unet.out_channels != vae.latent_channels {
            return misfit("out_channels of the unet", vae.latent_channels, unet.out_channels);
        }
        if unet.in_channels != vae.latent_channels && !self.paints() {
            return misfit("in_channels of the unet", vae.latent_channels, unet.in_channels);
        }
        if self.tokenizer.vocabulary() > text.vocab_size {
            return misfit(
                "vocab_size of the text encoder",
                self.tokenizer.vocabulary(),
                text.vocab_size,
            );
        }
        Ok(())
    }
}

/// Pipelines that are nothing but these components, and the one class that nadir has of each.
fn check_classes(folder: &PipelineFolder) -> Result<()> {
    let advice = "nadir runs Stable Diffusion 1.x and 2.x.";
    let wrong = |what: &str, expected: &str, found: &str| {
        Err(Error::file(folder.root().join("model_index.json"), what, expected, found, advice))
    };
    let class = folder.class()?;
    let known = [
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
    ];
    if !known.contains(&class.as_str()) {
        return wrong("_class_name", &known.join(" or "), &class);
    }
    for (name, known) in [
        ("text_encoder", "CLIPTextModel"),
        ("unet", "UNet2DConditionModel"),
        ("vae", "AutoencoderKL"),
    ] {
        let class = folder.component(name)?.unwrap_or_default();
        if class != known {
            return wrong(name, known, &class);
        }
    }
    Ok(())
}

/// Loads one component; what its files hold beyond it becomes a note.
fn load<T>(
    folder: &PipelineFolder,
    name: &str,
    options: &LoadOptions,
    dtype: DType,
    notes: &mut Vec<String>,
    build: impl FnOnce(&Config, &Params) -> Result<T>,
) -> Result<T> {
    let config = folder.config(name)?;
    let weights = folder.weights(name)?;
    notes.extend(weights.note().map(|note| format!("{name}: {note}")));
    let file = weights.names().first().map(|first| weights.origin(first)).unwrap_or_default();
    let params = Params::new(weights, dtype, options.device);
    let model = build(&config, &params)?;
    let unused = params.finish()?;
    if let Some(first) = unused.first() {
        notes.push(format!(
            "{file}: {} tensors are not part of the model ({first}, ...)",
            unused.len()
        ));
    }
    Ok(model)
}

/// [G, T, D] -> [G n, T, D], each row n times.
fn repeat_each(text: &Tensor, n: usize) -> Result<Tensor> {
    let rows = (0..text.dim(0)).map(|i| text.narrow(0, i, 1)).collect::<Result<Vec<_>>>()?;
    let repeated: Vec<_> = rows.iter().flat_map(|row| std::iter::repeat_n(row, n)).collect();
    concat(&repeated, 0)
}

/// A black image hides what went wrong; an error tells it.
fn check_finite(latents: &Tensor) -> Result<()> {
    if latents.to_vec::<f32>()?.iter().all(|x| x.is_finite()) {
        return Ok(());
    }
    let advice = "use --dtype f32 or bf16, a lower --guidance-scale, or check the weights";
    Err(Error::NotFinite(format!("the denoised latents are not finite: {advice}")))
}
