//! Text from a language model: which model, what goes on from a prompt, how well a text is predicted.

pub mod classes;
mod decoding;
mod perplexity;
pub mod prompts;
mod run;
mod sampling;
mod text;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::io::config::read_json;
use crate::io::folder::Weights;
use crate::models::decoder::{Decoder, DecoderConfig};
use crate::nn::lora::{Adapter, Adapters};
use crate::nn::{Keep, Params};
use crate::tensor::{DType, Device};
use crate::text::byte_level::ByteLevel;
use crate::text::chat::ChatTemplate;

pub use perplexity::{Perplexity, Windows};
pub use run::{Answer, Finish, Piece, TextRequest, TextRun};
pub use sampling::{Sampler, Sampling};

/// A causal language model with its tokenizer: a folder of transformers.
pub struct LanguageModel {
    decoder: Decoder,
    tokenizer: ByteLevel,
    /// What ends an answer.
    ends: Vec<u32>,
    chat: Option<ChatTemplate>,
    folder: PathBuf,
}

/// How a model is to compute.
#[derive(Clone, Debug)]
pub struct LanguageOptions {
    /// Numbers that weights and activations are held in.
    pub dtype: DType,
    /// Whether matrices are held in 8 bits instead, on a CPU.
    pub int8: bool,
    /// Where.
    pub device: Device,
    /// What is added to the weights.
    pub adapters: Vec<Adapter>,
}

impl Default for LanguageOptions {
    fn default() -> Self {
        Self { dtype: DType::F32, int8: false, device: Device::Cpu, adapters: Vec::new() }
    }
}

impl LanguageModel {
    /// Opens a folder with `config.json`, weights and `tokenizer.json`.
    ///
    /// # Errors
    /// A file is missing or damaged, is of a model that is not known (the message lists those that are), or its tokenizer
    /// has tokens that the model has not.
    pub fn open(folder: &Path, options: &LanguageOptions) -> Result<Self> {
        // 1. what is quickly read
        let config = DecoderConfig::open(folder)?;
        let tokenizer = ByteLevel::open(folder)?;
        let (found, rows) = (tokenizer.vocabulary(), config.vocab_size);
        if found > rows {
            let file = folder.join("tokenizer.json");
            let expected = format!("at most {rows} tokens, vocab_size in config.json");
            let advice = "Tokenizer and model do not belong together.";
            return Err(Error::file(file, "vocabulary", expected, found.to_string(), advice));
        }
        let ends = ends(folder, &tokenizer)?;
        let chat = ChatTemplate::open(folder)?;
        // 2. weights
        const PART: &str = "decoder";
        let weights = config.weights(Weights::open(folder, None)?);
        let adapters = Adapters::open(&options.adapters, &[(PART, &weights)])?;
        let params = Params::new(adapters.merged(PART, weights), options.dtype, options.device);
        let keep = if options.int8 { Keep::Quantized } else { Keep::Frozen };
        let params = params.of_model(PART).keeping(keep);
        let decoder = Decoder::load(config, &params)?;
        adapters.check_unused(PART, &params.finish()?)?;
        Ok(Self { decoder, tokenizer, ends, chat, folder: folder.to_owned() })
    }

    /// The network.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// What texts are read and written by.
    pub fn tokenizer(&self) -> &ByteLevel {
        &self.tokenizer
    }

    /// Tokens that end an answer.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// The tokens of a text to go on from; of an empty one, what begins a text.
    ///
    /// # Errors
    /// The tokenizer cannot encode it.
    pub fn prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = self.tokenizer.encode_prompt(text)?;
        if tokens.is_empty() {
            tokens.push(self.tokenizer.ends()[0]);
        }
        Ok(tokens)
    }

    /// How a conversation becomes a prompt.
    ///
    /// # Errors
    /// The folder has no template.
    pub fn chat(&self) -> Result<&ChatTemplate> {
        self.chat.as_ref().ok_or_else(|| {
            let advice = "The model was not made for conversations: give it a text to go on from.";
            let expected = "chat_template in tokenizer_config.json, or chat_template.jinja";
            Error::file(&self.folder, "chat template", expected, "neither", advice)
        })
    }
}

/// What ends an answer: `eos_token_id` of `generation_config.json`, one or several, or of `config.json`, and what ends a text
/// for the tokenizer.
fn ends(folder: &Path, tokenizer: &ByteLevel) -> Result<Vec<u32>> {
    let mut ends = vec![tokenizer.ends()[1]];
    for name in ["generation_config.json", "config.json"] {
        let path = folder.join(name);
        if !path.is_file() {
            continue;
        }
        let config = read_json(&path)?;
        let ids = match &config["eos_token_id"] {
            Value::Null => continue,
            Value::Array(ids) => ids.clone(),
            id => vec![id.clone()],
        };
        for id in ids {
            let known = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let Some(id) = known else {
                let expected = "the number of a token, or a list of them";
                let advice = "Correct the file.";
                return Err(Error::file(
                    path,
                    "field \"eos_token_id\"",
                    expected,
                    id.to_string(),
                    advice,
                ));
            };
            ends.push(id);
        }
        break;
    }
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}
