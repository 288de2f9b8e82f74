//! What differs between the families of decoders, as data: a configuration says which block, and the names say where its
//! weights are.

use std::path::Path;

use serde_json::{Value, json};

use super::names::{DecoderWeights, GPT2, LLAMA, Names, PHI};
use crate::error::{Error, Result};
use crate::io::TensorSource;
use crate::io::config::Config;
use crate::models::transformers;
use crate::ops::matmul::Activation;
use crate::ops::rotary::RotaryScaling;

/// Shape of a decoder; `config.json`.
#[derive(Clone, Debug)]
pub struct DecoderConfig {
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Width of the hidden states, C.
    pub hidden_size: usize,
    /// Width inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Heads of the queries, H.
    pub num_attention_heads: usize,
    /// Heads of the keys and values, a divisor of those of the queries.
    pub num_key_value_heads: usize,
    /// Width of a head, D.
    pub head_dim: usize,
    /// The longest sequence: its context.
    pub max_position_embeddings: usize,
    /// Activation of the feed-forward layers, of the gate where they have one.
    pub act: Activation,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// How positions turn queries and keys; absent where they have a table.
    pub rotary: Option<Rotary>,
    /// Whether scores are taken by the table of the tokens.
    pub tied: bool,
    /// What else its block is made of.
    pub block: Block,
    pub(super) names: &'static Names,
}

/// How a family's block differs from others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Block {
    /// The norms.
    pub norm: NormKind,
    /// Whether attention and feed-forward layers see the same, and their sum is added (Phi, after GPT-J); otherwise one
    /// comes after the other.
    pub parallel: bool,
    /// Whether the feed-forward layers have a gate, `act(gate x) * up x` (Shazeer 2020).
    pub gated: bool,
    /// Whether each head's queries and keys are normalised.
    pub qk_norm: bool,
    /// Which linear layers have a bias.
    pub bias: Biases,
}

/// Rotary position embeddings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotary {
    /// The channels of a head that are turned, the first of its D.
    pub channels: usize,
    /// Base of the wavelengths.
    pub theta: f64,
    /// How they are stretched.
    pub scaling: RotaryScaling,
}

/// What a norm is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// [`layer_norm`](crate::ops::norm::layer_norm)
    Layer,
    /// [`rms_norm`](crate::ops::norm::rms_norm)
    Rms,
}

/// Which linear layers have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Biases {
    /// The projections of queries, keys and values.
    pub qkv: bool,
    /// The projection behind attention.
    pub out: bool,
    /// The feed-forward layers.
    pub mlp: bool,
    /// The head.
    pub head: bool,
}

const ACTIVATIONS: [(&str, Activation); 6] = [
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu", Activation::Gelu),
    ("silu", Activation::Silu),
    ("quick_gelu", Activation::QuickGelu),
];

/// Reads what a family's configuration says.
type Read = fn(&Config) -> Result<DecoderConfig>;

/// `model_type`, the class with a head, and what reads the rest.
const FAMILIES: [(&str, &str, Read); 5] = [
    ("gpt2", "GPT2LMHeadModel", DecoderConfig::gpt2),
    ("phi", "PhiForCausalLM", DecoderConfig::phi),
    ("llama", "LlamaForCausalLM", DecoderConfig::llama),
    ("qwen2", "Qwen2ForCausalLM", DecoderConfig::qwen2),
    ("qwen3", "Qwen3ForCausalLM", DecoderConfig::qwen3),
];

