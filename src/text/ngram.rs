//! An n-gram model of token sequences, which a language model has to beat: interpolated Kneser-Ney with three discounts
//! (Kneser & Ney 1995; Chen & Goodman 1999, section 3).

use std::collections::{HashMap, HashSet};

use crate::error::{Error, Result};

/// Discounts of a level whose counts are too few to estimate them from.
const FALLBACK: [f64; 3] = [0.5, 1.0, 1.5];

/// Probabilities of a token behind those before it.
///
/// A document begins with a token that is only ever seen from behind (start) and never predicted.
pub struct KneserNey {
    /// Of sequences of 1 to `order` tokens.
    levels: Vec<Level>,
    vocabulary: usize,
}

/// Sequences of one length.
#[derive(Default)]
struct Level {
    /// Of the longest, and of those at a document's start, how often they occur; of others behind how many tokens.
    counts: HashMap<Box<[u32]>, u64>,
    /// By all but the last token.
    contexts: HashMap<Box<[u32]>, Context>,
    /// From counts of 1, of 2, and of more.
    discounts: [f64; 3],
}

/// What has been seen behind a context.
#[derive(Clone, Copy, Default)]
struct Context {
    /// Sum of the counts.
    total: u64,
    /// Tokens with a count of 1, of 2, and of more.
    kinds: [u64; 3],
}

impl KneserNey {
    /// Counts in `documents`, whose first token is the start.
    ///
    /// # Errors
    /// `Argument` for an order of 0; `Value` for a token outside the vocabulary, or when nothing is predicted.
    pub fn new<'a>(
        documents: impl IntoIterator<Item = &'a [u32]>,
        order: usize,
        vocabulary: usize,
    ) -> Result<Self> {
        if order == 0 {
            return Err(Error::argument("order", order, "at least 1"));
        }
        let mut levels: Vec<Level> = (0..order).map(|_| Level::default()).collect();
        // Of each length below the order: sequences inside of documents, each with the token before it.
        let mut inside: HashSet<Box<[u32]>> = HashSet::new();
        for document in documents {
            if let Some(token) = document.iter().find(|&&token| token as usize >= vocabulary) {
                let message = format!("token {token} is none of {vocabulary}");
                return Err(Error::value("n-gram", message));
            }
            for end in 2..=document.len() {
                for length in 1..=order.min(end) {
                    let gram = &document[end - length..end];
                    if length == order || length == end {
                        *levels[length - 1].counts.entry(gram.into()).or_default() += 1;
                    } else {
                        inside.insert(document[end - length - 1..end].into());
                    }
                }
            }
        }
        for gram in inside {
            *levels[gram.len() - 2].counts.entry(gram[1..].into()).or_default() += 1;
        }
        for level in &mut levels {
            level.finish();
        }
        if levels[0].counts.is_empty() {
            return Err(Error::value("n-gram", "documents without a token to predict"));
        }
        Ok(Self { levels, vocabulary })
    }

    /// The probability of `token` behind `context`, of which the last `order - 1` tokens count. Over the vocabulary these
    /// sum to 1.
    pub fn probability(&self, context: &[u32], token: u32) -> f64 {
        let mut probability = 1.0 / self.vocabulary as f64;
        for (length, level) in self.levels.iter().enumerate() {
            let Some(start) = context.len().checked_sub(length) else { break };
            let context = &context[start..];
            // Longer ones have not been seen either.
            let Some(seen) = level.contexts.get(context) else { break };
            let gram: Vec<u32> = context.iter().copied().chain([token]).collect();
            let count = level.counts.get(&gram[..]).copied().unwrap_or_default();
            let total = seen.total as f64;
            let left = (count as f64 - level.discount(count)) / total;
            let taken = seen.kinds.iter().zip(level.discounts).map(|(&n, d)| n as f64 * d);
            probability = left + taken.sum::<f64>() / total * probability;
        }
        probability
    }

    /// Logarithms of the probabilities of all tokens but the first of each document, and their number.
    pub fn log_probability<'a>(
        &self,
        documents: impl IntoIterator<Item = &'a [u32]>,
    ) -> (f64, usize) {
        let (mut sum, mut count) = (0.0, 0);
        for document in documents {
            for i in 1..document.len() {
                sum += self.probability(&document[..i], document[i]).ln();
                count += 1;
            }
        }
        (sum, count)
    }

    /// The geometric mean of the inverse probabilities of all tokens but the first of each document.
    pub fn perplexity<'a>(&self, documents: impl IntoIterator<Item = &'a [u32]>) -> f64 {
        let (sum, count) = self.log_probability(documents);
        (-sum / count as f64).exp()
    }
}

