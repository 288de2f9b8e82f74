//! From prompts to tokens, and from tokens to the hidden states of the text encoder.

use std::fmt;

use crate::error::{Error, Result};
use crate::models::clip::{ClipText, ClipTextProjected};
use crate::ops::layout::concat;
use crate::pipeline::request::Cancel;
use crate::pipeline::settings::Settings;
use crate::tensor::{DType, Device, Tensor};
use crate::text::tokenizer::ClipTokenizer;
use crate::text::weighting::{self, Chunk, WeightedTokens};

/// A prompt as the text encoder takes it: equal tokens have equal hidden states.
#[derive(Clone, PartialEq)]
pub(super) struct PromptTokens {
    chunks: Vec<Chunk>,
    /// The same of a second text encoder, where there is one: of a prompt of its own, or of the same.
    second: Vec<Chunk>,
    /// Last layers of the text encoder to leave out.
    clip_skip: usize,
    /// Whether zeros stand for all of it.
    is_zero: bool,
}

/// The second text encoder of Stable Diffusion XL, whose hidden states stand beside those of the first.
pub(super) struct SecondEncoder {
    pub(super) tokenizer: ClipTokenizer,
    pub(super) text_encoder: ClipTextProjected,
    /// Whether zeros stand for a negative prompt that is empty: `force_zeros_for_empty_prompt`.
    pub(super) zeros: bool,
    pub(super) dtype: DType,
    pub(super) device: Device,
}

/// What the networks are told of a prompt.
pub(super) struct Encoded {
    /// Hidden states [1, T, D], chunks end to end: T is 77 for each.
    pub(super) states: Tensor,
    /// What tells the prompt as a whole, of its first chunk; nothing without a second text encoder.
    pub(super) pooled: Vec<f32>,
}

/// Something the user should know about a picture that is drawn all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// A prompt was longer than the text encoder takes.
    PromptCut {
        /// `prompt`, `negative_prompt`, or that of the second text encoder.
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
    second: Option<&SecondEncoder>,
    settings: &Settings,
    guided: bool,
) -> Result<(Vec<PromptTokens>, Vec<Warning>)> {
    let Settings { prompt, prompt_2, negative_prompt, negative_prompt_2, clip_skip, .. } = settings;
    // diffusers leaves layers out for the prompt, never for the negative prompt.
    let mut prompts = vec![(("prompt", prompt), ("prompt_2", prompt_2), *clip_skip)];
    if guided {
        let second = ("negative_prompt_2", negative_prompt_2);
        prompts.insert(0, (("negative_prompt", negative_prompt), second, 0));
    }
    let (mut encoded, mut warnings) = (Vec::new(), Vec::new());
    for (first, own, clip_skip) in prompts {
        let mut encode = |tokenizer: &ClipTokenizer, (field, prompt): (&'static str, &String)| {
            let (syntax, long) = (settings.prompt_syntax, settings.long_prompts);
            let mut tokens = weighting::encode(tokenizer, prompt, syntax, long)?;
            let (left_out, limit) = (tokens.truncated.take(), tokenizer.max_length());
            let warning = left_out.map(|left_out| Warning::PromptCut { field, left_out, limit });
            // Of one prompt both encoders leave out the same.
            warnings.extend(warning.filter(|warning| !warnings.contains(warning)));
            Ok::<_, Error>(tokens)
        };
        let tokens = encode(tokenizer, first)?;
        // Without one of its own the second encoder reads that of the first.
        let other = if own.1.is_empty() { first } else { own };
        let others = second.map(|second| encode(&second.tokenizer, other)).transpose()?;
        let is_zero = first.0 == "negative_prompt"
            && other.1.is_empty()
            && second.is_some_and(|second| second.zeros);
        encoded.push((tokens, others, clip_skip, is_zero));
    }
    let length = |tokens: &WeightedTokens| tokens.chunks.len();
    let lengths = encoded
        .iter()
        .map(|(tokens, others, ..)| length(tokens).max(others.as_ref().map_or(0, length)));
    let longest = lengths.max().unwrap_or(1);
    let rows = encoded.into_iter().map(|(mut tokens, others, clip_skip, is_zero)| {
        tokens.pad_to(longest, tokenizer);
        let second = others.zip(second).map_or(Vec::new(), |(mut others, second)| {
            others.pad_to(longest, &second.tokenizer);
            others.chunks
        });
        PromptTokens { chunks: tokens.chunks, second, clip_skip, is_zero }
    });
    Ok((rows.collect(), warnings))
}

impl PromptTokens {
    /// What the text encoders make of it.
    ///
    /// # Errors
    /// Those of [`ClipText::forward`]; `Interrupted`.
    pub(super) fn encode(
        &self,
        encoder: &ClipText,
        second: Option<&SecondEncoder>,
        cancel: &Cancel,
    ) -> Result<Encoded> {
        match second {
            Some(second) if self.is_zero => self.zeros(encoder, second),
            Some(second) => self.of_both(encoder, second, cancel),
            None => self.of_one(encoder, cancel),
        }
    }

