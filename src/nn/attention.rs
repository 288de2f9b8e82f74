//! Multi-head attention as diffusers and transformers lay out its weights.

use crate::error::{Error, Result};
use crate::nn::{Linear, Module, Parameter, Params, join};
use crate::ops::attention::{AttentionConfig, attention};
use crate::ops::elementwise::add;
use crate::ops::layout::concat;
use crate::ops::matmul::Epilogue;
use crate::tensor::Tensor;
use crate::tensor::cuda::Range;

/// Multi-head attention (Vaswani et al. 2017): softmax(q kᵀ / √d) v, between four projections.
pub struct MultiHeadAttention {
    q: Linear,
    k: Linear,
    v: Linear,
    out: Linear,
    /// The first three as one, for self attention, where that is faster.
    qkv: Option<Linear>,
    names: Names,
    heads: usize,
    config: AttentionConfig,
    range: Range,
}

/// What the four projections are called, and whether the first three have a bias.
#[derive(Clone, Copy)]
struct Names {
    q: &'static str,
    k: &'static str,
    v: &'static str,
    out: &'static str,
    bias: bool,
}

/// Keys and values of one context: constant over a denoising run, computed once per prompt.
#[derive(Clone)]
pub struct KeyValue {
    /// [B, S, heads, d]
    k: Tensor,
    /// [B, S, heads, d]
    v: Tensor,
    /// What is attended to by itself, and added: keys and values [B, N, heads, d].
    beside: Option<[Tensor; 2]>,
}

impl Module for MultiHeadAttention {
    fn visit<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Parameter)) {
        let Names { q, k, v, out, .. } = self.names;
        for (name, layer) in [(q, &self.q), (k, &self.k), (v, &self.v), (out, &self.out)] {
            layer.visit(&join(prefix, name), visit);
        }
    }
}

impl KeyValue {
    /// Contexts of equal length, one behind the other along the batch.
    ///
    /// # Errors
    /// `Shape` when they differ in more than their batch.
    pub fn concat(parts: &[&Self]) -> Result<Self> {
        let k: Vec<_> = parts.iter().map(|part| &part.k).collect();
        let v: Vec<_> = parts.iter().map(|part| &part.v).collect();
        let beside = |i: usize| {
            let parts: Vec<_> = parts.iter().filter_map(|p| Some(&p.beside.as_ref()?[i])).collect();
            (!parts.is_empty()).then(|| concat(&parts, 0)).transpose()
        };
        let beside = beside(0)?.zip(beside(1)?).map(|(k, v)| [k, v]);
        let (k, v) = (concat(&k, 0)?, concat(&v, 0)?);
        match &beside {
            Some([further, _]) if further.dim(0) != k.dim(0) => {
                Err(Error::shape("attention", "contexts with a picture and without"))
            }
            _ => Ok(Self { k, v, beside }),
        }
    }

    /// Keys and values [B, S, heads, d], and those that are attended to beside them.
    pub fn tensors(&self) -> Vec<&Tensor> {
        [&self.k, &self.v].into_iter().chain(self.beside.iter().flatten()).collect()
    }

    /// The context that has these [tensors](Self::tensors), two or four.
    pub fn of(tensors: &[Tensor]) -> Self {
        let beside = (tensors.len() == 4).then(|| [tensors[2].clone(), tensors[3].clone()]);
        Self { k: tensors[0].clone(), v: tensors[1].clone(), beside }
    }

    /// This context, and `other` attended to by itself.
    ///
    /// # Errors
    /// `Shape` when they are of different batches.
    pub fn beside(&self, other: Self) -> Result<Self> {
        if other.k.dim(0) != self.k.dim(0) {
            let message = format!("{} beside {}", other.k.shape(), self.k.shape());
            return Err(Error::shape("attention", message));
        }
        Ok(Self { beside: Some([other.k, other.v]), ..self.clone() })
    }

    /// Length of the context in tokens.
    pub fn tokens(&self) -> usize {
        self.k.dim(1)
    }
}

