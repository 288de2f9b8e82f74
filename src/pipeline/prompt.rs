//! From prompts to tokens, and from tokens to the hidden states of the text encoder.

use std::fmt;

use crate::error::Result;
use crate::models::clip::ClipText;
use crate::ops::layout::concat;
use crate::pipeline::request::Cancel;
use crate::pipeline::settings::Settings;
use crate::tensor::{DType, Tensor};
use crate::text::tokenizer::ClipTokenizer;
use crate::text::weighting::{self, Chunk};

/// A prompt as the text encoder takes it: equal tokens have equal hidden states.
#[derive(Clone, PartialEq)]
pub(super) struct PromptTokens {
    chunks: Vec<Chunk>,
    weighted: bool,
    /// Last layers of the text encoder to leave out.
    clip_skip: usize,
}

/// Something the user should know about a picture that is drawn all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// A prompt was longer than the text encoder takes.
    PromptCut {
        /// `prompt` or `negative_prompt`.
        field: &'static str,
        /// Its end, which has no effect.
        left_out: String,
        /// Tokens that the text encoder takes.
        limit: usize,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::PromptCut { field, left_out, limit } = self;
        let field = field.replace('_', " ");
        write!(
            f,
            "the {field} is longer than the {limit} tokens that the text encoder takes; left out: \"{left_out}\""
        )
    }
}

/// Tokens of the prompt; with guidance those of the negative prompt first. All have the length of the longest.
///
/// # Errors
/// A prompt that the tokenizer refuses.
pub(super) fn tokenize(
    tokenizer: &ClipTokenizer,
    settings: &Settings,
    guided: bool,
) -> Result<(Vec<PromptTokens>, Vec<Warning>)> {
    // diffusers leaves layers out for the prompt, never for the negative prompt.
    let mut prompts = vec![("prompt", &settings.prompt, settings.clip_skip)];
    if guided {
        prompts.insert(0, ("negative_prompt", &settings.negative_prompt, 0));
    }
    let (mut encoded, mut warnings) = (Vec::new(), Vec::new());
    for (field, prompt, clip_skip) in prompts {
        let mut tokens =
            weighting::encode(tokenizer, prompt, settings.prompt_syntax, settings.long_prompts)?;
        let left_out = tokens.truncated.take();
        let limit = tokenizer.max_length();
        warnings.extend(left_out.map(|left_out| Warning::PromptCut { field, left_out, limit }));
        encoded.push((tokens, clip_skip));
    }
    let longest = encoded.iter().map(|(tokens, _)| tokens.chunks.len()).max().unwrap_or(1);
    let rows = encoded.into_iter().map(|(mut tokens, clip_skip)| {
        tokens.pad_to(longest, tokenizer);
        PromptTokens { weighted: tokens.is_weighted(), chunks: tokens.chunks, clip_skip }
    });
    Ok((rows.collect(), warnings))
}

impl PromptTokens {
    /// Hidden states [1, T, D], chunks end to end: T is 77 for each.
    ///
    /// # Errors
    /// Those of [`ClipText::forward`]; `Interrupted`.
    pub(super) fn hidden_states(&self, encoder: &ClipText, cancel: &Cancel) -> Result<Tensor> {
        let mut parts = Vec::new();
        for chunk in &self.chunks {
            cancel.check()?;
            let ids: Vec<i64> = chunk.ids.iter().map(|&id| i64::from(id)).collect();
            let ids = Tensor::from_slice(&ids, [1, ids.len()])?; // [1, 77]
            let states = encoder.forward(&ids, self.clip_skip)?; // [1, 77, D]
            parts.push(if self.weighted { weight(&states, chunk)? } else { states });
        }
        concat(&parts.iter().collect::<Vec<_>>(), 1)
    }
}

/// Multiplies the hidden state of each token with its weight, then restores the mean of them all, as the
/// AUTOMATIC1111 web UI does: weights shift the emphasis, not the brightness.
fn weight(states: &Tensor, chunk: &Chunk) -> Result<Tensor> {
    let mut values = states.to_dtype(DType::F32)?.to_vec::<f32>()?;
    let mean = |values: &[f32]| values.iter().map(|&x| f64::from(x)).sum::<f64>();
    let before = mean(&values);
    let width = states.dim(2);
    for (state, &weight) in values.chunks_exact_mut(width).zip(&chunk.weights) {
        state.iter_mut().for_each(|x| *x *= weight);
    }
    let restore = (before / mean(&values)) as f32;
    if restore.is_finite() {
        values.iter_mut().for_each(|x| *x *= restore);
    }
    Tensor::from_vec(values, states.shape())?.to_dtype(states.dtype())?.to_device(states.device())
}
