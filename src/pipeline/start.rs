//! What a denoising run starts from: noise, an image and noise, or an image to be painted into.

use crate::error::{Error, Result};
use crate::io::image::{resize, to_mask, to_tensor};
use crate::models::vae::Vae;
use crate::noise::NoiseStream;
use crate::ops::elementwise::{add, mul, scale};
use crate::ops::layout::concat;
use crate::pipeline::request::InitImage;
use crate::pipeline::sampler::Sampler;
use crate::tensor::{DType, Device, Tensor};

/// The noise of a batch: a stream for each image, so that no image depends on its neighbours.
pub(super) struct Noise {
    streams: Vec<NoiseStream>,
    /// Of one image's latents: height, width, channels.
    size: [usize; 3],
    device: Device,
}

impl Noise {
    pub(super) fn new(streams: Vec<NoiseStream>, size: [usize; 3], device: Device) -> Self {
        Self { streams, size, device }
    }

    /// The next noise [B, h, w, C], f32.
    pub(super) fn draw(&mut self) -> Result<Tensor> {
        let [h, w, c] = self.size;
        let mut values = Vec::with_capacity(self.streams.len() * h * w * c);
        for stream in &mut self.streams {
            // f32 whatever the networks compute in: a seed is one picture in every dtype.
            values.extend(stream.randn(h * w * c, DType::F32)?);
        }
        // torch draws channel by channel.
        let noise = Tensor::from_vec(values, [self.streams.len(), c, h, w])?;
        noise.permute(&[0, 2, 3, 1])?.contiguous()?.to_device(self.device) // [B, h, w, C]
    }
}

/// The state before the first step, and what later steps are held to.
pub(super) struct Start {
    /// [B, h, w, 4], f32
    pub(super) latents: Tensor,
    /// The sampler step to begin with.
    pub(super) first: usize,
    /// Beside the latents in the UNet's input: mask and masked image [B, h, w, 5], for UNets that paint.
    pub(super) beside: Option<Tensor>,
    /// What stays, for UNets that do not.
    kept: Option<Kept>,
}

/// The part of an image that is not to be painted.
struct Kept {
    /// [B, h, w, 4]
    latents: Tensor,
    /// The noise that the latents began with; [B, h, w, 4].
    noise: Tensor,
    /// 1 where to paint; [B, h, w, 4].
    mask: Tensor,
    /// 1 where not to; [B, h, w, 4].
    rest: Tensor,
}

impl Start {
    /// From nothing but noise.
    pub(super) fn from_noise(sampler: &dyn Sampler, noise: &mut Noise) -> Result<Self> {
        let latents = scale(&noise.draw()?, sampler.init_noise_sigma())?;
        Ok(Self { latents, first: 0, beside: None, kept: None })
    }

    /// From an image, or into the masked part of one. `painter`: the UNet takes mask and masked image.
    ///
    /// The draws follow diffusers: the latents of the image, noise, the latents of the masked image.
    pub(super) fn from_image(
        init: &InitImage,
        (width, height): (u32, u32),
        painter: bool,
        vae: &Vae,
        sampler: &dyn Sampler,
        first: usize,
        noise: &mut Noise,
    ) -> Result<Self> {
        let batch = noise.streams.len();
        let image = to_tensor(&resize(&init.image, width, height)?)?; // [1, H, W, 3]
        let Some(mask) = &init.mask else {
            let clean = encode(vae, &image, noise)?;
            let latents = sampler.add_noise(&clean, &noise.draw()?, first)?;
            return Ok(Self { latents, first, beside: None, kept: None });
        };

        let mask = to_mask(&resize(mask, width, height)?)?; // [1, H, W, 1]
        let masked_image = keep_unmasked(&image, &mask)?;
        let mask = at_latents(&mask, noise.size)?; // [1, h, w, 1]
        let all = init.strength >= 1.0;
        let clean = if painter && all { None } else { Some(encode(vae, &image, noise)?) };
        let drawn = noise.draw()?;
        let latents = match &clean {
            Some(clean) if !all => sampler.add_noise(clean, &drawn, first)?,
            _ => scale(&drawn, sampler.init_noise_sigma())?,
        };
        if painter {
            let masked = encode(vae, &masked_image, noise)?; // [B, h, w, 4]
            let mask = concat(&vec![&mask; batch], 0)?; // [B, h, w, 1]
            let beside = concat(&[&mask, &masked], 3)?; // [B, h, w, 5]
            return Ok(Self { latents, first, beside: Some(beside), kept: None });
        }
        // diffusers draws for the masked image here as well, though nothing uses it.
        noise.draw()?;
        let mask = concat(&vec![&mask; noise.size[2]], 3)?; // [1, h, w, 4]
        let mask = concat(&vec![&mask; batch], 0)?; // [B, h, w, 4]
        let rest = mask.to_vec::<f32>()?.into_iter().map(|m| 1.0 - m).collect();
        let rest = Tensor::from_vec(rest, mask.shape())?.to_device(mask.device())?;
        let Some(clean) = clean else { unreachable!("encoded above, for no painter") };
        Ok(Self {
            latents,
            first,
            beside: None,
            kept: Some(Kept { latents: clean, noise: drawn, mask, rest }),
        })
    }