impl MultiHeadAttention {
    /// diffusers' names: `to_q`, `to_k`, `to_v` and `to_out.0`; all but the last without bias unless `bias`.
    ///
    /// `channels` is the width of the queries and the output, `context` that of what is attended to.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load_diffusers(
        p: &Params,
        channels: usize,
        context: usize,
        heads: usize,
        bias: bool,
    ) -> Result<Self> {
        let names = Names { q: "to_q", k: "to_k", v: "to_v", out: "to_out.0", bias };
        Self::load(p, names, channels, context, heads, false)
    }

    /// transformers' names: `q_proj`, `k_proj`, `v_proj` and `out_proj`, all with bias.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load_transformers(
        p: &Params,
        channels: usize,
        heads: usize,
        causal: bool,
    ) -> Result<Self> {
        let names = Names { q: "q_proj", k: "k_proj", v: "v_proj", out: "out_proj", bias: true };
        Self::load(p, names, channels, channels, heads, causal)
    }

    fn load(
        p: &Params,
        names: Names,
        channels: usize,
        context: usize,
        heads: usize,
        causal: bool,
    ) -> Result<Self> {
        let scale = ((channels / heads) as f32).sqrt().recip();
        let q = Linear::load(&p.pp(names.q), channels, channels, names.bias)?;
        let k = Linear::load(&p.pp(names.k), context, channels, names.bias)?;
        let v = Linear::load(&p.pp(names.v), context, channels, names.bias)?;
        Ok(Self {
            qkv: Linear::joined(&[&q, &k, &v])?,
            out: Linear::load(&p.pp(names.out), channels, channels, true)?,
            q,
            k,
            v,
            names,
            heads,
            config: AttentionConfig { scale, causal },
            range: p.range(),
        })
    }

    /// Self attention over `x` [B, T, C], plus `residual` [B, T, C].
    pub fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let Some(qkv) = &self.qkv else {
            return self.cross(x, &self.key_value(x)?, residual);
        };
        let _range = self.range.enter();
        let (b, t, c) = x.dims3()?;
        let (heads, d) = (self.heads, c / self.heads);
        let qkv = qkv.forward(x)?.reshape([b, t, 3 * heads, d])?; // [B, T, 3 heads, d]
        let part = |i: usize| qkv.narrow(2, i * heads, heads); // [B, T, heads, d], a view
        self.attend(&part(0)?, &KeyValue { k: part(1)?, v: part(2)?, beside: None }, residual)
    }

    /// Projects `context` [B, S, D] to keys and values.
    pub fn key_value(&self, context: &Tensor) -> Result<KeyValue> {
        let _range = self.range.enter();
        Ok(KeyValue {
            k: self.split_heads(&self.k.forward(context)?)?,
            v: self.split_heads(&self.v.forward(context)?)?,
            beside: None,
        })
    }

    /// Width of queries, keys and values.
    pub fn channels(&self) -> usize {
        self.q.outputs()
    }

    /// Keys and values [B, S, C] of layers that are not this one's.
    pub fn apart(&self, k: &Tensor, v: &Tensor) -> Result<KeyValue> {
        Ok(KeyValue { k: self.split_heads(k)?, v: self.split_heads(v)?, beside: None })
    }

    /// MultiHeadAttention of `x` [B, T, C] to keys and values [B, S, heads, d], plus `residual` [B, T, C].
    pub fn cross(&self, x: &Tensor, context: &KeyValue, residual: &Tensor) -> Result<Tensor> {
        let _range = self.range.enter();
        self.attend(&self.split_heads(&self.q.forward(x)?)?, context, residual)
    }

    /// `q` [B, T, heads, d], `residual` [B, T, C]
    fn attend(&self, q: &Tensor, context: &KeyValue, residual: &Tensor) -> Result<Tensor> {
        let mut y = attention(q, &context.k, &context.v, self.config)?; // [B, T, heads, d]
        if let Some([k, v]) = &context.beside {
            y = add(&y, &attention(q, k, v, self.config)?)?;
        }
        let y = y.reshape(residual.shape())?; // [B, T, C]
        self.out.forward_with(&y, Epilogue { residual: Some(residual), ..Epilogue::default() })
    }

    /// [B, T, C] -> [B, T, heads, C / heads]
    fn split_heads(&self, x: &Tensor) -> Result<Tensor> {
        let (b, t, c) = x.dims3()?;
        x.reshape([b, t, self.heads, c / self.heads])
    }
}
