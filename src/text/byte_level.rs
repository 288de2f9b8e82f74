//! Tokenizers of language models, and how they are trained: byte-level BPE (Sennrich et al. 2016, over bytes as Radford et
//! al. 2019), by the tokenizers crate.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{Lowercase, Replace, Sequence, Strip};
use tokenizers::pre_tokenizers::byte_level::ByteLevel as Bytes;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper};
use tokenizers::{PreTokenizerWrapper, Tokenizer, TokenizerImpl};

use super::tokenizer::MAX_FILE;
use crate::error::{Error, Result};
use crate::io::config::read_json;
use crate::io::{atomic, caught, read_bounded};

/// What begins, ends and separates documents: GPT-2's.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// Every byte is a token.
const BYTES: usize = 256;

/// How a tokenizer is made.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Tokenizer")]
pub struct TokenizerSettings {
    /// Tokens: 256 bytes, the end of a text, and pairs that are merged
    #[arg(long, value_name = "N", default_value_t = 2048, allow_negative_numbers = true)]
    pub vocab_size: usize,

    /// Times that a pair must occur to be merged
    #[arg(long, value_name = "N", default_value_t = 2, allow_negative_numbers = true)]
    pub min_frequency: u64,

    /// Take texts in lower case, with one space between words and none before . , ; : ! ?
    #[arg(long)]
    pub normalize: bool,

    /// Longest text that the model is made for, in tokens
    #[arg(long, value_name = "N", default_value_t = 1024, allow_negative_numbers = true)]
    pub model_max_length: usize,
}

impl Default for TokenizerSettings {
    fn default() -> Self {
        Self { vocab_size: 2048, min_frequency: 2, normalize: false, model_max_length: 1024 }
    }
}

/// Trains a tokenizer on `texts` and writes `tokenizer.json` and `tokenizer_config.json` into `folder`, as transformers'
/// `AutoTokenizer` reads them. The number of tokens: fewer than asked for when the texts have no more pairs.
///
/// # Errors
/// `Argument` for a vocabulary that does not hold the bytes, or settings of 0; a file cannot be written.
pub fn train(texts: &[String], settings: &TokenizerSettings, folder: &Path) -> Result<usize> {
    if settings.vocab_size <= BYTES {
        let expected = format!("more than {BYTES}: the bytes, and the end of a text");
        return Err(Error::argument("vocab_size", settings.vocab_size, expected));
    }
    if settings.model_max_length == 0 {
        return Err(Error::argument("model_max_length", 0, "at least 1"));
    }
    let trained =
        caught(|| learn(texts, settings)).and_then(|done| done.map_err(|e| e.to_string()));
    let (json, count) = trained.map_err(|message| Error::value("train tokenizer", message))?;
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    atomic::write(&folder.join("tokenizer.json"), |out| writeln!(out, "{json}"))?;
    let config = json!({
        "add_prefix_space": false,
        "bos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": false,
        "eos_token": END_OF_TEXT,
        "model_max_length": settings.model_max_length,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": END_OF_TEXT,
    });
    atomic::write(&folder.join("tokenizer_config.json"), |out| writeln!(out, "{config:#}"))?;
    Ok(count)
}

/// What a language model's texts are read and written by.
pub struct ByteLevel {
    path: PathBuf,
    inner: Tokenizer,
    ends: [u32; 2],
}

impl ByteLevel {
    /// Reads `tokenizer.json` of a folder, and beside it in `tokenizer_config.json` what begins and ends a text.
    ///
    /// # Errors
    /// A file is missing or damaged, or names a token that is none.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let bytes = read_bounded(&path, MAX_FILE)?;
        let damaged = |found: String| {
            let advice = "The file is damaged, or of a newer form.";
            Error::file(&path, "content", "a tokenizer", found, advice)
        };
        let inner = caught(|| Tokenizer::from_bytes(&bytes))
            .and_then(|done| done.map_err(|e| e.to_string()))
            .map_err(damaged)?;
        let about = folder.join("tokenizer_config.json");
        let about = if about.is_file() { read_json(&about)? } else { Value::Null };
        let named = |role: &str| {
            let value = &about[role];
            value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
        };
        let end = named("eos_token").unwrap_or_else(|| END_OF_TEXT.to_owned());
        let start = named("bos_token").unwrap_or_else(|| end.clone());
        let id = |token: &str| {
            let advice = "tokenizer.json and tokenizer_config.json belong to different models.";
            let none =
                || Error::file(&path, "vocabulary", format!("token {token:?}"), "none", advice);
            inner.token_to_id(token).ok_or_else(none)
        };
        let ends = [id(&start)?, id(&end)?];
        Ok(Self { path, inner, ends })
    }

    /// The files of a folder that [`Self::open`] and transformers read.
    pub fn files(folder: &Path) -> Vec<PathBuf> {
        let names = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];
        names.into_iter().map(|name| folder.join(name)).filter(|path| path.is_file()).collect()
    }

    /// The tokens before and behind a text.
    pub fn ends(&self) -> [u32; 2] {
        self.ends
    }

    /// One more than the largest id.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// The tokens of a text, without those at its ends.
    ///
    /// # Errors
    /// The tokenizer cannot read it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.guarded(|| self.inner.encode_fast(text, false))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of a prompt: a text with what the tokenizer itself puts before it, a start for Llama, say.
    ///
    /// # Errors
    /// The tokenizer cannot read it.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.guarded(|| self.inner.encode_fast(text, true))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of tokens; what is no text but an end is left out.
    ///
    /// # Errors
    /// The tokenizer cannot write it.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.guarded(|| self.inner.decode(tokens, true))
    }

    fn guarded<T>(&self, run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
        caught(run).and_then(|done| done.map_err(|e| e.to_string())).map_err(|found| {
            Error::file(&self.path, "tokenizer", "one that works", found, "The file is damaged.")
        })
    }
}

