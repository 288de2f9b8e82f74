//! How well classes are told apart: accuracy, precision, recall, F1, intersection over union, calibration, and how sure
//! a mean of few runs is.

use serde::{Deserialize, Serialize};

/// How often each class was seen as each: rows are what it is, columns what was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confusion {
    /// Rows.
    pub counts: Vec<Vec<u64>>,
}

/// Scores of a class; of one that there is nothing of, they are no numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassScores {
    /// Share of what was seen as the class that is of it.
    pub precision: f64,
    /// Share of the class that was seen as it.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
    /// Of what is or was seen as the class, the share that both is and was.
    pub iou: f64,
}

impl Confusion {
    /// Nothing yet, of `classes` classes.
    pub fn new(classes: usize) -> Self {
        Self { counts: vec![vec![0; classes]; classes] }
    }

    /// Takes up one that is `truth` and was seen as `seen`.
    pub fn add(&mut self, truth: usize, seen: usize) {
        self.counts[truth][seen] += 1;
    }

    /// Takes up all of another.
    pub fn merge(&mut self, other: &Self) {
        for (own, other) in self.counts.iter_mut().zip(&other.counts) {
            own.iter_mut().zip(other).for_each(|(own, other)| *own += other);
        }
    }

    /// How many were taken up.
    pub fn total(&self) -> u64 {
        self.counts.iter().flatten().sum()
    }

    /// Share that was seen as what it is.
    pub fn accuracy(&self) -> f64 {
        let right: u64 = (0..self.counts.len()).map(|i| self.counts[i][i]).sum();
        right as f64 / self.total() as f64
    }

    /// By class.
    pub fn classes(&self) -> Vec<ClassScores> {
        let score = |i: usize| {
            let both = self.counts[i][i] as f64;
            let is: u64 = self.counts[i].iter().sum();
            let seen: u64 = self.counts.iter().map(|row| row[i]).sum();
            let (is, seen) = (is as f64, seen as f64);
            ClassScores {
                // What was never seen was never seen wrongly, and never rightly either.
                precision: if seen == 0.0 && is > 0.0 { 0.0 } else { both / seen },
                recall: both / is,
                f1: 2.0 * both / (is + seen),
                iou: both / (is + seen - both),
            }
        };
        (0..self.counts.len()).map(score).collect()
    }

    /// Mean F1 of the classes that there is something of.
    pub fn macro_f1(&self) -> f64 {
        mean(self.classes().iter().map(|class| class.f1))
    }

    /// Mean intersection over union of the classes that there is something of.
    pub fn mean_iou(&self) -> f64 {
        mean(self.classes().iter().map(|class| class.iou))
    }
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.filter(|x| x.is_finite()).collect();
    values.iter().sum::<f64>() / values.len() as f64
}

/// Bins of a [`Calibration`].
const BINS: usize = 15;

/// Expected calibration error (Guo et al. 2017): by how much the confidence in what was seen is off from the share that is
/// right, over 15 bins of equal width.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    /// Sums of confidences and of what was right.
    bins: [(f64, f64); BINS],
    count: u64,
}

impl Calibration {
    /// Takes up one that was seen with this confidence, 0 to 1, rightly or not.
    pub fn add(&mut self, confidence: f32, right: bool) {
        // A bin has its upper bound, as in the paper.
        let bin = ((confidence * BINS as f32).ceil() as usize).clamp(1, BINS) - 1;
        self.bins[bin].0 += f64::from(confidence);
        self.bins[bin].1 += f64::from(u8::from(right));
        self.count += 1;
    }

    /// Of what was taken up.
    pub fn error(&self) -> f64 {
        self.bins.iter().map(|(sure, right)| (sure - right).abs()).sum::<f64>() / self.count as f64
    }
}

/// The [error](Calibration::error) of pairs of a confidence and whether it was right.
pub fn calibration_error(seen: &[(f32, bool)]) -> f64 {
    let mut all = Calibration::default();
    seen.iter().for_each(|&(confidence, right)| all.add(confidence, right));
    all.error()
}

