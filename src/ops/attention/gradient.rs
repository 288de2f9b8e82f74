//! Gradient of attention, by its definition: image by image, so that the weights of one image at a time are in memory.

use super::AttentionConfig;
use crate::error::Result;
use crate::ops::elementwise::{add, scale};
use crate::ops::layout::concat;
use crate::ops::matmul::matmul;
use crate::ops::softmax::{softmax, softmax_gradient};
use crate::tensor::Tensor;

/// Gradients by q [B, T, H, D], k and v [B, S, H, D], given that of the result [B, T, H, D] and how many keys each
/// entry sees.
pub(super) fn gradients(
    [q, k, v]: [&Tensor; 3],
    lengths: &[usize],
    grad: &Tensor,
    config: AttentionConfig,
) -> Result<[Tensor; 3]> {
    let mut parts: [Vec<Tensor>; 3] = Default::default();
    for (b, &length) in lengths.iter().enumerate() {
        let heads = |t: &Tensor| {
            t.narrow(0, b, 1)?.permute(&[0, 2, 1, 3])?.reshape([t.dim(2), t.dim(1), t.dim(3)])
        };
        let inputs = [&heads(q)?, &heads(k)?, &heads(v)?];
        let of_image = image(inputs, length, &heads(grad)?, config)?;
        for (parts, part) in parts.iter_mut().zip(of_image) {
            let (h, t, d) = part.dims3()?;
            parts.push(part.reshape([1, h, t, d])?.permute(&[0, 2, 1, 3])?); // [1, T, H, D]
        }
    }
    let [q, k, v] = parts.map(|parts| concat(&parts.iter().collect::<Vec<_>>(), 0));
    Ok([q?, k?, v?])
}

/// Those of one image, [H, T or S, D] all.
fn image(
    [q, k, v]: [&Tensor; 3],
    length: usize,
    grad: &Tensor,
    config: AttentionConfig,
) -> Result<[Tensor; 3]> {
    let swapped = |t: &Tensor| t.transpose(1, 2);
    // 1. the weights, computed again
    let mut scores = scale(&matmul(q, &swapped(k)?)?, config.scale)?; // [H, T, S]
    if config.causal || length < k.dim(1) {
        scores = add(&scores, &mask(&scores, length, config.causal)?)?;
    }
    let weights = softmax(&scores)?;
    // 2. back through the sum of values, the softmax and the products
    let of_v = matmul(&swapped(&weights)?, grad)?; // [H, S, D]
    let of_weights = matmul(grad, &swapped(v)?)?; // [H, T, S]
    let of_scores = scale(&softmax_gradient(&weights, &of_weights)?, config.scale)?;
    let of_q = matmul(&of_scores, k)?; // [H, T, D]
    let of_k = matmul(&swapped(&of_scores)?, q)?; // [H, S, D]
    Ok([of_q, of_k, of_v])
}

/// [T, S]: 0 for keys that a query sees, the lowest number for the others.
fn mask(scores: &Tensor, length: usize, causal: bool) -> Result<Tensor> {
    let (_, queries, keys) = scores.dims3()?;
    let hidden = |i: usize| i % keys >= length || (causal && i % keys > i / keys);
    let mask = (0..queries * keys).map(|i| if hidden(i) { f32::NEG_INFINITY } else { 0.0 });
    let mask = Tensor::from_vec(mask.collect::<Vec<f32>>(), [queries, keys])?;
    mask.to_dtype(scores.dtype())?.to_device(scores.device())
}
