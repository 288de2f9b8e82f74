//! What is asked of the text-to-image pipeline, and how to stop it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use image::RgbImage;

use crate::error::{Error, Result};
use crate::pipeline::control::Control;
use crate::pipeline::image_prompt::ImagePrompt;
use crate::pipeline::settings::Settings;

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
    pub image: RgbImage,
    /// Where to paint (white); everything when `None`.
    pub mask: Option<RgbImage>,
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
