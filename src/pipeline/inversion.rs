//! Textual inversion: words of a text encoder whose vectors were learned, and nothing else of a model.
//!
//! Gal et al. 2022, "An Image is Worth One Word". Reference implementation: diffusers, `loaders/textual_inversion.py`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::io::TensorSource;
use crate::io::safetensors::SafeTensors;
use crate::nn::lora;
use crate::tensor::{DType, Tensor};

/// What AUTOMATIC1111's web UI calls the vectors in its file, whose name is the word.
const WEBUI: &str = "emb_params";

/// What files for Stable Diffusion XL call those for its first and its second text encoder; the word is the name of the file, too.
const XL: [&str; 2] = ["clip_l", "clip_g"];

/// More vectors than a prompt has room for.
const MAX_VECTORS: usize = 75;

/// An embedding that a model is to be loaded with: `FILE` or `FILE:TOKEN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inversion {
    /// A safetensors file of diffusers (`{token: vectors}`), of AUTOMATIC1111's web UI (`emb_params`), or for Stable Diffusion XL
    /// (`clip_l`, `clip_g`).
    pub path: PathBuf,
    /// What stands for it in prompts, if not what the file says.
    pub token: Option<String>,
}

/// What a file holds.
pub(super) struct Learned {
    /// What stands for it in prompts.
    pub token: String,
    /// For each text encoder, as many: the tensor's name, and the vectors [vectors, D] in f32.
    pub vectors: Vec<(String, Tensor)>,
}

impl FromStr for Inversion {
    type Err = Error;

    /// # Errors
    /// `Argument` for a token that is empty.
    fn from_str(text: &str) -> Result<Self> {
        let file = |end: usize| Path::new(&text[..end]).is_file();
        let mut colons = text.match_indices(':').map(|(at, _)| at);
        let path = |end: usize| PathBuf::from(&text[..end]);
        match colons.find(|&at| file(at)).filter(|_| !file(text.len())) {
            None => Ok(Self { path: path(text.len()), token: None }),
            Some(at) if text[at + 1..].trim().is_empty() => {
                Err(Error::argument("embedding", text, "FILE or FILE:TOKEN, the token not empty"))
            }
            Some(at) => Ok(Self { path: path(at), token: Some(text[at + 1..].trim().to_owned()) }),
        }
    }
}

impl fmt::Display for Inversion {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.token.iter().try_for_each(|token| write!(f, ":{token}"))
    }
}

impl Inversion {
    /// What stands for it in prompts.
    ///
    /// # Errors
    /// The file cannot be read, or holds no embedding.
    pub fn token(&self) -> Result<String> {
        Ok(self.open()?.token)
    }

    /// Tells whether the file is still the same.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn checksum(&self) -> Result<String> {
        lora::checksum(&self.path)
    }

    /// Reads the file.
    ///
    /// # Errors
    /// As [`Self::token`].
    pub(super) fn open(&self) -> Result<Learned> {
        let source = SafeTensors::open(&self.path)?;
        let advice = "Is this a textual inversion?";
        let names = source.names();
        let wrong = |what: &str, expected: &str, found: String| {
            Error::file(&self.path, what, expected, found, advice)
        };
        let has = |key: &str| names.iter().any(|name| name == key);
        let keys = match &names[..] {
            _ if XL.iter().all(|key| has(key)) => XL.map(str::to_owned).to_vec(),
            [one] => vec![one.clone()],
            _ if has(WEBUI) => vec![WEBUI.to_owned()],
            _ => {
                let expected =
                    format!("one, named by its token, {WEBUI}, or {} and {}", XL[0], XL[1]);
                return Err(wrong("tensors", &expected, names.join(", ")));
            }
        };
        let token = match (&self.token, &keys[..]) {
            (Some(token), _) => token.clone(),
            (None, [key]) if key != WEBUI => key.clone(),
            _ => self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        };
        if token.trim().is_empty() {
            let what = format!("tensor {:?}", keys[0]);
            return Err(wrong(&what, "a token: name one, FILE:TOKEN", "none".to_owned()));
        }
        let read = |key: String| Ok((key.clone(), self.vectors(&source, &key)?));
        let vectors = keys.into_iter().map(read).collect::<Result<Vec<_>>>()?;
        let counts: Vec<_> = vectors.iter().map(|(_, vectors)| vectors.dim(0)).collect();
        if counts.iter().any(|&count| count != counts[0]) {
            let expected = "as many vectors for each text encoder";
            return Err(wrong("tensors", expected, format!("{counts:?}")));
        }
        Ok(Learned { token, vectors })
    }

    /// The vectors of one text encoder.
    fn vectors(&self, source: &SafeTensors, key: &str) -> Result<Tensor> {
        let advice = "Is this a textual inversion?";
        let what = format!("tensor {key:?}");
        let wrong =
            |expected: &str, found: String| Error::file(&self.path, &what, expected, found, advice);
        let vectors = source.read(key)?;
        let vectors = match *vectors.dims() {
            [width] if vectors.dtype().is_float() => vectors.reshape([1, width])?,
            [1..=MAX_VECTORS, _] if vectors.dtype().is_float() => vectors,
            _ => {
                let found = format!("{} {}", vectors.dtype(), vectors.shape());
                let expected = format!("[width] or [vectors, width], {MAX_VECTORS} at most");
                return Err(wrong(&expected, found));
            }
        };
        let vectors = vectors.to_dtype(DType::F32)?;
        if vectors.to_vec::<f32>()?.iter().any(|x| !x.is_finite()) {
            return Err(wrong("finite numbers", "others".to_owned()));
        }
        Ok(vectors)
    }
}
