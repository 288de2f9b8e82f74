//! Decoders of transformers: the networks of causal language models.
//!
//! Radford et al. 2019, "Language Models are Unsupervised Multitask Learners" (GPT-2); Gunasekar et al. 2023, "Textbooks Are
//! All You Need" (Phi); Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models", whose block the
//! families after it have. What they differ in is data, [`DecoderConfig`].
//! Reference implementation: transformers, `models/{gpt2,phi,llama,qwen2,qwen3}/modeling_*.py`.

mod cache;
mod config;
mod names;
mod packing;

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::io::TensorSource;
use crate::io::folder::Weights;
use crate::nn::{
    Embedding, Keep, LayerNorm, Linear, Module, Parameter, Params, RmsNorm, TiedEmbedding,
    checkpoint, join, parameters, save_turned,
};
use crate::ops::attention::{AttentionConfig, attention, attention_ragged};
use crate::ops::cache::Places;
use crate::ops::elementwise::{add, mul};
use crate::ops::matmul::{Activation, Epilogue};
use crate::ops::rotary::{rotary, rotary_table};
use crate::tensor::{DType, Device, Tensor};
use names::Names;
use packing::Documents;

pub use cache::Cache;
pub use config::{Biases, Block, DecoderConfig, NormKind, Rotary};
pub use names::DecoderWeights;

/// A causal language model: what a token is followed by, given all before it.
pub struct Decoder {
    config: DecoderConfig,
    vocabulary: Vocabulary,
    /// Absent where positions turn queries and keys.
    positions: Option<Embedding>,
    /// The cosines and sines that they turn by.
    angles: Option<Tensor>,
    layers: Vec<Arc<Layer>>,
    norm: Norm,
    dtype: DType,
    device: Device,
}

/// Where tokens stand.
#[derive(Clone)]
struct Place {
    /// [B, T], u32
    positions: Tensor,
    /// Of [`rotary`].
    angles: Option<Tensor>,
    /// Where rows hold several.
    documents: Option<Arc<Documents>>,
}

/// What has been computed of earlier tokens.
struct Past<'a> {
    cache: &'a mut Cache,
    /// The slot of the first sequence.
    first: usize,
    places: Places,
    block: usize,
}

/// The vectors of the tokens, on their way in and out.
enum Vocabulary {
    Tied(TiedEmbedding),
    Apart { tokens: Embedding, head: Box<Linear> },
}

enum Norm {
    Layer(Box<LayerNorm>),
    Rms(Box<RmsNorm>),
}

/// A block.
struct Layer {
    norm1: Norm,
    attention: Attention,
    /// `None`: attention and feed-forward layers are parallel.
    norm2: Option<Norm>,
    mlp: Mlp,
    names: &'static Names,
}

struct Attention {
    /// Of queries, keys and values: one of all, or three.
    qkv: Vec<Linear>,
    /// Of each head's queries and keys.
    qk_norm: Option<[RmsNorm; 2]>,
    out: Linear,
    /// H and G.
    heads: [usize; 2],
    config: AttentionConfig,
    names: &'static Names,
}

struct Mlp {
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
    act: Activation,
    names: &'static Names,
}

impl Decoder {
    /// The model in a folder of transformers, sharded or not.
    ///
    /// # Errors
    /// As [`DecoderConfig::read`] and [`Params::finish`].
    pub fn open(
        folder: impl AsRef<Path>,
        dtype: DType,
        device: Device,
        keep: Keep,
    ) -> Result<Self> {
        let folder = folder.as_ref();
        let config = DecoderConfig::open(folder)?;
        let weights = config.weights(Weights::open(folder, None)?);
        let params = Params::new(weights, dtype, device).of_model("decoder").keeping(keep);
        let model = Self::load(config, &params)?;
        params.finish()?;
        Ok(model)
    }

