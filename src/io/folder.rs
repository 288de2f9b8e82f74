//! Model folders of diffusers (a pipeline: `model_index.json` and a folder a component) and of transformers
//! (one model: `config.json` and its weights), as many versions of both have written them. An original checkpoint, which is
//! one file, is read as if it were a pipeline's folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::checkpoint::names::{Cut, Names};
use super::checkpoint::{self, Checkpoint, Padding, Supplement};
use super::config::{Config, read_text};
use super::safetensors::{PIECE, SafeTensors, refuse_pickle};
use super::{TensorInfo, TensorSource};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// File names that weights have, without variant and extension: diffusers', then transformers'.
const STEMS: [&str; 2] = ["diffusion_pytorch_model", "model"];

/// Variants that are taken when a folder has no plain weights.
const FALLBACKS: [&str; 2] = ["fp16", "bf16"];

/// A diffusers pipeline folder, or an original checkpoint in its place.
pub struct PipelineFolder {
    root: PathBuf,
    index: Config,
    variant: Option<String>,
    checkpoint: Option<Checkpoint>,
    /// Components that are elsewhere.
    replaced: BTreeMap<&'static str, PathBuf>,
}

impl PipelineFolder {
    /// Opens a pipeline folder. `variant` names the weight files to prefer (`fp16` for `model.fp16.safetensors`).
    ///
    /// # Errors
    /// `path` is no folder with a readable `model_index.json`, and no [`Checkpoint`].
    pub fn open(path: impl AsRef<Path>, variant: Option<&str>) -> Result<Self> {
        Self::open_with(path, variant, &Supplement::default())
    }

    /// As [`Self::open`]; of an original checkpoint `supplement` says what the file does not.
    ///
    /// # Errors
    /// As [`Self::open`]; a `supplement` to a folder, which says all itself.
    pub fn open_with(
        path: impl AsRef<Path>,
        variant: Option<&str>,
        supplement: &Supplement,
    ) -> Result<Self> {
        let root = path.as_ref();
        if root.is_file() {
            let checkpoint = Checkpoint::open(root, supplement)?;
            return Ok(Self {
                root: root.to_path_buf(),
                index: Config::from_value(root, checkpoint.index())?,
                variant: None,
                checkpoint: Some(checkpoint),
                replaced: BTreeMap::new(),
            });
        }
        let expected = "a diffusers folder (with model_index.json)";
        let index = root.join("model_index.json");
        if !index.is_file() {
            let (found, advice) = no_pipeline(root);
            return Err(Error::file(root, "model_index.json", expected, found, advice));
        }
        let given = [
            ("tokenizer", supplement.tokenizer.is_some()),
            ("prediction", supplement.prediction.is_some()),
        ];
        if let Some((name, _)) = given.into_iter().find(|(_, given)| *given) {
            let expected = "an original checkpoint beside it: a folder says this itself";
            return Err(Error::argument(name, "given", expected));
        }
        Ok(Self {
            root: root.to_path_buf(),
            index: Config::open(index)?,
            variant: variant.map(str::to_owned),
            checkpoint: None,
            replaced: BTreeMap::new(),
        })
    }

    /// The same with the component in the folder `with` in the place of its own `name`.
    #[must_use]
    pub fn replacing(mut self, name: &'static str, with: PathBuf) -> Self {
        self.replaced.insert(name, with);
        self
    }

    /// Whether this is an original checkpoint.
    pub fn is_checkpoint(&self) -> bool {
        self.checkpoint.is_some()
    }

    /// What a tokenizer fills a short prompt up with, where its folder does not decide that.
    pub fn padding(&self, tokenizer: &str) -> Option<Padding> {
        self.checkpoint.as_ref().map(|checkpoint| checkpoint.padding(tokenizer))
    }

    /// `model_index.json`.
    pub(crate) fn index(&self) -> &Config {
        &self.index
    }

    /// The weight files to prefer.
    pub(crate) fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// The folder, or the file.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Class of the pipeline, such as `StableDiffusionPipeline`. One that comes with a file of its own is `[file, class]`.
    ///
    /// # Errors
    /// `model_index.json` does not say.
    pub fn class(&self) -> Result<String> {
        let class = match self.index.value("_class_name") {
            Some(Value::Array(pair)) if pair.len() == 2 => pair[1].as_str(),
            class => class.and_then(Value::as_str),
        };
        class
            .map(str::to_owned)
            .ok_or_else(|| self.index.wrong("_class_name", "the class of the pipeline"))
    }

