//! What slots have in common is computed once: keys and values of prompts, encoded images.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use image::RgbImage;

use crate::error::Result;
use crate::io::raster::Raster;
use crate::pipeline::control::Texts;
use crate::pipeline::prompt::PromptTokens;
use crate::pipeline::request::InitImage;
use crate::pipeline::start::EncodedImage;
use crate::pipeline::text_to_image::TextToImage;
use crate::tensor::Tensor;

/// Prompts that are kept. One of Stable Diffusion 1.5 takes 8 MB.
const PROMPTS: usize = 8;

/// The results used last.
#[derive(Default)]
pub(super) struct Recent {
    /// Newest first.
    texts: VecDeque<(PromptTokens, Arc<Texts>)>,
    image: Option<(Arc<InitImage>, f64, Arc<EncodedImage>)>,
    /// Tokens of nothing, and of a picture that is a prompt.
    image_prompt: Option<(Arc<RgbImage>, [Tensor; 2])>,
    /// What ControlNets made of pictures, by their places.
    hints: BTreeMap<usize, (Arc<Raster>, Tensor)>,
}

impl Recent {
    /// The keys and values of each prompt, by `encode` where they are not known.
    pub(super) fn text(
        &mut self,
        prompts: Vec<PromptTokens>,
        encode: impl Fn(&PromptTokens) -> Result<Texts>,
    ) -> Result<Vec<Arc<Texts>>> {
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

    /// What ControlNet `net` makes of a picture, by `see` where it is not known.
    pub(super) fn hint(
        &mut self,
        net: usize,
        picture: &Arc<Raster>,
        see: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Tensor> {
        if let Some((known, hint)) = self.hints.get(&net)
            && Arc::ptr_eq(known, picture)
        {
            return Ok(hint.clone());
        }
        let hint = see()?;
        self.hints.insert(net, (picture.clone(), hint.clone()));
        Ok(hint)
    }

    /// Tokens of nothing and of a picture that is a prompt, by `see` where they are not known.
    pub(super) fn image_prompt(
        &mut self,
        picture: &Arc<RgbImage>,
        see: impl FnOnce(&RgbImage) -> Result<[Tensor; 2]>,
    ) -> Result<[Tensor; 2]> {
        if let Some((known, tokens)) = &self.image_prompt
            && Arc::ptr_eq(known, picture)
        {
            return Ok(tokens.clone());
        }
        let tokens = see(picture)?;
        self.image_prompt = Some((picture.clone(), tokens.clone()));
        Ok(tokens)
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
