//! What a request means for a model: its defaults filled in, its sampler, and what the model cannot do.

use crate::error::{Error, Result};
use crate::io::raster::{Levels, Raster};
use crate::models::unet::{ControlNet, VectorConfig};
use crate::pipeline::control::Control;
use crate::pipeline::family::Family;
use crate::pipeline::guidance::Guidance;
use crate::pipeline::request::{InitImage, Request};
use crate::pipeline::sampler::Sampler;
use crate::pipeline::settings::Settings;
use crate::pipeline::sizes;
use crate::pipeline::text_to_image::TextToImage;
use crate::pipeline::told::Told;

impl TextToImage {
    /// What the user should know about the files that were loaded.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Tells models apart: a checksum of the settings, vocabularies and weights that a picture depends on.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Whether it has a second text encoder, which may read a prompt of its own.
    pub fn has_second_prompt(&self) -> bool {
        self.second.is_some()
    }

    /// Width and height in pixels that the model was trained on.
    pub fn default_size(&self) -> (usize, usize) {
        // 64 is what diffusers takes for the oldest folders.
        let side = self.unet.config().sample_size.unwrap_or(64) * self.vae.config().factor();
        (side, side)
    }

    /// The same settings with the model's own choice where they leave it to the model, of a picture that starts from `init` if
    /// there is one: they draw the same picture whatever the model suggests later.
    ///
    /// # Errors
    /// A size that the model cannot have.
    pub fn resolve(&self, settings: &Settings, init: Option<&InitImage>) -> Result<Settings> {
        let (width, height) = self.size(settings)?;
        let strength = init.map(|init| self.default_strength(init.mask.is_some()));
        Ok(Settings {
            width: Some(width),
            height: Some(height),
            steps: Some(self.steps(settings)),
            guidance_scale: Some(self.guidance_scale(settings)),
            strength: settings.strength.or(strength),
            ..settings.clone()
        })
    }