/// A mean, and how far the true one may be off.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Of the values.
    pub mean: f64,
    /// With 95 % confidence the true mean is this near, if values are normal (Student's t); no number for one value.
    pub half_width: f64,
}

/// The mean of some runs' values.
pub fn interval(values: &[f64]) -> Interval {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let half_width =
        if values.len() < 2 { f64::NAN } else { t(values.len() - 1) * (variance / n).sqrt() };
    Interval { mean, half_width }
}

/// The 97.5th percentile of Student's t with so many degrees of freedom: a table, and beyond it its expansion about the
/// normal one (Abramowitz & Stegun 1964, 26.7.5).
fn t(degrees: usize) -> f64 {
    const FIRST: [f64; 10] = [
        12.706205, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157,
        2.228139,
    ];
    if let Some(value) = FIRST.get(degrees - 1) {
        return *value;
    }
    let (z, n): (f64, f64) = (1.959963985, degrees as f64);
    let first = (z.powi(3) + z) / 4.0;
    let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    let third = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    let fourth = (79.0 * z.powi(9) + 776.0 * z.powi(7) + 1482.0 * z.powi(5)
        - 1920.0 * z.powi(3)
        - 945.0 * z)
        / 92160.0;
    z + first / n + second / n.powi(2) + third / n.powi(3) + fourth / n.powi(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_those_of_their_definitions() {
        let mut all = Confusion::new(3);
        for (truth, seen, n) in [(0, 0, 4), (0, 1, 1), (1, 1, 2), (1, 0, 3)] {
            (0..n).for_each(|_| all.add(truth, seen));
        }
        assert_eq!(all.accuracy(), 0.6);
        let classes = all.classes();
        let near = |a: f64, b: f64| (a - b).abs() < 1e-12;
        assert!(near(classes[0].precision, 4.0 / 7.0) && near(classes[0].recall, 0.8));
        assert!(near(classes[0].f1, 2.0 / 3.0) && near(classes[0].iou, 0.5));
        assert!(near(classes[1].precision, 2.0 / 3.0) && near(classes[1].recall, 0.4));
        // Of the third there is nothing.
        assert!(classes[2].recall.is_nan() && classes[2].iou.is_nan());
        assert!(near(all.mean_iou(), (0.5 + 2.0 / 6.0) / 2.0));
        assert!(near(all.macro_f1(), (2.0 / 3.0 + 0.5) / 2.0));
        // A class that is there and was never seen.
        let mut missed = Confusion::new(2);
        missed.add(0, 1);
        assert_eq!(missed.classes()[0].precision, 0.0);
        all.merge(&all.clone());
        assert_eq!((all.total(), all.accuracy()), (20, 0.6));
    }

    #[test]
    fn calibration_is_the_gap_between_confidence_and_truth() {
        let sure = [(1.0, true), (1.0, true), (1.0, false), (1.0, true)];
        assert!((calibration_error(&sure) - 0.25).abs() < 1e-9);
        // Two bins, which are off to either side.
        let two = [(0.6, true), (0.6, true), (0.9, false), (0.9, true)];
        assert!((calibration_error(&two) - (0.4 + 0.4) / 2.0).abs() < 1e-6);
        // Two of 15 bins, which would be one of 10.
        let near = [(0.61, true), (0.69, false)];
        assert!((calibration_error(&near) - (0.39 + 0.69) / 2.0).abs() < 1e-6);
        assert_eq!(calibration_error(&[(0.0, false)]), 0.0);
        assert!(calibration_error(&[]).is_nan());
    }

    #[test]
    fn intervals_are_students() {
        let found = interval(&[1.0, 2.0, 3.0]);
        assert_eq!(found.mean, 2.0);
        assert!((found.half_width - 4.302653 / 3f64.sqrt()).abs() < 1e-6);
        assert!(interval(&[1.0]).half_width.is_nan());
        // Published percentiles for 11, 30 and 120 degrees.
        for (degrees, expected) in [(11, 2.200985), (30, 2.042272), (120, 1.979930)] {
            assert!((t(degrees) - expected).abs() < 2e-5, "{degrees}: {}", t(degrees));
        }
    }
}
