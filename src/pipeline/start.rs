//! What a denoising run starts from: noise, an image and noise, or an image to be painted into.

use crate::error::Result;
use crate::io::image::{resize, to_mask};
use crate::models::vae::{Autoencoder, Encoded, Posterior};
use crate::noise::{NoiseStream, PlacedNoise};
use crate::ops::elementwise::{add, mul, scale};
use crate::ops::layout::concat;
use crate::pipeline::request::InitImage;
use crate::pipeline::sampler::Sampler;
use crate::tensor::{DType, Device, Tensor};

/// The noise of one picture: every draw continues the one before.
pub(super) struct Noise {
    source: Source,
    /// Of the latents: height, width, channels.
    size: [usize; 3],
    device: Device,
}

enum Source {
    Stream(NoiseStream),
    Place {
        noise: PlacedNoise,
        /// Where the rows and the columns lie.
        places: [Vec<u32>; 2],
        drawn: u32,
    },
}

impl Noise {
    pub(super) fn new(stream: NoiseStream, size: [usize; 3], device: Device) -> Self {
        Self { source: Source::Stream(stream), size, device }
    }

    /// Of latents whose rows and columns lie at these places.
    pub(super) fn placed(
        noise: PlacedNoise,
        places: [Vec<u32>; 2],
        channels: usize,
        device: Device,
    ) -> Self {
        let size = [places[0].len(), places[1].len(), channels];
        Self { source: Source::Place { noise, places, drawn: 0 }, size, device }
    }

    /// The next noise [1, h, w, C], f32.
    pub(super) fn draw(&mut self) -> Result<Tensor> {
        self.draw_all(1)
    }

    /// The next `n` noises [n, h, w, C], f32.
    pub(super) fn draw_all(&mut self, n: usize) -> Result<Tensor> {
        let draws = (0..n).map(|_| self.next()).collect::<Result<Vec<_>>>()?;
        concat(&draws.iter().collect::<Vec<_>>(), 0)?.to_device(self.device)
    }

    fn next(&mut self) -> Result<Tensor> {
        let [h, w, c] = self.size;
        match &mut self.source {
            Source::Stream(stream) => {
                // f32 whatever the networks compute in: a seed is one picture in every dtype.
                let values = stream.randn(h * w * c, DType::F32)?;
                // torch draws channel by channel.
                Tensor::from_vec(values, [1, c, h, w])?.permute(&[0, 2, 3, 1])?.contiguous() // [1, h, w, C]
            }
            Source::Place { noise, places: [rows, columns], drawn } => {
                let mut values = vec![0.0; h * w * c];
                let places = rows.iter().flat_map(|y| columns.iter().map(move |x| (*y, *x)));
                for ((y, x), channels) in places.zip(values.chunks_exact_mut(c)) {
                    noise.fill(*drawn, y, x, channels);
                }
                *drawn += 1;
                Tensor::from_vec(values, [1, h, w, c])
            }
        }
    }
}

/// An init image as the autoencoder sees it; the same for every seed.
pub(super) struct EncodedImage {
    /// Of the image; none where nothing of it is used.
    image: Option<Encoded>,
    mask: Option<EncodedMask>,
}

struct EncodedMask {
    /// 1 where to paint; [1, h, w, 1].
    mask: Tensor,
    /// Of the image with grey where to paint, for inpainting UNets.
    masked: Option<Encoded>,
}

impl EncodedImage {
    /// `size` in pixels; `inpainting`: the UNet takes mask and masked image.
    pub(super) fn new(
        init: &InitImage,
        strength: f64,
        (width, height): (usize, usize),
        inpainting: bool,
        vae: &Autoencoder,
    ) -> Result<Self> {
        let image = init.image.to_tensor((width, height), vae.config().in_channels())?; // [1, H, W, C]
        let Some(mask) = &init.mask else {
            return Ok(Self { image: Some(vae.encode(&image)?), mask: None });
        };
        let mask = to_mask(&resize(mask, width as u32, height as u32)?)?; // [1, H, W, 1]
        let unused = inpainting && strength >= 1.0;
        let encoded = if unused { None } else { Some(vae.encode(&image)?) };
        let masked = match inpainting {
            true => Some(vae.encode(&keep_unmasked(&image, &mask)?)?),
            false => None,
        };
        let factor = vae.config().factor();
        let mask = at_latents(&mask, height / factor, width / factor)?; // [1, h, w, 1]
        Ok(Self { image: encoded, mask: Some(EncodedMask { mask, masked }) })
    }
}

/// The state before the first step, and what later steps depend on.
pub(super) struct Start {
    /// [1, h, w, 4], f32
    pub(super) latents: Tensor,
    /// The evaluation to begin with.
    pub(super) first: usize,
    /// What an inpainting UNet takes along with the latents: mask and masked image [1, h, w, 5].
    pub(super) mask_and_image: Option<Tensor>,
    /// What stays as it is, for UNets that take no mask.
    unmasked: Option<Unmasked>,
}

/// The part of an image that is not to be painted.
struct Unmasked {
    /// [1, h, w, 4]
    latents: Tensor,
    /// The noise that the latents began with; [1, h, w, 4].
    noise: Tensor,
    /// 1 where to paint; [1, h, w, 4].
    mask: Tensor,
    /// 1 where not to; [1, h, w, 4].
    rest: Tensor,
}

