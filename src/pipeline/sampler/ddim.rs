//! DDIM (Song et al. 2021). Reference: diffusers `scheduling_ddim.py`.

use crate::error::{Error, Result};
use crate::io::config::Config;

use super::prediction::{Clip, Prediction, Weights};
use super::schedule::{BetaDefaults, NoiseSchedule};
use super::spacing::Spacing;
use super::step_table::{Step, StepTable};
use super::{NoiseLevel, final_alpha_bar, table_timesteps};

/// `eta` from 0 (deterministic) to 1 (as noisy as DDPM).
pub(super) fn ddim(config: &Config, steps: usize, eta: f64) -> Result<StepTable> {
    if !(0.0..=1.0).contains(&eta) {
        return Err(Error::argument("eta", eta, "it goes from 0 to 1"));
    }
    let schedule = NoiseSchedule::read(config, BetaDefaults::DDPM, &[], true)?;
    let prediction = Prediction::read(config)?;
    let clip = Clip::read(config, true)?;
    let last = final_alpha_bar(config, &schedule, true)?;
    let timesteps = Spacing::read(config, "leading")?.whole_timesteps(schedule.len(), steps)?;
    let visited = table_timesteps(config, &timesteps, &schedule)?;
    // Not the next timestep visited: for the spacings that do not divide evenly the two differ.
    let stride = schedule.len() / steps;

    let step = |&t: &usize| {
        let a = schedule.alpha_bar(t);
        let a_prev = t.checked_sub(stride).map_or(last, |t| schedule.alpha_bar(t));
        let variance = (1.0 - a_prev) / (1.0 - a) * (1.0 - a / a_prev);
        let deviation = eta * (variance as f64).sqrt();
        let level = NoiseLevel::of_alpha_bar(a);
        let noise = prediction.noise(level.signal, level.noise);
        let direction = ((1.0 - a_prev) as f64 - deviation * deviation).max(0.0).sqrt();
        Step {
            level,
            denoised: prediction.denoised(level.signal, level.noise),
            weights: Weights {
                x0: (a_prev as f64).sqrt(),
                sample: direction * noise.sample,
                output: direction * noise.output,
            },
            // The reference draws at every step, the last one included.
            noise: (eta > 0.0).then_some(deviation),
        }
    };
    Ok(StepTable {
        is_whole: false,
        clip,
        steps: visited.iter().map(step).collect(),
        timesteps: timesteps.into_iter().map(|t| t as f32).collect(),
    })
}
