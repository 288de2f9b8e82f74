//! Heun's second-order method along the probability flow (Karras et al. 2022, algorithm 1 without churn): two
//! evaluations a step, one in the last. Reference: diffusers `scheduling_heun_discrete.py`.

use crate::error::Result;
use crate::io::config::Config;
use crate::tensor::Tensor;

use super::prediction::{Clip, Mix, Prediction, combine};
use super::schedule::{BetaDefaults, Betas, NoiseSchedule};
use super::sigmas::{Ramp, SigmaRange, SigmaTable, check_descending};
use super::spacing::Spacing;
use super::{DrawNoise, LinearStep, NoiseLevel, Sampler, first_noise_level, input_scale};

pub(super) struct Heun {
    prediction: Prediction,
    clip: Clip,
    spacing: Spacing,
    /// One an evaluation: all but the first twice.
    timesteps: Vec<f32>,
    /// Likewise, and 0 at the end.
    sigmas: Vec<f32>,
    /// Sample and slope at the beginning of the step under way.
    first: Option<(Tensor, Tensor)>,
}

impl Heun {
    pub fn new(config: &Config, steps: usize) -> Result<Self> {
        let defaults = BetaDefaults { start: 0.00085, end: 0.012, schedule: "linear" };
        let schedule =
            NoiseSchedule::read(config, defaults, &[("exp", Betas::Exponential)], false)?;
        let prediction = Prediction::read(config)?;
        let clip = Clip::read_range(config, false)?;
        let spacing = Spacing::read(config, "linspace")?;
        let (ramp, range) = (Ramp::read(config)?, SigmaRange::read(config)?);

        let table = SigmaTable::new(&schedule);
        let timesteps = spacing.timesteps(schedule.len(), steps)?;
        let mut timesteps: Vec<f32> = timesteps.into_iter().map(|t| t as f32).collect();
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| table.at(t as f64)).collect();
        if let Some(ramped) = range.sigmas(ramp, sigmas[0], sigmas[steps - 1], steps) {
            timesteps = ramped.iter().map(|&sigma| table.timestep(sigma) as f32).collect();
            sigmas = ramped;
        }
        let mut sigmas: Vec<f32> = twice_but_first(sigmas.into_iter().map(|s| s as f32));
        sigmas.push(0.0);
        check_descending(config, &sigmas)?;
        let timesteps = twice_but_first(timesteps.into_iter());
        Ok(Self { prediction, clip, spacing, timesteps, sigmas, first: None })
    }

    /// The probability flow's slope at `sigma`.
    fn slope(&self, sigma: f64, output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let slope = self.prediction.derivative(sigma);
        if self.clip == Clip::Off {
            return slope.apply(sample, output);
        }
        let denoised = Mix { sample: 1.0 - sigma * slope.sample, output: -sigma * slope.output };
        let x0 = self.clip.apply(denoised.apply(sample, output)?)?;
        combine(&[(1.0 / sigma, sample), (-1.0 / sigma, &x0)])
    }
}

fn twice_but_first(values: impl Iterator<Item = f32>) -> Vec<f32> {
    values.flat_map(|value| [value, value]).skip(1).collect()
}

impl Sampler for Heun {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn steps(&self) -> usize {
        self.timesteps.len().div_ceil(2)
    }

    fn evaluations_per_step(&self) -> usize {
        2
    }

    fn init_noise_sigma(&self) -> f32 {
        first_noise_level(&self.sigmas, self.spacing)
    }

    fn input_scale(&self, i: usize) -> f32 {
        input_scale(self.sigmas[i])
    }

    fn noise_level(&self, i: usize) -> NoiseLevel {
        NoiseLevel { signal: 1.0, noise: self.sigmas[i] as f64 }
    }

    fn begin(&mut self, _start: usize) {
        self.first = None;
    }

    fn linear(&self, start: usize) -> Option<Vec<LinearStep>> {
        let linear = |i: usize| {
            let slope = self.prediction.derivative(self.sigmas[i] as f64);
            if (i - start).is_multiple_of(2) {
                let width = (self.sigmas[i + 1] - self.sigmas[i]) as f64;
                return LinearStep::new(slope, 1.0, &[width], None);
            }
            // The step began a width along the first slope before.
            let width = (self.sigmas[i] - self.sigmas[i - 1]) as f64;
            LinearStep::new(slope, 1.0, &[0.5 * width, -0.5 * width], None)
        };
        self.clip.unless_bounded(|| (start..self.timesteps.len()).map(linear).collect())
    }

    fn step(
        &mut self,
        i: usize,
        output: &Tensor,
        sample: &Tensor,
        _noise: &mut DrawNoise,
    ) -> Result<Tensor> {
        let slope = self.slope(self.sigmas[i] as f64, output, sample)?;
        match self.first.take() {
            None => {
                let width = (self.sigmas[i + 1] - self.sigmas[i]) as f64;
                let next = combine(&[(1.0, sample), (width, &slope)])?;
                self.first = Some((sample.clone(), slope));
                Ok(next)
            }
            // Again from the beginning, with the mean of the slopes at both ends.
            Some((start, first)) => {
                let half = 0.5 * (self.sigmas[i] - self.sigmas[i - 1]) as f64;
                combine(&[(1.0, &start), (half, &first), (half, &slope)])
            }
        }
    }
}
