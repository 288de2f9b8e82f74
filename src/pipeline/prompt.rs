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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::io::folder::PipelineFolder;
    use crate::models::clip::ClipTextConfig;
    use crate::nn::Params;
    use crate::tensor::Device;
    use crate::text::weighting::LongPrompt;

    #[test]
    fn weights_scale_tokens_and_leave_the_mean() {
        let states = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [1, 3, 2]).unwrap();
        let chunk = Chunk { ids: vec![0; 3], weights: vec![1.0, 2.0, 0.5] };
        let found = weight(&states, &chunk).unwrap().to_vec::<f32>().unwrap();
        // 1 2 6 8 2.5 3 have the sum 22.5 in place of 21.
        let expected = [1.0, 2.0, 6.0, 8.0, 2.5, 3.0].map(|x: f32| x * (21.0 / 22.5));
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() <= 4.0 * f32::EPSILON * expected,
                "{found} {expected}"
            );
        }
        // Where nothing is left to restore the weights stand as they are.
        let none = Chunk { weights: vec![0.0; 3], ..chunk };
        assert_eq!(weight(&states, &none).unwrap().to_vec::<f32>().unwrap(), [0.0; 6]);
    }

    #[test]
    fn chunks_stand_in_the_order_of_the_prompt() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/eurosat-64");
        let folder = PipelineFolder::open(root, None).unwrap();
        let tokenizer = ClipTokenizer::open(folder.folder("tokenizer").unwrap()).unwrap();
        let (config, weights) = folder.network("text_encoder").unwrap();
        let params = Params::new(weights, DType::F32, Device::Cpu);
        let encoder = ClipText::load(ClipTextConfig::read(&config).unwrap(), &params).unwrap();

        let text = |prompt: &str, guided| {
            let settings = Settings {
                prompt: prompt.to_owned(),
                long_prompts: LongPrompt::Chunk,
                ..Settings::default()
            };
            let (rows, warnings) = tokenize(&tokenizer, &settings, guided).unwrap();
            assert_eq!(warnings, []);
            let states = |row: &PromptTokens| {
                let states = row.hidden_states(&encoder, &Cancel::default()).unwrap();
                (states.dim(1), states.to_vec::<f32>().unwrap())
            };
            rows.iter().map(states).collect::<Vec<_>>()
        };
        // 75 tokens fill a chunk.
        let (rivers, farms) = (["river"; 75].join(" "), ["farm"; 20].join(" "));
        let [(77, first)] = &text(&rivers, false)[..] else { panic!("one row of one chunk") };
        let [(77, second)] = &text(&farms, false)[..] else { panic!("one row of one chunk") };
        let both = text(&format!("{rivers} {farms}"), true);
        // The negative prompt first, as long as the prompt.
        let [(154, negative), (154, prompt)] = &both[..] else { panic!("two rows of two chunks") };
        assert!(prompt == &[first.clone(), second.clone()].concat());
        let [(77, empty)] = &text("", false)[..] else { panic!("one row of one chunk") };
        assert!(negative == &[empty.clone(), empty.clone()].concat());
    }
}
