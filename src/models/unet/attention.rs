//! What pixels of a feature map attend to: a text, between layers of a transformer, or each other alone.

use std::sync::Arc;

use super::{Contexts, Transformer, TransformerLayer, UnetConfig};
use crate::error::Result;
use crate::nn::{GroupNorm, Linear, Module, Parameter, Params, checkpoint, module};
use crate::ops::attention::{AttentionConfig, attention};
use crate::ops::matmul::Epilogue;
use crate::tensor::Tensor;

/// The attention behind a residual block.
pub(super) enum Attention {
    /// To a text.
    Text(Arc<Transformer>),
    /// To each other.
    Own(Arc<SelfAttention>),
}

impl Module for Attention {
    fn visit<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Parameter)) {
        match self {
            Self::Text(transformer) => transformer.visit(prefix, visit),
            Self::Own(attention) => attention.visit(prefix, visit),
        }
    }
}

impl Attention {
    /// `layers` is how many a transformer has.
    pub fn load(config: &UnetConfig, p: &Params, level: usize, layers: usize) -> Result<Self> {
        if config.own_attention {
            return SelfAttention::load(config, p, level).map(Self::Own);
        }
        Transformer::load(config, p, level, layers).map(Self::Text)
    }

    /// Those that attend to a text.
    pub fn layers(&self) -> &[TransformerLayer] {
        match self {
            Self::Text(transformer) => &transformer.layers,
            Self::Own(_) => &[],
        }
    }

    /// `x` [B, h, w, C]; takes its part of the context.
    pub fn forward(&self, x: &Tensor, ctx: &mut Contexts) -> Result<Tensor> {
        match self {
            Self::Text(transformer) => transformer.forward(x, ctx),
            Self::Own(attention) => attention.forward(x),
        }
    }
}

/// AttentionBlock of guided diffusion (Dhariwal & Nichol 2021): one projection to queries, keys and values, whose rows go
/// head by head.
pub(super) struct SelfAttention {
    norm: GroupNorm,
    qkv: Linear,
    proj_out: Linear,
    heads: usize,
}

module!(SelfAttention { "norm": norm, "qkv": qkv, "proj_out": proj_out });

impl SelfAttention {
    fn load(config: &UnetConfig, p: &Params, level: usize) -> Result<Arc<Self>> {
        let (width, groups) = (config.block_out_channels[level], config.norm_num_groups);
        Ok(Arc::new(Self {
            norm: GroupNorm::load(&p.pp("norm"), width, groups, config.norm_eps)?,
            qkv: Linear::load(&p.pp("qkv"), width, 3 * width, true)?,
            proj_out: Linear::load(&p.pp("proj_out"), width, width, true)?,
            heads: config.heads[level],
        }))
    }

    /// `x` [B, h, w, C]; a [segment](crate::tensor::tape::checkpoint).
    fn forward(self: &Arc<Self>, x: &Tensor) -> Result<Tensor> {
        checkpoint(self, &[x], |block, inputs| block.attend(&inputs[0]))
    }

    fn attend(&self, x: &Tensor) -> Result<Tensor> {
        let (b, h, w, c) = x.dims4()?;
        let (pixels, d) = ([b, h * w, c], c / self.heads); // [B, T, C]
        let normal = self.norm.forward(x)?.reshape(pixels)?;
        let qkv = self.qkv.forward(&normal)?.reshape([b, h * w, self.heads, 3 * d])?;
        let part = |i: usize| qkv.narrow(3, i * d, d); // [B, T, heads, d], a view
        let config = AttentionConfig { scale: (d as f32).sqrt().recip(), causal: false };
        let y = attention(&part(0)?, &part(1)?, &part(2)?, config)?.reshape(pixels)?;
        let residual = Some(x.reshape(pixels)?);
        let epilogue = Epilogue { residual: residual.as_ref(), ..Epilogue::default() };
        self.proj_out.forward_with(&y, epilogue)?.reshape([b, h, w, c])
    }
}
