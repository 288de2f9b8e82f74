//! CLIP of transformers: a text encoder and a vision encoder whose results can be compared.
//!
//! Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision". Reference implementation:
//! transformers, `models/clip/modeling_clip.py`.

mod pair;
mod projected;
mod text;
mod vision;

use std::sync::Arc;

use crate::error::Result;
use crate::io::config::Config;
use crate::nn::{LayerNorm, Linear, MultiHeadAttention, Params, checkpoint, module};
use crate::ops::matmul::{Activation, Epilogue};
use crate::tensor::Tensor;

pub use pair::{Clip, ClipConfig};
pub use projected::{ClipTextProjected, ClipTextProjectedConfig};
pub use text::{ClipText, ClipTextConfig};
pub use vision::{ClipVision, ClipVisionConfig};

const ACTIVATIONS: [(&str, Activation); 5] = [
    ("quick_gelu", Activation::QuickGelu),
    ("gelu", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("silu", Activation::Silu),
];

/// What an encoder's configuration carries besides that takes no part either.
const NO_PART: [&str; 5] =
    ["architectures", "dropout", "initializer_factor", "projection_dim", "tie_word_embeddings"];

/// Shape of the layers of an encoder.
#[derive(Clone, Copy)]
struct LayerShape {
    width: usize,
    inner: usize,
    heads: usize,
    act: Activation,
    eps: f32,
    /// Whether a token sees those before it alone.
    causal: bool,
}

impl LayerShape {
    /// Checks what layers of this shape need of `c`, which it was read from.
    fn check(self, c: &Config) -> Result<()> {
        if self.heads == 0 || !self.width.is_multiple_of(self.heads) {
            let expected = format!("a divisor of hidden_size {}", self.width);
            return Err(c.wrong("num_attention_heads", &expected));
        }
        Ok(())
    }
}

/// Where a text ends: the first of the tokens that do; the first token where there is none, as in transformers. `eos` 2, which
/// older files have by mistake, stands for the token of the largest id.
fn end_of_text(ids: &[i64], eos: i64) -> usize {
    let end = match eos {
        2 => ids.iter().copied().max().unwrap_or_default(),
        end => end,
    };
    ids.iter().position(|&id| id == end).unwrap_or(0)
}

struct Layer {
    norm1: LayerNorm,
    attention: MultiHeadAttention,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    act: Activation,
}

module!(Layer {
    "layer_norm1": norm1,
    "self_attn": attention,
    "layer_norm2": norm2,
    "mlp.fc1": fc1,
    "mlp.fc2": fc2,
});

impl Layer {
    fn load(shape: LayerShape, p: &Params) -> Result<Arc<Self>> {
        let LayerShape { width, inner, heads, act, eps, causal } = shape;
        let attention = p.pp("self_attn");
        Ok(Arc::new(Self {
            norm1: LayerNorm::load(&p.pp("layer_norm1"), width, eps)?,
            attention: MultiHeadAttention::load_transformers(&attention, width, heads, causal)?,
            norm2: LayerNorm::load(&p.pp("layer_norm2"), width, eps)?,
            fc1: Linear::load(&p.pp("mlp.fc1"), width, inner, true)?,
            fc2: Linear::load(&p.pp("mlp.fc2"), inner, width, true)?,
            act,
        }))
    }

    /// `x` [B, T, C]; a [segment](crate::tensor::tape::checkpoint).
    fn forward(self: &Arc<Self>, x: &Tensor) -> Result<Tensor> {
        checkpoint(self, &[x], |layer, inputs| layer.compute(&inputs[0]))
    }

    fn compute(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.attention.forward(&self.norm1.forward(x)?, x)?;
        let h = self.norm2.forward(&x)?;
        let h = self.fc1.forward_with(&h, Epilogue { act: self.act, ..Epilogue::default() })?; // [B, T, inner]
        self.fc2.forward_with(&h, Epilogue { residual: Some(&x), ..Epilogue::default() }) // [B, T, C]
    }
}
