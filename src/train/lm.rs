//! Training a causal language model: the cross entropy of the token that follows, whole models or low-rank adapters.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::diffusion::LoraSettings;
use super::initial::{low_rank, of_name};
use super::precision::{Compute, MixedPrecision};
use super::random::Random;
use super::records::{Content, Sample};
use super::run::{Loss, Measured, Task, number_of};
use super::vae::NoFile;
use crate::data::text::{FILLING, TextSet, TokenBatch};
use crate::error::{Error, Result};
use crate::io::TensorSource;
use crate::io::atomic;
use crate::io::config::{Config, read_json};
use crate::io::folder::Weights;
use crate::models::decoder::{Decoder, DecoderConfig, DecoderWeights};
use crate::nn::lora::LowRank;
use crate::nn::{Keep, Parameter, Params, parameters};
use crate::ops::cross_entropy::{CrossEntropy, cross_entropy};
use crate::ops::elementwise::scale;
use crate::tensor::{DType, Device, Tensor};

/// Tokens of a sample at most.
const SAMPLE: usize = 48;

/// Shape of a new model, GPT-2's.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "New model")]
pub struct NewDecoder {
    /// Blocks
    #[arg(long, value_name = "N", default_value_t = 6, allow_negative_numbers = true)]
    pub layers: usize,

    /// Width of the hidden states
    #[arg(long, value_name = "N", default_value_t = 256, allow_negative_numbers = true)]
    pub width: usize,

    /// Heads of each attention
    #[arg(long, value_name = "N", default_value_t = 8, allow_negative_numbers = true)]
    pub heads: usize,

    /// Longest text in tokens
    #[arg(long, value_name = "N", default_value_t = 256, allow_negative_numbers = true)]
    pub context: usize,
}

impl Default for NewDecoder {
    fn default() -> Self {
        Self { layers: 6, width: 256, heads: 8, context: 256 }
    }
}

impl NewDecoder {
    /// Its `config.json`; `vocabulary` tokens, of which `ends` begins and ends a text.
    pub fn config(&self, vocabulary: usize, [start, end]: [u32; 2]) -> Value {
        let Self { layers, width, heads, context } = *self;
        let mut config = DecoderConfig::gpt2_json(vocabulary, context, width, layers, heads);
        config["bos_token_id"] = json!(start);
        config["eos_token_id"] = json!(end);
        config["pad_token_id"] = json!(end);
        config
    }
}

/// Text from tokens.
type Decode = Box<dyn Fn(&[u32]) -> Result<String> + Send + Sync>;

/// What is shown amid training: beginnings, and how they go on.
pub struct Prompts {
    /// Each with the token that begins a text, and what it reads.
    pub prompts: Vec<(String, Vec<u32>)>,
    /// The token that ends a text.
    pub end: u32,
    /// Reads tokens.
    pub decode: Decode,
}

/// What is trained in place of the model's weights.
struct Adapters {
    matrices: LowRank,
    rank: usize,
    alpha: f64,
    particulars: BTreeMap<String, String>,
}

/// A language model that is trained.
pub struct LmTask {
    model: Decoder,
    config: Value,
    /// Where it was loaded from, if from files.
    source: Option<(PathBuf, DecoderWeights<Weights>)>,
    /// Files that make a folder whole: the tokenizer's.
    files: Vec<PathBuf>,
    adapters: Option<Adapters>,
    /// Share of the tokens that the model sees as another.
    token_dropout: f64,
    prompts: Option<Prompts>,
    dtype: Option<DType>,
    compute: Compute,
}

impl LmTask {
    /// A new model of this configuration, whose weights begin as GPT-2's; `compute` may be a device alone.
    ///
    /// # Errors
    /// The configuration cannot be understood; `origin` says in errors where it came from.
    pub fn new(
        origin: &Path,
        config: Value,
        seed: u64,
        compute: impl Into<Compute>,
    ) -> Result<Self> {
        let compute = compute.into();
        let shape = DecoderConfig::read(&Config::from_value(origin, config.clone())?)?;
        let layers = shape.num_hidden_layers;
        let new = move |name: &str, shape: &[usize]| initial(seed, name, shape, layers);
        let params = Params::initial(new, compute.precision.dtype(), compute.device);
        let model = Decoder::load(shape, &params.keeping(Keep::Trainable))?;
        Ok(Self::with(model, config, None, compute))
    }

    /// The model in a folder of transformers; `compute` may be a device alone.
    ///
    /// # Errors
    /// It cannot be read, or is of another kind.
    pub fn open(folder: &Path, compute: impl Into<Compute>) -> Result<Self> {
        let compute = compute.into();
        let path = folder.join("config.json");
        let config = read_json(&path)?;
        let shape = DecoderConfig::read(&Config::from_value(&path, config.clone())?)?;
        let weights =
            |shape: &DecoderConfig| Ok::<_, Error>(shape.weights(Weights::open(folder, None)?));
        let source = weights(&shape)?;
        let params = Params::new(weights(&shape)?, compute.precision.dtype(), compute.device);
        let model = Decoder::load(shape, &params.keeping(Keep::Trainable))?;
        params.finish()?;
        Ok(Self::with(model, config, Some((folder.to_path_buf(), source)), compute))
    }