    /// Builds the model from the weights at `p`, which are [those of the configuration](DecoderConfig::weights).
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(config: DecoderConfig, p: &Params) -> Result<Self> {
        let (v, c, names) = (config.vocab_size, config.hidden_size, config.names);
        let (root, head) = (p.pp(names.root), p.pp(names.head));
        let tokens = root.pp(names.tokens);
        let vocabulary = match config.tied {
            true => Vocabulary::Tied(TiedEmbedding::load(&tokens, v, c)?),
            false => Vocabulary::Apart {
                tokens: Embedding::load(&tokens, v, c)?,
                head: Box::new(Linear::load(&head, c, v, config.block.bias.head)?),
            },
        };
        let context = config.max_position_embeddings;
        let positions =
            names.positions.map(|name| Embedding::load(&root.pp(name), context, c)).transpose()?;
        let angles = config.rotary.map(|Rotary { channels, theta, scaling }| {
            rotary_table(context, channels, theta, scaling)?.to_device(p.device())
        });
        let layers = root.pp(names.layers);
        Ok(Self {
            vocabulary,
            positions,
            angles: angles.transpose()?,
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::load(&config, &layers.pp(i)))
                .collect::<Result<_>>()?,
            norm: Norm::load(&config, &root.pp(names.norm))?,
            dtype: p.dtype(),
            device: p.device(),
            config,
        })
    }

    /// The shape of this model.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Writes the weights as transformers has them, into the safetensors file `path`; arguments and errors as
    /// [`nn::save`](crate::nn::save).
    pub fn save(&self, source: &dyn TensorSource, path: &Path, dtype: Option<DType>) -> Result<()> {
        save_turned(self, source, path, dtype, &|name| self.config.names.is_turned(name))
    }

    /// `ids` [B, T], i64 -> logits [B, T, V] of the token behind each.
    ///
    /// # Errors
    /// As [`Self::hidden`].
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.logits(&self.hidden(ids)?)
    }

    /// `ids` [B, T], i64 -> hidden states [B, T, C] behind the final norm, of sequences that begin at position 0.
    ///
    /// # Errors
    /// A sequence longer than the context, an id outside of the vocabulary.
    pub fn hidden(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, t) = ids.dims2()?;
        self.check_length(t)?;
        let positions: Vec<u32> = (0..b).flat_map(|_| 0..t as u32).collect();
        let positions = Tensor::from_vec(positions, [b, t])?.to_device(self.device)?;
        self.run(self.vocabulary.embed(ids)?, self.place(positions), None)
    }

    /// As [`Self::forward`], of rows in which documents of these `lengths` lie behind each other: each begins at position 0, and
    /// none sees another. What a row has behind them belongs to the last.
    ///
    /// # Errors
    /// As [`Self::hidden`]; `Argument` when rows are not made up of the documents.
    pub fn forward_packed(&self, ids: &Tensor, lengths: &[Vec<usize>]) -> Result<Tensor> {
        let (b, t) = ids.dims2()?;
        self.check_length(t)?;
        if lengths.len() != b {
            return Err(Error::argument(
                "documents",
                format!("{} rows", lengths.len()),
                format!("the {b} of ids"),
            ));
        }
        let documents = Arc::new(Documents::new(lengths, t, self.device)?);
        let place = self.place(documents.positions.clone());
        let place = Place { documents: Some(documents), ..place };
        self.logits(&self.run(self.vocabulary.embed(ids)?, place, None)?)
    }

    /// An empty cache of `slots` sequences of at most `capacity` tokens.
    ///
    /// # Errors
    /// `Argument` for more tokens than the model's context; `OutOfMemory`.
    pub fn cache(&self, slots: usize, capacity: usize) -> Result<Cache> {
        self.check_length(capacity)?;
        Cache::new(&self.config, slots, capacity, self.dtype, self.device)
    }

    /// `ids` [B, T], i64, the next T tokens of the sequences in B slots of `cache` from `first` on -> their hidden states
    /// [B, T, C] behind the final norm. A sequence has the bits that it has in any other batch and slot.
    ///
    /// # Errors
    /// As [`Self::hidden`]; `Argument` when the cache has no such slots, or no room.
    pub fn extend(&self, ids: &Tensor, cache: &mut Cache, first: usize) -> Result<Tensor> {
        let (b, t) = ids.dims2()?;
        cache.extend(first, b, t, |cache| self.step(self.vocabulary.embed(ids)?, cache, first))
    }

    /// The device's part of [`Self::extend`], for ids that are there: nothing is sent, looked at or waited for, so that a
    /// captured graph can hold it. Goes within [`Cache::extend`].
    ///
    /// # Errors
    /// As [`Self::extend`], but an id outside of the vocabulary makes NaNs.
    pub(crate) fn extend_in_place(
        &self,
        ids: &Tensor,
        cache: &mut Cache,
        first: usize,
    ) -> Result<Tensor> {
        self.step(self.vocabulary.embed_in_place(ids)?, cache, first)
    }

    /// `x` [B, T, C], the vectors of the next tokens.
    fn step(&self, x: Tensor, cache: &mut Cache, first: usize) -> Result<Tensor> {
        let places = cache.advance(first, x.dim(0), x.dim(1))?;
        let place = self.place(places.positions.clone());
        self.run(x, place, Some(Past { cache, first, places, block: 0 }))
    }

    /// Bytes that a step reads for a token of each of `batch` sequences of `length` tokens: every weight once, of tables that
    /// are only looked up a row for each, and the keys and values of each sequence.
    pub fn step_bytes(&self, batch: usize, length: usize) -> usize {
        let config = &self.config;
        let of = |module: &dyn Module| parameters(module).iter().map(|(_, p)| p.bytes()).sum();
        let head: usize = match &self.vocabulary {
            Vocabulary::Tied(table) => of(table),
            Vocabulary::Apart { head, .. } => of(&**head),
        };
        let layers: usize = self.layers.iter().map(|layer| of(&**layer)).sum();
        let norm: usize = of(&self.norm);
        let tables = if self.positions.is_some() { 2 } else { 1 };
        let row = config.hidden_size * self.dtype.size();
        let key = config.num_key_value_heads * config.head_dim * self.dtype.size();
        let past = 2 * config.num_hidden_layers * length * key;
        head + layers + norm + batch * (tables * row + past)
    }

    fn check_length(&self, tokens: usize) -> Result<()> {
        let limit = self.config.max_position_embeddings;
        if tokens <= limit {
            return Ok(());
        }
        Err(Error::argument("tokens", tokens, format!("at most {limit}, the model's context")))
    }

    /// `positions` [B, T]
    fn place(&self, positions: Tensor) -> Place {
        Place { positions, angles: self.angles.clone(), documents: None }
    }

    /// `x` [B, T, C], vectors of tokens, where they stand, and what came before.
    fn run(&self, mut x: Tensor, place: Place, mut past: Option<Past>) -> Result<Tensor> {
        // 1. positions
        if let Some(table) = &self.positions {
            x = add(&x, &table.forward_in_place(&place.positions)?)?;
        }
        // 2. blocks
        for (block, layer) in self.layers.iter().enumerate() {
            x = match &mut past {
                Some(past) => {
                    past.block = block;
                    layer.compute(&x, &place, Some(past))?
                }
                None => layer.forward(&x, &place)?,
            };
        }
        // 3. norm
        self.norm.forward(&x)
    }

    /// Hidden states [.., C] -> logits [.., V].
    ///
    /// # Errors
    /// `Shape` for another width.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        match &self.vocabulary {
            Vocabulary::Tied(table) => table.scores(hidden),
            Vocabulary::Apart { head, .. } => head.forward(hidden),
        }
    }
}