    /// Class of a component, such as `UNet2DConditionModel` of `unet`; `None` when the pipeline has no such
    /// component, or has it switched off (`[null, null]`).
    ///
    /// # Errors
    /// The entry is not `[library, class]`.
    pub fn component(&self, name: &str) -> Result<Option<String>> {
        if self.replaced.contains_key(name) {
            return self.config(name)?.get("_class_name", "the class of the component");
        }
        match self.index.value(name) {
            None => Ok(None),
            Some(Value::Array(pair)) if pair.len() == 2 && pair[1].is_null() => Ok(None),
            Some(Value::Array(pair)) if pair.len() == 2 && pair[1].is_string() => {
                Ok(pair[1].as_str().map(str::to_owned))
            }
            Some(_) => Err(self.index.wrong(name, "[library, class]")),
        }
    }

    /// Folder of a component.
    ///
    /// # Errors
    /// The pipeline has no such component, or its folder is missing.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        if let Some(folder) = self.replaced.get(name) {
            return Ok(folder.clone());
        }
        if self.component(name)?.is_none() {
            return Err(self.index.wrong(name, "a component of the pipeline, [library, class]"));
        }
        let folder = match &self.checkpoint {
            Some(checkpoint) if name.starts_with("tokenizer") => checkpoint.tokenizer()?.to_owned(),
            _ => self.root.join(name),
        };
        if folder.is_dir() {
            return Ok(folder);
        }
        if let Some(trained) = self.trained(name)? {
            return Ok(trained);
        }
        let advice = "The download is incomplete: fetch the missing folder.";
        Err(Error::file(
            &folder,
            "component",
            "the folder that model_index.json names",
            "none",
            advice,
        ))
    }

    /// Where the only checkpoint of a training run has a component, as DiffusionSat is published: `checkpoint-150000/unet`.
    fn trained(&self, name: &str) -> Result<Option<PathBuf>> {
        let entries = fs::read_dir(&self.root).map_err(|e| Error::io(&self.root, e))?;
        let checkpoints = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let checkpoints = checkpoints.filter(|path| file_name(path).starts_with("checkpoint-"));
        let mut found: Vec<_> =
            checkpoints.map(|path| path.join(name)).filter(|path| path.is_dir()).collect();
        found.sort();
        match &found[..] {
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            several => {
                let names: Vec<_> = several.iter().map(|path| path.display().to_string()).collect();
                let advice = format!("Choose one: move it to {}.", self.root.join(name).display());
                let what = format!("{name} of a checkpoint");
                Err(Error::file(&self.root, what, "one", names.join(", "), advice))
            }
        }
    }

    /// Configuration of a component: `scheduler_config.json` of the scheduler, `config.json` of any other.
    ///
    /// # Errors
    /// No such component, or its configuration cannot be read.
    pub fn config(&self, name: &str) -> Result<Config> {
        let (path, text) = self.config_text(name)?;
        let value = super::config::parse(&path, &text)?;
        Config::from_value(path, value)
    }

    /// Path and text of a component's configuration.
    pub(crate) fn config_text(&self, name: &str) -> Result<(PathBuf, String)> {
        if let Some(checkpoint) = self.checkpoint_of(name) {
            let path = format!("{}: {name}", self.root.display());
            return Ok((path.into(), checkpoint.config(name).to_string()));
        }
        let file = if name == "scheduler" { "scheduler_config.json" } else { "config.json" };
        let path = self.folder(name)?.join(file);
        let text = read_text(&path)?;
        Ok((path, text))
    }

    /// Configuration and weights of a component that is a network; no count in the one exceeds what the other holds.
    ///
    /// # Errors
    /// As for [`Self::config`] and [`Self::weights`].
    pub fn network(&self, name: &str) -> Result<(Config, Weights)> {
        let (config, weights) = (self.config(name)?, self.weights(name)?);
        Ok((config.bounded_by(&weights), weights))
    }

    /// Refuses a pipeline that has other components than `known`: they would take part in the drawing.
    ///
    /// # Errors
    /// Names the first such component.
    pub fn check_components(&self, known: &[&str]) -> Result<()> {
        for name in self.index.names().filter(|name| !known.contains(name)) {
            if self.index.value(name).is_some_and(Value::is_array)
                && self.component(name)?.is_some()
            {
                return Err(self
                    .index
                    .wrong(name, &format!("no component but {}", known.join(", "))));
            }
        }
        Ok(())
    }

    /// Weights of a component.
    ///
    /// # Errors
    /// No such component, or its weights cannot be opened (see [`Weights::open`]).
    pub fn weights(&self, name: &str) -> Result<Weights> {
        match self.checkpoint_of(name) {
            Some(checkpoint) => checkpoint.weights(name),
            None => Weights::open(self.folder(name)?, self.variant.as_deref()),
        }
    }

    /// The checkpoint that the component is in.
    fn checkpoint_of(&self, name: &str) -> Option<&Checkpoint> {
        self.checkpoint.as_ref().filter(|_| !self.replaced.contains_key(name))
    }
}

