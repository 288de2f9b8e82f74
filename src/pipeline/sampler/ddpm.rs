//! DDPM: ancestral sampling (Ho et al. 2020). Reference: diffusers `scheduling_ddpm.py`.

use crate::error::Result;
use crate::io::config::Config;

use super::prediction::{Clip, Prediction, Weights};
use super::schedule::{BetaDefaults, Betas, NoiseSchedule};
use super::spacing::Spacing;
use super::step_table::{Step, StepTable};
use super::{NoiseLevel, table_timesteps};

pub(super) fn ddpm(config: &Config, steps: usize) -> Result<StepTable> {
    let more = [("laplace", Betas::Laplace), ("sigmoid", Betas::Sigmoid)];
    let schedule = NoiseSchedule::read(config, BetaDefaults::DDPM, &more, true)?;
    let prediction = Prediction::read(config)?;
    let clip = Clip::read(config, true)?;
    // "learned" and "learned_range" need a model with twice the channels; with "fixed_large_log" diffusers takes
    // the root of a negative number.
    let variances = [("fixed_small", false), ("fixed_small_log", false), ("fixed_large", true)];
    let large_variance = config.choice("variance_type", "fixed_small", &variances)?;
    let timesteps = Spacing::read(config, "leading")?.whole_timesteps(schedule.len(), steps)?;
    let visited = table_timesteps(config, &timesteps, &schedule)?;

    let step = |i: usize| {
        let a = schedule.alpha_bar(visited[i]);
        let a_prev = visited.get(i + 1).map_or(1.0, |&t| schedule.alpha_bar(t));
        // In f32, as the reference: one step's share of the noise is a small difference.
        let (b, b_prev) = (1.0 - a, 1.0 - a_prev);
        let a_step = a / a_prev;
        let b_step = 1.0 - a_step;
        let variance = if large_variance { b_step } else { (b_prev / b * b_step).max(1e-20) };
        let level = NoiseLevel::of_alpha_bar(a);
        Step {
            level,
            denoised: prediction.denoised(level.signal, level.noise),
            weights: Weights {
                x0: (a_prev.sqrt() * b_step / b) as f64,
                sample: (a_step.sqrt() * b_prev / b) as f64,
                output: 0.0,
            },
            // None at timestep 0.
            noise: (visited[i] > 0).then_some((variance as f64).sqrt()),
        }
    };
    Ok(StepTable {
        is_whole: false,
        clip,
        steps: (0..visited.len()).map(step).collect(),
        timesteps: timesteps.into_iter().map(|t| t as f32).collect(),
    })
}