impl Vocabulary {
    /// `ids` [B, T] -> [B, T, C]
    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Self::Tied(table) => table.forward(ids),
            Self::Apart { tokens, .. } => tokens.forward(ids),
        }
    }

    /// As [`Self::embed`], of ids that a GPU reads where they are.
    fn embed_in_place(&self, ids: &Tensor) -> Result<Tensor> {
        match self {
            Self::Tied(table) => table.forward_in_place(ids),
            Self::Apart { tokens, .. } => tokens.forward_in_place(ids),
        }
    }
}

impl Norm {
    fn load(config: &DecoderConfig, p: &Params) -> Result<Self> {
        let (c, eps) = (config.hidden_size, config.norm_eps);
        Ok(match config.block.norm {
            NormKind::Layer => Self::Layer(Box::new(LayerNorm::load(p, c, eps)?)),
            NormKind::Rms => Self::Rms(Box::new(RmsNorm::load(p, c, eps)?)),
        })
    }

    /// `x` [.., C]
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
        }
    }
}

impl Layer {
    fn load(config: &DecoderConfig, p: &Params) -> Result<Arc<Self>> {
        let names = config.names;
        let norm2 =
            (!config.block.parallel).then(|| Norm::load(config, &p.pp(names.norm2))).transpose()?;
        Ok(Arc::new(Self {
            norm1: Norm::load(config, &p.pp(names.norm1))?,
            attention: Attention::load(config, p)?,
            norm2,
            mlp: Mlp::load(config, p)?,
            names,
        }))
    }

