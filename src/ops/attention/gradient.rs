//! Gradient of attention: on the CPU in f32 by blocks of queries (`cpu/attention_gradient.rs`), else by its definition, on
//! the CPU image by image, so that the weights of one image at a time are in memory; on a GPU all images at once, where
//! they see as many keys.

use super::AttentionConfig;
use crate::cpu::attention_gradient::{self as blocks, Heads, MAX_CHANNELS};
use crate::cpu::gemm::f32_kernel;
use crate::cpu::simd::level;
use crate::error::{Error, Result};
use crate::ops::elementwise::{add, scale};
use crate::ops::gradient::Call;
use crate::ops::layout::concat;
use crate::ops::matmul::matmul;
use crate::ops::reduce::sum;
use crate::ops::softmax::{softmax, softmax_gradient};
use crate::ops::{Grads, Inputs, Meta, Op, apply_all, tensors};
use crate::tensor::{DType, Device, Tensor};

/// Gradients by q [B, T, H, D], k and v [B, S, G, D], given that of the result [B, T, H, D], the logarithms of the sums
/// of weights [B, H, T], and how many keys each entry sees.
pub(super) fn gradients(
    [q, k, v]: [&Tensor; 3],
    lse: &Tensor,
    lengths: &[usize],
    grad: &Tensor,
    config: AttentionConfig,
) -> Result<[Tensor; 3]> {
    let blocks = q.device() == Device::Cpu && q.dim(3) <= MAX_CHANNELS;
    if !blocks || q.dtype() == DType::F64 {
        return by_definition([q, k, v], lengths, grad, config);
    }
    let given = q.dtype();
    let single = |t: &Tensor| t.to_dtype(DType::F32)?.contiguous();
    let (q, k, v, grad) = (&single(q)?, &single(k)?, &single(v)?, &single(grad)?);
    let lse = lse.contiguous()?;
    let slots = tensors(&[q, k, v, grad, &lse]);
    let gradients = apply_all(AttentionGradient { lengths: lengths.to_vec(), config }, &slots)?;
    match <[Tensor; 3]>::try_from(gradients) {
        Ok([q, k, v]) => Ok([q.to_dtype(given)?, k.to_dtype(given)?, v.to_dtype(given)?]),
        Err(_) => Err(Error::shape("attention", "a gradient is missing")),
    }
}

/// Inputs `q`, `k`, `v`, `grad` and `lse`, f32; outputs the gradients of the first three.
struct AttentionGradient {
    lengths: Vec<usize>,
    config: AttentionConfig,
}