    fn of_one(&self, encoder: &ClipText, cancel: &Cancel) -> Result<Encoded> {
        let mut parts = Vec::new();
        for chunk in &self.chunks {
            cancel.check()?;
            let states = encoder.forward(&ids(chunk)?, self.clip_skip)?; // [1, 77, D]
            parts.push(weigh(states, chunk)?);
        }
        let states = concat(&parts.iter().collect::<Vec<_>>(), 1)?;
        Ok(Encoded { states, pooled: Vec::new() })
    }

    /// Hidden states before the last layer and the final norm of each, as diffusers' Stable Diffusion XL has them.
    fn of_both(
        &self,
        first: &ClipText,
        second: &SecondEncoder,
        cancel: &Cancel,
    ) -> Result<Encoded> {
        let (mut parts, mut pooled) = (Vec::new(), None);
        let left_out = 1 + self.clip_skip;
        for (chunk, other) in self.chunks.iter().zip(&self.second) {
            cancel.check()?;
            let states = first.hidden(&ids(chunk)?, left_out)?; // [1, 77, D1]
            let (others, whole) = second.text_encoder.forward(&ids(other)?, left_out)?; // [1, 77, D2]
            let (states, others) = (weigh(states, chunk)?, weigh(others, other)?);
            parts.push(concat(&[&states, &others], 2)?); // [1, 77, D1 + D2]
            pooled.get_or_insert(whole);
        }
        let states = concat(&parts.iter().collect::<Vec<_>>(), 1)?;
        let pooled = match pooled {
            Some(whole) => whole.to_dtype(DType::F32)?.to_vec()?,
            None => Vec::new(),
        };
        Ok(Encoded { states, pooled })
    }

    fn zeros(&self, first: &ClipText, second: &SecondEncoder) -> Result<Encoded> {
        let config = second.text_encoder.config();
        let width = first.config().hidden_size + config.text.hidden_size;
        let tokens = self.chunks.iter().map(|chunk| chunk.ids.len()).sum();
        Ok(Encoded {
            states: Tensor::zeros([1, tokens, width], second.dtype, second.device)?,
            pooled: vec![0.0; config.projection_dim],
        })
    }
}

fn weigh(states: Tensor, chunk: &Chunk) -> Result<Tensor> {
    if chunk.is_weighted() { weight(&states, chunk) } else { Ok(states) }
}

