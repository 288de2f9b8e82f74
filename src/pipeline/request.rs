//! What is asked of the text-to-image pipeline.

use image::RgbImage;

use crate::error::{Error, Result};
use crate::noise::NoiseSource;
use crate::tensor::Tensor;
use crate::text::weighting::{LongPrompt, Syntax};

/// A request for images, in the terms of diffusers' pipelines.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to draw. May be empty.
    pub prompt: String,
    /// What to steer away from. Used when `guidance_scale` is above 1.
    pub negative_prompt: String,
    /// Pixels; the model's own size when `None`.
    pub width: Option<usize>,
    /// Pixels; the model's own size when `None`.
    pub height: Option<usize>,
    /// Denoising steps.
    pub steps: usize,
    /// Weight of the prompt against the negative prompt (Ho & Salimans 2022); 1 and below: no guidance.
    pub guidance_scale: f32,
    /// Restores the contrast of the guided prediction (Lin et al. 2023, section 3.4); 0: not at all, 1: fully.
    pub guidance_rescale: f32,
    /// Noise of the DDIM sampler, 0 to 1.
    pub eta: f32,
    /// Last layers of the text encoder to leave out, as diffusers counts: 0 uses all.
    pub clip_skip: usize,
    /// One image for each.
    pub seeds: Vec<u64>,
    /// A sampler by name, in place of the model folder's.
    pub scheduler: Option<String>,
    /// Where the noise comes from.
    pub noise: NoiseSource,
    /// What to do with a prompt that the text encoder cannot take whole.
    pub long_prompts: LongPrompt,
    /// How weights are written in prompts.
    pub prompt_syntax: Syntax,
    /// An image to start from.
    pub init: Option<InitImage>,
    /// Images that pass through the UNet together. Changes the speed, not the images.
    pub batch: usize,
    /// Decode in overlapping tiles: less memory for large images, slightly other colours.
    pub vae_tiling: bool,
}

impl Default for Request {
    /// diffusers' defaults: 50 steps, guidance 7.5, seed 0.
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative_prompt: String::new(),
            width: None,
            height: None,
            steps: 50,
            guidance_scale: 7.5,
            guidance_rescale: 0.0,
            eta: 0.0,
            clip_skip: 0,
            seeds: vec![0],
            scheduler: None,
            noise: NoiseSource::default(),
            long_prompts: LongPrompt::default(),
            prompt_syntax: Syntax::default(),
            init: None,
            batch: 1,
            vae_tiling: false,
        }
    }
}

/// An image to start from.
#[derive(Clone, Debug)]
pub struct InitImage {
    /// The image; resized to the size asked for.
    pub image: RgbImage,
    /// How much of the schedule to run: 0 returns the image, 1 forgets it.
    pub strength: f64,
    /// Where to paint (white); everything when `None`.
    pub mask: Option<RgbImage>,
}

/// Follows a run: progress, results as they come, and whether to stop.
pub trait Watch {
    /// A batch of images begins, with this many evaluations of the UNet to come.
    fn started(&mut self, _steps: usize) {}
    /// Evaluation `i` is done.
    fn step(&mut self, _i: usize) {}
    /// Latents [B, h, w, 4] behind sampler step `i`.
    fn latents(&mut self, _i: usize, _latents: &Tensor) {}
    /// Image `index` is ready.
    ///
    /// # Errors
    /// Whatever stops the run: the image could not be kept, say.
    fn image(&mut self, _index: usize, _image: &RgbImage) -> Result<()> {
        Ok(())
    }
    /// Whether to stop before the next step.
    fn cancelled(&self) -> bool {
        false
    }
    /// Something the user should know.
    fn warn(&mut self, _message: &str) {}
}

/// Watches nothing.
impl Watch for () {}

