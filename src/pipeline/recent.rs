//! What slots have in common is computed once: keys and values of prompts, encoded images.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::Result;
use crate::models::unet::Context;
use crate::pipeline::prompt::PromptTokens;
use crate::pipeline::request::InitImage;
use crate::pipeline::start::EncodedImage;
use crate::pipeline::text_to_image::TextToImage;

/// Prompts that are kept. One of Stable Diffusion 1.5 takes 8 MB.
const PROMPTS: usize = 8;

/// The results used last.
#[derive(Default)]
pub(super) struct Recent {
    /// Newest first.
    texts: VecDeque<(PromptTokens, Arc<Context>)>,
    image: Option<(Arc<InitImage>, f64, Arc<EncodedImage>)>,
}

impl Recent {
    /// The keys and values of each prompt, by `encode` where they are not known.
    pub(super) fn text(
        &mut self,
        prompts: Vec<PromptTokens>,
        encode: impl Fn(&PromptTokens) -> Result<Context>,
    ) -> Result<Vec<Arc<Context>>> {
        let mut row = |prompt: PromptTokens| {
            let known = self.texts.iter().position(|(other, _)| *other == prompt);
            let entry = match known.and_then(|i| self.texts.remove(i)) {
                Some(entry) => entry,
                None => {
                    let context = Arc::new(encode(&prompt)?);
                    (prompt, context)
                }
            };
            let context = entry.1.clone();
            self.texts.push_front(entry);
            self.texts.truncate(PROMPTS);
            Ok(context)
        };
        prompts.into_iter().map(&mut row).collect()
    }

    /// What the autoencoder sees of `init`, at `size` in pixels, the same in every call.
    pub(super) fn image(
        &mut self,
        init: &Arc<InitImage>,
        strength: f64,
        size: (usize, usize),
        model: &TextToImage,
    ) -> Result<Arc<EncodedImage>> {
        match &self.image {
            Some((known, at, image)) if Arc::ptr_eq(known, init) && *at == strength => {
                return Ok(image.clone());
            }
            _ => {}
        }
        let inpainting = model.is_inpainting();
        let image = Arc::new(EncodedImage::new(init, strength, size, inpainting, &model.vae)?);
        self.image = Some((init.clone(), strength, image.clone()));
        Ok(image)
    }
}
