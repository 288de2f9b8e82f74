//! Steps as sums whose weights are known before a run begins: what they come to where nothing bounds the denoised sample.

use super::prediction::{Clip, Mix};
use crate::ops::sampler::RECALLED;

/// A step: `sample * x + recalled[0] * kept + recalled[k] * (what the k-th step before kept) + noise * normal`, where `kept`
/// is a mix of x and the model's output.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearStep {
    /// Weights of the sample and of the output in what is kept.
    pub kept: [f64; 2],
    /// Of the sample.
    pub sample: f64,
    /// Of what was kept, this step's first, then the newest.
    pub recalled: [f64; RECALLED],
    /// Of fresh noise; drawn where there is one, even if it is 0.
    pub noise: Option<f64>,
}

impl LinearStep {
    /// Weights that are not listed are 0.
    pub(super) fn new(kept: Mix, sample: f64, recalled: &[f64], noise: Option<f64>) -> Self {
        let weight = |k: usize| recalled.get(k).copied().unwrap_or(0.0);
        let kept = [kept.sample, kept.output];
        Self { kept, sample, recalled: std::array::from_fn(weight), noise }
    }

    /// Whether there is such a step: the schedule may ask for what the prediction cannot tell.
    pub fn is_finite(&self) -> bool {
        let all = self.kept.iter().chain(&self.recalled).chain([&self.sample]).chain(&self.noise);
        all.copied().all(f64::is_finite)
    }
}

impl Mix {
    /// The model's output itself.
    pub(super) const OUTPUT: Self = Self { sample: 0.0, output: 1.0 };
}

impl Clip {
    /// The steps, unless the denoised sample is bounded: then no weight stands for a step.
    pub(super) fn unless_bounded(
        self,
        steps: impl FnOnce() -> Vec<LinearStep>,
    ) -> Option<Vec<LinearStep>> {
        (self == Self::Off).then(steps)
    }
}
