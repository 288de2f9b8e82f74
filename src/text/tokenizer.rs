//! CLIP's byte-pair tokenizer, id for id what transformers' `CLIPTokenizer` gives.
//!
//! Text is normalised (NFC, white space runs to one space, lower case), split into words, numerals' digits
//! and punctuation, and each piece merged from bytes (Radford et al. 2021; `models/clip/tokenization_clip.py`
//! of transformers). As there, vocabulary and merges are taken from `tokenizer.json` or from `vocab.json` and
//! `merges.txt`, while the pipeline around them is CLIP's own whatever the file says.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, BpeBuilder, Merges, Vocab};
use tokenizers::normalizers::{
    Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern,
};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

use crate::error::{Error, Result};
use crate::io::checkpoint::Padding;
use crate::io::{atomic, caught, read_bounded};

/// CLIP's vocabulary files are 0.5 to 3.6 MB.
pub(crate) const MAX_FILE: u64 = 64 << 20;

/// Some 8,000 tokens or a hundred chunks: far more than a text encoder makes sense of, and few enough that no
/// prompt takes long.
const MAX_PROMPT: usize = 32 << 10;

/// Length of CLIP's context where the folder does not give one.
const MAX_LENGTH: usize = 77;

/// What ends a word in CLIP's vocabulary.
const WORD_END: &str = "</w>";

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";

/// What matches is a piece; what does not (spaces) is dropped.
const PIECES: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// A CLIP tokenizer, read from the `tokenizer/` folder of a pipeline.
pub struct ClipTokenizer {
    folder: PathBuf,
    inner: Tokenizer,
    max_length: usize,
    vocabulary: usize,
    start: u32,
    end: u32,
    pad: u32,
    /// Words of several ids, and what stands for them.
    learned: Vec<(String, String)>,
}

/// The ids of a prompt, as long as the text encoder's context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Start, text, end, padding: [`ClipTokenizer::max_length`] ids.
    pub ids: Vec<u32>,
    /// The end of the prompt that did not fit.
    pub truncated: Option<String>,
}