    fn with(
        model: Decoder,
        config: Value,
        source: Option<(PathBuf, DecoderWeights<Weights>)>,
        compute: Compute,
    ) -> Self {
        Self {
            model,
            config,
            source,
            files: Vec::new(),
            adapters: None,
            token_dropout: 0.0,
            prompts: None,
            dtype: None,
            compute,
        }
    }

    /// The shape of the model.
    pub fn shape(&self) -> &DecoderConfig {
        self.model.config()
    }

    /// The same, where `settings` say so with adapters that are trained instead of the weights; they begin as those in
    /// `from`, a peft folder or file, if that is given.
    ///
    /// # Errors
    /// `Argument` for a rank or a scale that cannot be; adapters of another model or rank.
    pub fn adapting(
        mut self,
        settings: &LoraSettings,
        from: Option<&Path>,
        seed: u64,
    ) -> Result<Self> {
        let Some(rank) = settings.lora_rank else { return Ok(self) };
        let alpha = settings.alpha(rank)?;
        let new = |name: &str, shape: &[usize]| low_rank(seed, name, shape);
        let matrices = LowRank::new(&self.model, settings.lora_targets, rank, alpha, new)?;
        if let Some(path) = from {
            matrices.take_up(path)?;
        }
        let particulars = settings.particulars(rank, alpha);
        self.adapters = Some(Adapters { matrices, rank, alpha, particulars });
        Ok(self)
    }

    /// The same, exported in `dtype` rather than f32.
    pub fn exporting(self, dtype: Option<DType>) -> Self {
        Self { dtype, ..self }
    }

    /// The same, exported with these files beside the weights: a tokenizer's.
    pub fn beside(self, files: Vec<PathBuf>) -> Self {
        Self { files, ..self }
    }

    /// The same, which goes on with these beginnings amid training.
    pub fn sampling(self, prompts: Prompts) -> Self {
        Self { prompts: Some(prompts), ..self }
    }

    /// The same, which sees a share of the tokens that it learns from as a random other: it is to trust none alone.
    ///
    /// # Errors
    /// `Argument` for what is no share.
    pub fn dropping(self, token_dropout: f64) -> Result<Self> {
        if !(0.0..1.0).contains(&token_dropout) {
            return Err(Error::argument("token_dropout", token_dropout, "0 to below 1"));
        }
        Ok(Self { token_dropout, ..self })
    }

    /// Mean cross entropy of the targets that count, of a batch whose tokens are seen as `ids`.
    fn mean_loss(&self, ids: &Tensor, batch: &TokenBatch) -> Result<Tensor> {
        let device = self.compute.device;
        if let Some(adapters) = &self.adapters {
            adapters.matrices.apply(&self.model)?;
        }
        let ids = ids.to_device(device)?;
        let logits = match &*batch.documents {
            [] => self.model.forward(&ids)?,
            lengths => self.model.forward_packed(&ids, lengths)?,
        }; // [B, T, V]
        let settings = CrossEntropy { ignore_index: Some(FILLING), ..CrossEntropy::default() };
        cross_entropy(&logits, &batch.targets.to_device(device)?, settings)
    }

    /// The ids [B, T] of a batch with some of them, but none that a document begins with, replaced.
    fn dropped(&self, batch: &TokenBatch, random: &mut Random) -> Result<Tensor> {
        if self.token_dropout == 0.0 {
            return Ok(batch.ids.clone());
        }
        let (b, t) = batch.ids.dims2()?;
        let vocabulary = self.model.config().vocab_size;
        let mut values = batch.ids.to_vec::<i64>()?;
        for (i, row) in values.chunks_mut(t).enumerate() {
            let lengths = batch.documents.get(i).map_or(&[][..], |lengths| lengths);
            let ends = lengths.iter().scan(0, |end, length| {
                *end += length;
                Some(*end)
            });
            let starts: BTreeSet<usize> = ends.chain([0]).collect();
            for (place, id) in row.iter_mut().enumerate() {
                if !starts.contains(&place) && random.unit() < self.token_dropout {
                    *id = random.below(vocabulary) as i64;
                }
            }
        }
        Tensor::from_vec(values, [b, t])
    }

    /// What the model goes on with behind `prompt`, the likeliest token each time.
    fn continued(&self, prompt: &[u32], end: u32) -> Result<Vec<u32>> {
        let context = self.model.config().max_position_embeddings;
        let mut ids: Vec<i64> = prompt.iter().map(|&id| id.into()).collect();
        while ids.len() < (prompt.len() + SAMPLE).min(context) {
            let input = Tensor::from_vec(ids.clone(), [1, ids.len()])?;
            let hidden = self.model.hidden(&input.to_device(self.compute.device)?)?; // [1, T, C]
            let logits = self.model.logits(&hidden.narrow(1, ids.len() - 1, 1)?)?;
            let logits = logits.to_device(Device::Cpu)?.to_dtype(DType::F32)?.to_vec::<f32>()?;
            let best = (0..).zip(&logits).max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(id, _)| id);
            if best == i64::from(end) {
                break;
            }
            ids.push(best);
        }
        Ok(ids.iter().map(|&id| id as u32).collect())
    }
}