/// The weights of one model, under the names that today's diffusers and transformers give them.
///
/// Older names are translated, both in [`names`](TensorSource::names) and in look-ups:
///
/// | stored | here |
/// |---|---|
/// | `text_model.NAME` | `NAME` |
/// | `attentions.N.{query, key, value, proj_attn}` | `attentions.N.{to_q, to_k, to_v, to_out.0}` |
/// | the same four as 1x1 convolutions, [C, C, 1, 1] | [C, C] |
/// | `position_ids` (a constant, not a weight) | left out |
///
/// So are those of a network in an original [`Checkpoint`].
pub struct Weights {
    source: Arc<SafeTensors>,
    /// Name here -> where it is in the file.
    stored: BTreeMap<String, Stored>,
    /// Where the file is an original checkpoint.
    names: Option<Arc<Names>>,
    note: Option<String>,
    checksums: Checksums,
}

/// Where a tensor is.
struct Stored {
    name: String,
    /// What it is of that.
    cut: Cut,
}

/// Checksums of the tensors that have been read from some weights, by their names in the files.
#[derive(Clone, Default)]
pub struct Checksums(Arc<Mutex<BTreeMap<String, u32>>>);

impl Checksums {
    /// One for all tensors that have been read so far, whatever the order.
    pub fn combined(&self) -> u32 {
        let mut all = crc32fast::Hasher::new();
        for (name, sum) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            all.update(name.as_bytes());
            all.update(&sum.to_le_bytes());
        }
        all.finalize()
    }
}

impl Weights {
    /// Opens the weights in a component's or a model's folder: `diffusion_pytorch_model` or `model`, as one
    /// file or sharded, in the `variant` asked for or else the one there is.
    ///
    /// # Errors
    /// The folder has no safetensors weights (the error says what it has instead, and for pickle files how to
    /// convert them), they are damaged, or hold one tensor under two names.
    pub fn open(folder: impl AsRef<Path>, variant: Option<&str>) -> Result<Self> {
        let (file, note) = find(folder.as_ref(), variant)?;
        Self::from_source(SafeTensors::open(&file)?, note)
    }

    /// The weights in one safetensors file or sharded index.
    ///
    /// # Errors
    /// As for [`SafeTensors::open`], and one tensor under two names.
    pub fn open_file(file: impl AsRef<Path>) -> Result<Self> {
        Self::from_source(SafeTensors::open(file)?, None)
    }

    fn from_source(source: SafeTensors, note: Option<String>) -> Result<Self> {
        let mut weights = Self {
            source: Arc::new(source),
            stored: BTreeMap::new(),
            names: None,
            note,
            checksums: Checksums::default(),
        };
        for name in weights.source.names() {
            weights.add(&name, &name, Cut::Whole)?;
        }
        Ok(weights)
    }

    /// The weights of the network of a checkpoint that has these names.
    pub(in crate::io) fn original(
        source: Arc<SafeTensors>,
        names: Arc<Names>,
        note: Option<String>,
    ) -> Result<Self> {
        let mut weights = Self {
            source,
            stored: BTreeMap::new(),
            names: Some(names.clone()),
            note,
            checksums: Checksums::default(),
        };
        for name in weights.source.names() {
            if checkpoint::has_no_part(&name) {
                continue;
            }
            let parts = names.current(&name);
            let shape = weights.source.info(&name).map(|info| info.shape).unwrap_or_default();
            let misfit = parts.iter().find_map(|(_, cut)| match cut {
                Cut::Third(_) if !shape.first().is_some_and(|rows| rows.is_multiple_of(3)) => {
                    Some("rows of three projections")
                }
                Cut::Turned if shape.len() != 2 => Some("a matrix"),
                _ => None,
            });
            if let Some(expected) = misfit {
                let advice = "The file is damaged: download it again.";
                let (file, what) = (weights.source.origin(&name), format!("tensor {name:?}"));
                return Err(Error::file(file, what, expected, format!("{shape:?}"), advice));
            }
            for (current, cut) in parts {
                weights.add(&current, &name, cut)?;
            }
        }
        Ok(weights)
    }