impl ClipTokenizer {
    /// Reads a tokenizer folder: `tokenizer.json`, or `vocab.json` and `merges.txt`; and, where present,
    /// `tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json`.
    ///
    /// The padding token follows the folder: the end token for SD 1.x, "!" (id 0) for SD 2.x. As in
    /// transformers, a padding token is then one token wherever it occurs in a prompt.
    ///
    /// # Errors
    /// No vocabulary in the folder, a file that is damaged, or a vocabulary that is not CLIP's kind.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Self::open_padding(folder, None)
    }

    /// As [`Self::open`], with this padding where there is one, whatever the folder says.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_padding(folder: impl AsRef<Path>, padding: Option<Padding>) -> Result<Self> {
        let folder = folder.as_ref();
        let (vocabulary_file, vocab, merges, json_tokens) = read_vocabulary(folder)?;
        let padding = padding.map(|padding| match padding {
            Padding::End => END.to_owned(),
            Padding::Zero => {
                let zero = vocab.iter().find(|(_, id)| **id == 0);
                zero.map_or_else(|| END.to_owned(), |(token, _)| token.clone())
            }
        });
        let settings = Settings::read(folder, json_tokens, padding)?;

        let ids: HashMap<&str, u32> = vocab.iter().map(|(t, &id)| (t.as_str(), id)).collect();
        for token in [START, END, &format!("a{WORD_END}")] {
            if !ids.contains_key(token) {
                let advice = "Is this a CLIP tokenizer?";
                return Err(Error::file(
                    &vocabulary_file,
                    "vocabulary",
                    format!("token {token:?}"),
                    "none",
                    advice,
                ));
            }
        }
        let tokens = vocab.len();
        let inner = guarded(&vocabulary_file, || build(vocab, merges, &settings))?;
        let vocabulary = inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        // Ids are row numbers of an embedding: one far beyond the number of tokens is a damaged file.
        if vocabulary > tokens + settings.added.len() {
            let found = format!("id {}", vocabulary - 1);
            let advice = "The file is damaged: download it again.";
            return Err(Error::file(
                &vocabulary_file,
                "vocabulary",
                format!("{tokens} ids from 0"),
                found,
                advice,
            ));
        }

        let id = |role: &str, token: &str| {
            inner.token_to_id(token).ok_or_else(|| {
                let advice = "Vocabulary and tokenizer_config.json belong to different models.";
                Error::file(&vocabulary_file, role, format!("token {token:?}"), "none", advice)
            })
        };
        let (start, end, pad) = (
            id("bos_token", settings.content("bos_token"))?,
            id("eos_token", settings.content("eos_token"))?,
            id("pad_token", settings.content("pad_token"))?,
        );
        Ok(Self {
            folder: folder.to_path_buf(),
            inner,
            max_length: settings.max_length,
            vocabulary,
            start,
            end,
            pad,
            learned: Vec::new(),
        })
    }

    /// Makes `token` a word of its own, of `n` ids: `token`, `token_1`, ..., as diffusers names them. Where it is spelled so in a
    /// prompt it is all of them; in other case, as in diffusers, the first.
    ///
    /// # Errors
    /// One of the names is in the vocabulary.
    pub fn learn(&mut self, token: &str, n: usize) -> Result<Vec<u32>> {
        let further = (1..n).map(|i| format!("{token}_{i}"));
        let names: Vec<String> = std::iter::once(token.to_owned()).chain(further).collect();
        if let Some(known) = names.iter().find(|name| self.inner.token_to_id(name).is_some()) {
            let expected = "a token that the vocabulary does not have: name it, FILE:TOKEN";
            return Err(Error::argument("embedding", known, expected));
        }
        let added = names.iter().map(|name| AddedToken::from(name.clone(), false));
        let unheard = || Error::argument("embedding", token, "a token that can be added");
        self.inner.add_tokens(added).map_err(|_| unheard())?;
        let ids = names.iter().map(|name| self.inner.token_to_id(name).ok_or_else(unheard));
        let ids = ids.collect::<Result<Vec<u32>>>()?;
        let last = ids.iter().max().map_or(0, |id| *id as usize + 1);
        self.vocabulary = self.vocabulary.max(last);
        self.learned.extend((n > 1).then(|| (token.to_owned(), names.join(" "))));
        Ok(ids)
    }

    /// The files of a tokenizer folder that [`Self::open`] reads.
    pub fn files(folder: impl AsRef<Path>) -> Vec<PathBuf> {
        let names = [
            "tokenizer.json",
            "vocab.json",
            "merges.txt",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
        ];
        let paths = names.into_iter().map(|name| folder.as_ref().join(name));
        paths.filter(|path| path.is_file()).collect()
    }

    /// Writes the tokenizer into `folder`, so that [`Self::open`] and transformers read it there as it is here.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        const CONFIG: &str = "tokenizer_config.json";
        let padding = self.inner.id_to_token(self.pad).unwrap_or_default();
        let mut configured = false;
        for path in Self::files(&self.folder) {
            let name = path.file_name().unwrap_or_default();
            let mut bytes = read_bounded(&path, MAX_FILE)?;
            configured |= name == CONFIG;
            if name == CONFIG || name == "special_tokens_map.json" {
                let mut fields: serde_json::Map<String, Value> = parse(&path)?;
                fields.insert("pad_token".to_owned(), padding.clone().into());
                bytes =
                    serde_json::to_vec_pretty(&fields).map_err(|e| Error::io(&path, e.into()))?;
            }
            atomic::write(&folder.join(name), |out| out.write_all(&bytes))?;
        }
        if !configured {
            let fields = serde_json::json!({
                "model_max_length": self.max_length,
                "pad_token": padding,
                "tokenizer_class": "CLIPTokenizer",
            });
            let text = format!("{fields:#}\n");
            atomic::write(&folder.join(CONFIG), |out| out.write_all(text.as_bytes()))?;
        }
        Ok(())
    }

    /// Length of the text encoder's context in tokens, start and end included: 77.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// One more than the largest id: the rows that an embedding must have.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Id of the start token.
    pub fn start(&self) -> u32 {
        self.start
    }

    /// Id of the end token.
    pub fn end(&self) -> u32 {
        self.end
    }

    /// Id that fills a short prompt up.
    pub fn pad(&self) -> u32 {
        self.pad
    }

    /// The ids of `text` alone: neither start nor end, and however many there are.
    ///
    /// # Errors
    /// `text` holds a NUL, or is longer than a prompt can be (32 KiB).
    pub fn text_ids(&self, text: &str) -> Result<Vec<u32>> {
        check_prompt("prompt", text)?;
        let whole = self.learned.iter().fold(Cow::Borrowed(text), |text, (token, names)| {
            if text.contains(token) { text.replace(token, names).into() } else { text }
        });
        let encoding = guarded(&self.folder, || self.inner.encode_fast(&*whole, false))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of a prompt as the text encoder takes them; what does not fit is cut off and reported.
    ///
    /// # Errors
    /// As for [`text_ids`](Self::text_ids).
    pub fn encode(&self, prompt: &str) -> Result<Encoded> {
        let mut text = self.text_ids(prompt)?;
        let rest = text.split_off(text.len().min(self.max_length - 2));
        let truncated = if rest.is_empty() { None } else { Some(self.decode(&rest)?) };
        Ok(Encoded { ids: self.frame(&text), truncated })
    }

    /// Start, `text`, end, padding to [`max_length`](Self::max_length).
    ///
    /// # Panics
    /// When `text` has more than `max_length - 2` ids.
    pub(super) fn frame(&self, text: &[u32]) -> Vec<u32> {
        assert!(text.len() + 2 <= self.max_length, "{} ids do not fit a context", text.len());
        let mut ids = Vec::with_capacity(self.max_length);
        ids.push(self.start);
        ids.extend_from_slice(text);
        ids.push(self.end);
        ids.resize(self.max_length, self.pad);
        ids
    }

    /// The text of ids, as transformers' `decode` gives it: lower case, words apart.
    ///
    /// # Errors
    /// An id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocabulary) {
            let message = format!("id {id} is outside the vocabulary of {}", self.vocabulary);
            return Err(Error::value("tokenizer", message));
        }
        let text = guarded(&self.folder, || self.inner.decode(ids, false))?;
        Ok(text.replace(WORD_END, " ").trim().to_owned())
    }
}