/// The weight `name` of a new model, as GPT-2's begin (Radford et al. 2019): normal with a deviation of 0.02, and what is
/// added to the residual, by two matrices a block, over the root of their number; factors of norms 1, biases 0.
fn initial(seed: u64, name: &str, shape: &[usize], layers: usize) -> Result<Tensor> {
    if let &[n] = shape {
        let value = if name.ends_with("weight") { 1.0 } else { 0.0 };
        return Tensor::full([n], value, DType::F32, Device::Cpu);
    }
    let ends = ["c_proj.weight", "o_proj.weight", "down_proj.weight", "dense.weight", "fc2.weight"];
    let added = ends.iter().any(|end| name.ends_with(end));
    let share = if added { 1.0 / (2.0 * layers.max(1) as f64).sqrt() } else { 1.0 };
    let normal = of_name(seed, name).normal(shape)?;
    scale(&normal, (0.02 * share) as f32)
}

impl Task<TextSet> for LmTask {
    fn name(&self) -> &'static str {
        "lm"
    }

    fn parameters(&self) -> Vec<(String, &Parameter)> {
        match &self.adapters {
            Some(adapters) => adapters.matrices.parameters().collect(),
            None => parameters(&self.model),
        }
    }

    fn precision(&self) -> MixedPrecision {
        self.compute.precision
    }

    fn particulars(&self) -> BTreeMap<String, String> {
        self.adapters.as_ref().map_or_else(BTreeMap::new, |adapters| adapters.particulars.clone())
    }

    fn loss(&self, batch: &TokenBatch, random: &mut Random) -> Result<Loss> {
        let ids = self.dropped(batch, random)?;
        Ok(Loss { total: self.mean_loss(&ids, batch)?, parts: Vec::new() })
    }

    fn validate(&self, batch: &TokenBatch, _: &mut Random) -> Result<Measured> {
        let loss = number_of(&self.mean_loss(&batch.ids, batch)?)?;
        Ok(vec![("validation_loss", batch.count as f64 * loss)])
    }

    fn conclude(&self, means: &Measured) -> Measured {
        let loss = means.iter().find(|(name, _)| *name == "validation_loss");
        loss.map(|(_, loss)| ("perplexity", loss.exp())).into_iter().collect()
    }

    /// The prompts, and how they go on.
    fn samples(&self, _: &TextSet, _: u64) -> Result<Vec<Sample>> {
        let Some(Prompts { prompts, end, decode }) = &self.prompts else { return Ok(Vec::new()) };
        if let Some(adapters) = &self.adapters {
            adapters.matrices.apply(&self.model)?;
        }
        let sample = |(caption, prompt): &(String, Vec<u32>)| {
            let tokens = self.continued(prompt, *end)?;
            let text = decode(&tokens[1..])?;
            Ok(Sample { caption: caption.clone(), content: Content::Text(text) })
        };
        prompts.iter().map(sample).collect()
    }

    /// A folder of transformers; of adapters one of peft.
    fn export(&self, folder: &Path, _: &Measured) -> Result<()> {
        let dtype = self.dtype.unwrap_or(DType::F32);
        if let Some(Adapters { matrices, rank, alpha, .. }) = &self.adapters {
            let base = self.source.as_ref().map(|(folder, _)| folder.display().to_string());
            return matrices.export_peft(folder, base.as_deref(), (*rank, *alpha), dtype);
        }
        let mut config = self.config.clone();
        let name = match dtype {
            DType::BF16 => "bfloat16",
            DType::F16 => "float16",
            _ => "float32",
        };
        config["dtype"] = json!(name);
        write_json(&folder.join("config.json"), &config)?;
        let ids = ["bos_token_id", "eos_token_id", "pad_token_id"];
        let known = ids.iter().filter_map(|&id| Some((id, config.get(id)?.clone())));
        let generation: serde_json::Map<String, Value> =
            known.map(|(id, value)| (id.to_owned(), value)).collect();
        write_json(&folder.join("generation_config.json"), &generation.into())?;
        for file in &self.files {
            let bytes = std::fs::read(file).map_err(|e| Error::io(file, e))?;
            let path = folder.join(file.file_name().unwrap_or_default());
            atomic::write(&path, |out| out.write_all(&bytes))?;
        }
        let source: &dyn TensorSource = match &self.source {
            Some((_, source)) => source,
            None => &NoFile,
        };
        self.model.save(source, &folder.join("model.safetensors"), Some(dtype))
    }
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    atomic::write(path, |out| writeln!(out, "{value:#}"))
}
