//! Documents that lie behind each other in rows of tokens, each with positions and attention of its own.
//!
//! Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination". Everything in a decoder but attention goes
//! token by token; attention takes the documents out of their rows, those of about one length together, and puts its result
//! back.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::ops::attention::{AttentionConfig, attention};
use crate::ops::embedding::embedding_in_place;
use crate::ops::layout::concat;
use crate::tensor::{Device, Tensor};

/// Where the documents in rows [B, T] are.
pub(super) struct Documents {
    /// Of each token within its document, [B, T], u32.
    pub(super) positions: Tensor,
    /// Tokens [N, L] of N documents of at most L, by their number in the B * T: i64. A document that is shorter is filled up
    /// with its last token, which nothing before it sees and nobody takes out again.
    groups: Vec<Tensor>,
    /// Where each token [B * T] is among those of all groups, one behind the other: i64.
    back: Tensor,
}

impl Documents {
    /// Documents of these `lengths`, row by row; what a row of `tokens` has behind them belongs to the last.
    ///
    /// # Errors
    /// `Argument` for a row without a document, a document without a token, or more of them than a row has.
    pub(super) fn new(lengths: &[Vec<usize>], tokens: usize, device: Device) -> Result<Self> {
        let mut positions = Vec::with_capacity(lengths.len() * tokens);
        let mut by_length: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
        for (row, lengths) in lengths.iter().enumerate() {
            let all: usize = lengths.iter().sum();
            let Some((last, others)) =
                lengths.split_last().filter(|_| all <= tokens && !lengths.contains(&0))
            else {
                let expected =
                    format!("documents that make up at most the {tokens} tokens of a row");
                return Err(Error::argument(
                    "documents",
                    format!("lengths of {lengths:?}"),
                    expected,
                ));
            };
            let mut start = row * tokens;
            for length in others.iter().copied().chain([last + tokens - all]) {
                positions.extend(0..length as u32);
                // At most half of a group's places are filled up.
                by_length.entry(length.next_power_of_two()).or_default().push((start, length));
                start += length;
            }
        }
        let (mut groups, mut back, mut before) = (Vec::new(), vec![0; positions.len()], 0);
        for documents in by_length.into_values() {
            let longest = documents.iter().map(|&(_, length)| length).max().unwrap_or(0);
            let mut places = Vec::with_capacity(documents.len() * longest);
            for &(start, length) in &documents {
                for i in 0..length {
                    back[start + i] = (before + places.len() + i) as i64;
                }
                places.extend((0..longest).map(|i| (start + i.min(length - 1)) as i64));
            }
            before += places.len();
            groups.push(Tensor::from_vec(places, [documents.len(), longest])?.to_device(device)?);
        }
        let (rows, count) = (lengths.len(), back.len());
        Ok(Self {
            positions: Tensor::from_vec(positions, [rows, tokens])?.to_device(device)?,
            groups,
            back: Tensor::from_vec(back, [count])?.to_device(device)?,
        })
    }