/// The pipeline of `CLIPTokenizer.__init__`.
fn build(vocab: Vocab, merges: Merges, settings: &Settings) -> tokenizers::Result<Tokenizer> {
    let bpe: BPE = BpeBuilder::new()
        .vocab_and_merges(vocab, merges)
        .unk_token(settings.content("unk_token").to_owned())
        .end_of_word_suffix(WORD_END.to_owned())
        .build()?;
    let mut tokenizer = Tokenizer::new(bpe);
    tokenizer.with_normalizer(Some(Normalizers::new(vec![
        NFC.into(),
        Replace::new(ReplacePattern::Regex(r"\s+".to_owned()), " ")?.into(),
        Lowercase.into(),
    ])))?;
    let pieces = SplitPattern::Regex(PIECES.to_owned());
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![
        Split::new(pieces, SplitDelimiterBehavior::Removed, true)?.into(),
        ByteLevel::new(false, true, true).into(),
    ])));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    tokenizer.add_tokens(settings.added.iter().map(Token::to_added))?;
    Ok(tokenizer)
}

/// Vocabulary, merges and added tokens, and the file they are from.
fn read_vocabulary(folder: &Path) -> Result<(PathBuf, Vocab, Merges, Vec<Token>)> {
    #[derive(Deserialize)]
    struct TokenizerJson {
        model: Model,
        #[serde(default)]
        added_tokens: Vec<Token>,
    }
    #[derive(Deserialize)]
    struct Model {
        #[serde(rename = "type")]
        kind: Option<String>,
        end_of_word_suffix: Option<String>,
        vocab: HashMap<String, u32>,
        merges: Vec<Merge>,
    }
    /// `"a b"` until version 0.19 of the tokenizers crate, `["a", "b"]` since.
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Merge {
        Line(String),
        Pair(String, String),
    }

    let path = folder.join("tokenizer.json");
    if path.is_file() {
        let json: TokenizerJson = parse(&path)?;
        let Model { kind, end_of_word_suffix, vocab, merges } = json.model;
        let (kind, suffix) =
            (kind.unwrap_or("BPE".to_owned()), end_of_word_suffix.unwrap_or_default());
        if kind != "BPE" || suffix != WORD_END {
            let (expected, found) =
                (format!("BPE with suffix {WORD_END}"), format!("{kind} with suffix {suffix:?}"));
            return Err(Error::file(
                path,
                "model",
                expected,
                found,
                "Only CLIP tokenizers are read here.",
            ));
        }
        let merges = merges
            .into_iter()
            .map(|merge| match merge {
                Merge::Pair(a, b) => Some((a, b)),
                Merge::Line(line) => split_merge(&line),
            })
            .collect::<Option<_>>()
            .ok_or_else(|| {
                Error::file(&path, "merges", "pairs of tokens", "another line", DAMAGED)
            })?;
        return Ok((path, vocab.into_iter().collect(), merges, json.added_tokens));
    }

    let (vocab_path, merges_path) = (folder.join("vocab.json"), folder.join("merges.txt"));
    if !vocab_path.is_file() || !merges_path.is_file() {
        let expected = "tokenizer.json, or vocab.json and merges.txt";
        let found = match folder.is_dir() {
            true => "neither",
            false => "no such folder",
        };
        let advice = "The download is incomplete: fetch the tokenizer's files.";
        return Err(Error::file(folder, "tokenizer", expected, found, advice));
    }
    let vocab: HashMap<String, u32> = parse(&vocab_path)?;
    let merges = String::from_utf8(read_bounded(&merges_path, MAX_FILE)?)
        .map_err(|e| Error::file(&merges_path, "content", "UTF-8 text", e.to_string(), DAMAGED))?;
    let merges = merges
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.starts_with("#version"))
        .map(|(i, line)| {
            let what = format!("line {}", i + 1);
            split_merge(line).ok_or_else(|| {
                Error::file(
                    &merges_path,
                    what,
                    "two tokens",
                    format!("{:?}", shorten(line)),
                    DAMAGED,
                )
            })
        })
        .collect::<Result<_>>()?;
    Ok((vocab_path, vocab.into_iter().collect(), merges, Vec::new()))
}

