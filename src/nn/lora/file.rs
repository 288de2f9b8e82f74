//! An adapter's file: pairs of matrices with their scales, whatever program wrote it.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::names::{Key, Layer, PARTS};
use crate::error::{Error, Result};
use crate::io::safetensors::SafeTensors;
use crate::io::{TensorSource, open_file, read_bounded};
use crate::tensor::DType;

/// What diffusers and peft call the file in a folder.
pub(super) const NAMES: [&str; 2] =
    ["pytorch_lora_weights.safetensors", "adapter_model.safetensors"];

/// Beside peft's file: what its matrices do not tell.
pub(super) const CONFIG: &str = "adapter_config.json";

/// Where diffusers keeps the same in its file.
const METADATA: &str = "lora_adapter_metadata";

/// Of [`CONFIG`].
const MAX_CONFIG: u64 = 1 << 20;

/// A low-rank matrix, B A.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    /// The key of A [r, inputs].
    pub down: String,
    /// The key of B [outputs, r].
    pub up: String,
    /// What the product is multiplied by.
    pub scale: f64,
}

/// An open file and what it adapts.
pub(super) struct AdapterFile {
    pub path: PathBuf,
    pub tensors: SafeTensors,
    pub pairs: Vec<(Option<&'static str>, Layer, Pair)>,
}

/// The file that is meant: `path`, or that in the folder `path`.
pub(super) fn locate(path: &Path) -> PathBuf {
    let within = NAMES.iter().map(|name| path.join(name)).find(|file| file.is_file());
    within.unwrap_or_else(|| path.to_owned())
}

/// A checksum of all that an adapter's file says, and what stands beside it.
pub(super) fn checksum(path: &Path) -> Result<u32> {
    let file = locate(path);
    let mut sum = crc32fast::Hasher::new();
    let mut add = |path: &Path| {
        let mut file = open_file(path)?;
        let mut piece = vec![0; 1 << 20];
        loop {
            match file.read(&mut piece).map_err(|e| Error::io(path, e))? {
                0 => return Ok::<_, Error>(()),
                n => sum.update(&piece[..n]),
            }
        }
    };
    add(&file)?;
    let config = file.with_file_name(CONFIG);
    if config.is_file() {
        add(&config)?;
    }
    Ok(sum.finalize())
}

impl AdapterFile {
    /// Reads all of the file but the matrices.
    ///
    /// # Errors
    /// No safetensors file, or one with a key that is of no convention, or without its counterpart; matrices whose ranks
    /// differ; a scale that is no number, or that only a file that is not there would tell.
    pub fn open(path: &Path) -> Result<Self> {
        let path = locate(path);
        if path.is_dir() {
            let expected = NAMES.join(" or ");
            let advice = "Name the adapter's .safetensors file.";
            return Err(Error::file(path, "adapter", expected, "neither in this folder", advice));
        }
        let tensors = SafeTensors::open(&path)?;
        let wrong = |key: &str, expected: &str, found: String| {
            let advice =
                "Only plain LoRA is merged, not DoRA, LoHa, LoKr, biases or whole weights.";
            Error::file(&path, format!("tensor {key:?}"), expected, found, advice)
        };
        // 1. keys
        #[derive(Default)]
        struct Found([Option<String>; 3]);
        let mut layers: BTreeMap<(Option<&str>, Layer), Found> = BTreeMap::new();
        for key in tensors.names() {
            let known = "a key of diffusers, peft or kohya: .lora_A.weight, .lora.down.weight, .lora_down.weight, \
                         their counterparts, or .alpha";
            let Some(Key { part, layer, role }) = Key::parse(&key) else {
                return Err(wrong(&key, known, "none of these".into()));
            };
            let place = &mut layers.entry((part, layer)).or_default().0[role as usize];
            if let Some(other) = place.replace(key.clone()) {
                return Err(wrong(&key, "each matrix once", format!("it as {other:?} too")));
            }
        }
        if layers.is_empty() {
            let advice = "Is this an adapter?";
            return Err(Error::file(&path, "tensors", "matrices of layers", "none", advice));
        }
        // 2. pairs and their scales
        let settings = Settings::of(&path, &tensors)?;
        let mut pairs = Vec::new();
        for ((part, layer), Found(found)) in layers {
            let (down, up, alpha) = match found {
                [Some(down), Some(up), alpha] => (down, up, alpha),
                other => {
                    let key = other.into_iter().flatten().next().unwrap_or_default();
                    let expected = "both matrices of the layer";
                    return Err(wrong(&key, expected, "it without its counterpart".into()));
                }
            };
            for key in [&down, &up] {
                let info = tensors.info(key);
                if let Some(info) = info.filter(|i| !i.dtype.is_float() || i.shape.len() < 2) {
                    let found = format!("{} {:?}", info.dtype, info.shape);
                    return Err(wrong(key, "a floating-point matrix or convolution", found));
                }
            }
            let shape = |key: &str| tensors.info(key).map(|info| info.shape).unwrap_or_default();
            let (rank, of_up) = (shape(&down)[0], shape(&up));
            if rank == 0 || of_up[1] != rank || of_up[2..].iter().any(|&d| d != 1) {
                let expected = format!("[outputs, {rank}], as {down:?} has rank {rank}");
                return Err(wrong(&up, &expected, format!("{of_up:?}")));
            }
            let alpha = match alpha {
                Some(key) => {
                    let alpha = read_number(&tensors, &key)?;
                    alpha.filter(|x| x.is_finite()).map(Some).ok_or_else(|| {
                        wrong(&key, "one finite number", format!("{:?}", tensors.info(&key)))
                    })?
                }
                None => None,
            };
            let scale = match alpha {
                Some(alpha) => alpha / rank as f64,
                None => settings.scale(&path, part, &layer, &down, rank)?,
            };
            pairs.push((part, layer, Pair { down, up, scale }));
        }
        Ok(Self { path, tensors, pairs })
    }
}

/// A tensor of one element; `None`: it has more.
fn read_number(tensors: &SafeTensors, key: &str) -> Result<Option<f64>> {
    let info = tensors.info(key);
    if info.is_none_or(|info| info.shape.iter().any(|&d| d != 1)) {
        return Ok(None);
    }
    let tensor = tensors.read(key)?;
    Ok(match tensor.dtype() {
        DType::I64 => Some(tensor.to_vec::<i64>()?[0] as f64),
        dtype if dtype.is_float() => Some(tensor.to_dtype(DType::F64)?.to_vec::<f64>()?[0]),
        _ => None,
    })
}

/// What peft's configuration says of scales: beside the file, or in diffusers' file, there with the part's name in front
/// of each field.
struct Settings {
    fields: serde_json::Map<String, Value>,
    prefixed: bool,
    origin: PathBuf,
}

impl Settings {
    fn of(path: &Path, tensors: &SafeTensors) -> Result<Self> {
        let beside = path.with_file_name(CONFIG);
        let (text, origin, prefixed) = match tensors.metadata().get(METADATA) {
            Some(text) => (text.clone().into_bytes(), path.to_owned(), true),
            None if beside.is_file() => (read_bounded(&beside, MAX_CONFIG)?, beside, false),
            None => (b"{}".to_vec(), PathBuf::new(), true),
        };
        let fields = serde_json::from_slice(&text).map_err(|e| {
            let advice = "Write the adapter again.";
            Error::file(&origin, "configuration of peft", "a JSON object", e.to_string(), advice)
        })?;
        let settings = Self { fields, prefixed, origin };
        for part in PARTS {
            for field in ["use_dora", "lora_bias"] {
                if settings.get(Some(part), field).is_some_and(|value| *value != Value::Bool(false))
                {
                    return Err(settings.wrong(field, "false"));
                }
            }
            let kind = settings.get(Some(part), "peft_type");
            if kind.is_some_and(|kind| kind != "LORA") {
                return Err(settings.wrong("peft_type", "LORA"));
            }
        }
        Ok(settings)
    }

