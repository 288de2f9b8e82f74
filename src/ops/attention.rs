//! Scaled dot-product attention (Vaswani et al. 2017). The plain form; the tiled one takes its place.

use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Settings of [`attention`].
#[derive(Clone, Copy, Debug)]
pub struct AttentionConfig {
    /// What scores are multiplied with, usually 1 / √d.
    pub scale: f32,
    /// Whether a query sees only keys up to its own position.
    pub causal: bool,
}

/// softmax(q kᵀ scale) v for `q` [B, T, H, D] and `k`, `v` [B, S, H, D] -> [B, T, H, D]
///
/// # Errors
/// `Shape` when the tensors do not fit each other.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, config: AttentionConfig) -> Result<Tensor> {
    let (b, t, h, d) = q.dims4()?;
    let s = k.dims4()?.1;
    if k.dims() != [b, s, h, d] || v.dims() != k.dims() || config.causal && s != t {
        return Err(Error::shape(
            "attention",
            format!("q {}, k {}, v {}", q.shape(), k.shape(), v.shape()),
        ));
    }
    let rows = |x: &Tensor| x.to_dtype(DType::F32)?.to_vec::<f32>();
    let (queries, keys, values) = (rows(q)?, rows(k)?, rows(v)?);
    let mut out = vec![0f32; queries.len()];
    for (i, (query, out)) in queries.chunks(d).zip(out.chunks_mut(d)).enumerate() {
        let (image, position, head) = (i / h / t, i / h % t, i % h);
        let seen = if config.causal { position + 1 } else { s };
        let row = |j: usize| ((image * s + j) * h + head) * d;
        let dot = |j: usize| {
            query.iter().zip(&keys[row(j)..]).map(|(a, b)| a * b).sum::<f32>() * config.scale
        };
        let scores: Vec<f32> = (0..seen).map(dot).collect();
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = scores.iter().map(|x| (x - max).exp()).collect();
        let sum: f32 = weights.iter().sum();
        for (j, weight) in weights.iter().enumerate() {
            out.iter_mut().zip(&values[row(j)..]).for_each(|(o, v)| *o += weight / sum * v);
        }
    }
    Tensor::from_vec(out, [b, t, h, d])?.to_dtype(q.dtype())
}