const DAMAGED: &str = "The file is damaged: download it again.";

fn split_merge(line: &str) -> Option<(String, String)> {
    let (a, b) = line.split_once(' ')?;
    (!a.is_empty() && !b.is_empty() && !b.contains(' ')).then(|| (a.to_owned(), b.to_owned()))
}

fn parse<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    serde_json::from_slice(&read_bounded(path, MAX_FILE)?)
        .map_err(|e| Error::file(path, "content", "a tokenizer's JSON", e.to_string(), DAMAGED))
}

/// A token that is matched in the text before any splitting.
#[derive(Debug, Clone, Deserialize)]
struct Token {
    id: Option<u32>,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl Token {
    fn new(content: &str, special: bool) -> Self {
        let content = content.to_owned();
        Self {
            id: None,
            content,
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: None,
            special,
        }
    }

    /// Text, or an object with the token's properties.
    fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::String(content) => Some(Self::new(content, true)),
            Value::Object(_) => {
                Self::deserialize(value).ok().map(|token| Self { special: true, ..token })
            }
            _ => None,
        }
    }

    fn to_added(&self) -> AddedToken {
        AddedToken::from(self.content.clone(), self.special)
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .normalized(self.normalized.unwrap_or(!self.special))
    }
}

/// What the files beside the vocabulary say.
struct Settings {
    max_length: usize,
    /// Role (`bos_token`, ...) -> the token's text.
    roles: Vec<(&'static str, String)>,
    /// Every token to match whole, each once, in the order of ids.
    added: Vec<Token>,
}

impl Settings {
    /// Later roles win where two share a token, as in transformers: the padding token's properties (always
    /// plain, exact) replace the end token's in SD 1.x.
    const ROLES: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

    fn content(&self, role: &str) -> &str {
        self.roles.iter().find(|(r, _)| *r == role).map_or(END, |(_, content)| content)
    }

