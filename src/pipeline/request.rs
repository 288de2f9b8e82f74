//! What is asked of the text-to-image pipeline, and how to stop it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use image::RgbImage;

use crate::error::{Error, Result};
use crate::io::image::{resize, to_grey_tensor, to_mask, to_tensor};
use crate::io::picture::Picture;
use crate::pipeline::control::Control;
use crate::pipeline::image_prompt::ImagePrompt;
use crate::pipeline::settings::Settings;
use crate::tensor::Tensor;

/// A request for one picture, in the terms of diffusers' pipelines.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// How to draw it.
    pub settings: Settings,
    /// Where its noise begins.
    pub seed: u64,
    /// A picture to start from.
    pub init: Option<Arc<InitImage>>,
    /// Pictures for the model's ControlNets, one each.
    pub controls: Vec<Control>,
    /// Whether ControlNets leave the unconditional half alone, and coarse features count more than fine ones.
    pub guess_mode: bool,
    /// A picture as a prompt, for a model with an IP-Adapter.
    pub image_prompt: Option<ImagePrompt>,
    /// Stops it.
    pub cancel: Cancel,
}

/// A picture to start from.
#[derive(Clone, Debug)]
pub struct InitImage {
    /// The picture; resized to the size asked for.
    pub image: InitPixels,
    /// Where to paint (white); everything when `None`.
    pub mask: Option<RgbImage>,
}

/// What a picture starts from.
#[derive(Clone, Debug)]
pub enum InitPixels {
    /// A picture, resized in 8 bits as diffusers does. All of it is drawn anew: a mask says where it may differ.
    Rgb(RgbImage),
    /// A raster of the model's bands. What is not painted stays as it is, number for number, and what is missing stays missing.
    Bands(Picture),
}

impl From<RgbImage> for InitPixels {
    fn from(image: RgbImage) -> Self {
        Self::Rgb(image)
    }
}

impl InitPixels {
    /// Checks that an autoencoder can see it and draws as many bands.
    pub(super) fn check(&self, [sees, draws]: [usize; 2]) -> Result<()> {
        let found = match self {
            Self::Rgb(_) if matches!(sees, 1 | 3) => sees,
            Self::Rgb(_) => 3,
            Self::Bands(picture) => picture.bands(),
        };
        if sees != draws {
            let expected = format!("none: the model sees {sees} bands and draws {draws}");
            return Err(Error::argument("init_image", format!("{found} bands"), expected));
        }
        if found != sees {
            let expected = format!("{sees} bands, which the model draws");
            return Err(Error::argument("init_image", format!("{found} bands"), expected));
        }
        Ok(())
    }

    /// As an autoencoder of so many bands takes it, at a size in pixels: [1, H, W, C].
    pub(super) fn to_tensor(
        &self,
        (width, height): (usize, usize),
        bands: usize,
    ) -> Result<Tensor> {
        match self {
            Self::Rgb(image) => {
                let image = resize(image, width as u32, height as u32)?;
                if bands == 1 { to_grey_tensor(&image) } else { to_tensor(&image) }
            }
            Self::Bands(picture) => picture.resized(width, height)?.to_tensor(),
        }
    }
}

impl InitImage {
    /// Puts back what of a raster is not to be painted, and leaves out what is missing.
    pub(super) fn restore(&self, drawn: &mut Picture) -> Result<()> {
        let InitPixels::Bands(ground) = &self.image else { return Ok(()) };
        let (width, height) = (drawn.width(), drawn.height());
        let mask = match &self.mask {
            Some(mask) => Some(to_mask(&resize(mask, width as u32, height as u32)?)?),
            None => None,
        };
        let painted = mask.as_ref().map(Tensor::as_slice::<f32>).transpose()?;
        drawn.lay_over(&ground.resized(width, height)?, painted)
    }
}

impl Request {
    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// `Argument`, naming the first field whose value is not possible.
    pub fn check(&self) -> Result<()> {
        self.settings.check()?;
        self.controls.iter().try_for_each(Control::check)?;
        self.image_prompt.iter().try_for_each(ImagePrompt::check)?;
        if self.settings.strength.is_some() && self.init.is_none() {
            return Err(Error::argument(
                "init_image",
                "none",
                "a strength needs a picture to start from",
            ));
        }
        Ok(())
    }
}

/// A switch that stops work from wherever it is turned: its clones are the same switch.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Stops what looks at this switch. Says whether it was turned before.
    pub fn cancel(&self) -> bool {
        self.0.swap(true, Ordering::SeqCst)
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// To be asked between the parts of long work.
    ///
    /// # Errors
    /// `Interrupted` once it is cancelled.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Interrupted) } else { Ok(()) }
    }
}