    /// Puts back what is not to be painted, as noisy as sampler step `next` expects it (clean at the end).
    pub(super) fn hold(
        &self,
        latents: Tensor,
        sampler: &dyn Sampler,
        next: usize,
    ) -> Result<Tensor> {
        let Some(kept) = &self.kept else { return Ok(latents) };
        let proper = if next < sampler.timesteps().len() {
            sampler.add_noise(&kept.latents, &kept.noise, next)?
        } else {
            kept.latents.clone()
        };
        add(&mul(&proper, &kept.rest)?, &mul(&latents, &kept.mask)?)
    }
}

/// Latents [B, h, w, 4] of one image [1, H, W, 3]: a sample for each stream of noise.
fn encode(vae: &Vae, image: &Tensor, noise: &mut Noise) -> Result<Tensor> {
    let posterior = vae.encode(image)?;
    let mean = posterior.mean.to_dtype(DType::F32)?.to_vec::<f32>()?;
    let logvar = posterior.logvar.to_dtype(DType::F32)?.to_vec::<f32>()?;
    let factor = vae.config().scaling_factor;
    let drawn = noise.draw()?; // [B, h, w, 4]
    let mut latents = drawn.to_vec::<f32>()?;
    for image in latents.chunks_exact_mut(mean.len()) {
        for ((x, mean), logvar) in image.iter_mut().zip(&mean).zip(&logvar) {
            let deviation = (0.5 * logvar.clamp(-30.0, 20.0)).exp();
            *x = (mean + deviation * *x) * factor;
        }
    }
    Tensor::from_vec(latents, drawn.shape())?.to_device(drawn.device())
}

/// The image with zeros (grey) where the mask is 1.
fn keep_unmasked(image: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let mut values = image.to_vec::<f32>()?;
    for (pixel, &mask) in values.chunks_exact_mut(3).zip(mask.as_slice::<f32>()?) {
        if mask >= 0.5 {
            pixel.fill(0.0);
        }
    }
    Tensor::from_vec(values, image.shape())
}

/// A mask [1, H, W, 1] at the size of the latents: the pixel at the corner of each block, as torch's nearest
/// interpolation takes it.
fn at_latents(mask: &Tensor, [h, w, _]: [usize; 3]) -> Result<Tensor> {
    let (_, height, width, _) = mask.dims4()?;
    let values = mask.as_slice::<f32>()?;
    let at = |y: usize, x: usize| values[y * height / h * width + x * width / w];
    let small = (0..h).flat_map(|y| (0..w).map(move |x| at(y, x))).collect();
    Tensor::from_vec(small, [1, h, w, 1])
}

/// Checks that the model can do what is asked: paint only with a mask, and never without when it must.
pub(super) fn check_painting(painter: bool, init: Option<&InitImage>) -> Result<()> {
    if painter && init.is_none_or(|init| init.mask.is_none()) {
        let expected = "this model paints into an image: it needs --init-image and --mask-image";
        return Err(Error::argument("--mask-image", "none", expected));
    }
    Ok(())
}