impl Start {
    /// From nothing but noise.
    pub(super) fn from_noise(sampler: &dyn Sampler, noise: &mut Noise) -> Result<Self> {
        let latents = scale(&noise.draw()?, sampler.init_noise_sigma())?;
        Ok(Self { latents, first: 0, mask_and_image: None, unmasked: None })
    }

    /// From an image, or into the masked part of one.
    ///
    /// The draws follow diffusers: the latents of the image, noise, the latents of the masked image.
    pub(super) fn from_image(
        image: &EncodedImage,
        strength: f64,
        scaling_factor: f32,
        sampler: &dyn Sampler,
        noise: &mut Noise,
    ) -> Result<Self> {
        let first = sampler.start_index(strength)?;
        let clean = match &image.image {
            Some(encoded) => Some(sample(encoded, scaling_factor, noise)?),
            None => None,
        };
        let drawn = noise.draw()?;
        let latents = match &clean {
            // With a mask a full strength forgets the image; without one its trace stays in the noise.
            Some(clean) if image.mask.is_none() || strength < 1.0 => {
                sampler.add_noise(clean, &drawn, first)?
            }
            _ => scale(&drawn, sampler.init_noise_sigma())?,
        };
        let mut start = Self { latents, first, mask_and_image: None, unmasked: None };
        let Some(EncodedMask { mask, masked }) = &image.mask else { return Ok(start) };
        let mask = mask.to_device(start.latents.device())?; // [1, h, w, 1]
        if let Some(masked) = masked {
            let masked = sample(masked, scaling_factor, noise)?; // [1, h, w, 4]
            start.mask_and_image = Some(concat(&[&mask, &masked], 3)?); // [1, h, w, 5]
        } else if let Some(latents) = clean {
            // diffusers draws for the masked image here as well, though nothing uses it.
            if let Some(Encoded::Posterior(_)) = image.image {
                noise.draw()?;
            }
            let mask = concat(&vec![&mask; latents.dim(3)], 3)?; // [1, h, w, 4]
            let rest = mask.to_vec::<f32>()?.into_iter().map(|m| 1.0 - m).collect();
            let rest = Tensor::from_vec(rest, mask.shape())?.to_device(latents.device())?;
            start.unmasked = Some(Unmasked { latents, noise: drawn, mask, rest });
        }
        Ok(start)
    }

    /// Whether steps are left as samplers make them.
    pub(super) fn is_free(&self) -> bool {
        self.unmasked.is_none()
    }

    /// Puts back what is not to be painted, as noisy as evaluation `next` expects it (clean at the end).
    pub(super) fn restore_unmasked(
        &self,
        latents: Tensor,
        sampler: &dyn Sampler,
        next: usize,
    ) -> Result<Tensor> {
        let Some(unmasked) = &self.unmasked else { return Ok(latents) };
        let proper = if next < sampler.timesteps().len() {
            sampler.add_noise(&unmasked.latents, &unmasked.noise, next)?
        } else {
            unmasked.latents.clone()
        };
        add(&mul(&proper, &unmasked.rest)?, &mul(&latents, &unmasked.mask)?)
    }
}

/// Latents [1, h, w, 4] of what an image was encoded to, drawn where that is a distribution.
fn sample(encoded: &Encoded, scaling_factor: f32, noise: &mut Noise) -> Result<Tensor> {
    let Posterior { mean, logvar } = match encoded {
        Encoded::Posterior(posterior) => posterior,
        Encoded::Latents(latents) => return scale(&latents.to_dtype(DType::F32)?, scaling_factor),
    };
    let mean = mean.to_dtype(DType::F32)?.to_vec::<f32>()?;
    let logvar = logvar.to_dtype(DType::F32)?.to_vec::<f32>()?;
    let drawn = noise.draw()?; // [1, h, w, 4]
    let mut latents = drawn.to_vec::<f32>()?;
    for ((x, mean), logvar) in latents.iter_mut().zip(&mean).zip(&logvar) {
        let deviation = (0.5 * logvar.clamp(-30.0, 20.0)).exp();
        *x = (mean + deviation * *x) * scaling_factor;
    }
    Tensor::from_vec(latents, drawn.shape())?.to_device(drawn.device())
}

/// The image with zeros (grey) where the mask is 1.
fn keep_unmasked(image: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let mut values = image.to_vec::<f32>()?;
    for (pixel, &mask) in values.chunks_exact_mut(image.dim(3)).zip(mask.as_slice::<f32>()?) {
        if mask >= 0.5 {
            pixel.fill(0.0);
        }
    }
    Tensor::from_vec(values, image.shape())
}

/// A mask [1, H, W, 1] at the size of the latents: the pixel at the corner of each block, as torch's nearest
/// interpolation takes it.
fn at_latents(mask: &Tensor, h: usize, w: usize) -> Result<Tensor> {
    let (_, height, width, _) = mask.dims4()?;
    let values = mask.as_slice::<f32>()?;
    let at = |y: usize, x: usize| values[y * height / h * width + x * width / w];
    let small = (0..h).flat_map(|y| (0..w).map(move |x| at(y, x))).collect();
    Tensor::from_vec(small, [1, h, w, 1])
}