    /// `x` [B, T, C]; a [segment](crate::tensor::tape::checkpoint).
    fn forward(self: &Arc<Self>, x: &Tensor, place: &Place) -> Result<Tensor> {
        let place = place.clone();
        checkpoint(self, &[x], move |layer, inputs| layer.compute(&inputs[0], &place, None))
    }

    fn compute(&self, x: &Tensor, place: &Place, past: Option<&mut Past>) -> Result<Tensor> {
        let h = self.norm1.forward(x)?;
        let x = self.attention.forward(&h, x, place, past)?;
        match &self.norm2 {
            Some(norm) => self.mlp.forward(&norm.forward(&x)?, &x),
            None => self.mlp.forward(&h, &x),
        }
    }
}

impl Attention {
    fn load(config: &DecoderConfig, p: &Params) -> Result<Self> {
        let (c, d, names) = (config.hidden_size, config.head_dim, config.names);
        let heads = [config.num_attention_heads, config.num_key_value_heads];
        let [q, kv] = heads.map(|heads| heads * d);
        let bias = config.block.bias;
        let widths = if names.qkv.len() == 1 { vec![q + 2 * kv] } else { vec![q, kv, kv] };
        let projections = names.qkv.iter().zip(widths);
        let projections =
            projections.map(|(name, width)| Linear::load(&p.pp(name), c, width, bias.qkv));
        let norm = |name| RmsNorm::load(&p.pp(name), d, config.norm_eps);
        let [norm_q, norm_k] = names.qk_norm;
        Ok(Self {
            qkv: projections.collect::<Result<_>>()?,
            qk_norm: match config.block.qk_norm {
                true => Some([norm(norm_q)?, norm(norm_k)?]),
                false => None,
            },
            out: Linear::load(&p.pp(names.out), q, c, bias.out)?,
            heads,
            config: AttentionConfig { scale: (d as f32).sqrt().recip(), causal: true },
            names,
        })
    }

    /// Self attention over `x` [B, T, C] and what came before, plus `residual` [B, T, C].
    fn forward(
        &self,
        x: &Tensor,
        residual: &Tensor,
        place: &Place,
        past: Option<&mut Past>,
    ) -> Result<Tensor> {
        // 1. queries [B, T, H, D], keys and values [B, T, G, D]
        let [mut q, mut k, v] = self.project(x)?;
        // 2. positions
        if let Some([norm_q, norm_k]) = &self.qk_norm {
            (q, k) = (norm_q.forward(&q)?, norm_k.forward(&k)?);
        }
        if let Some(angles) = &place.angles {
            [q, k] = [rotary(&q, &place.positions, angles)?, rotary(&k, &place.positions, angles)?];
        }
        // 3. attention
        let y = match (past, &place.documents) {
            (Some(Past { cache, first, places, block }), _) => {
                let [k, v] = cache.append(*block, *first, &k, &v, &places.starts)?;
                attention_ragged(&q, &k, &v, &places.ends, self.config)?
            }
            (None, Some(documents)) => documents.attention([&q, &k, &v], self.config)?,
            (None, None) => attention(&q, &k, &v, self.config)?,
        }; // [B, T, H, D]
        let (b, t, heads, d) = y.dims4()?;
        let y = y.reshape([b, t, heads * d])?;
        self.out.forward_with(&y, Epilogue { residual: Some(residual), ..Epilogue::default() })
    }

