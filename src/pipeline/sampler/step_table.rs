//! Samplers whose every step is a sum with weights that are known beforehand: what DDIM, DDPM and LCM come to.

use crate::error::Result;
use crate::tensor::Tensor;

use super::prediction::{Clip, Mix, Weights};
use super::{DrawNoise, LinearStep, NoiseLevel, Sampler, check_strength, steps_left};

pub(super) struct StepTable {
    pub clip: Clip,
    pub timesteps: Vec<f32>,
    /// One for each of `timesteps`.
    pub steps: Vec<Step>,
    /// Whether an image-to-image run makes them all, since they were laid over what its strength leaves of the schedule.
    pub is_whole: bool,
}

pub(super) struct Step {
    /// Of the sample before the step.
    pub level: NoiseLevel,
    /// From the sample and the output to the denoised sample.
    pub denoised: Mix,
    pub weights: Weights,
    /// Weight of fresh noise; drawn where there is one, even if it is 0.
    pub noise: Option<f64>,
}

impl Sampler for StepTable {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn noise_level(&self, i: usize) -> NoiseLevel {
        self.steps[i].level
    }

    fn start_index(&self, strength: f64) -> Result<usize> {
        check_strength(strength)?;
        match self.is_whole {
            true => Ok(0),
            false => steps_left(self, strength),
        }
    }

    fn linear(&self, start: usize) -> Option<Vec<LinearStep>> {
        let linear = |step: &Step| {
            let Step { denoised, weights, noise, .. } = step;
            let sample = weights.sample + weights.x0 * denoised.sample;
            let output = weights.output + weights.x0 * denoised.output;
            LinearStep::new(Mix::OUTPUT, sample, &[output], *noise)
        };
        self.clip.unless_bounded(|| self.steps[start..].iter().map(linear).collect())
    }

    fn step(
        &mut self,
        i: usize,
        output: &Tensor,
        sample: &Tensor,
        noise: &mut DrawNoise,
    ) -> Result<Tensor> {
        let step = &self.steps[i];
        let drawn = step.noise.map(|weight| Ok((weight, noise()?))).transpose()?;
        let noise = drawn.as_ref().map(|(weight, noise)| (*weight, noise));
        self.clip.step(step.denoised, step.weights, sample, output, noise)
    }
}