    /// Adds the tensor that the file calls `stored`, or what of it there is, under today's name for `name`.
    fn add(&mut self, name: &str, stored: &str, cut: Cut) -> Result<()> {
        let Some(current) = current_name(name) else { return Ok(()) };
        let stored = Stored { name: stored.to_owned(), cut };
        let what = format!("tensor {current:?}");
        match self.stored.insert(current, stored) {
            None => Ok(()),
            Some(Stored { name: other, .. }) => {
                let (expected, advice) = ("one of its names", "Remove one of them.");
                let found = format!("both {other:?} and {:?}", name);
                Err(Error::file(self.source.origin(&other), what, expected, found, advice))
            }
        }
    }

    /// What the user should know about the choice of files, if there was one.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Tells these weights from others once they are read, at no second reading.
    pub fn checksums(&self) -> Checksums {
        self.checksums.clone()
    }

    /// The files that tensors are read from.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.source.files()
    }

    fn stored(&self, name: &str) -> Option<&Stored> {
        self.stored.get(name).or_else(|| self.stored.get(&current_name(name)?))
    }
}

impl TensorSource for Weights {
    fn names(&self) -> Vec<String> {
        self.stored.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let Stored { name: stored, cut } = self.stored(name)?;
        let mut info = self.source.info(stored)?;
        match (cut, info.shape.first_mut()) {
            (Cut::Third(_), Some(rows)) => *rows /= 3,
            (Cut::Turned, _) => info.shape.reverse(),
            _ => {}
        }
        if is_pointwise_attention(name, &info.shape) {
            info.shape.truncate(2);
        }
        Some(info)
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        self.read_checked(name, false)
    }

    fn read_briefly(&self, name: &str) -> Result<Tensor> {
        self.read_checked(name, true)
    }

    fn origin(&self, name: &str) -> String {
        let file = self.source.origin(self.stored(name).map_or(name, |stored| &stored.name));
        // In a checkpoint a tensor is looked for under its original name.
        let original = self.names.as_ref().and_then(|names| names.original(name));
        original.map_or(file.clone(), |(original, _)| format!("{file}: {original}"))
    }
}

impl Weights {
    fn read_checked(&self, name: &str, brief: bool) -> Result<Tensor> {
        // An unknown name is passed on: the source's error says where it was looked for.
        let (stored, cut) =
            self.stored(name).map_or((name, Cut::Whole), |stored| (&stored.name[..], stored.cut));
        let dtype = self.source.info(stored).map(|info| info.dtype);
        let seen = Mutex::<Seen>::default();
        let look = |piece, bytes: &[u8]| Seen::look(&seen, dtype, piece, bytes);
        let tensor = self.source.read_with(stored, &look, brief)?;
        let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = seen.fault(dtype, tensor.dims()) {
            let advice = "The file is damaged, or its training has failed: download it again.";
            let (file, what) = (self.source.origin(stored), format!("tensor {stored:?}"));
            return Err(Error::file(file, what, "finite numbers, not all zero", found, advice));
        }
        let sums = &self.checksums.0;
        let mut sums = sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.insert(stored.to_owned(), seen.sum());
        drop(sums);
        match cut {
            Cut::Third(third) => {
                let rows = tensor.dim(0) / 3;
                return tensor.narrow(0, third * rows, rows)?.contiguous();
            }
            Cut::Turned => return tensor.permute(&[1, 0])?.contiguous(), // [C, P] -> [P, C]
            Cut::Whole => {}
        }
        if is_pointwise_attention(name, tensor.dims()) {
            return tensor.reshape(&tensor.dims()[..2]); // [C, C, 1, 1] -> [C, C]
        }
        Ok(tensor)
    }
}

/// What is noticed of a tensor while it is read.
#[derive(Default)]
struct Seen {
    /// Checksums of the pieces that it is read in.
    sums: BTreeMap<usize, crc32fast::Hasher>,
    /// Of floats, the largest bits but for the sign, which order them as they order integers.
    largest: u64,
}

impl Seen {
    fn look(seen: &Mutex<Self>, dtype: Option<DType>, piece: usize, bytes: &[u8]) {
        let mut sum = crc32fast::Hasher::new();
        sum.update(bytes);
        let largest = match dtype {
            Some(DType::F16 | DType::BF16) => {
                let words = bytes.as_chunks().0.iter().map(|x| i16::from_le_bytes(*x) & i16::MAX);
                words.fold(0, i16::max) as u64
            }
            Some(DType::F32) => {
                let words = bytes.as_chunks().0.iter().map(|x| i32::from_le_bytes(*x) & i32::MAX);
                words.fold(0, i32::max) as u64
            }
            Some(DType::F64) => {
                let words = bytes.as_chunks().0.iter().map(|x| i64::from_le_bytes(*x) & i64::MAX);
                words.fold(0, i64::max) as u64
            }
            _ => 0,
        };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.sums.insert(piece, sum);
        seen.largest = seen.largest.max(largest);
    }