    /// `q` [B, T, H, D], `k` and `v` [B, T, G, D] -> [B, T, H, D]: [`attention`] within each document.
    ///
    /// # Errors
    /// As [`attention`].
    pub(super) fn attention(
        &self,
        [q, k, v]: [&Tensor; 3],
        config: AttentionConfig,
    ) -> Result<Tensor> {
        let flat = |t: &Tensor| {
            let (b, tokens, heads, d) = t.dims4()?;
            t.reshape([b * tokens, heads * d])
        };
        let [rows_q, rows_k, rows_v] = [flat(q)?, flat(k)?, flat(v)?]; // [B T, H D]
        let mut parts = Vec::with_capacity(self.groups.len());
        for places in &self.groups {
            let take = |rows: &Tensor, like: &Tensor| {
                let (n, longest) = places.dims2()?;
                embedding_in_place(places, rows)?.reshape([n, longest, like.dim(2), like.dim(3)])
            };
            let y = attention(&take(&rows_q, q)?, &take(&rows_k, k)?, &take(&rows_v, v)?, config)?; // [N, L, H, D]
            parts.push(flat(&y)?);
        }
        let all = concat(&parts.iter().collect::<Vec<_>>(), 0)?;
        embedding_in_place(&self.back, &all)?.reshape(*q.shape())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::io::config::Config;
    use crate::models::decoder::{Decoder, DecoderConfig};
    use crate::nn::{Keep, Params, parameters};
    use crate::ops::elementwise::{add, mul, scale};
    use crate::ops::gradient::backward;
    use crate::ops::reduce::sum;
    use crate::ops::testing::{assert_close, devices, random, values};
    use crate::tensor::DType;

    const VOCABULARY: usize = 29;
    /// The last row ends with two places that are filled up.
    const LENGTHS: [&[usize]; 3] = [&[5, 1, 9, 4], &[19], &[3, 3, 11]];
    const TOKENS: usize = 19;

    /// Positions that are learned; and rotary ones, with grouped queries.
    fn decoder(family: &str, device: Device) -> Decoder {
        let config = match family {
            "gpt2" => DecoderConfig::gpt2_json(VOCABULARY, 24, 20, 2, 2),
            _ => json!({
                "model_type": "qwen3", "vocab_size": VOCABULARY, "hidden_size": 20, "num_hidden_layers": 2,
                "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 28,
                "max_position_embeddings": 24, "tie_word_embeddings": false,
            }),
        };
        let config =
            DecoderConfig::read(&Config::from_value("config.json", config).unwrap()).unwrap();
        let initial = |name: &str, shape: &[usize]| {
            scale(&random(shape, u64::from(crc32fast::hash(name.as_bytes()))), 0.3)
        };
        let params = Params::initial(initial, DType::F32, device).keeping(Keep::Trainable);
        Decoder::load(config, &params).unwrap()
    }

    /// A number that every logit of a document goes into.
    fn score(logits: &Tensor, at: usize) -> Tensor {
        let weights = random(*logits.shape(), at as u64 + 1).to_device(logits.device()).unwrap();
        sum(&mul(logits, &weights).unwrap(), &[0, 1, 2]).unwrap()
    }

    #[test]
    fn documents_of_a_row_are_those_that_stand_alone() {
        let lengths = LENGTHS.map(<[usize]>::to_vec);
        let ids: Vec<i64> =
            (0..3 * TOKENS).map(|i| ((i * i * 7 + i) % VOCABULARY) as i64).collect();
        for family in ["gpt2", "qwen3"] {
            for device in devices() {
                let model = decoder(family, device);
                let on_device = |ids: &[i64]| {
                    Tensor::from_slice(ids, [1, ids.len()]).unwrap().to_device(device).unwrap()
                };
                let all = Tensor::from_slice(&ids, [3, TOKENS]).unwrap().to_device(device).unwrap();
                let packed = model.forward_packed(&all, &lengths).unwrap(); // [3, T, V]
                let mut scores: [Vec<Tensor>; 2] = [Vec::new(), Vec::new()];
                for (row, lengths) in lengths.iter().enumerate() {
                    let mut start = 0;
                    for &length in lengths {
                        let at = row * TOKENS + start;
                        let alone = model.forward(&on_device(&ids[at..at + length])).unwrap();
                        let within =
                            packed.narrow(0, row, 1).unwrap().narrow(1, start, length).unwrap();
                        // Alike products; attention of a few keys may be summed otherwise.
                        assert_close(
                            &within,
                            &values(&alone),
                            40.0,
                            &format!("{family} on {device}, {at}"),
                        );
                        scores[0].push(score(&alone, at));
                        scores[1].push(score(&within, at));
                        start += length;
                    }
                }
                let gradients = scores.map(|scores| {
                    let (first, rest) = scores.split_first().unwrap();
                    let total = rest.iter().fold(first.clone(), |sum, x| add(&sum, x).unwrap());
                    backward(total).unwrap()
                });
                for (name, parameter) in parameters(&model) {
                    let [alone, packed] = gradients
                        .each_ref()
                        .map(|all| all.get(&parameter.tensor().unwrap()).unwrap());
                    // Sums over 57 tokens in another order, through two blocks.
                    assert_close(
                        packed,
                        &values(alone),
                        400.0,
                        &format!("{family} on {device}, {name}"),
                    );
                }
            }
        }
    }

    #[test]
    fn rows_that_are_not_made_up_of_documents_are_errors() {
        for lengths in [vec![], vec![4, 0, 1], vec![12, 8]] {
            let error =
                Documents::new(std::slice::from_ref(&lengths), TOKENS, Device::Cpu).err().unwrap();
            assert!(error.to_string().contains("documents"), "{error}");
        }
        let ids = Tensor::from_vec(vec![1i64; 8], [2, 4]).unwrap();
        let error = decoder("gpt2", Device::Cpu).forward_packed(&ids, &[vec![4]]).err().unwrap();
        assert!(error.to_string().contains("2 of ids"), "{error}");
    }
}