/// `tokenizer.json`, and the number of tokens.
fn learn(texts: &[String], settings: &TokenizerSettings) -> tokenizers::Result<(String, usize)> {
    let mut tokenizer: TokenizerImpl<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    > = TokenizerImpl::new(BPE::default());
    if settings.normalize {
        let replaced = |pattern: &str, content: &str| {
            Replace::new(ReplacePattern::Regex(pattern.to_owned()), content)
        };
        tokenizer.with_normalizer(Some(Sequence::new(vec![
            Lowercase.into(),
            replaced(r"\s+", " ")?.into(),
            replaced(" (?=[.,;:!?])", "")?.into(),
            Strip::new(true, true).into(),
        ])))?;
    }
    tokenizer.with_pre_tokenizer(Some(Bytes::new(false, true, true)));
    tokenizer.with_decoder(Some(Bytes::new(false, true, true)));
    let mut trainer = BpeTrainer::builder()
        .vocab_size(settings.vocab_size)
        .min_frequency(settings.min_frequency)
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(Bytes::alphabet().into_iter().collect())
        .build();
    tokenizer.train(&mut trainer, texts.iter())?;
    // A text that is gone on from begins as documents do.
    let id = tokenizer.token_to_id(END_OF_TEXT).unwrap_or_default();
    let begun = TemplateProcessing::builder()
        .try_single(format!("{END_OF_TEXT} $A"))?
        .try_pair(format!("{END_OF_TEXT} $A $B:1"))?
        .special_tokens(vec![(END_OF_TEXT, id)])
        .build()?;
    tokenizer.with_post_processor(Some(begun));
    Ok((tokenizer.to_string(true)?, tokenizer.get_vocab_size(true)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained(texts: &[&str], settings: &TokenizerSettings) -> (ByteLevel, usize) {
        let folder = tempfile::tempdir().unwrap();
        let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
        let count = train(&texts, settings, folder.path()).unwrap();
        (ByteLevel::open(folder.path()).unwrap(), count)
    }

    const TEXTS: [&str; 3] =
        ["Many planes are parked .", "many planes  are near the long building .", "Many ships"];

    #[test]
    fn every_text_comes_back_and_frequent_words_are_one_token() {
        let settings = TokenizerSettings { vocab_size: 280, ..TokenizerSettings::default() };
        let (tokenizer, count) = trained(&TEXTS, &settings);
        assert!(count > 257 && count <= 280);
        assert_eq!((tokenizer.ends(), tokenizer.vocabulary()), ([0, 0], count));
        for text in ["many planes are far", " Überall\u{1f6f0}\n\tétangs , ", ""] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
        assert_eq!(tokenizer.encode(" planes").unwrap().len(), 1);
        // The end of a text is one token wherever it stands, and is in no word.
        let ids = tokenizer.encode("a<|endoftext|>").unwrap();
        assert_eq!(ids[ids.len() - 1], 0);
    }

    #[test]
    fn normalised_texts_are_the_same_however_they_are_written() {
        let settings = TokenizerSettings { normalize: true, ..TokenizerSettings::default() };
        let (tokenizer, _) = trained(&TEXTS, &settings);
        let ids = |text: &str| tokenizer.encode(text).unwrap();
        assert_eq!(ids("Many planes\tare  parked ."), ids(" many planes are parked. "));
        let text = tokenizer.decode(&ids("Airport : Planes , ships .")).unwrap();
        assert_eq!(text, "airport: planes, ships.");
    }

    #[test]
    fn what_no_tokenizer_can_be_made_by_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        for settings in [
            TokenizerSettings { vocab_size: 256, ..TokenizerSettings::default() },
            TokenizerSettings { model_max_length: 0, ..TokenizerSettings::default() },
        ] {
            let error = train(&["a".to_owned()], &settings, folder.path()).unwrap_err();
            assert!(matches!(error, Error::Argument { .. }), "{error}");
        }
    }
}