    /// The sampler to take where there is time for fewer steps than the model wants: see [`SamplerConfig::for_few_steps`](crate::pipeline::sampler::SamplerConfig::for_few_steps).
    pub fn sampler_for_few_steps(&self) -> Option<&'static str> {
        self.scheduler.for_few_steps()
    }

    /// A request that says what the model has to be told beside a prompt, and nothing else: to measure it.
    pub fn least_request(&self) -> Request {
        let VectorConfig { class, metadata, .. } = self.unet.config().vector;
        let settings = Settings {
            class_labels: class.map(|class| vec![0.0; class.inputs()]),
            cloud: (metadata > 0).then_some(0.0),
            ..Settings::default()
        };
        let (width, height) = self.default_size();
        let black = |net: &ControlNet| {
            let bands = net.config().conditioning_channels;
            let levels = Levels::U8(vec![0; width * height * bands]);
            Control::new(Raster { height, width, bands, levels })
        };
        let controls = self.controlnets.iter().map(black).collect();
        Request { settings, controls, ..Request::default() }
    }

    /// Width and height in pixels.
    ///
    /// # Errors
    /// `Argument`: see [`Settings::size`].
    pub fn size(&self, settings: &Settings) -> Result<(usize, usize)> {
        settings.size(self.default_size(), self.vae.config().factor())
    }

    /// How much of the schedule to run: 0 returns the init image, 1 forgets it.
    pub fn strength(&self, request: &Request) -> f64 {
        let masked = request.init.as_ref().is_some_and(|init| init.mask.is_some());
        request.settings.strength.unwrap_or(self.default_strength(masked))
    }

    /// The strength of a picture that starts from another, and paints into it if `masked`, where none is said: that of diffusers'
    /// pipeline for it.
    pub fn default_strength(&self, masked: bool) -> f64 {
        self.family.strength(masked, !self.controlnets.is_empty())
    }

    fn steps(&self, settings: &Settings) -> usize {
        settings.steps.unwrap_or(self.suggestions.steps)
    }

    fn guidance_scale(&self, settings: &Settings) -> f32 {
        settings.guidance_scale.unwrap_or(self.suggestions.guidance_scale)
    }

    /// Whether the UNet was distilled with guidance: it is told the scale, and a picture takes one row.
    fn is_told_guidance(&self) -> bool {
        self.unet.config().vector.guidance > 0
    }

    /// Guidance by two predictions, and the scale that the UNet is told in its place.
    pub(super) fn guidance(&self, settings: &Settings) -> (Option<Guidance>, Option<f32>) {
        let scale = self.guidance_scale(settings);
        match self.is_told_guidance() {
            true => (None, Some(scale)),
            false => (Guidance::new(scale, settings.guidance_rescale), None),
        }
    }

    /// Height, width and channels of the latents.
    pub(super) fn latent_size(&self, (width, height): (usize, usize)) -> [usize; 3] {
        let vae = self.vae.config();
        [height / vae.factor(), width / vae.factor(), vae.latent_channels()]
    }

    /// Whether the UNet takes a mask and a masked image along with the latents.
    pub(super) fn is_inpainting(&self) -> bool {
        self.unet.config().in_channels == 2 * self.vae.config().latent_channels() + 1
    }

    /// Checks that the model can draw what is asked, before anything is computed: the sampler, its steps laid out.
    ///
    /// # Errors
    /// `Argument`, naming the first field whose value is not possible.
    pub fn sampler(&self, request: &Request) -> Result<Box<dyn Sampler>> {
        request.check()?;
        let mask = request.init.as_ref().is_some_and(|init| init.mask.is_some());
        if let Some(init) = &request.init {
            let vae = self.vae.config();
            init.image.check([vae.in_channels(), vae.out_channels()])?;
        }
        if self.is_inpainting() && !mask {
            let expected = "this model paints into a picture: it needs one, and a mask";
            return Err(Error::argument("mask_image", "none", expected));
        }
        if self.sight.is_some() != request.image_prompt.is_some() {
            let (found, expected) = match self.sight {
                Some(_) => ("none", "a picture: the model has an IP-Adapter"),
                None => ("a picture", "none: the model has no IP-Adapter; give --ip-adapter"),
            };
            return Err(Error::argument("ip_image", found, expected));
        }
        let (nets, controls) = (self.controlnets.len(), request.controls.len());
        if nets != controls {
            let found =
                if controls == 0 { "none".to_owned() } else { format!("{controls} of them") };
            let expected = match nets {
                0 => "none: the model has no ControlNet".to_owned(),
                nets => format!("a picture for each ControlNet, {nets} in all"),
            };
            return Err(Error::argument("control_image", found, expected));
        }
        for (net, control) in self.controlnets.iter().zip(&request.controls) {
            let (takes, bands) = (net.config().conditioning_channels, control.picture.bands);
            if takes != bands {
                let expected = format!("{takes} bands, which the ControlNet takes");
                return Err(Error::argument("control_image", format!("{bands} bands"), expected));
            }
            control.check_size(self.size(&request.settings)?)?;
        }
        if request.guess_mode && nets == 0 {
            let expected = "it is a way of ControlNets: give --controlnet";
            return Err(Error::argument("guess_mode", "given", expected));
        }
        Told::new(&self.unet.config().vector, &request.settings)?;
        let settings = &request.settings;
        let Settings { prompt_2, negative_prompt, negative_prompt_2, .. } = settings;
        if self.second.is_none() {
            sizes::refuse(settings)?;
            let of_second = [("prompt_2", prompt_2), ("negative_prompt_2", negative_prompt_2)];
            if let Some((name, _)) = of_second.into_iter().find(|(_, text)| !text.is_empty()) {
                let expected = "none: the model has one text encoder, Stable Diffusion XL has two";
                return Err(Error::argument(name, "one", expected));
            }
        }
        let negative =
            [("negative_prompt", negative_prompt), ("negative_prompt_2", negative_prompt_2)];
        let given = negative.into_iter().find(|(_, text)| !text.is_empty());
        if let (true, Some((name, _))) = (self.is_told_guidance(), given) {
            let expected = "none: this model (LCM) was distilled with guidance away from no prompt";
            return Err(Error::argument(name, "one", expected));
        }
        let layers = self.text_encoder.config().num_hidden_layers;
        // Of two text encoders the last layer is left out always.
        let (layers, what) = match &self.second {
            Some(second) => {
                let of_second = second.text_encoder.config().text.num_hidden_layers;
                (
                    layers.min(of_second).saturating_sub(1),
                    "text encoders have so many, and one more",
                )
            }
            None => (layers, "text encoder has so many"),
        };
        if settings.clip_skip > layers {
            let expected = format!("at most {layers} layers: the {what}");
            return Err(Error::argument("clip_skip", settings.clip_skip, expected));
        }
        let mut config = self.scheduler.clone();
        if let Some(name) = &settings.scheduler {
            config = config.with_sampler(name)?;
        }
        let config = match (self.family, &request.init) {
            (Family::StableDiffusion, _) => config.for_stable_diffusion(mask),
            (Family::Consistency, _) if mask => {
                let expected = "none: a latent consistency model paints no part of a picture";
                return Err(Error::argument("mask_image", "one", expected));
            }
            (Family::Consistency, Some(_)) => config.over_strength(self.strength(request)),
            (Family::Consistency | Family::Xl, _) => config,
        };
        let sampler = config.build(self.steps(settings), f64::from(settings.eta))?;
        if request.init.is_some() {
            sampler.start_index(self.strength(request))?;
        }
        Ok(sampler)
    }
}