    fn read(folder: &Path, json_tokens: Vec<Token>, padding: Option<String>) -> Result<Self> {
        let optional = |name: &str| -> Result<Option<(PathBuf, serde_json::Map<String, Value>)>> {
            let path = folder.join(name);
            if path.is_file() { parse(&path).map(|map| Some((path, map))) } else { Ok(None) }
        };
        let config = optional("tokenizer_config.json")?;
        let entry =
            |field: &str| config.as_ref().and_then(|(path, map)| Some((path, map.get(field)?)));
        let unsuited = |path: &Path, field: &str, expected: &str, value: &Value| {
            Error::file(path, field, expected, shorten(&value.to_string()), DAMAGED)
        };

        let max_length = match entry("model_max_length") {
            // Transformers writes 1e30 for "no limit"; CLIP has one.
            Some((path, value)) => match value.as_f64() {
                Some(n) if n >= 1e6 => MAX_LENGTH,
                Some(n) if n >= 3.0 && n.fract() == 0.0 => n as usize,
                _ => {
                    return Err(unsuited(path, "model_max_length", "a whole number from 3", value));
                }
            },
            None => MAX_LENGTH,
        };
        for field in ["padding_side", "truncation_side"] {
            if let Some((path, value)) = entry(field).filter(|(_, value)| *value != "right") {
                return Err(unsuited(path, field, "\"right\"", value));
            }
        }

        // Tokens with their ids: from the configuration, which is newest, or else the files before it.
        let mut numbered: BTreeMap<u32, Token> = BTreeMap::new();
        let mut special_map = None;
        if let Some((path, value)) = entry("added_tokens_decoder") {
            let parsed: BTreeMap<u32, Token> = BTreeMap::deserialize(value)
                .map_err(|_| unsuited(path, "added_tokens_decoder", "id -> token", value))?;
            numbered.extend(parsed);
        } else {
            special_map = optional("special_tokens_map.json")?;
            if let Some((path, map)) = optional("added_tokens.json")? {
                for (content, id) in &map {
                    let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
                    let id = id.ok_or_else(|| unsuited(&path, content, "an id", &map[content]))?;
                    numbered.insert(id, Token::new(content, false));
                }
            }
            numbered.extend(json_tokens.into_iter().filter_map(|token| Some((token.id?, token))));
        }

        let mut added: Vec<Token> =
            numbered.into_iter().map(|(id, token)| Token { id: Some(id), ..token }).collect();
        let mut roles = Vec::new();
        for role in Self::ROLES {
            let stated = special_map
                .as_ref()
                .and_then(|(path, map)| Some((path, map.get(role)?)))
                .or_else(|| entry(role))
                .filter(|(_, value)| !value.is_null());
            let mut token = match (stated, &padding) {
                (_, Some(padding)) if role == "pad_token" => Token::new(padding, true),
                (Some((path, value)), _) => {
                    Token::from_json(value).ok_or_else(|| unsuited(path, role, "a token", value))?
                }
                (None, _) => Token::new(if role == "bos_token" { START } else { END }, true),
            };
            roles.push((role, token.content.clone()));
            match added.iter_mut().find(|t| t.content == token.content) {
                // A numbered token keeps the properties it has in its file.
                Some(known) if known.id.is_some() => known.special = true,
                Some(known) => *known = token,
                None => {
                    token.id = None;
                    added.push(token);
                }
            }
        }
        Ok(Self { max_length, roles, added })
    }
}

/// Refuses what is no prompt before anything is done with it; `field` is what the error calls it.
pub(crate) fn check_prompt(field: &'static str, text: &str) -> Result<()> {
    if text.contains('\0') {
        let expected = "text without NUL characters";
        return Err(Error::argument(field, format!("a NUL in {:?}", shorten(text)), expected));
    }
    if text.len() > MAX_PROMPT {
        let found = format!("a text of {} bytes", text.len());
        return Err(Error::argument(field, found, format!("at most {MAX_PROMPT} bytes")));
    }
    Ok(())
}

/// Runs third-party code on a file's content, or on a prompt: its errors and panics become ours.
fn guarded<T>(path: &Path, run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let failed = |found: String| {
        Error::file(path, "tokenizer", "a CLIP tokenizer", found, "Is the folder complete?")
    };
    caught(run).and_then(|done| done.map_err(|e| e.to_string())).map_err(failed)
}

fn shorten(text: &str) -> String {
    text.chars().take(60).collect()
}
