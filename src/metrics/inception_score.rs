//! How sure a classifier is of each picture, and how much it sees in all of them: Salimans et al. 2016, "Improved
//! Techniques for Training GANs". Reference: `torch_fidelity/metric_isc.py`.

use super::Features;
use super::features::require;
use super::permutation::Draws;
use crate::error::{Error, Result};

/// Parts that pictures are dealt into, as in the paper.
pub const SPLITS: usize = 10;

/// The score: from 1 to the number of classes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InceptionScore {
    /// Over the parts.
    pub mean: f64,
    /// Over the parts.
    pub deviation: f64,
}

/// exp E KL(p(y | x) || p(y)) of the logits [N, classes], in `splits` parts of pictures that are shuffled by `seed`.
///
/// # Errors
/// `Argument` for fewer pictures than parts, or no part.
pub fn score(logits: &Features, splits: usize, seed: u32) -> Result<InceptionScore> {
    if splits == 0 {
        return Err(Error::argument("splits", splits, "at least one"));
    }
    require(logits.count(), splits)?;
    let (n, order) = (logits.count(), Draws::new(seed).permutation(logits.count()));
    let part = |i: usize| divergence(logits, &order[i * n / splits..(i + 1) * n / splits]).exp();
    let scores: Vec<f64> = (0..splits).map(part).collect();
    let mean = scores.iter().sum::<f64>() / splits as f64;
    let variance = scores.iter().map(|s| (s - mean) * (s - mean)).sum::<f64>() / splits as f64;
    Ok(InceptionScore { mean, deviation: variance.sqrt() })
}

/// The mean over pictures of KL(p(y | x) || mean p(y)).
fn divergence(logits: &Features, places: &[usize]) -> f64 {
    let log_p: Vec<Vec<f64>> = places.iter().map(|&i| log_softmax(logits.row(i))).collect();
    let n = places.len() as f64;
    let marginal = |class: usize| log_p.iter().map(|row| row[class].exp()).sum::<f64>() / n;
    let log_q: Vec<f64> = (0..logits.width()).map(|class| marginal(class).ln()).collect();
    let of = |row: &Vec<f64>| row.iter().zip(&log_q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    log_p.iter().map(of).sum::<f64>() / n
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(x)));
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum();
    logits.iter().map(|&x| f64::from(x) - largest - sum.ln()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    #[test]
    fn sure_and_even_gives_the_number_of_classes_and_unsure_gives_one() {
        let of = |logits: Vec<f32>, splits| {
            let rows = Tensor::from_vec(logits, [12, 3]).unwrap();
            score(&Features::new(&rows).unwrap(), splits, 2020).unwrap().mean
        };
        let sure = (0..36).map(|i| if i / 3 % 3 == i % 3 { 60.0 } else { 0.0 }).collect();
        assert!((of(sure, 1) - 3.0).abs() <= 1e-12);
        assert!((of(vec![0.5; 36], 4) - 1.0).abs() <= 1e-12);
    }

    #[test]
    fn fewer_pictures_than_parts_are_refused() {
        let rows = Tensor::from_vec(vec![0f32; 9], [3, 3]).unwrap();
        let message = score(&Features::new(&rows).unwrap(), 10, 2020).err().unwrap().to_string();
        assert!(message.contains("needs 10"), "{message}");
    }
}