    /// What is wrong with a weight of this shape, if anything is. Zeros make a bias or the shift of a norm, but no matrix.
    fn fault(&self, dtype: Option<DType>, shape: &[usize]) -> Option<&'static str> {
        let infinity = match dtype {
            Some(DType::F32) => u64::from(f32::INFINITY.to_bits()),
            Some(DType::F16) => u64::from(half::f16::INFINITY.to_bits()),
            Some(DType::BF16) => u64::from(half::bf16::INFINITY.to_bits()),
            Some(DType::F64) => f64::INFINITY.to_bits(),
            _ => return None,
        };
        let is_matrix = shape.len() > 1 && shape.iter().product::<usize>() > 1;
        match self.largest {
            largest if largest >= infinity => Some("a value that is infinite or not a number"),
            0 if is_matrix => Some("zeros only"),
            _ => None,
        }
    }

    /// A checksum of the checksums of every 4 MiB: pictures carry what comes of it.
    fn sum(&self) -> u32 {
        let mut all = crc32fast::Hasher::new();
        let pieces: Vec<_> = self.sums.values().collect();
        for pieces in pieces.chunks((4 << 20) / PIECE) {
            let mut together = crc32fast::Hasher::new();
            pieces.iter().for_each(|piece| together.combine(piece));
            all.update(&together.finalize().to_le_bytes());
        }
        all.finalize()
    }
}

/// What is where a pipeline was to be, and what is done with it.
fn no_pipeline(root: &Path) -> (String, &'static str) {
    const WHOLE: &str =
        "Name the folder that holds unet/, vae/, text_encoder/, tokenizer/ and scheduler/.";
    if !root.is_dir() {
        return ("no such folder".to_owned(), WHOLE);
    }
    let config = root.join("config.json");
    let config = config.is_file().then(|| Config::open(config).ok()).flatten();
    let class = config.as_ref().and_then(|config| {
        let own = config.value("_class_name");
        let class = own.or_else(|| config.value("architectures")?.get(0))?;
        Some(class.as_str()?.to_owned())
    });
    let any = |end: &str| {
        let entries = fs::read_dir(root).into_iter().flatten();
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| file_name(path).ends_with(end))
    };
    match class.as_deref() {
        Some(class) => {
            let advice = match class {
                "ControlNetModel" => "Give it beside its model: -m MODEL --controlnet DIR.",
                "ControlNetModel3D" => {
                    "DiffusionSat's 3D ControlNets are not supported; its SatUNet and ControlNetModels of diffusers are."
                }
                "AutoencoderKL" | "AutoencoderTiny" => {
                    "Give it beside a model: -m MODEL --vae DIR."
                }
                "CLIPVisionModelWithProjection" => {
                    "Give it beside a model: -m MODEL --ip-adapter FILE --image-encoder DIR."
                }
                "UNet2DModel" => {
                    "nadir draws from texts: UNets without a text encoder are not supported, Stable Diffusion 1.x, 2.x and XL are."
                }
                _ => WHOLE,
            };
            (format!("{class} alone (config.json)"), advice)
        }
        None if any("lora_weights.safetensors").is_some()
            || root.join("adapter_config.json").is_file() =>
        {
            ("a low-rank adapter".to_owned(), "Give it beside its model: -m MODEL --lora DIR.")
        }
        None => match any(".safetensors").or_else(|| any(".ckpt")) {
            Some(file) => (
                format!("{} and no model_index.json", file_name(&file)),
                "An original checkpoint is named by its file (a .ckpt is converted first: nadir convert --script).",
            ),
            None => ("none in this folder".to_owned(), WHOLE),
        },
    }
}

/// Today's name of a stored tensor; `None` for a buffer that is no weight.
fn current_name(name: &str) -> Option<String> {
    if name.rsplit('.').next() == Some("position_ids") {
        return None;
    }
    let name = name.strip_prefix("text_model.").unwrap_or(name);
    let parts: Vec<&str> = name.split('.').collect();
    let Some(i) = projection(&parts) else { return Some(name.to_owned()) };
    let current = match parts[i] {
        "query" => "to_q",
        "key" => "to_k",
        "value" => "to_v",
        "proj_attn" => "to_out.0",
        other => other,
    };
    Some([&parts[..i], &[current], &parts[i + 1..]].concat().join("."))
}

