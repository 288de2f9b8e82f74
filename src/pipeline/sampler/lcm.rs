//! Latent consistency models (Luo et al. 2023). Reference: diffusers `scheduling_lcm.py`.

use crate::error::{Error, Result};
use crate::io::config::Config;

use super::NoiseLevel;
use super::prediction::{Clip, Prediction, Weights};
use super::schedule::{BetaDefaults, NoiseSchedule};
use super::step_table::{Step, StepTable};

/// Where a pipeline writes the strength of an image-to-image run, which shortens the schedule.
pub(super) const STRENGTH: &str = "_strength";

/// Deviation of the data that the boundary condition assumes.
const SIGMA_DATA: f64 = 0.5;

pub(super) fn lcm(config: &Config, steps: usize) -> Result<StepTable> {
    let defaults = BetaDefaults { start: 0.00085, end: 0.012, schedule: "scaled_linear" };
    let schedule = NoiseSchedule::read(config, defaults, &[], true)?;
    let prediction = Prediction::read(config)?;
    let clip = Clip::read(config, false)?;
    let scaling = config.f64("timestep_scaling", 10.0)?;
    let original = config.usize("original_inference_steps", 50)?;
    if !(1..=schedule.len()).contains(&original) {
        let expected = format!("a count from 1 to num_train_timesteps = {}", schedule.len());
        return Err(config.wrong("original_inference_steps", &expected));
    }
    // What an image-to-image run leaves of them.
    let strength: Option<f64> = config.get(STRENGTH, "a number from 0 to 1")?;
    let used = strength.map_or(original, |strength| (original as f64 * strength) as usize);
    if !(1..=used).contains(&steps) {
        let of =
            strength.map_or(String::new(), |strength| format!(", of which {strength} is left"));
        let expected =
            format!("this consistency model was distilled for 1 to {original} steps{of}");
        return Err(Error::argument("steps", steps, expected));
    }
    let spread = used as f64 / steps as f64;

    // The timesteps of the distillation, every `stride`-th of training, evenly thinned from the noisiest on.
    let stride = schedule.len() / original;
    let visited: Vec<usize> =
        (0..steps).map(|i| (used - (i as f64 * spread) as usize) * stride - 1).collect();

    let step = |i: usize| {
        let level = NoiseLevel::of_alpha_bar(schedule.alpha_bar(visited[i]));
        let t = visited[i] as f64 * scaling;
        let variance = t * t + SIGMA_DATA * SIGMA_DATA;
        let (skip, out) = (SIGMA_DATA * SIGMA_DATA / variance, t / variance.sqrt());
        let next = visited.get(i + 1).map(|&t| NoiseLevel::of_alpha_bar(schedule.alpha_bar(t)));
        let signal = next.map_or(1.0, |level| level.signal);
        Step {
            level,
            denoised: prediction.denoised(level.signal, level.noise),
            weights: Weights { x0: signal * out, sample: signal * skip, output: 0.0 },
            // Put back for the next step; none after the last.
            noise: next.map(|level| level.noise),
        }
    };
    Ok(StepTable {
        is_whole: strength.is_some(),
        clip,
        steps: (0..steps).map(step).collect(),
        timesteps: visited.iter().map(|&t| t as f32).collect(),
    })
}
