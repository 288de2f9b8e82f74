//! Attention, tiled so that the scores never reach memory (Dao et al. 2022). Kernels: `kernels/attention.cu`.

mod cpu;
mod cuda;
mod few;
mod gradient;

use super::elementwise::{require_dtype, require_float};
use super::gradient::Call;
use super::{Grads, Inputs, Meta, Op, Saves, Slot, apply};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// How queries meet keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Factor of the scores, usually 1 / sqrt(D).
    pub scale: f32,
    /// Whether a query sees no key behind its own. Where there are as many queries as keys, query i sees keys 0..=i; where an
    /// entry has more keys, the last query sees all of them, the one before all but the last, and so on.
    pub causal: bool,
}

/// `softmax(scale * q k^T) v` for each head, in f32 (f64 for f64) whatever the dtype.
///
/// `q` [B, T, H, D]; `k`, `v` [B, S, G, D], G a divisor of H: H / G neighbouring heads of queries share one of keys and values
/// (Ainslie et al. 2023). Strided views are read as they lie. Returns [B, T, H, D].
///
/// # Errors
/// `Shape` when the shapes do not fit or there is no key, `DType` when the dtypes differ or are no floats.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, config: AttentionConfig) -> Result<Tensor> {
    apply(Attention { config }, &[q.into(), k.into(), v.into(), Slot::Empty])
}

/// As [`attention`], entry b of the batch seeing its first `lengths[b]` keys only: what lies behind them is not read.
///
/// `lengths` `[B]`, u32; one beyond S counts as S, and 0 makes the entry NaN: there is nothing to choose from. So T new tokens of
/// an entry see a cache of S places, filled up to `lengths[b]` with their own keys at its end: query i sees
/// `lengths[b] - T + i + 1` of them.
///
/// # Errors
/// As [`attention`], of `lengths` too.
pub fn attention_ragged(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    lengths: &Tensor,
    config: AttentionConfig,
) -> Result<Tensor> {
    apply(Attention { config }, &[q.into(), k.into(), v.into(), lengths.into()])
}

/// [`attention`]; inputs `q`, `k`, `v` and, where keys are of different number, `lengths`. When recorded, a further
/// output [B, H, T] has the logarithm of each query's sum of `e^score`, f32 (f64 for f64).
#[derive(Clone, Copy, Debug, PartialEq)]
struct Attention {
    /// Scale and mask.
    pub config: AttentionConfig,
}

/// The place of `lengths`.
const LENGTHS: usize = 3;

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
        require_float(self.name(), q)?;
        require_dtype(self.name(), q.dtype(), k)?;
        require_dtype(self.name(), q.dtype(), v)?;
        let &[batch, _, heads, channels] = q.dims() else {
            return Err(Error::expected_shape(self.name(), "q", "[B, T, H, D]", q.shape()));
        };
        let fits = matches!(*k.dims(), [b, s, g, d] if (b, d) == (batch, channels) && s > 0
            && (g == heads || g > 0 && heads.is_multiple_of(g)));
        if !fits {
            let expected = format!("[{batch}, S > 0, a divisor of {heads}, {channels}]");
            return Err(Error::expected_shape(self.name(), "k", &expected, k.shape()));
        }
        if v.shape() != k.shape() {
            return Err(Error::expected_shape(self.name(), "v", &k.shape().to_string(), v.shape()));
        }
        if let Some(lengths) = inputs.get(LENGTHS) {
            require_dtype(self.name(), DType::U32, lengths)?;
            if lengths.dims() != [batch] {
                let expected = format!("[{batch}]");
                let found = lengths.shape();
                return Err(Error::expected_shape(self.name(), "lengths", &expected, found));
            }
        }
        let lse = Meta {
            shape: [batch, heads, q.dim(1)].into(),
            dtype: if q.dtype() == DType::F64 { DType::F64 } else { DType::F32 },
        };
        let metas = [Meta::like(q), lse];
        Ok(metas[..1 + usize::from(inputs.recorded())].to_vec())
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let few = inputs[0].dim(1) < few::FEW;
        match outputs[0].dtype() {
            DType::F64 => self.plain(inputs, outputs),
            DType::F16 if few => self.few::<half::f16>(inputs, outputs),
            DType::BF16 if few => self.few::<half::bf16>(inputs, outputs),
            _ if few => self.few::<f32>(inputs, outputs),
            DType::F16 => self.tiled::<half::f16>(inputs, outputs),
            DType::BF16 => self.tiled::<half::bf16>(inputs, outputs),
            _ => self.tiled::<f32>(inputs, outputs),
        }
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        cuda::forward(self.config, inputs, outputs)
    }

    fn saves(&self) -> Saves {
        Saves { inputs: &[0, 1, 2, LENGTHS], result: false }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let (q, k, v) = (call.tensor(0)?, call.tensor(1)?, call.tensor(2)?);
        let lengths = keys_seen(call.optional(LENGTHS), q.dim(0), k.dim(1))?;
        let lse = call.output(1)?;
        let [q, k, v] = gradient::gradients([q, k, v], lse, &lengths, grad, self.config)?.map(Some);
        Ok(vec![q, k, v, None])
    }
}