impl Request {
    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// `Argument`, naming the first value that is not possible.
    pub fn check(&self) -> Result<()> {
        let bad = |name, found: String, expected: &str| Err(Error::argument(name, found, expected));
        for (name, prompt) in
            [("--prompt", &self.prompt), ("--negative-prompt", &self.negative_prompt)]
        {
            if prompt.contains('\0') {
                return bad(name, format!("{prompt:?}"), "a text without NUL characters");
            }
        }
        for (name, size) in [("--width", self.width), ("--height", self.height)] {
            size.map_or(Ok(0), |size| check_size(name, size, SIZE_STEP))?;
        }
        if self.steps == 0 || self.steps > 1000 {
            return bad("--steps", self.steps.to_string(), "1 to 1000");
        }
        if self.seeds.is_empty() {
            return bad("--num-images", "0".into(), "at least 1");
        }
        if self.batch == 0 {
            return bad("--batch", "0".into(), "at least 1");
        }
        let in_range = |name, x: f32, low: f32, high: f32| {
            let inside = (low..=high).contains(&x);
            if inside {
                Ok(())
            } else {
                Err(Error::argument(name, x, format!("a number from {low} to {high}")))
            }
        };
        in_range("--guidance-scale", self.guidance_scale, 0.0, 1000.0)?;
        in_range("--guidance-rescale", self.guidance_rescale, 0.0, 1.0)?;
        in_range("--eta", self.eta, 0.0, 1.0)?;
        if let Some(init) = &self.init {
            in_range("--strength", init.strength as f32, 0.0, 1.0)?;
        }
        Ok(())
    }

    /// Width and height in pixels, for a model whose own size is `default` and whose latents are `factor`
    /// times smaller.
    ///
    /// # Errors
    /// `Argument` when a size is zero, beyond 8192, or not a multiple of 8, which diffusers asks for, and of
    /// `factor`.
    pub fn size(&self, default: (usize, usize), factor: usize) -> Result<(usize, usize)> {
        let factor = factor.max(SIZE_STEP);
        let width = check_size("--width", self.width.unwrap_or(default.0), factor)?;
        Ok((width, check_size("--height", self.height.unwrap_or(default.1), factor)?))
    }
}

/// Sizes are multiples of this in every Stable Diffusion pipeline of diffusers, whatever the autoencoder.
const SIZE_STEP: usize = 8;

fn check_size(name: &'static str, size: usize, step: usize) -> Result<usize> {
    let possible = (1..=8192).contains(&size) && size.is_multiple_of(step);
    let expected = format!("a multiple of {step} from {step} to 8192");
    if possible { Ok(size) } else { Err(Error::argument(name, size, expected)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_requests_are_named() {
        let fails = |change: fn(&mut Request), name: &str| {
            let mut request = Request::default();
            change(&mut request);
            let message = request.check().unwrap_err().to_string();
            assert!(message.starts_with(name), "{message}");
        };
        Request::default().check().unwrap();
        fails(|r| r.steps = 0, "--steps");
        fails(|r| r.seeds.clear(), "--num-images");
        fails(|r| r.height = Some(60), "--height");
        fails(|r| r.prompt = "a\0b".into(), "--prompt");
        fails(|r| r.guidance_scale = f32::NAN, "--guidance-scale");
        fails(|r| r.eta = 1.5, "--eta");
        fails(
            |r| r.init = Some(InitImage { image: RgbImage::new(8, 8), strength: -0.1, mask: None }),
            "--strength",
        );
    }

    #[test]
    fn sizes_are_multiples_of_the_factor() {
        let size =
            |width, height| Request { width, height, ..Request::default() }.size((64, 32), 4);
        assert_eq!(size(None, None).unwrap(), (64, 32));
        assert_eq!(size(Some(72), None).unwrap(), (72, 32));
        assert!(size(Some(0), None).is_err());
        assert!(size(None, Some(63)).is_err());
        assert!(size(None, Some(60)).is_err());
        assert!(size(None, Some(80_000)).is_err());
    }
}
