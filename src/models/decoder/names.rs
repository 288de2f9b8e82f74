//! What the families call their weights, and how files differ from that.

use crate::error::Result;
use crate::io::{TensorInfo, TensorSource};
use crate::tensor::Tensor;

/// The names of a family's weights.
#[derive(Debug)]
pub(super) struct Names {
    /// Before all names but the head's; files of the model without its head leave it out.
    pub root: &'static str,
    pub tokens: &'static str,
    /// A table, where positions are learned.
    pub positions: Option<&'static str>,
    pub layers: &'static str,
    pub norm: &'static str,
    pub head: &'static str,
    /// Of a block.
    pub norm1: &'static str,
    /// Absent from a parallel block.
    pub norm2: &'static str,
    /// The projections of queries, keys and values: one of all, or three.
    pub qkv: &'static [&'static str],
    /// Of each head's queries and keys, where they are normalised.
    pub qk_norm: [&'static str; 2],
    pub out: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    /// The ends of those matrices that the files have as [inputs, outputs].
    pub turned: &'static [&'static str],
}

pub(super) static GPT2: Names = Names {
    root: "transformer",
    tokens: "wte",
    positions: Some("wpe"),
    layers: "h",
    norm: "ln_f",
    head: "lm_head",
    norm1: "ln_1",
    norm2: "ln_2",
    qkv: &["attn.c_attn"],
    qk_norm: ["", ""],
    out: "attn.c_proj",
    gate: "",
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    turned: &["c_attn.weight", "c_proj.weight", "c_fc.weight"],
};

pub(super) static PHI: Names = Names {
    root: "model",
    tokens: "embed_tokens",
    positions: None,
    layers: "layers",
    norm: "final_layernorm",
    head: "lm_head",
    norm1: "input_layernorm",
    norm2: "",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    qk_norm: ["", ""],
    out: "self_attn.dense",
    gate: "",
    up: "mlp.fc1",
    down: "mlp.fc2",
    turned: &[],
};

/// And all that came after it.
pub(super) static LLAMA: Names = Names {
    root: "model",
    tokens: "embed_tokens",
    positions: None,
    layers: "layers",
    norm: "norm",
    head: "lm_head",
    norm1: "input_layernorm",
    norm2: "post_attention_layernorm",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    qk_norm: ["self_attn.q_norm", "self_attn.k_norm"],
    out: "self_attn.o_proj",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    turned: &[],
};

impl Names {
    /// Whether files have the matrix `name` as [inputs, outputs].
    pub(super) fn is_turned(&self, name: &str) -> bool {
        self.turned.iter().any(|end| name.ends_with(end))
    }
}

/// The weights in a decoder's files as [`Decoder::load`](super::Decoder::load) reads them: every matrix [outputs, inputs],
/// every name with the root that files of the model without its head leave out.
pub struct DecoderWeights<S> {
    source: S,
    names: &'static Names,
    /// Whether the files leave the root out.
    rootless: bool,
}

impl<S: TensorSource> DecoderWeights<S> {
    pub(super) fn new(source: S, names: &'static Names) -> Self {
        let rootless = source.info(&format!("{}.weight", names.tokens)).is_some();
        Self { source, names, rootless }
    }

    fn stored<'a>(&self, name: &'a str) -> &'a str {
        let short = name.strip_prefix(self.names.root).and_then(|rest| rest.strip_prefix('.'));
        if self.rootless { short.unwrap_or(name) } else { name }
    }
}

impl<S: TensorSource> TensorSource for DecoderWeights<S> {
    fn names(&self) -> Vec<String> {
        let head = format!("{}.", self.names.head);
        let mut names: Vec<String> = self.source.names();
        if self.rootless {
            for name in names.iter_mut().filter(|name| !name.starts_with(&head)) {
                *name = format!("{}.{name}", self.names.root);
            }
            names.sort();
        }
        names
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let mut info = self.source.info(self.stored(name))?;
        if self.names.is_turned(name) {
            info.shape.reverse();
        }
        Some(info)
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        let stored = self.stored(name);
        match self.names.is_turned(name) {
            true => self.source.read_briefly(stored)?.transpose(0, 1)?.contiguous(),
            false => self.source.read(stored),
        }
    }

    fn read_briefly(&self, name: &str) -> Result<Tensor> {
        match self.names.is_turned(name) {
            true => self.read(name),
            false => self.source.read_briefly(self.stored(name)),
        }
    }

    fn origin(&self, name: &str) -> String {
        self.source.origin(self.stored(name))
    }
}
