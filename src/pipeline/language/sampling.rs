//! Which token comes next: from scores to a choice.

use std::collections::BTreeMap;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::noise::philox::philox4x32_10;

/// How tokens are chosen; names and order as transformers has them (`generation/logits_process.py`): penalties, temperature,
/// `top_k`, `top_p`, `min_p`, each applied to what the one before has left.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, Args)]
#[serde(default, deny_unknown_fields)]
#[command(next_help_heading = "Sampling")]
pub struct Sampling {
    /// Divides the scores; 0 takes the likeliest token always
    #[arg(long, value_name = "X", default_value_t = 0.8, allow_negative_numbers = true)]
    pub temperature: f32,

    /// Only the N likeliest tokens; 0: all
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub top_k: usize,

    /// Only the likeliest tokens that together have this probability; 1: all
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_negative_numbers = true)]
    pub top_p: f32,

    /// Only tokens with this share of the likeliest one's probability; 0: all
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    pub min_p: f32,

    /// Divides scores above 0 of tokens in prompt and answer, and multiplies those below (Keskar et al. 2019); 1: none
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    pub repetition_penalty: f32,

    /// Taken from the score of every token that the answer has
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub presence_penalty: f32,

    /// Taken from the score of a token as often as the answer has it
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub frequency_penalty: f32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.8, top_p: 0.95, ..Self::greedy() }
    }
}

impl Sampling {
    /// The likeliest token always.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
        }
    }

    /// Holds each number against what it can be.
    ///
    /// # Errors
    /// `Argument`, naming the first that is not possible.
    pub fn check(&self) -> Result<()> {
        let from_0 = |x: f32| (0.0..=1e6).contains(&x);
        let penalty = |x: f32| (-100.0..=100.0).contains(&x);
        let numbers: [(&'static str, f32, bool, &str); 6] = [
            ("temperature", self.temperature, from_0(self.temperature), "0 or a number above"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "a number from 0 to 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0 && from_0(self.repetition_penalty),
                "a number above 0",
            ),
            (
                "presence_penalty",
                self.presence_penalty,
                penalty(self.presence_penalty),
                "a number from -100 to 100",
            ),
            (
                "frequency_penalty",
                self.frequency_penalty,
                penalty(self.frequency_penalty),
                "a number from -100 to 100",
            ),
        ];
        match numbers.into_iter().find(|(_, _, possible, _)| !possible) {
            None => Ok(()),
            Some((name, found, _, expected)) => Err(Error::argument(name, found, expected)),
        }
    }
}

/// Chooses the tokens of one answer. What it draws follows from the seed and the number of the token alone.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    seed: u64,
    /// Tokens chosen.
    drawn: u64,
    /// Of the prompt and the answer; how often the answer has it.
    seen: BTreeMap<u32, u32>,
    /// Memory for the scores of a token, which are changed on the way.
    scores: Vec<f32>,
}

impl Sampler {
    /// Of the answer to a prompt.
    ///
    /// # Errors
    /// As [`Sampling::check`].
    pub fn new(sampling: Sampling, seed: u64, prompt: &[u32]) -> Result<Self> {
        sampling.check()?;
        let seen = prompt.iter().map(|&token| (token, 0)).collect();
        Ok(Self { sampling, seed, drawn: 0, seen, scores: Vec::new() })
    }