/// [1, 77]
fn ids(chunk: &Chunk) -> Result<Tensor> {
    let ids: Vec<i64> = chunk.ids.iter().map(|&id| i64::from(id)).collect();
    Tensor::from_slice(&ids, [1, ids.len()])
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
    use crate::io::checkpoint::Padding;
    use crate::io::folder::PipelineFolder;
    use crate::models::clip::{ClipTextConfig, ClipTextProjectedConfig};
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
            let (rows, warnings) = tokenize(&tokenizer, None, &settings, guided).unwrap();
            assert_eq!(warnings, []);
            let states = |row: &PromptTokens| {
                let states = row.encode(&encoder, None, &Cancel::default()).unwrap().states;
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

    #[test]
    fn two_encoders_see_tokens_and_weights_of_their_own() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/eurosat-64");
        let folder = PipelineFolder::open(root, None).unwrap();
        let tokenizer = |padding| {
            ClipTokenizer::open_padding(folder.folder("tokenizer").unwrap(), Some(padding)).unwrap()
        };
        let initial = |name: &str, shape: &[usize]| {
            let count = shape.iter().product::<usize>();
            let value = |i: usize| ((i * 7919 + name.len() * 31) % 2003) as f32 / 4000.0 - 0.25;
            Tensor::from_vec((0..count).map(value).collect(), shape)
        };
        let text = ClipTextConfig::read(&folder.network("text_encoder").unwrap().0).unwrap();
        let text = ClipTextConfig { num_hidden_layers: 2, ..text };
        let config =
            ClipTextProjectedConfig { text: text.clone(), projection_dim: 8, eos_token_id: 2 };
        let first = Params::initial(initial, DType::F32, Device::Cpu);
        let first = ClipText::load(text, &first).unwrap();
        let text_encoder = Params::initial(initial, DType::F32, Device::Cpu);
        let text_encoder = ClipTextProjected::load(config, &text_encoder).unwrap();
        let (dtype, device) = (DType::F32, Device::Cpu);
        let own = tokenizer(Padding::Zero);
        let second = SecondEncoder { tokenizer: own, text_encoder, zeros: false, dtype, device };
        let tokenizer = tokenizer(Padding::End);
        let tokens = |prompt: &str, prompt_2: &str, guided, long_prompts| {
            let (prompt, prompt_2) = (prompt.to_owned(), prompt_2.to_owned());
            let settings = Settings { prompt, prompt_2, long_prompts, ..Settings::default() };
            tokenize(&tokenizer, Some(&second), &settings, guided).unwrap()
        };
        let rows = |prompt: &str, guided| tokens(prompt, "", guided, LongPrompt::Chunk).0;
        let encode = |row: &PromptTokens| {
            let Encoded { states, pooled } =
                row.encode(&first, Some(&second), &Cancel::default()).unwrap();
            (states.to_vec::<f32>().unwrap(), pooled)
        };

        // Chunks that fill a row up are each encoder's own; the prompt as a whole is its first chunk.
        let (rivers, farms) = (["river"; 75].join(" "), ["farm"; 20].join(" "));
        let both = rows(&format!("{rivers} {farms}"), true);
        let (empty, _) = encode(&rows("", false)[0]);
        assert!(encode(&both[0]).0 == [empty.clone(), empty].concat());
        let (prompt, whole) = encode(&both[1]);
        let (one, whole_of_one) = encode(&rows(&rivers, false)[0]);
        assert!(prompt[..one.len()] == one && whole == whole_of_one);
        assert!(whole != encode(&rows(&farms, false)[0]).1);

        // Weights count for both.
        let row = &rows("a (river:1.5) and (farms:0.5)", false)[0];
        assert!(row.chunks[0].is_weighted() && row.chunks[0].ids != row.second[0].ids);
        let states = first.hidden(&ids(&row.chunks[0]).unwrap(), 1).unwrap();
        let (others, _) = second.text_encoder.forward(&ids(&row.second[0]).unwrap(), 1).unwrap();
        let weighed =
            [weight(&states, &row.chunks[0]).unwrap(), weight(&others, &row.second[0]).unwrap()];
        let expected = concat(&[&weighed[0], &weighed[1]], 2).unwrap();
        assert!(encode(row).0 == expected.to_vec::<f32>().unwrap());

        // A prompt of the second encoder's own has its own weights and its own length, and tells the whole.
        let width = [first.config().hidden_size, second.text_encoder.config().text.hidden_size];
        let halves = |row: &PromptTokens| {
            let (states, pooled) = encode(row);
            let (mut halves, mut rest) = ([Vec::new(), Vec::new()], &states[..]);
            while !rest.is_empty() {
                for (half, width) in halves.iter_mut().zip(width) {
                    half.extend_from_slice(&rest[..width]);
                    rest = &rest[width..];
                }
            }
            (halves, pooled)
        };
        let long = format!("(a:1.2) {rivers} (farms:0.5)");
        for (one, other) in [("a forest", &long[..]), (&long[..], "a (forest:1.5)")] {
            let both = &tokens(one, other, true, LongPrompt::Chunk).0;
            let ([ours, theirs], whole) = halves(&both[1]);
            let alone = |prompt: &str| halves(&rows(prompt, false)[0]);
            let (([own, _], _), ([_, others], expected)) = (alone(one), alone(other));
            for (found, alone) in [(&ours, &own), (&theirs, &others)] {
                assert!(found[..alone.len()] == alone[..], "{one}");
            }
            assert!(ours.len() / width[0] == 154 && theirs.len() / width[1] == 154, "{one}");
            assert!(whole == expected, "{one}");
            assert_eq!(both[0].chunks.len(), 2);
        }

        // What is cut is told of the prompt that it is cut of, once.
        let farms = ["farm"; 90].join(" ");
        let cut = |prompt: &str, prompt_2: &str| {
            let warnings = tokens(prompt, prompt_2, true, LongPrompt::Truncate).1;
            let field = |Warning::PromptCut { field, .. }: &Warning| *field;
            warnings.iter().map(field).collect::<Vec<_>>()
        };
        assert_eq!(cut(&farms, ""), ["prompt"]);
        assert_eq!(cut("a", &farms), ["prompt_2"]);
        assert_eq!(cut(&farms, &farms), ["prompt", "prompt_2"]);
    }

    #[test]
    fn zeros_stand_for_a_negative_prompt_that_neither_encoder_has() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/eurosat-64");
        let folder = PipelineFolder::open(root, None).unwrap();
        let tokenizer = || ClipTokenizer::open(folder.folder("tokenizer").unwrap()).unwrap();
        let text = ClipTextConfig::read(&folder.network("text_encoder").unwrap().0).unwrap();
        let config = ClipTextProjectedConfig { text, projection_dim: 8, eos_token_id: 2 };
        let zero =
            |_: &str, shape: &[usize]| Tensor::from_vec(vec![0.0; shape.iter().product()], shape);
        let (dtype, device) = (DType::F32, Device::Cpu);
        let params = Params::initial(zero, dtype, device);
        let text_encoder = ClipTextProjected::load(config, &params).unwrap();
        let second =
            SecondEncoder { tokenizer: tokenizer(), text_encoder, zeros: true, dtype, device };
        for (negative_prompt, negative_prompt_2, is_zero) in
            [("", "", true), ("snow", "", false), ("", "snow", false), ("snow", "ice", false)]
        {
            let settings = Settings {
                negative_prompt: negative_prompt.into(),
                negative_prompt_2: negative_prompt_2.into(),
                ..Settings::default()
            };
            let rows = tokenize(&tokenizer(), Some(&second), &settings, true).unwrap().0;
            assert_eq!(rows.iter().map(|row| row.is_zero).collect::<Vec<_>>(), [is_zero, false]);
        }
    }
}