impl DecoderConfig {
    /// Reads the `config.json` in a folder of transformers.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Self::read(&Config::open(folder.as_ref().join("config.json"))?)
    }

    /// Reads the configuration.
    ///
    /// # Errors
    /// An architecture that is not known (the message lists those that are); a field has another type, or asks for what
    /// is not implemented.
    pub fn read(c: &Config) -> Result<Self> {
        let known = || {
            let names = FAMILIES.map(|(model_type, class, _)| format!("{model_type} ({class})"));
            format!("one of the language models {}", names.join(", "))
        };
        let model_type = c.string("model_type", "")?;
        let family = FAMILIES.iter().find(|(name, ..)| *name == model_type);
        let Some((_, class, read)) = family else { return Err(c.wrong("model_type", &known())) };
        let classes = c.strings("architectures", &[class])?;
        if classes != [*class] {
            return Err(c.wrong("architectures", &format!("[\"{class}\"]")));
        }
        c.ignore(&transformers::NO_PART);
        c.ignore(&NO_PART);
        let config = read(c)?;
        c.finish()?;
        config.check(c)?;
        Ok(config)
    }

    /// GPT-2 (Radford et al. 2019).
    fn gpt2(c: &Config) -> Result<Self> {
        c.neutral("add_cross_attention", &[json!(false)])?;
        c.neutral("scale_attn_weights", &[json!(true)])?;
        c.neutral("scale_attn_by_inverse_layer_idx", &[json!(false)])?;
        // Scores in f32 and a product by one rounding less: nothing here, where scores are f32 always.
        c.ignore(&["reorder_and_upcast_attn", "n_ctx"]);
        let (hidden, heads) = (c.usize("n_embd", 768)?, c.usize("n_head", 12)?);
        let inner = c.get("n_inner", "a non-negative integer")?.unwrap_or(4 * hidden);
        Ok(Self {
            vocab_size: c.usize("vocab_size", 50257)?,
            hidden_size: hidden,
            intermediate_size: inner,
            num_hidden_layers: c.usize("n_layer", 12)?,
            num_attention_heads: heads,
            num_key_value_heads: heads,
            head_dim: quotient(c, "n_head", hidden, heads)?,
            max_position_embeddings: c.usize("n_positions", 1024)?,
            act: c.choice("activation_function", "gelu_new", &ACTIVATIONS)?,
            norm_eps: c.f32("layer_norm_epsilon", 1e-5)?,
            rotary: None,
            tied: c.bool("tie_word_embeddings", true)?,
            block: Block {
                norm: NormKind::Layer,
                parallel: false,
                gated: false,
                qk_norm: false,
                bias: Biases { qkv: true, out: true, mlp: true, head: false },
            },
            names: &GPT2,
        })
    }

    /// Phi-1, 1.5 and 2 (Gunasekar et al. 2023).
    fn phi(c: &Config) -> Result<Self> {
        c.neutral("qk_layernorm", &[json!(false)])?;
        let all = Biases { qkv: true, out: true, mlp: true, head: true };
        let shape = Self::after_llama(c, 2048, 24, 32, 8192, 2048, 51200, "gelu_new")?;
        Ok(Self {
            norm_eps: c.f32("layer_norm_eps", 1e-5)?,
            rotary: Some(rotary(c, shape.head_dim, 0.5)?),
            block: Block {
                norm: NormKind::Layer,
                parallel: true,
                gated: false,
                qk_norm: false,
                bias: all,
            },
            names: &PHI,
            ..shape
        })
    }

    /// Llama 1 to 3 (Touvron et al. 2023), and models in its clothes: SmolLM, TinyLlama.
    fn llama(c: &Config) -> Result<Self> {
        c.ignore(&["is_llama_config"]);
        c.neutral("rope_interleaved", &[json!(false)])?;
        let attention = c.bool("attention_bias", false)?;
        let mlp = c.bool("mlp_bias", false)?;
        let shape = Self::after_llama(c, 4096, 32, 32, 11008, 2048, 32000, "silu")?;
        let bias = Biases { qkv: attention, out: attention, mlp, head: false };
        Ok(Self { block: Block { bias, ..shape.block }, ..shape })
    }

    /// Qwen 2 and 2.5 (Yang et al. 2024).
    fn qwen2(c: &Config) -> Result<Self> {
        full_attention(c)?;
        let shape = Self::after_llama(c, 4096, 32, 32, 22016, 32768, 151_936, "silu")?;
        let bias = Biases { qkv: true, ..shape.block.bias };
        Ok(Self { block: Block { bias, ..shape.block }, ..shape })
    }

    /// Qwen 3 (Yang et al. 2025).
    fn qwen3(c: &Config) -> Result<Self> {
        full_attention(c)?;
        let attention = c.bool("attention_bias", false)?;
        let shape = Self::after_llama(c, 4096, 32, 32, 22016, 32768, 151_936, "silu")?;
        let bias = Biases { qkv: attention, out: attention, ..shape.block.bias };
        Ok(Self { block: Block { qk_norm: true, bias, ..shape.block }, ..shape })
    }

    /// What all families behind Llama call the same. The numbers are the defaults of a family.
    fn after_llama(
        c: &Config,
        hidden: usize,
        layers: usize,
        heads: usize,
        inner: usize,
        context: usize,
        vocabulary: usize,
        act: &str,
    ) -> Result<Self> {
        let hidden = c.usize("hidden_size", hidden)?;
        let heads = c.usize("num_attention_heads", heads)?;
        let head_dim = match c.usize("head_dim", 0)? {
            0 => quotient(c, "num_attention_heads", hidden, heads)?,
            head_dim => head_dim,
        };
        // A table of angles is made for it, no weight: it may well exceed every side of them.
        let limit = c.get("max_position_embeddings", "a non-negative integer")?;
        Ok(Self {
            vocab_size: c.usize("vocab_size", vocabulary)?,
            hidden_size: hidden,
            intermediate_size: c.usize("intermediate_size", inner)?,
            num_hidden_layers: c.usize("num_hidden_layers", layers)?,
            num_attention_heads: heads,
            num_key_value_heads: c.usize("num_key_value_heads", heads)?,
            head_dim,
            max_position_embeddings: limit.unwrap_or(context),
            act: c.choice("hidden_act", act, &ACTIVATIONS)?,
            norm_eps: c.f32("rms_norm_eps", 1e-6)?,
            rotary: Some(rotary(c, head_dim, 1.0)?),
            tied: c.bool("tie_word_embeddings", false)?,
            block: Block {
                norm: NormKind::Rms,
                parallel: false,
                gated: true,
                qk_norm: false,
                bias: Biases { qkv: false, out: false, mlp: false, head: false },
            },
            names: &LLAMA,
        })
    }

    /// The `config.json` of a new GPT-2 of this shape, whose other settings are the published ones.
    pub fn gpt2_json(
        vocabulary: usize,
        context: usize,
        width: usize,
        layers: usize,
        heads: usize,
    ) -> Value {
        json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": vocabulary,
            "n_positions": context,
            "n_embd": width,
            "n_layer": layers,
            "n_head": heads,
        })
    }

    /// The weights in a model's files as a decoder of this configuration reads them.
    pub fn weights<S: TensorSource>(&self, source: S) -> DecoderWeights<S> {
        DecoderWeights::new(source, self.names)
    }

    /// Holds the numbers against each other.
    fn check(&self, c: &Config) -> Result<()> {
        let sizes = [
            ("vocabulary", self.vocab_size),
            ("width", self.hidden_size),
            ("inner width", self.intermediate_size),
            ("number of heads", self.num_attention_heads),
            ("number of heads of keys", self.num_key_value_heads),
            ("context", self.max_position_embeddings),
            ("width of a head", self.head_dim),
        ];
        let wrong = |expected: String, found: String| {
            let advice = "Is this the configuration that the weights were saved with?";
            Error::file(c.path(), "sizes", expected, found, advice)
        };
        if let Some((what, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(wrong(format!("a {what} of at least 1"), "0".into()));
        }
        let (heads, groups) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(groups) {
            let expected = format!("a number of heads that {groups} heads of keys divide");
            return Err(wrong(expected, heads.to_string()));
        }
        Ok(())
    }
}