    /// The next token, given the scores (logits) of all.
    ///
    /// # Errors
    /// `NotFinite` when a score is not a number, or infinite.
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        // All of them, without a branch each: there are many, and one that is no number is rare.
        if !logits.iter().fold(true, |all, x| all & x.is_finite()) {
            let token = logits.iter().position(|x| !x.is_finite()).unwrap_or_default();
            let message = format!("the score of token {token} is {}", logits[token]);
            return Err(Error::NotFinite(message));
        }
        let mut scores = std::mem::take(&mut self.scores);
        scores.clear();
        scores.extend_from_slice(logits);
        self.penalize(&mut scores);
        let token = match self.sampling.temperature {
            0.0 => likeliest(&scores),
            _ => draw(&self.candidates(&scores), self.uniform()),
        };
        self.scores = scores;
        self.drawn += 1;
        *self.seen.entry(token).or_default() += 1;
        Ok(token)
    }

    fn penalize(&self, scores: &mut [f32]) {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } =
            self.sampling;
        for (&token, &count) in &self.seen {
            let Some(score) = scores.get_mut(token as usize) else { continue };
            let above = *score > 0.0;
            *score = if above { *score / repetition_penalty } else { *score * repetition_penalty };
            if count > 0 {
                *score -= presence_penalty + frequency_penalty * count as f32;
            }
        }
    }

    /// Tokens that may be chosen and their weights, which need not add up to 1.
    fn candidates(&self, scores: &[f32]) -> Vec<(u32, f64)> {
        let Sampling { temperature, top_k, top_p, min_p, .. } = self.sampling;
        let greatest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |score: f32| (f64::from(score - greatest) / f64::from(temperature)).exp();
        let mut all: Vec<(u32, f64)> = (0..).zip(scores.iter().map(|&x| weight(x))).collect();
        // The likeliest first; of equal ones, the first. As many as are needed are put in order, not all.
        let order = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if top_k > 0 && top_k < all.len() {
            all.select_nth_unstable_by(top_k, order);
            all.truncate(top_k);
            all.sort_unstable_by(order);
        }
        let total: f64 = all.iter().map(|(_, weight)| weight).sum();
        let (mut sorted, mut kept) = (0, all.len());
        if top_p < 1.0 {
            let (mut sum, bound) = (0.0, f64::from(top_p) * total);
            kept = 0;
            while kept < all.len() && sum < bound {
                if kept == sorted {
                    let more = (4 * sorted).max(64).min(all.len() - sorted);
                    if sorted + more < all.len() {
                        all[sorted..].select_nth_unstable_by(more, order);
                    }
                    all[sorted..][..more].sort_unstable_by(order);
                    sorted += more;
                }
                sum += all[kept].1;
                kept += 1;
            }
        }
        all.truncate(kept.max(1));
        // The likeliest one's weight is 1.
        all.retain(|(_, weight)| *weight >= f64::from(min_p));
        all
    }

    /// In [0, 1), of the token that is drawn next.
    fn uniform(&self) -> f64 {
        let counter = [self.drawn as u32, (self.drawn >> 32) as u32, 0, 0];
        let words = philox4x32_10(counter, [self.seed as u32, (self.seed >> 32) as u32]);
        let bits = u64::from(words[0]) << 32 | u64::from(words[1]);
        (bits >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The token of the largest score, the first of equal ones.
fn likeliest(scores: &[f32]) -> u32 {
    let mut best = [f32::NEG_INFINITY; 16];
    let chunks = scores.chunks_exact(16);
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, larger);
    chunks.for_each(|x| best.iter_mut().zip(x).for_each(|(best, &x)| *best = larger(*best, x)));
    let best = best.into_iter().fold(rest, larger);
    scores.iter().position(|&x| x == best).unwrap_or_default() as u32
}

/// The token where the sum of weights passes this share of the whole.
fn draw(candidates: &[(u32, f64)], share: f64) -> u32 {
    let bound = share * candidates.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut sum = 0.0;
    let chosen = candidates.iter().find(|(_, weight)| {
        sum += weight;
        sum > bound
    });
    chosen.or(candidates.last()).map_or(0, |(token, _)| *token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [1.0, 3.0, -1.0, 3.0, 2.5, 0.0];

    fn plain() -> Sampling {
        Sampling { temperature: 1.0, ..Sampling::greedy() }
    }

    /// The probabilities that are left, by transformers' rules one by one over the whole list.
    fn reference(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
        let mut scores: Vec<f64> =
            logits.iter().map(|&x| f64::from(x) / f64::from(sampling.temperature)).collect();
        let softmax = |scores: &[f64]| {
            let exp: Vec<f64> = scores.iter().map(|x| x.exp()).collect();
            let total: f64 = exp.iter().sum();
            exp.into_iter().map(|x| x / total).collect::<Vec<_>>()
        };
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        if sampling.top_k > 0 {
            order.iter().skip(sampling.top_k).for_each(|&i| scores[i] = f64::NEG_INFINITY);
        }
        let p = softmax(&scores);
        let mut sum = 0.0;
        for (rank, &i) in order.iter().enumerate() {
            if rank > 0 && sum >= f64::from(sampling.top_p) {
                scores[i] = f64::NEG_INFINITY;
            }
            sum += p[i];
        }
        let p = softmax(&scores);
        let least = f64::from(sampling.min_p) * p.iter().copied().fold(0.0, f64::max);
        (0..p.len()).filter(|&i| p[i] < least).for_each(|i| scores[i] = f64::NEG_INFINITY);
        softmax(&scores)
    }

    #[test]
    fn what_is_left_has_the_probabilities_of_the_rules() {
        let long: Vec<f32> =
            (0..1000).map(|i| ((i * 7919 % 1000) as f32 / 90.0).sin() * 4.0).collect();
        for logits in [&LOGITS[..], &long] {
            for (top_k, top_p, min_p, temperature) in [
                (0, 1.0, 0.0, 1.0),
                (3, 1.0, 0.0, 0.7),
                (0, 0.6, 0.0, 1.0),
                (0, 0.97, 0.0, 1.3),
                (4, 0.9, 0.0, 0.5),
                (0, 1.0, 0.3, 1.0),
                (0, 0.99, 0.5, 2.0),
                (900, 0.999, 0.001, 3.0),
                (0, 1e-6, 0.0, 1.0),
            ] {
                let sampling = Sampling { top_k, top_p, min_p, temperature, ..plain() };
                let found = Sampler::new(sampling, 0, &[]).unwrap().candidates(logits);
                let total: f64 = found.iter().map(|(_, weight)| weight).sum();
                let mut share = vec![0.0; logits.len()];
                found.iter().for_each(|&(token, weight)| share[token as usize] = weight / total);
                for (i, (a, b)) in share.iter().zip(reference(logits, &sampling)).enumerate() {
                    // A score is f32 once the greatest is taken from it: half a unit of 8, over the least temperature.
                    assert!((a - b).abs() <= 2e-6 * b, "{sampling:?}, {i}: {a} instead of {b}");
                }
            }
        }
    }

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_likely() {
        let sampling = Sampling { top_k: 4, ..plain() };
        let expected = reference(&LOGITS, &sampling);
        let mut counts = [0; 6];
        const DRAWS: u64 = 20_000;
        let mut sampler = Sampler::new(sampling, 7, &[]).unwrap();
        for _ in 0..DRAWS {
            counts[sampler.choose(&LOGITS).unwrap() as usize] += 1;
        }
        for (i, (&count, p)) in counts.iter().zip(expected).enumerate() {
            // Five standard deviations of a binomial.
            let (mean, deviation) = (p * DRAWS as f64, (p * (1.0 - p) * DRAWS as f64).sqrt());
            let off = (f64::from(count) - mean).abs();
            assert!(off <= 5.0 * deviation, "{i}: {count} instead of {mean}");
        }
    }

    #[test]
    fn draws_follow_from_the_seed_and_the_number() {
        let draws = |seed| {
            let mut sampler = Sampler::new(plain(), seed, &[]).unwrap();
            (0..40).map(|_| sampler.choose(&LOGITS).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draws(3), draws(3));
        assert_ne!(draws(3), draws(4));
        assert_ne!(draws(3), draws(3 + (1 << 32)));
    }

    #[test]
    fn greedy_takes_the_first_of_the_largest() {
        let mut sampler = Sampler::new(Sampling::greedy(), 0, &[]).unwrap();
        assert_eq!(sampler.choose(&LOGITS).unwrap(), 1);
        // A single candidate is what sampling comes to as well.
        let sampling = Sampling { top_k: 1, ..plain() };
        assert_eq!(Sampler::new(sampling, 0, &[]).unwrap().choose(&LOGITS).unwrap(), 1);
    }

    #[test]
    fn penalties_are_of_the_tokens_that_were_there() {
        let sampling = Sampling {
            repetition_penalty: 2.0,
            presence_penalty: 0.25,
            frequency_penalty: 0.125,
            ..plain()
        };
        let mut sampler = Sampler::new(sampling, 0, &[1, 2, 2, 99]).unwrap();
        sampler.seen.insert(4, 3);
        let mut scores = LOGITS;
        sampler.penalize(&mut scores);
        // Prompt: 3 / 2 and -1 * 2, whatever their number; answer: 2.5 / 2 - 0.25 - 3 * 0.125.
        assert_eq!(scores, [1.0, 1.5, -2.0, 3.0, 0.625, 0.0]);
        let mut greedy =
            Sampler::new(Sampling { presence_penalty: 10.0, ..Sampling::greedy() }, 0, &[1])
                .unwrap();
        let chosen: Vec<u32> = (0..6).map(|_| greedy.choose(&LOGITS).unwrap()).collect();
        assert_eq!(chosen, [1, 3, 4, 0, 5, 2]);
    }

    #[test]
    fn numbers_that_are_not_possible_are_errors() {
        let wrong = |change: fn(&mut Sampling)| {
            let mut sampling = Sampling::default();
            sampling.check().unwrap();
            change(&mut sampling);
            let error = Sampler::new(sampling, 0, &[]).err().unwrap();
            assert!(matches!(error, Error::Argument { .. }), "{error}");
            error.to_string()
        };
        assert!(wrong(|s| s.temperature = f32::NAN).contains("temperature"));
        assert!(wrong(|s| s.temperature = -0.1).contains("temperature"));
        assert!(wrong(|s| s.temperature = f32::INFINITY).contains("temperature"));
        for top_p in [f32::NAN, 0.0, 1.01] {
            let error = Sampling { top_p, ..Sampling::default() }.check().unwrap_err();
            assert!(error.to_string().contains("top_p"), "{error}");
        }
        assert!(wrong(|s| s.min_p = 1.5).contains("min_p"));
        assert!(wrong(|s| s.repetition_penalty = 0.0).contains("repetition_penalty"));
        assert!(wrong(|s| s.presence_penalty = f32::NAN).contains("presence_penalty"));
        assert!(wrong(|s| s.frequency_penalty = f32::INFINITY).contains("frequency_penalty"));
    }

    #[test]
    fn a_score_that_is_no_number_is_an_error() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut logits = LOGITS;
            logits[3] = bad;
            for sampling in [plain(), Sampling::greedy()] {
                let error = Sampler::new(sampling, 0, &[]).unwrap().choose(&logits).unwrap_err();
                assert!(error.to_string().contains("token 3"), "{error}");
            }
        }
    }
}