impl Level {
    /// Sums up what was counted.
    fn finish(&mut self) {
        let mut with = [0u64; 4];
        for (gram, &count) in &self.counts {
            let context = self.contexts.entry(gram[..gram.len() - 1].into()).or_default();
            context.total += count;
            context.kinds[kind(count)] += 1;
            if let Some(n) = with.get_mut(count as usize - 1) {
                *n += 1;
            }
        }
        self.discounts = discounts(with);
    }

    fn discount(&self, count: u64) -> f64 {
        if count == 0 { 0.0 } else { self.discounts[kind(count)] }
    }
}

/// 0 for a count of 1, 1 for 2, 2 for more.
fn kind(count: u64) -> usize {
    (count as usize - 1).min(2)
}

/// Equation 26 of Chen & Goodman, of the numbers of sequences with counts of 1 to 4.
fn discounts(with: [u64; 4]) -> [f64; 3] {
    let [n1, n2, n3, n4] = with.map(|n| n as f64);
    if with.contains(&0) {
        return FALLBACK;
    }
    let y = n1 / (n1 + 2.0 * n2);
    let found = [1.0 - 2.0 * y * n2 / n1, 2.0 - 3.0 * y * n3 / n2, 3.0 - 4.0 * y * n4 / n3];
    // No count becomes negative, nor grows.
    let possible = found.iter().zip(1..).all(|(d, most)| (0.0..=f64::from(most)).contains(d));
    if possible { found } else { FALLBACK }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Start 0, a 1, b 2, c 3, end 4; "ab" and "ac". Bigrams: 0a twice, ab, ac, b4 and c4 once; too few for discounts but
    /// [`FALLBACK`]'s.
    #[test]
    fn a_small_case_is_what_it_is_by_hand() {
        let documents = [&[0, 1, 2, 4][..], &[0, 1, 3, 4]];
        let model = KneserNey::new(documents, 2, 5).unwrap();
        // Behind how many tokens each is seen: a 1, b 1, c 1, end 2. 3 x 0.5 + 1 of 5 are taken, and given to all five.
        let unigram = [0.1, 0.2, 0.2, 0.2, 0.3];
        for (token, expected) in (0..).zip(unigram) {
            assert!((model.probability(&[], token) - expected).abs() < 1e-12, "{token}");
            // A context that was never seen.
            assert!((model.probability(&[4], token) - expected).abs() < 1e-12, "{token}");
        }
        // Of 2 counts of "a" behind the start, 1 is taken; of one of "b" and one of "c" behind "a", 0.5 each.
        assert!((model.probability(&[0], 1) - (0.5 + 0.5 * 0.2)).abs() < 1e-12);
        assert!((model.probability(&[0, 1], 2) - (0.25 + 0.5 * 0.2)).abs() < 1e-12);
        assert!((model.probability(&[1], 4) - 0.5 * 0.3).abs() < 1e-12);
        // 0.6, 0.35, 0.5 + 0.5 x 0.3
        let expected = (0.6f64 * 0.35 * 0.65).powf(-1.0 / 3.0);
        assert!((model.perplexity([documents[0]]) - expected).abs() < 1e-12);
    }

    /// The last token of a trigram at a document's start is counted as often as it occurs, since nothing comes before it.
    #[test]
    fn sequences_at_the_start_have_their_own_counts() {
        let documents = [&[0, 1, 2][..], &[0, 1, 2], &[0, 1, 2], &[0, 1, 3]];
        let model = KneserNey::new(documents, 3, 4).unwrap();
        assert_eq!(model.levels[2].counts[&[0, 1, 2][..]], 3);
        assert_eq!(model.levels[1].counts[&[0, 1][..]], 4);
        assert_eq!(model.levels[1].counts[&[1, 2][..]], 1);
        assert_eq!(model.levels[0].counts[&[1][..]], 1);
        assert!(!model.levels[0].counts.contains_key(&[0][..]));
    }

    #[test]
    fn discounts_are_those_of_the_paper() {
        // y = 10 / (10 + 2 x 5) = 0.5
        let [one, two, more] = discounts([10, 5, 3, 2]);
        assert!((one - (1.0 - 2.0 * 0.5 * 0.5)).abs() < 1e-12);
        assert!((two - (2.0 - 3.0 * 0.5 * 0.6)).abs() < 1e-12);
        assert!((more - (3.0 - 4.0 * 0.5 * 2.0 / 3.0)).abs() < 1e-12);
        assert_eq!(discounts([10, 5, 0, 2]), FALLBACK);
        // 2 - 3 x 0.25 x 9 < 0
        assert_eq!(discounts([2, 3, 9, 1]), FALLBACK);
    }

    #[test]
    fn probabilities_sum_to_1_behind_every_context() {
        // 400 documents of a little language: each token is a little above the one before.
        let mut state = 7u64;
        let mut below = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % n
        };
        let mut document = || {
            let mut tokens = vec![0];
            for _ in 0..below(12) {
                let last = u64::from(tokens[tokens.len() - 1]);
                let wide = 2 + below(4);
                tokens.push(1 + ((last + below(wide)) % 28) as u32);
            }
            tokens.push(29);
            tokens
        };
        let documents: Vec<Vec<u32>> = (0..400).map(|_| document()).collect();
        let held_out: Vec<Vec<u32>> = (0..50).map(|_| document()).collect();
        let model = KneserNey::new(documents.iter().map(|d| &d[..]), 5, 31).unwrap();
        assert!(model.levels[..3].iter().any(|level| level.discounts != FALLBACK));
        let contexts = [&[][..], &[0], &[30], &[0, 30, 1], &[5, 30, 7, 8, 9]];
        let seen = documents[..20].iter().flat_map(|d| (0..d.len()).map(|i| &d[..i]));
        for context in contexts.into_iter().chain(seen) {
            let probabilities = (0..31).map(|token| model.probability(context, token));
            let all: Vec<f64> = probabilities.collect();
            assert!(all.iter().all(|&p| p > 0.0), "{context:?}");
            let sum: f64 = all.iter().sum();
            assert!((sum - 1.0).abs() < 1e-12, "{context:?}: {sum}");
        }
        // It knows more than the uniform model, and of what it has seen more than of what it has not.
        let of = |documents: &[Vec<u32>]| model.perplexity(documents.iter().map(|d| &d[..]));
        assert!(of(&documents) < of(&held_out) && of(&held_out) < 15.0);
    }

    #[test]
    fn what_no_model_can_be_made_of_is_an_error() {
        let error = |documents: &[&[u32]], order| {
            KneserNey::new(documents.iter().copied(), order, 3).err().unwrap().to_string()
        };
        assert!(error(&[&[0, 1]], 0).contains("order"));
        assert!(error(&[&[0, 3]], 2).contains("token 3"));
        assert!(error(&[&[0]], 2).contains("without a token"));
        assert!(error(&[], 2).contains("without a token"));
    }
}