/// Position of PART in `...attentions.N.PART...`: the attention of an autoencoder's middle block, or of a
/// UNet's, where PART is `transformer_blocks`, `proj_in` and the like.
fn projection(parts: &[&str]) -> Option<usize> {
    let i = parts.iter().position(|p| *p == "attentions")? + 2;
    (i < parts.len() && parts[i - 1].bytes().all(|b| b.is_ascii_digit())).then_some(i)
}

/// Whether this is an attention projection that was stored as a 1x1 convolution.
fn is_pointwise_attention(name: &str, shape: &[usize]) -> bool {
    let current = current_name(name).unwrap_or_default();
    let parts: Vec<&str> = current.split('.').collect();
    let projects =
        projection(&parts).is_some_and(|i| ["to_q", "to_k", "to_v", "to_out"].contains(&parts[i]));
    projects && matches!(shape, [_, _, 1, 1])
}

/// The weights file (or index) of a folder, and a remark when it is not the one asked for.
fn find(folder: &Path, variant: Option<&str>) -> Result<(PathBuf, Option<String>)> {
    let plain = std::iter::once(None);
    let wanted: Vec<Option<&str>> = match variant {
        Some(v) => std::iter::once(Some(v)).chain(plain).collect(),
        None => plain.chain(FALLBACKS.map(Some)).collect(),
    };
    for (rank, &candidate) in wanted.iter().enumerate() {
        let Some(file) =
            file_names(candidate).map(|name| folder.join(name)).find(|path| path.exists())
        else {
            continue;
        };
        let described =
            |v: Option<&str>| v.map_or("plain weights".to_owned(), |v| format!("variant {v}"));
        let note = (rank > 0).then(|| {
            let (asked, found) = (described(wanted[0]), described(candidate));
            format!(
                "{}: there is no {asked}, using {found} ({})",
                folder.display(),
                file_name(&file)
            )
        });
        return Ok((file, note));
    }

    // Nothing to load: say what is there instead.
    let mut present: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(|e| Error::io(folder, e))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_file() && path.extension().is_none_or(|e| e != "json"))
        .collect();
    present.sort();
    for path in &present {
        refuse_pickle(path, &[])?;
    }
    let mut names: Vec<&str> = present.iter().map(|p| file_name(p)).collect();
    names.truncate(8);
    let found = if names.is_empty() { "no weights at all".to_owned() } else { names.join(", ") };
    let advice =
        "Download the weights as safetensors, or choose one of those present with --variant.";
    let expected = format!("{}.safetensors or {}.safetensors, or their index", STEMS[0], STEMS[1]);
    Err(Error::file(folder, "weights", expected, found, advice))
}