/// Width of a head, where it is not said.
fn quotient(c: &Config, field: &str, hidden: usize, heads: usize) -> Result<usize> {
    let divides = heads > 0 && hidden.is_multiple_of(heads);
    let wrong = || c.wrong(field, &format!("a divisor of the model's width {hidden}"));
    divides.then(|| hidden / heads).ok_or_else(wrong)
}

/// Refuses windows that attention is limited to.
fn full_attention(c: &Config) -> Result<()> {
    c.neutral("use_sliding_window", &[json!(false)])?;
    c.ignore(&["sliding_window", "max_window_layers"]);
    let layers = c.strings("layer_types", &[])?;
    match layers.iter().all(|layer| layer == "full_attention") {
        true => Ok(()),
        false => Err(c.wrong("layer_types", "\"full_attention\" for every layer")),
    }
}

/// Reads how positions turn heads of `head_dim` channels: from `rope_parameters`, or, as releases of transformers before 5
/// wrote it, from `rope_scaling` and fields beside it.
fn rotary(c: &Config, head_dim: usize, share: f64) -> Result<Rotary> {
    let parts = ["rope_parameters", "rope_scaling"].map(|name| c.value(name).cloned());
    let nested = match parts {
        [Some(_), Some(_)] => return Err(c.wrong("rope_scaling", "nothing beside rope_parameters")),
        [Some(value), None] | [None, Some(value)] => value,
        [None, None] => json!({}),
    };
    let nested = Config::from_value(c.path(), nested)?;
    let theta = nested.f64("rope_theta", c.f64("rope_theta", 10000.0)?)?;
    let share = c.f64("partial_rotary_factor", share)?;
    let share = nested.f64("partial_rotary_factor", share)?;
    let kind = nested.string("type", "default")?;
    let kind = nested.string("rope_type", &kind)?;
    let scaling = match &*kind {
        "default" => RotaryScaling::None,
        "linear" => RotaryScaling::Linear(nested.f32("factor", 1.0)?),
        "llama3" => RotaryScaling::Llama3 {
            factor: nested.f32("factor", 8.0)?,
            low: nested.f32("low_freq_factor", 1.0)?,
            high: nested.f32("high_freq_factor", 4.0)?,
            context: nested.usize("original_max_position_embeddings", 8192)?,
        },
        _ => return Err(nested.wrong("rope_type", "default, linear or llama3")),
    };
    nested.finish()?;
    let channels = (head_dim as f64 * share) as usize;
    if !(share > 0.0 && share <= 1.0 && channels.is_multiple_of(2)) {
        let expected = format!("a share of a head's {head_dim} channels that gives pairs");
        return Err(c.wrong("partial_rotary_factor", &expected));
    }
    Ok(Rotary { channels, theta, scaling })
}

/// What a decoder's configuration carries besides that takes no part either.
const NO_PART: [&str; 15] = [
    "attn_pdrop",
    "auto_map",
    "bad_words_ids",
    "early_stopping",
    "embd_pdrop",
    "pretraining_tp",
    "resid_pdrop",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "tf_legacy_loss",
    "transformers.js_config",
];
