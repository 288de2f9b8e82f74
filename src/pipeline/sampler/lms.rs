//! Linear multistep (Adams-Bashforth on uneven steps) along the probability flow (k-diffusion). Reference: diffusers
//! `scheduling_lms_discrete.py`.

use std::collections::VecDeque;

use crate::error::Result;
use crate::io::config::Config;
use crate::tensor::Tensor;

use super::prediction::{Prediction, combine};
use super::schedule::{BetaDefaults, NoiseSchedule};
use super::sigmas::{Ramp, SigmaRange, SigmaTable, check_descending};
use super::spacing::Spacing;
use super::{DrawNoise, LinearStep, NoiseLevel, Sampler, first_noise_level, input_scale};

/// Slopes that a step looks back on.
const ORDER: usize = 4;

pub(super) struct Lms {
    prediction: Prediction,
    spacing: Spacing,
    timesteps: Vec<f32>,
    sigmas: Vec<f32>,
    /// Slopes so far, newest first.
    slopes: VecDeque<Tensor>,
}

impl Lms {
    pub fn new(config: &Config, steps: usize) -> Result<Self> {
        let schedule = NoiseSchedule::read(config, BetaDefaults::DDPM, &[], false)?;
        let prediction = Prediction::read(config)?;
        let spacing = Spacing::read(config, "linspace")?;
        let ramp = Ramp::read(config)?;
        let table = SigmaTable::new(&schedule);
        let timesteps = spacing.timesteps(schedule.len(), steps)?;
        let mut timesteps: Vec<f32> = timesteps.into_iter().map(|t| t as f32).collect();
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| table.at(t as f64)).collect();
        // Of this class's ramps, Karras's takes no notice of sigma_min and sigma_max.
        let range = match ramp {
            Ramp::Karras => SigmaRange::default(),
            _ => SigmaRange::read(config)?,
        };
        if let Some(ramped) = range.sigmas(ramp, sigmas[0], sigmas[steps - 1], steps) {
            timesteps = ramped.iter().map(|&sigma| table.timestep(sigma) as f32).collect();
            sigmas = ramped;
        }
        let mut sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
        sigmas.push(0.0);
        check_descending(config, &sigmas)?;
        Ok(Self { prediction, spacing, timesteps, sigmas, slopes: VecDeque::new() })
    }

    /// Integral over step `i` of the Lagrange polynomial that is 1 at the slope of `j` steps ago.
    fn weight(&self, i: usize, j: usize, order: usize) -> f64 {
        let sigma = |k: usize| self.sigmas[i - k] as f64;
        let (from, to) = (sigma(0), self.sigmas[i + 1] as f64);
        let basis = |x: f64| -> f64 {
            let others = (0..order).filter(|&k| k != j);
            others.map(|k| (x - sigma(k)) / (sigma(j) - sigma(k))).product()
        };
        // Two Gauss points integrate a cubic exactly.
        let (middle, half) = (0.5 * (from + to), 0.5 * (to - from));
        let offset = half / 3f64.sqrt();
        half * (basis(middle - offset) + basis(middle + offset))
    }
}

impl Sampler for Lms {
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

    fn begin(&mut self, _start: usize) {
        self.slopes.clear();
    }

    fn linear(&self, start: usize) -> Option<Vec<LinearStep>> {
        let linear = |i: usize| {
            let order = ORDER.min(i + 1);
            let slopes = order.min(i - start + 1);
            let weights: Vec<f64> = (0..slopes).map(|j| self.weight(i, j, order)).collect();
            let slope = self.prediction.derivative(self.sigmas[i] as f64);
            LinearStep::new(slope, 1.0, &weights, None)
        };
        Some((start..self.timesteps.len()).map(linear).collect())
    }

    fn step(
        &mut self,
        i: usize,
        output: &Tensor,
        sample: &Tensor,
        _noise: &mut DrawNoise,
    ) -> Result<Tensor> {
        let slope = self.prediction.derivative(self.sigmas[i] as f64).apply(sample, output)?;
        self.slopes.truncate(ORDER - 1);
        self.slopes.push_front(slope);
        // The order follows the place in the schedule: a run that begins in the middle has fewer slopes than its
        // polynomials have nodes. That is the reference's rule.
        let order = ORDER.min(i + 1);
        let mut terms = vec![(1.0, sample)];
        let slopes = self.slopes.iter().take(order).enumerate();
        terms.extend(slopes.map(|(j, slope)| (self.weight(i, j, order), slope)));
        combine(&terms)
    }
}