    fn get(&self, part: Option<&str>, field: &str) -> Option<&Value> {
        let value = match part {
            Some(part) if self.prefixed => self.fields.get(&format!("{part}.{field}")),
            _ => self.fields.get(field),
        };
        value.filter(|value| !value.is_null())
    }

    fn wrong(&self, field: &str, expected: &str) -> Error {
        let found = self.fields.iter().find(|(name, _)| name.ends_with(field));
        let found = found.map(|(_, value)| value.to_string()).unwrap_or_default();
        let advice = "nadir merges plain LoRA, of linear layers and convolutions.";
        Error::file(&self.origin, field, expected, found, advice)
    }

    /// alpha / rank, or alpha over its root; 1 where nobody says otherwise, as diffusers has it.
    fn scale(
        &self,
        path: &Path,
        part: Option<&str>,
        layer: &Layer,
        key: &str,
        rank: usize,
    ) -> Result<f64> {
        let Some(alpha) = self.get(part, "lora_alpha") else {
            if key.starts_with("base_model.") {
                let expected = format!("{CONFIG} beside a file of peft's, which says alpha");
                let advice = format!("Put the {CONFIG} that was saved with it into its folder.");
                return Err(Error::file(path, CONFIG, expected, "none", advice));
            }
            return Ok(1.0);
        };
        let number = |value: &Value| {
            let number = value.as_f64().filter(|x| x.is_finite());
            number.ok_or_else(|| self.wrong("lora_alpha", "a number"))
        };
        let mut alpha = number(alpha)?;
        if let (Some(patterns), Layer::Dotted(layer)) = (self.get(part, "alpha_pattern"), layer) {
            let patterns = patterns.as_object();
            let patterns = patterns.ok_or_else(|| self.wrong("alpha_pattern", "an object"))?;
            for (pattern, value) in patterns {
                // peft takes them for regular expressions, and diffusers writes names of layers.
                if pattern.contains(|c: char| !(c.is_ascii_alphanumeric() || "._".contains(c))) {
                    return Err(self.wrong("alpha_pattern", "names of layers"));
                }
                let pattern = pattern.strip_prefix("text_model.").unwrap_or(pattern);
                let end = layer.strip_suffix(pattern);
                if end.is_some_and(|front| front.is_empty() || front.ends_with('.')) {
                    alpha = number(value)?;
                    break;
                }
            }
        }
        let stabilized = self.get(part, "use_rslora").is_some_and(|value| *value == true);
        Ok(alpha / if stabilized { (rank as f64).sqrt() } else { rank as f64 })
    }
}
