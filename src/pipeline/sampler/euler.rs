//! Euler's method along the probability flow, and its ancestral form, which goes further down and puts noise back
//! (Karras et al. 2022; k-diffusion). References: diffusers `scheduling_euler_discrete.py` and
//! `scheduling_euler_ancestral_discrete.py`.

use crate::error::Result;
use crate::io::config::Config;
use crate::tensor::Tensor;

use super::prediction::{Mix, Prediction, combine};
use super::schedule::{BetaDefaults, NoiseSchedule, linspace_f32};
use super::sigmas::{FinalSigma, Ramp, SigmaRange, SigmaTable, check_descending};
use super::spacing::Spacing;
use super::{DrawNoise, LinearStep, NoiseLevel, Sampler, first_noise_level, input_scale};

pub(super) struct Euler {
    prediction: Prediction,
    spacing: Spacing,
    ancestral: bool,
    timesteps: Vec<f32>,
    sigmas: Vec<f32>,
}

impl Euler {
    /// EulerDiscreteScheduler.
    pub fn new(config: &Config, steps: usize) -> Result<Self> {
        let schedule = NoiseSchedule::read(config, BetaDefaults::DDPM, &[], true)?;
        let choices = [&Prediction::ALL[..], &[("original_sample", Prediction::Sample)]].concat();
        let prediction = config.choice("prediction_type", "epsilon", &choices)?;
        let spacing = Spacing::read(config, "linspace")?;
        let (ramp, range) = (Ramp::read(config)?, SigmaRange::read(config)?);
        let log_linear = config.choice(
            "interpolation_type",
            "linear",
            &[("linear", false), ("log_linear", true)],
        )?;
        let continuous = config.choice(
            "timestep_type",
            "discrete",
            &[("discrete", false), ("continuous", true)],
        )?;
        let last = FinalSigma::read(config)?;

        let table = SigmaTable::new(&schedule);
        let mut timesteps: Vec<f32> =
            spacing.timesteps(schedule.len(), steps)?.into_iter().map(|t| t as f32).collect();
        let mut sigmas: Vec<f64> = if log_linear {
            let (min, max) = table.log_range();
            let logs = linspace_f32(max, min, steps + 1).into_iter();
            logs.map(|log| (log as f64).exp() as f32 as f64).collect()
        } else {
            timesteps.iter().map(|&t| table.at(t as f64)).collect()
        };
        if let Some(ramped) = range.sigmas(ramp, sigmas[0], sigmas[sigmas.len() - 1], steps) {
            timesteps = ramped.iter().map(|&sigma| table.timestep(sigma) as f32).collect();
            sigmas = ramped;
        }
        sigmas.push(match last {
            FinalSigma::Zero => 0.0,
            FinalSigma::Min => table.min(),
        });
        let sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
        check_descending(config, &sigmas)?;
        if continuous && prediction == Prediction::Velocity {
            timesteps = sigmas[..steps].iter().map(|sigma| 0.25 * sigma.ln()).collect();
        }
        Ok(Self { prediction, spacing, ancestral: false, timesteps, sigmas })
    }

    /// EulerAncestralDiscreteScheduler.
    pub fn ancestral(config: &Config, steps: usize) -> Result<Self> {
        let schedule = NoiseSchedule::read(config, BetaDefaults::DDPM, &[], true)?;
        let prediction = Prediction::read_without_sample(config)?;
        let spacing = Spacing::read(config, "linspace")?;
        let table = SigmaTable::new(&schedule);
        let timesteps: Vec<f32> =
            spacing.timesteps(schedule.len(), steps)?.into_iter().map(|t| t as f32).collect();
        let mut sigmas: Vec<f32> = timesteps.iter().map(|&t| table.at(t as f64) as f32).collect();
        sigmas.push(0.0);
        Ok(Self { prediction, spacing, ancestral: true, timesteps, sigmas })
    }

    /// Of step `i`: weights of the sample and the output, and of noise where it is drawn.
    fn weights(&self, i: usize) -> ([f64; 2], Option<f64>) {
        let (from, to) = (self.sigmas[i], self.sigmas[i + 1]);
        let slope = self.prediction.derivative(from as f64);
        let step = |end: f32| {
            // In f32, as the reference: from the sigma of 4096 of a zero terminal SNR its rounding shows.
            let width = (end - from) as f64;
            [1.0 + width * slope.sample, width * slope.output]
        };
        if !self.ancestral {
            return (step(to), None);
        }
        // The noise put back makes up for what the step went too far: down^2 + up^2 = to^2. The reference draws at
        // the last step as well, with weight 0.
        let up = to * (1.0 - (to / from).powi(2)).sqrt();
        let down = to * to / from;
        (step(down), Some(up as f64))
    }
}

impl Sampler for Euler {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
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

    fn linear(&self, start: usize) -> Option<Vec<LinearStep>> {
        let linear = |i| {
            let ([sample, output], noise) = self.weights(i);
            LinearStep::new(Mix::OUTPUT, sample, &[output], noise)
        };
        Some((start..self.timesteps.len()).map(linear).collect())
    }

    fn step(
        &mut self,
        i: usize,
        output: &Tensor,
        sample: &Tensor,
        noise: &mut DrawNoise,
    ) -> Result<Tensor> {
        let ([of_sample, of_output], of_noise) = self.weights(i);
        let mut terms = vec![(of_sample, sample), (of_output, output)];
        let drawn = of_noise.map(|weight| Ok((weight, noise()?))).transpose()?;
        terms.extend(drawn.as_ref().map(|(weight, noise)| (*weight, noise)));
        combine(&terms)
    }
}