/// File names that weights of a variant have.
fn file_names(variant: Option<&str>) -> impl Iterator<Item = String> + '_ {
    STEMS.into_iter().flat_map(move |stem| match variant {
        None => vec![format!("{stem}.safetensors"), format!("{stem}.safetensors.index.json")],
        Some(v) => vec![
            format!("{stem}.{v}.safetensors"),
            format!("{stem}.safetensors.index.{v}.json"),
            format!("{stem}.{v}.safetensors.index.json"),
        ],
    })
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|n| n.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::safetensors::save;
    use crate::tensor::Device;

    fn weights(path: &Path, tensors: &[(&str, &[usize])]) {
        let tensors: Vec<(String, Tensor)> = tensors
            .iter()
            .map(|(name, shape)| {
                let n = shape.iter().product::<usize>();
                (
                    name.to_string(),
                    Tensor::from_vec((0..n).map(|i| i as f32).collect(), *shape).unwrap(),
                )
            })
            .collect();
        save(path, &tensors, &BTreeMap::new()).unwrap();
    }

    #[test]
    fn old_names_become_new_ones() {
        let folder = tempfile::tempdir().unwrap();
        weights(
            &folder.path().join("model.safetensors"),
            &[
                ("text_model.final_layer_norm.weight", &[4]),
                ("text_model.embeddings.position_ids", &[1, 7]),
                ("encoder.mid_block.attentions.0.query.weight", &[4, 4, 1, 1]),
                ("encoder.mid_block.attentions.0.proj_attn.weight", &[4, 4]),
                ("encoder.mid_block.attentions.0.key.bias", &[4]),
                ("decoder.mid_block.attentions.0.to_v.weight", &[4, 4]),
                ("down_blocks.0.attentions.1.proj_in.weight", &[4, 4, 1, 1]),
                ("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight", &[4, 4]),
            ],
        );
        let w = Weights::open(folder.path(), None).unwrap();
        assert_eq!(w.note(), None);
        assert_eq!(
            w.names(),
            [
                "decoder.mid_block.attentions.0.to_v.weight",
                "down_blocks.0.attentions.1.proj_in.weight",
                "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight",
                "encoder.mid_block.attentions.0.to_k.bias",
                "encoder.mid_block.attentions.0.to_out.0.weight",
                "encoder.mid_block.attentions.0.to_q.weight",
                "final_layer_norm.weight",
            ]
        );
        // Linear where diffusers has a linear layer, a convolution where it has one.
        for (name, shape) in [
            ("encoder.mid_block.attentions.0.to_q.weight", &[4, 4][..]),
            ("down_blocks.0.attentions.1.proj_in.weight", &[4, 4, 1, 1]),
            ("text_model.final_layer_norm.weight", &[4]),
            ("final_layer_norm.weight", &[4]),
        ] {
            assert_eq!(w.info(name).unwrap().shape, shape, "{name}");
            assert_eq!(w.read(name).unwrap().dims(), shape, "{name}");
        }
        assert!(w.info("embeddings.position_ids").is_none());
        let error = w.read("nothing.weight").unwrap_err().to_string();
        assert!(error.contains("model.safetensors") && error.contains("nothing.weight"), "{error}");
    }

    #[test]
    fn one_tensor_under_two_names_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        weights(&folder.path().join("model.safetensors"), &[("text_model.a", &[1]), ("a", &[1])]);
        let error = Weights::open(folder.path(), None).err().unwrap().to_string();
        assert!(error.contains("text_model.a"), "{error}");
    }

    #[test]
    fn damaged_weights_are_named_when_they_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        // Larger than what is read at a time; the fault is the last element.
        let n = 1_100_000;
        let last = |x: f32, dtype| {
            let mut values = vec![0.0; 2 * n];
            values[2 * n - 1] = x;
            Tensor::from_vec(values, [2, n]).unwrap().to_dtype(dtype).unwrap()
        };
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
            for (x, words) in [
                (f32::NAN, Some("not a number")),
                (-f32::INFINITY, Some("infinite")),
                (-0.0, Some("zeros only")),
                (-1e-4, None),
                (60_000.0, None),
            ] {
                let tensors = [("a.bias", Tensor::zeros([4], dtype, Device::Cpu).unwrap())];
                let tensors = tensors.into_iter().chain([("a.weight", last(x, dtype))]);
                let tensors: Vec<_> = tensors.map(|(n, t)| (n.to_owned(), t)).collect();
                save(&path, &tensors, &BTreeMap::new()).unwrap();
                let w = Weights::open(folder.path(), None).unwrap();
                w.read("a.bias").unwrap();
                match (w.read("a.weight"), words) {
                    (Ok(_), None) => {}
                    (Err(error), Some(words)) => {
                        let error = error.to_string();
                        let named = ["model.safetensors", "\"a.weight\"", words];
                        assert!(named.iter().all(|w| error.contains(w)), "{error}");
                    }
                    (result, _) => panic!("{x} in {dtype}: {result:?}"),
                }
            }
        }
    }

    #[test]
    fn checksums_tell_weights_apart_whatever_the_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let sum = |tensors: &[(&str, &[usize])], order: &[&str]| {
            weights(&path, tensors);
            let w = Weights::open(folder.path(), None).unwrap();
            order.iter().for_each(|name| drop(w.read(name).unwrap()));
            w.checksums().combined()
        };
        let both = sum(&[("a", &[2]), ("b", &[3])], &["a", "b"]);
        assert_eq!(sum(&[("a", &[2]), ("b", &[3])], &["b", "a", "b"]), both);
        for other in [
            sum(&[("a", &[2]), ("b", &[4])], &["a", "b"]),
            sum(&[("a", &[2]), ("c", &[3])], &["a", "c"]),
            sum(&[("a", &[2]), ("b", &[3])], &["a"]),
        ] {
            assert_ne!(other, both);
        }
    }

    /// However it is read: fingerprints in pictures stay those of their models.
    #[test]
    fn a_checksum_is_that_of_pieces_of_four_megabytes() {
        let bytes: Vec<u8> = (0..(9usize << 20) + 12).map(|i| (i * i / 7) as u8).collect();
        let mut expected = crc32fast::Hasher::new();
        bytes.chunks(4 << 20).for_each(|b| expected.update(&crc32fast::hash(b).to_le_bytes()));
        let seen = Mutex::<Seen>::default();
        let pieces: Vec<_> = bytes.chunks(PIECE).enumerate().collect();
        pieces.iter().rev().for_each(|(i, piece)| Seen::look(&seen, None, *i, piece));
        assert_eq!(seen.into_inner().unwrap().sum(), expected.finalize());
    }

    #[test]
    fn the_variant_asked_for_else_the_one_there_is() {
        let folder = tempfile::tempdir().unwrap();
        let open = |variant| Weights::open(folder.path(), variant);
        let error = open(None).err().unwrap().to_string();
        assert!(error.contains("no weights at all"), "{error}");

        weights(&folder.path().join("diffusion_pytorch_model.fp16.safetensors"), &[("half", &[1])]);
        let only = open(None).unwrap();
        assert!(only.note().unwrap().contains("using variant fp16"), "{:?}", only.note());
        assert!(open(Some("fp16")).unwrap().note().is_none());

        weights(&folder.path().join("diffusion_pytorch_model.safetensors"), &[("full", &[1])]);
        assert_eq!(open(None).unwrap().names(), ["full"]);
        assert_eq!(open(Some("fp16")).unwrap().names(), ["half"]);
        let other = open(Some("bf16")).unwrap();
        assert_eq!(other.names(), ["full"]);
        assert!(other.note().unwrap().contains("no variant bf16"));
    }

    #[test]
    fn shards_are_one_source() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        weights(&at("model-00001-of-00002.safetensors"), &[("a", &[2]), ("b", &[3])]);
        weights(&at("model-00002-of-00002.safetensors"), &[("c", &[5])]);
        let write_index = |map: Value| {
            let index = serde_json::json!({ "metadata": { "total_size": 40 }, "weight_map": map });
            fs::write(at("model.safetensors.index.fp16.json"), index.to_string()).unwrap();
        };
        let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
        write_index(serde_json::json!({ "a": one, "b": one, "c": two }));
        let w = Weights::open(folder.path(), Some("fp16")).unwrap();
        assert_eq!(w.names(), ["a", "b", "c"]);
        assert_eq!(w.read("c").unwrap().to_vec::<f32>().unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert!(w.origin("c").ends_with(two));

        for (map, words) in [
            (serde_json::json!({ "a": one, "b": two, "c": two }), ["\"b\"", "different models"]),
            (serde_json::json!({ "a": one, "z": two }), ["\"z\"", "nowhere"]),
            (
                serde_json::json!({ "a": "model-3.safetensors" }),
                ["model-3.safetensors", "missing shard"],
            ),
            (
                serde_json::json!({ "a": "../model.safetensors" }),
                ["weight_map", "beside the index"],
            ),
            (serde_json::json!({ "a": 3 }), ["index", "expected a string"]),
        ] {
            write_index(map);
            let error = Weights::open(folder.path(), Some("fp16")).err().unwrap().to_string();
            assert!(words.iter().all(|w| error.contains(w)), "{error}");
        }
    }

    #[test]
    fn a_pipeline_names_its_components() {
        let root = tempfile::tempdir().unwrap();
        let error = PipelineFolder::open(root.path(), None).err().unwrap().to_string();
        assert!(error.contains("model_index.json"), "{error}");
        let index = serde_json::json!({
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", "UNet2DConditionModel"],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "safety_checker": [null, null],
            "vae": "AutoencoderKL",
        });
        fs::write(root.path().join("model_index.json"), index.to_string()).unwrap();
        let p = PipelineFolder::open(root.path(), None).unwrap();
        assert_eq!(p.class().unwrap(), "StableDiffusionPipeline");
        assert_eq!(p.component("unet").unwrap().as_deref(), Some("UNet2DConditionModel"));
        assert_eq!(p.component("safety_checker").unwrap(), None);
        assert_eq!(p.component("image_encoder").unwrap(), None);
        assert!(p.component("vae").unwrap_err().to_string().contains("[library, class]"));
        assert!(p.folder("unet").unwrap_err().to_string().contains("incomplete"));

        fs::create_dir(root.path().join("scheduler")).unwrap();
        fs::write(root.path().join("scheduler/scheduler_config.json"), r#"{"beta_start": 0.1}"#)
            .unwrap();
        assert_eq!(p.config("scheduler").unwrap().f64("beta_start", 0.0).unwrap(), 0.1);
    }
}