    /// `x` [B, T, C] -> queries [B, T, H, D], keys and values [B, T, G, D].
    fn project(&self, x: &Tensor) -> Result<[Tensor; 3]> {
        let (b, t, _) = x.dims3()?;
        let [h, g] = self.heads;
        let split = |linear: &Linear, heads| {
            let y = linear.forward(x)?;
            y.reshape([b, t, heads, y.dim(2) / heads])
        };
        match &*self.qkv {
            [q, k, v] => Ok([split(q, h)?, split(k, g)?, split(v, g)?]),
            all => {
                let qkv = split(&all[0], h + 2 * g)?;
                Ok([qkv.narrow(2, 0, h)?, qkv.narrow(2, h, g)?, qkv.narrow(2, h + g, g)?])
            }
        }
    }
}

impl Mlp {
    fn load(config: &DecoderConfig, p: &Params) -> Result<Self> {
        let (c, inner, names) = (config.hidden_size, config.intermediate_size, config.names);
        let bias = config.block.bias.mlp;
        let gate = config.block.gated.then(|| Linear::load(&p.pp(names.gate), c, inner, bias));
        Ok(Self {
            gate: gate.transpose()?,
            up: Linear::load(&p.pp(names.up), c, inner, bias)?,
            down: Linear::load(&p.pp(names.down), inner, c, bias)?,
            act: config.act,
            names,
        })
    }

    /// `x`, `residual` [B, T, C] -> [B, T, C]
    fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let activated = Epilogue { act: self.act, ..Epilogue::default() };
        let h = match &self.gate {
            Some(gate) => mul(&gate.forward_with(x, activated)?, &self.up.forward(x)?)?,
            None => self.up.forward_with(x, activated)?,
        }; // [B, T, inner]
        self.down.forward_with(&h, Epilogue { residual: Some(residual), ..Epilogue::default() })
    }
}

// The names of a family's weights are data, so that they cannot stand in `module!`.

type Visit<'v, 'a> = &'v mut dyn FnMut(String, &'a Parameter);

impl Module for Decoder {
    fn visit<'a>(&'a self, prefix: &str, visit: Visit<'_, 'a>) {
        let names = self.config.names;
        let root = join(prefix, names.root);
        match &self.vocabulary {
            Vocabulary::Tied(table) => table.visit(&join(&root, names.tokens), visit),
            Vocabulary::Apart { tokens, .. } => tokens.visit(&join(&root, names.tokens), visit),
        }
        self.positions.visit(&join(&root, names.positions.unwrap_or_default()), visit);
        self.layers.visit(&join(&root, names.layers), visit);
        self.norm.visit(&join(&root, names.norm), visit);
        if let Vocabulary::Apart { head, .. } = &self.vocabulary {
            head.visit(&join(prefix, names.head), visit);
        }
    }
}

impl Module for Norm {
    fn visit<'a>(&'a self, prefix: &str, visit: Visit<'_, 'a>) {
        match self {
            Self::Layer(norm) => norm.visit(prefix, visit),
            Self::Rms(norm) => norm.visit(prefix, visit),
        }
    }
}

impl Module for Layer {
    fn visit<'a>(&'a self, prefix: &str, visit: Visit<'_, 'a>) {
        self.norm1.visit(&join(prefix, self.names.norm1), visit);
        self.attention.visit(prefix, visit);
        self.norm2.visit(&join(prefix, self.names.norm2), visit);
        self.mlp.visit(prefix, visit);
    }
}

impl Module for Attention {
    fn visit<'a>(&'a self, prefix: &str, visit: Visit<'_, 'a>) {
        for (linear, name) in self.qkv.iter().zip(self.names.qkv) {
            linear.visit(&join(prefix, name), visit);
        }
        for (norm, name) in self.qk_norm.iter().flatten().zip(self.names.qk_norm) {
            norm.visit(&join(prefix, name), visit);
        }
        self.out.visit(&join(prefix, self.names.out), visit);
    }
}

impl Module for Mlp {
    fn visit<'a>(&'a self, prefix: &str, visit: Visit<'_, 'a>) {
        self.gate.visit(&join(prefix, self.names.gate), visit);
        self.up.visit(&join(prefix, self.names.up), visit);
        self.down.visit(&join(prefix, self.names.down), visit);
    }
}