impl Op for AttentionGradient {
    fn name(&self) -> &'static str {
        "attention_gradient"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        Ok((0..3).map(|i| Meta::like(&inputs[i])).collect())
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (_, queries, heads, channels) = inputs[0].dims4()?;
        let AttentionConfig { scale, causal } = self.config;
        let (keys, groups) = (inputs[1].dim(1), inputs[1].dim(2));
        let shape = Heads { heads, groups, queries, keys, channels, scale, causal };
        let slice = |i: usize| inputs[i].as_slice::<f32>();
        let inputs = [slice(0)?, slice(1)?, slice(2)?, slice(3)?, slice(4)?];
        let [dq, dk, dv] = outputs else {
            return Err(Error::shape(self.name(), "three outputs are to be filled"));
        };
        let outputs = [dq.as_mut_slice()?, dk.as_mut_slice()?, dv.as_mut_slice()?];
        blocks::gradients(f32_kernel(level()), shape, inputs, &self.lengths, outputs);
        Ok(())
    }

    fn cuda(&self, _: &Inputs, _: &mut [Tensor]) -> Result<()> {
        Err(Error::no_kernel(self.name()))
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

fn by_definition(
    [q, k, v]: [&Tensor; 3],
    lengths: &[usize],
    grad: &Tensor,
    config: AttentionConfig,
) -> Result<[Tensor; 3]> {
    let mut parts: [Vec<Tensor>; 3] = Default::default();
    let (of_all, groups) = (q.dim(2), k.dim(2));
    let (k, v) = (&for_all_heads(k, of_all)?, &for_all_heads(v, of_all)?);
    let together = match q.device() {
        Device::Cuda(_) if lengths.windows(2).all(|pair| pair[0] == pair[1]) => lengths.len(),
        _ => 1,
    };
    for (i, lengths) in lengths.chunks(together.max(1)).enumerate() {
        let images = lengths.len();
        let heads = |t: &Tensor| {
            let t = t.narrow(0, i * together, images)?.permute(&[0, 2, 1, 3])?; // [B, H, T, D]
            t.reshape([images * t.dim(1), t.dim(2), t.dim(3)])
        };
        let inputs = [&heads(q)?, &heads(k)?, &heads(v)?];
        let of_images = of_images(inputs, lengths[0], &heads(grad)?, config)?;
        for (parts, part) in parts.iter_mut().zip(of_images) {
            let (h, t, d) = part.dims3()?;
            let part = part.reshape([images, h / images, t, d])?;
            parts.push(part.permute(&[0, 2, 1, 3])?); // [B, T, H, D]
        }
    }
    let [q, k, v] = parts.map(|parts| concat(&parts.iter().collect::<Vec<_>>(), 0));
    Ok([q?, of_groups(&k?, groups)?, of_groups(&v?, groups)?])
}

/// Each of G heads for all that share it: [B, S, G, D] -> [B, S, H, D]
fn for_all_heads(t: &Tensor, heads: usize) -> Result<Tensor> {
    let (b, s, groups, d) = t.dims4()?;
    if groups == heads {
        return Ok(t.clone());
    }
    let one = t.reshape([b, s, groups, 1, d])?;
    concat(&vec![&one; heads / groups], 3)?.reshape([b, s, heads, d])
}

/// The sums of gradients over those that share a head: [B, S, H, D] -> [B, S, G, D]
fn of_groups(t: &Tensor, groups: usize) -> Result<Tensor> {
    let (b, s, heads, d) = t.dims4()?;
    if groups == heads {
        return Ok(t.clone());
    }
    sum(&t.reshape([b, s, groups, heads / groups, d])?, &[3])
}

/// Those of images that see as many keys, [B H, T or S, D] all.
fn of_images(
    [q, k, v]: [&Tensor; 3],
    length: usize,
    grad: &Tensor,
    config: AttentionConfig,
) -> Result<[Tensor; 3]> {
    let swapped = |t: &Tensor| t.transpose(1, 2);
    // 1. the weights, computed again
    let mut scores = scale(&matmul(q, &swapped(k)?)?, config.scale)?; // [B H, T, S]
    if config.causal || length < k.dim(1) {
        scores = add(&scores, &mask(&scores, length, config.causal)?)?;
    }
    let weights = softmax(&scores)?;
    // 2. back through the sum of values, the softmax and the products
    let of_v = matmul(&swapped(&weights)?, grad)?; // [B H, S, D]
    let of_weights = matmul(grad, &swapped(v)?)?; // [B H, T, S]
    let of_scores = scale(&softmax_gradient(&weights, &of_weights)?, config.scale)?;
    let of_q = matmul(&of_scores, k)?; // [B H, T, D]
    let of_k = matmul(&swapped(&of_scores)?, q)?; // [B H, S, D]
    Ok([of_q, of_k, of_v])
}

/// [T, S]: 0 for keys that a query sees, the lowest number for the others.
fn mask(scores: &Tensor, length: usize, causal: bool) -> Result<Tensor> {
    let (_, queries, keys) = scores.dims3()?;
    let beyond = length.saturating_sub(queries);
    let hidden = |i: usize| i % keys >= length || (causal && i % keys > i / keys + beyond);
    let mask = (0..queries * keys).map(|i| if hidden(i) { f32::NEG_INFINITY } else { 0.0 });
    let mask = Tensor::from_vec(mask.collect::<Vec<f32>>(), [queries, keys])?;
    mask.to_dtype(scores.dtype())?.to_device(scores.device())
}

#[cfg(test)]
mod tests {
    use super::super::{attention, attention_ragged};
    use super::*;
    use crate::cpu::simd::at_each_level;
    use crate::ops::gradient::backward_from;
    use crate::ops::testing::{random, values};

    /// Blocks of queries, keys and channels that are not full, one of each, against the definition in f64.
    #[test]
    fn blocks_of_queries_give_the_gradients_of_the_definition() {
        for ([b, t, h, d], [s, g], causal, lengths) in [
            ([1, 1, 1, 1], [1, 1], false, None),
            ([2, 7, 3, 5], [9, 3], false, None),
            ([2, 33, 2, 40], [77, 2], false, Some([50u32, 0])),
            ([1, 330, 1, 16], [350, 1], false, None),
            ([1, 65, 2, 24], [65, 2], true, None),
            ([2, 340, 1, 33], [340, 1], true, Some([335, 7])),
            ([2, 70, 6, 24], [90, 2], true, Some([90, 71])),
        ] {
            let config = AttentionConfig { scale: 1.0 / (d as f32).sqrt(), causal };
            let inputs =
                [random([b, t, h, d], 1), random([b, s, g, d], 2), random([b, s, g, d], 3)];
            let grad = random([b, t, h, d], 4);
            let gradients = |dtype: DType| {
                let [q, k, v] = [0, 1, 2].map(|i| inputs[i].to_dtype(dtype).unwrap().variable());
                let y = match lengths {
                    None => attention(&q, &k, &v, config),
                    Some(lengths) => {
                        let lengths = Tensor::from_slice(&lengths, [b]).unwrap();
                        attention_ragged(&q, &k, &v, &lengths, config)
                    }
                };
                let done = backward_from(y.unwrap(), grad.to_dtype(dtype).unwrap()).unwrap();
                [&q, &k, &v].map(|x| values(done.get(x).unwrap()))
            };
            let expected = gradients(DType::F64);
            at_each_level(|level| {
                for (i, (got, expected)) in gradients(DType::F32).iter().zip(&expected).enumerate()
                {
                    // An entry without keys has no gradient, or none that is a number.
                    let pairs = got.iter().zip(expected).filter(|(_, e)| e.is_finite());
                    let size = pairs.clone().map(|(_, e)| e.abs()).fold(0.0, f64::max);
                    // As for the forward form: a score carries its rounding, D units of up to 4, into a weight.
                    let tolerance = 64.0 * f64::from(f32::EPSILON) * (size + 1.0);
                    for (at, (got, expected)) in pairs.enumerate() {
                        let error = (got - expected).abs();
                        assert!(
                            error <= tolerance,
                            "{}: {t} by {s} of {d}, input {i}, {at}: {error:e}",
                            level.name()
                        );
                    }
                }
            });
        }
    }
}
