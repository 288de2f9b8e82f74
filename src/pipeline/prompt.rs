//! From the prompts of a request to what the UNet attends to.

use crate::error::Result;
use crate::models::clip::ClipText;
use crate::ops::layout::concat;
use crate::pipeline::request::{Request, Watch};
use crate::tensor::{DType, Tensor};
use crate::text::tokenizer::ClipTokenizer;
use crate::text::weighting::{self, Chunk, WeightedTokens};

/// Hidden states [1, T, D] of the prompt; with guidance [2, T, D], those of the negative prompt first.
///
/// T is 77 for every chunk of the longer of the two.
///
/// # Errors
/// A prompt that the tokenizer refuses, and those of [`ClipText::forward`].
pub(super) fn encode(
    tokenizer: &ClipTokenizer,
    encoder: &ClipText,
    request: &Request,
    guided: bool,
    watch: &mut dyn Watch,
) -> Result<Tensor> {
    // diffusers leaves layers out for the prompt, never for the negative prompt.
    let mut prompts = vec![(&request.prompt, request.clip_skip)];
    if guided {
        prompts.insert(0, (&request.negative_prompt, 0));
    }
    // 1. tokens
    let mut tokens = Vec::new();
    for (prompt, _) in &prompts {
        let encoded =
            weighting::encode(tokenizer, prompt, request.prompt_syntax, request.long_prompts)?;
        if let Some(rest) = &encoded.truncated {
            let limit = tokenizer.max_length();
            watch.warn(&format!(
                "the prompt is longer than the {limit} tokens that the text encoder takes; left out: \"{rest}\" \
                 (--long-prompts chunk uses all of it)"
            ));
        }
        tokens.push(encoded);
    }
    let chunks = tokens.iter().map(|t| t.chunks.len()).max().unwrap_or(1);
    tokens.iter_mut().for_each(|t| t.pad_to(chunks, tokenizer));
    // 2. hidden states
    let rows = tokens
        .iter()
        .zip(&prompts)
        .map(|(tokens, (_, clip_skip))| states(encoder, tokens, *clip_skip));
    let rows = rows.collect::<Result<Vec<_>>>()?;
    concat(&rows.iter().collect::<Vec<_>>(), 0) // [1 or 2, T, D]
}

/// Hidden states [1, T, D] of one prompt, its chunks end to end.
fn states(encoder: &ClipText, tokens: &WeightedTokens, clip_skip: usize) -> Result<Tensor> {
    let mut parts = Vec::new();
    for chunk in &tokens.chunks {
        let ids: Vec<i64> = chunk.ids.iter().map(|&id| i64::from(id)).collect();
        let ids = Tensor::from_slice(&ids, [1, ids.len()])?; // [1, 77]
        let states = encoder.forward(&ids, clip_skip)?; // [1, 77, D]
        parts.push(if tokens.is_weighted() { weight(&states, chunk)? } else { states });
    }
    concat(&parts.iter().collect::<Vec<_>>(), 1)
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