/// How many of `keys` keys each entry of the batch sees.
fn keys_seen(lengths: Option<&Tensor>, batch: usize, keys: usize) -> Result<Vec<usize>> {
    let Some(lengths) = lengths else { return Ok(vec![keys; batch]) };
    Ok(lengths.to_vec::<u32>()?.into_iter().map(|length| keys.min(length as usize)).collect())
}

/// `t` itself when its last dimension has no gaps, else a copy.
pub(super) fn dense(t: &Tensor) -> Result<Tensor> {
    if t.strides().last() == Some(&1) { Ok(t.clone()) } else { t.contiguous() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::at_each_level;
    use crate::ops::apply_all;
    use crate::ops::elementwise::scale;
    use crate::ops::testing::{
        assert_close, bits, check_against, check_batch, check_gradient, check_nan, devices, random,
        shapes, unit_roundoff, values,
    };
    use crate::tensor::Device;

    /// The definition in f64, over q [B, T, H, D] and k, v [B, S, G, D].
    fn reference(
        x: &[Vec<f64>],
        shape: [usize; 4],
        keys: usize,
        config: AttentionConfig,
    ) -> Vec<f64> {
        let [batch, queries, heads, channels] = shape;
        let groups = x[1].len() / (batch * keys * channels);
        let mut out = vec![0.0; x[0].len()];
        for row in 0..batch * queries * heads {
            let (b, t, h) = (row / heads / queries, row / heads % queries, row % heads);
            let group = h * groups / heads;
            let at = |s: usize, d: usize| ((b * keys + s) * groups + group) * channels + d;
            let weights: Vec<f64> = (0..keys)
                .map(|s| {
                    let dot: f64 =
                        (0..channels).map(|d| x[0][row * channels + d] * x[1][at(s, d)]).sum();
                    let seen = !config.causal || s <= t + keys.saturating_sub(queries);
                    if seen { (f64::from(config.scale) * dot).exp() } else { 0.0 }
                })
                .collect();
            let total: f64 = weights.iter().sum();
            for d in 0..channels {
                out[row * channels + d] =
                    (0..keys).map(|s| weights[s] / total * x[2][at(s, d)]).sum();
            }
        }
        out
    }

    fn inputs(shape: [usize; 4], keys: usize) -> Vec<Tensor> {
        let [b, _, h, d] = shape;
        vec![random(shape, 1), random([b, keys, h, d], 2), random([b, keys, h, d], 3)]
    }

    fn config(channels: usize, causal: bool) -> AttentionConfig {
        AttentionConfig { scale: 1.0 / (channels as f32).sqrt(), causal }
    }

    /// ([B, T, H, D], S): every panel of values, groups and blocks of keys that are not full, one of each.
    const CASES: [([usize; 4], usize); 13] = [
        ([1, 1, 1, 1], 1),
        ([1, 3, 2, 4], 7),
        ([2, 65, 2, 40], 77),
        ([1, 100, 1, 80], 97),
        ([1, 17, 2, 160], 193),
        ([2, 33, 3, 64], 33),
        ([1, 130, 1, 7], 200),
        ([1, 9, 1, 48], 96),
        ([3, 64, 1, 33], 31),
        ([1, 77, 2, 20], 77),
        // Of a GPU: the last of the numbers of channels that have kernels of their own, and two slices of channels.
        ([1, 65, 1, 128], 65),
        ([1, 66, 2, 136], 70),
        ([1, 5, 1, 131], 9),
    ];

    #[test]
    fn attention_equals_its_definition() {
        for (shape, keys) in CASES {
            for causal in [false, true] {
                let config = config(shape[3], causal);
                check_against(
                    &format!("attention {shape:?} by {keys}, causal {causal}"),
                    &inputs(shape, keys),
                    |x| attention(x[0], x[1], x[2], config),
                    |x| {
                        let magnitudes = x[2].iter().map(|v| v.abs()).collect();
                        let magnitudes = [x[0].clone(), x[1].clone(), magnitudes];
                        let exact = reference(x, shape, keys, config);
                        let exact = exact.into_iter();
                        exact.zip(reference(&magnitudes, shape, keys, config)).collect()
                    },
                    compare,
                );
            }
        }
    }

    /// ([B, T, H, D], S, G)
    const GROUPED: [([usize; 4], usize, usize); 7] = [
        ([1, 1, 2, 1], 1, 1),
        ([2, 1, 6, 40], 201, 2),
        ([7, 1, 4, 33], 97, 1),
        ([1, 7, 9, 64], 96, 3),
        ([2, 8, 4, 80], 130, 2),
        ([1, 70, 8, 20], 70, 2),
        ([1, 66, 3, 136], 70, 1),
    ];

    fn grouped(shape: [usize; 4], keys: usize, groups: usize) -> Vec<Tensor> {
        let [b, _, _, d] = shape;
        vec![random(shape, 1), random([b, keys, groups, d], 2), random([b, keys, groups, d], 3)]
    }

    #[test]
    fn heads_of_queries_share_heads_of_keys() {
        for (shape, keys, groups) in GROUPED {
            for causal in [false, true] {
                let config = config(shape[3], causal);
                check_against(
                    &format!("attention {shape:?} by {keys} of {groups} heads, causal {causal}"),
                    &grouped(shape, keys, groups),
                    |x| attention(x[0], x[1], x[2], config),
                    |x| {
                        let magnitudes = x[2].iter().map(|v| v.abs()).collect();
                        let magnitudes = [x[0].clone(), x[1].clone(), magnitudes];
                        let exact = reference(x, shape, keys, config);
                        let exact = exact.into_iter();
                        exact.zip(reference(&magnitudes, shape, keys, config)).collect()
                    },
                    compare,
                );
            }
        }
    }

    /// As one step of a decoder after the other: each has the bits that the whole text gives its token.
    #[test]
    fn a_step_has_the_bits_of_the_whole() {
        let (tokens, groups, channels) = (200, 2, 24);
        let config = config(channels, true);
        let inputs = grouped([2, tokens, 6, channels], tokens, groups);
        for (dtype, device) in places() {
            let place = |t: &Tensor| t.to_dtype(dtype).unwrap().to_device(device).unwrap();
            let [q, k, v] = [0, 1, 2].map(|i| place(&inputs[i]));
            at_each_level(|level| {
                let whole = attention(&q, &k, &v, config).unwrap();
                for (first, count) in [(0, 1), (1, 7), (95, 1), (96, 2), (199, 1), (60, 140)] {
                    let part = q.narrow(1, first, count).unwrap();
                    let seen = Tensor::from_vec(vec![(first + count) as u32; 2], [2]).unwrap();
                    let seen = seen.to_device(device).unwrap();
                    let part = attention_ragged(&part, &k, &v, &seen, config).unwrap();
                    let what = format!("{dtype}, {device}, {}, {first} + {count}", level.name());
                    assert_eq!(
                        bits(&part),
                        bits(&whole.narrow(1, first, count).unwrap()),
                        "{what}"
                    );
                }
            });
        }
    }

    /// Compares with the definition, and that of the values' magnitudes.
    fn compare(got: &Tensor, expected: &[(f64, f64)], what: &str) {
        assert_eq!(got.len(), expected.len(), "{what}: number of elements");
        let exact: Vec<f64> = expected.iter().map(|(exact, _)| *exact).collect();
        // 32 units: a score of up to 4 sqrt(D) carries the rounding of its dot product into the exponent, where it becomes a
        // relative error of the weight.
        if got.device() == Device::Cpu || got.dtype() == DType::F32 {
            return assert_close(got, &exact, 32.0, what);
        }
        // Tensor cores take weights of 16 bits: each is off by a unit of itself, and the sum by a unit of what was
        // summed; the result is rounded once more. What f32 lost before is a hundredth of that.
        let unit = 1.02 * unit_roundoff(got.dtype());
        for (i, (got, (exact, magnitude))) in values(got).iter().zip(expected).enumerate() {
            let (error, tolerance) = ((got - exact).abs(), unit * (exact.abs() + magnitude));
            assert!(error <= tolerance, "{what}, element {i}: {got} instead of {exact}");
        }
    }

    #[test]
    fn every_level_computes_the_same() {
        let shape = [1, 50, 1, 40];
        let inputs = inputs(shape, 110);
        let config = config(40, true);
        let expected =
            reference(&inputs.iter().map(values).collect::<Vec<_>>(), shape, 110, config);
        at_each_level(|level| {
            let out = attention(&inputs[0], &inputs[1], &inputs[2], config).unwrap();
            assert_close(&out, &expected, 32.0, level.name());
        });
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let shape = [1, 20, 1, 40];
        let mut inputs = inputs(shape, 300);
        inputs[0] = scale(&inputs[0], 20.0).unwrap();
        for factor in [1.0, -1.0, 0.0] {
            let config = AttentionConfig { scale: factor, causal: false };
            let expected: Vec<Vec<f64>> = inputs.iter().map(values).collect();
            let expected = reference(&expected, shape, 300, config);
            for device in devices() {
                let [q, k, v] = [0, 1, 2].map(|i| inputs[i].to_device(device).unwrap());
                let out = attention(&q, &k, &v, config).unwrap();
                // Scores reach 1000: their f32 rounding is a relative error of the weights of 1000 units.
                assert_close(&out, &expected, 4000.0, &format!("large scores, {factor}, {device}"));
            }
        }
    }

    #[test]
    fn entries_of_a_batch_and_threads_do_not_matter() {
        for (channels, causal) in [(40, false), (24, true)] {
            let config = config(channels, causal);
            let op = |qkv: &Tensor| {
                let [q, k, v] =
                    [(0, 70), (70, 100), (170, 100)].map(|(at, n)| qkv.narrow(1, at, n));
                attention(&q?, &k?, &v?, config)
            };
            let qkv = random([7, 270, 2, channels], 1);
            check_batch("attention", &qkv, op);
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let qkv = qkv.to_dtype(dtype).unwrap();
                let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
                let one = pool.install(|| op(&qkv)).unwrap();
                assert_eq!(bits(&op(&qkv).unwrap()), bits(&one), "{dtype}: one thread");
            }
        }
    }

    #[test]
    fn a_later_key_does_not_reach_a_causal_query() {
        for (dtype, device) in places() {
            let inputs = inputs([1, 120, 1, 8], 120);
            let inputs =
                inputs.iter().map(|t| t.to_dtype(dtype).unwrap().to_device(device).unwrap());
            let inputs: Vec<Tensor> = inputs.collect();
            let config = config(8, true);
            let whole = attention(&inputs[0], &inputs[1], &inputs[2], config).unwrap();
            let head: Vec<Tensor> = inputs.iter().map(|t| t.narrow(1, 0, 50).unwrap()).collect();
            let head = attention(&head[0], &head[1], &head[2], config).unwrap();
            assert_eq!(bits(&head), bits(&whole.narrow(1, 0, 50).unwrap()), "{dtype}, {device}");
        }
    }

    #[test]
    fn slices_of_one_projection_are_read_in_place() {
        for (dtype, device) in places() {
            let qkv = random([2, 45, 6, 40], 4).to_dtype(dtype).unwrap(); // [B, T, 3 H, D]
            let qkv = qkv.to_device(device).unwrap();
            let [q, k, v] = [0, 2, 4].map(|h| qkv.narrow(2, h, 2).unwrap());
            let config = config(40, false);
            let views = attention(&q, &k, &v, config).unwrap();
            let [q, k, v] = [q, k, v].map(|t| t.contiguous().unwrap());
            let copies = attention(&q, &k, &v, config).unwrap();
            assert_eq!(bits(&views), bits(&copies), "{dtype}, {device}");
        }
    }

    /// The dtypes that every device has.
    fn places() -> Vec<(DType, Device)> {
        let of = |device| [DType::F32, DType::F16, DType::BF16].map(|dtype| (dtype, device));
        devices().flat_map(of).collect()
    }

    /// What lies behind an entry's keys is not read, not even as something times 0.
    #[test]
    fn entries_see_their_own_keys_only() {
        let lengths = [100u32, 1, 64, 65, 7, 0, 4_000_000_000];
        for (dtype, device) in places() {
            for (channels, causal) in [(40, false), (24, true)] {
                let config = config(channels, causal);
                let place = |t: &Tensor| t.to_dtype(dtype).unwrap().to_device(device).unwrap();
                let [q, k, v] = [70, 100, 100].map(|n| random([7, n, 2, channels], n as u64));
                let poison = |t: &Tensor| {
                    let mut all = t.to_vec::<f32>().unwrap();
                    for (entry, &length) in all.chunks_mut(100 * 2 * channels).zip(&lengths) {
                        let from = 100.min(length as usize) * 2 * channels;
                        entry[from..].fill(f32::NAN);
                    }
                    Tensor::from_vec(all, *t.shape()).unwrap()
                };
                let [q, k, v] = [&q, &poison(&k), &poison(&v)].map(place);
                let given = Tensor::from_slice(&lengths, [7]).unwrap().to_device(device).unwrap();
                let whole = attention_ragged(&q, &k, &v, &given, config).unwrap();
                for (b, &length) in lengths.iter().enumerate() {
                    let what = format!("{dtype}, {device}: {length} keys of {channels}");
                    let entry = |t: &Tensor| t.narrow(0, b, 1).unwrap();
                    let got = entry(&whole);
                    if length == 0 {
                        assert!(values(&got).iter().all(|x| x.is_nan()), "{what}");
                        continue;
                    }
                    let head = |t| entry(t).narrow(1, 0, 100.min(length as usize)).unwrap();
                    let alone = attention(&entry(&q), &head(&k), &head(&v), config).unwrap();
                    assert_eq!(bits(&got), bits(&alone), "{what}");
                    assert!(values(&got).iter().all(|x| x.is_finite()), "{what}");
                }
            }
        }
    }

    #[test]
    fn a_recorded_call_keeps_the_logarithms_of_its_sums() {
        for (shape, keys) in [([2, 65, 2, 40], 77), ([1, 70, 2, 136], 33)] {
            let config = config(shape[3], true);
            let inputs = inputs(shape, keys);
            let mut places = places();
            places.push((DType::F64, Device::Cpu));
            for (dtype, device) in places {
                let inputs = inputs.iter().map(|t| t.to_dtype(dtype).unwrap()).collect::<Vec<_>>();
                let exact: Vec<Vec<f64>> = inputs.iter().map(values).collect();
                let [b, t, h, d] = shape;
                let score = |b: usize, t: usize, h: usize, s: usize| -> f64 {
                    let (q, k) = (
                        &exact[0][((b * shape[1] + t) * shape[2] + h) * d..],
                        (b * keys + s) * shape[2] + h,
                    );
                    let dot: f64 = q[..d].iter().zip(&exact[1][k * d..]).map(|(q, k)| q * k).sum();
                    f64::from(config.scale) * dot
                };
                let [q, k, v] = [0, 1, 2].map(|i| inputs[i].to_device(device).unwrap());
                let q = q.variable();
                let slots = [(&q).into(), (&k).into(), (&v).into(), Slot::Empty];
                let lse = &apply_all(Attention { config }, &slots).unwrap()[1];
                assert_eq!(lse.dims(), [b, h, t]);
                for (i, got) in values(lse).into_iter().enumerate() {
                    let (b, h, t) = (i / t / h, i / t % h, i % t);
                    let sum: f64 = (0..keys.min(t + 1 + keys.saturating_sub(shape[1])))
                        .map(|s| score(b, t, h, s).exp())
                        .sum();
                    // A score of up to 4 sqrt(D) < 47 is a sum of D products, which errs by less than D units of f32 of
                    // what it would be without cancellation; the exponentials' errors average out below that.
                    let tolerance = 47.0 * shape[3] as f64 * f64::from(f32::EPSILON) / 2.0;
                    let error = (got - sum.ln()).abs();
                    assert!(
                        error <= tolerance,
                        "{dtype}, {device}, {i}: {got} instead of {}",
                        sum.ln()
                    );
                }
            }
        }
    }

    #[test]
    fn a_nan_shows() {
        let inputs = inputs([1, 40, 1, 16], 100);
        for dtype in [DType::F32, DType::BF16] {
            for i in 0..3 {
                for at in [0, 300, 639] {
                    check_nan("attention", &inputs[i], at, |x| {
                        let mut all = inputs.clone();
                        all[i] = x.clone();
                        let all = [0, 1, 2].map(|i| {
                            all[i].to_device(x.device()).unwrap().to_dtype(dtype).unwrap()
                        });
                        attention(&all[0], &all[1], &all[2], config(16, false))
                    });
                }
            }
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        for (b, t, keys, h, d) in
            [(1, 1, 1, 1, 1), (2, 3, 5, 2, 7), (1, 7, 7, 3, 4), (3, 2, 9, 1, 5)]
        {
            let inputs =
                [random([b, t, h, d], 1), random([b, keys, h, d], 2), random([b, keys, h, d], 3)];
            for causal in [false, true] {
                check_gradient(
                    &format!("attention {t} by {keys}, causal {causal}"),
                    &inputs,
                    |x| attention(x[0], x[1], x[2], AttentionConfig { scale: 0.7, causal }),
                );
            }
        }
        for (i, [b, t, h, d]) in shapes().enumerate() {
            let (keys, causal) = (t + i % 3, i % 2 == 0);
            let inputs =
                [random([b, t, h, d], 4), random([b, keys, h, d], 5), random([b, keys, h, d], 6)];
            check_gradient("attention", &inputs, |x| {
                attention(x[0], x[1], x[2], AttentionConfig { scale: 0.7, causal })
            });
        }
        for (i, [b, t, g, d]) in shapes().enumerate() {
            let (keys, heads, causal) = (t + i % 4, g * (1 + i % 3), i % 2 == 1);
            let inputs = grouped([b, t, heads, d], keys, g);
            check_gradient("attention of groups", &inputs, |x| {
                attention(x[0], x[1], x[2], AttentionConfig { scale: 0.7, causal })
            });
        }
        let inputs = [random([2, 3, 2, 4], 1), random([2, 5, 2, 4], 2), random([2, 5, 2, 4], 3)];
        let lengths = Tensor::from_slice(&[2u32, 4], [2]).unwrap();
        for causal in [false, true] {
            check_gradient("attention to a number of keys", &inputs, |x| {
                let config = AttentionConfig { scale: 0.7, causal };
                attention_ragged(x[0], x[1], x[2], &lengths.to_device(x[0].device())?, config)
            });
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let config = config(4, false);
        let shape = |result: Result<Tensor>| {
            assert!(matches!(result, Err(Error::Shape { op: "attention", .. })), "{result:?}");
        };
        let dtype = |result: Result<Tensor>| {
            assert!(matches!(result, Err(Error::DType { op: "attention", .. })), "{result:?}");
        };
        let q = random([2, 5, 3, 4], 1);
        shape(attention(&q, &random([1, 5, 3, 4], 1), &q, config));
        shape(attention(&q, &random([2, 5, 2, 4], 1), &q, config));
        shape(attention(&q, &random([2, 5, 0, 4], 1), &random([2, 5, 0, 4], 1), config));
        shape(attention(&q, &random([2, 5, 6, 4], 1), &random([2, 5, 6, 4], 1), config));
        shape(attention(&q, &q, &random([2, 6, 3, 4], 1), config));
        shape(attention(&q, &random([2, 0, 3, 4], 1), &random([2, 0, 3, 4], 1), config));
        dtype(attention(&q, &q, &q.to_dtype(DType::F16).unwrap(), config));
        let flat = random([2, 5, 12], 1);
        assert!(matches!(attention(&flat, &flat, &flat, config), Err(Error::Shape { .. })));
        assert!(attention(&random([2, 0, 3, 4], 1), &q, &q, config).unwrap().is_empty());
        let ragged = |lengths: &Tensor| attention_ragged(&q, &q, &q, lengths, config);
        shape(ragged(&Tensor::from_slice(&[5u32], [1]).unwrap()));
        dtype(ragged(&Tensor::from_slice(&[5i64, 5], [2]).unwrap()));
        assert!(ragged(&Tensor::from_slice(&[5u32, 5], [2]).unwrap()).is_ok());
    }
}
