//! Samplers: from noise to a latent in few evaluations of the model, with the semantics of diffusers' schedulers.
//!
//! A [`SamplerConfig`] is read from a folder's `scheduler_config.json`, may be turned into another sampler's by name, and
//! builds a [`Sampler`] for a number of steps. A run is
//!
//! ```text
//! sampler.begin(start)
//! for i in start..timesteps.len():
//!     output = model(sample * input_scale(i), timesteps[i])
//!     sample = sampler.step(i, output, sample, noise)
//! ```
//!
//! Samples are f32 of any shape, images along the first dimension. Coefficients are computed on the host: in f64 from
//! the reference's f32 tables, in f32 where the reference's own rounding shows, so that a step is one pass over memory.

mod config;
mod ddim;
mod ddpm;
mod dpmsolver;
mod euler;
mod heun;
mod lcm;
mod linear;
mod lms;
mod pndm;
mod prediction;
mod schedule;
mod sigmas;
mod solver;
mod spacing;
mod step_table;
mod unipc;

pub use config::{SamplerConfig, SamplerKind};
pub use linear::LinearStep;
pub use schedule::alphas_cumprod;

use crate::error::{Error, Result};
use crate::io::config::Config;
use crate::tensor::Tensor;

use prediction::combine;
use schedule::NoiseSchedule;
use spacing::Spacing;

/// Draws the next noise, of the sample's shape; called as often as the reference draws, in the same order.
pub type DrawNoise<'a> = dyn FnMut() -> Result<Tensor> + 'a;

/// What a sample is made of: `signal * x0 + noise * normal`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseLevel {
    /// Weight of the image.
    pub signal: f64,
    /// Weight of the noise.
    pub noise: f64,
}

/// A way from noise to an image in a fixed number of steps.
///
/// # Panics
/// Methods that take an evaluation's index `i` panic when it is not below `timesteps().len()`; [`step`](Self::step) also
/// when it is below where [`begin`](Self::begin) began.
pub trait Sampler: Send {
    /// What the model is told at each evaluation.
    fn timesteps(&self) -> &[f32];

    /// Steps asked for; the evaluations differ with PNDM and Heun.
    fn steps(&self) -> usize {
        self.timesteps().len()
    }

    /// Entries of [`timesteps`](Self::timesteps) that a step takes.
    fn evaluations_per_step(&self) -> usize {
        1
    }

    /// Deviation of the noise that a run from the very beginning starts with.
    fn init_noise_sigma(&self) -> f32 {
        1.0
    }

    /// Factor from the sample to the model's input at evaluation `i`.
    fn input_scale(&self, _i: usize) -> f32 {
        1.0
    }

    /// Composition of the sample before evaluation `i`.
    fn noise_level(&self, i: usize) -> NoiseLevel;

    /// Forgets an earlier run; the next begins at evaluation `start`.
    fn begin(&mut self, _start: usize) {}

    /// From the sample before evaluation `i` and the model's output for it to the sample after.
    ///
    /// # Errors
    /// `Shape`, `DType` or `Device` when the tensors do not match; `NotFinite` when the configured schedule has no such
    /// step; whatever `noise` answers.
    fn step(
        &mut self,
        i: usize,
        output: &Tensor,
        sample: &Tensor,
        noise: &mut DrawNoise,
    ) -> Result<Tensor>;

    /// The steps from evaluation `start` on as sums, which need nothing of what [`step`](Self::step) remembers; the same but
    /// for rounding. `None` where no weights stand for them: where the denoised sample is bounded.
    fn linear(&self, start: usize) -> Option<Vec<LinearStep>>;

    /// `original` with as much noise as a sample has before evaluation `i`.
    ///
    /// # Errors
    /// `Shape`, `DType` or `Device` when the tensors do not match.
    fn add_noise(&self, original: &Tensor, noise: &Tensor, i: usize) -> Result<Tensor> {
        let level = self.noise_level(i);
        combine(&[(level.signal, original), (level.noise, noise)])
    }

    /// The evaluation that an image-to-image run of this strength begins with: the last `steps * strength` steps are
    /// made, rounded down.
    ///
    /// # Errors
    /// `Argument` when the strength is outside 0 to 1, or leaves no step.
    fn start_index(&self, strength: f64) -> Result<usize> {
        steps_left(self, strength)
    }
}

/// [`Sampler::start_index`] of a sampler whose steps are those of any strength.
fn steps_left(sampler: &(impl Sampler + ?Sized), strength: f64) -> Result<usize> {
    check_strength(strength)?;
    let steps = sampler.steps();
    let made = ((steps as f64 * strength) as usize).min(steps);
    if made == 0 {
        let expected =
            format!("of {steps} steps none would be left: take more steps or more strength");
        return Err(Error::argument("strength", strength, expected));
    }
    Ok((steps - made) * sampler.evaluations_per_step())
}

fn check_strength(strength: f64) -> Result<()> {
    match (0.0..=1.0).contains(&strength) {
        true => Ok(()),
        false => Err(Error::argument("strength", strength, "it goes from 0 to 1")),
    }
}

impl NoiseLevel {
    /// Of a signal level in power, such as the schedules hold.
    fn of_alpha_bar(alpha_bar: f32) -> Self {
        Self { signal: (alpha_bar as f64).sqrt(), noise: ((1.0 - alpha_bar) as f64).sqrt() }
    }
}

/// Deviation of the first sample of a sampler that goes by sigma.
fn first_noise_level(sigmas: &[f32], spacing: Spacing) -> f32 {
    let max = sigmas.iter().copied().fold(0.0, f32::max);
    if spacing.starts_at_the_end() { max } else { (max * max + 1.0).sqrt() }
}

/// Scales `x0 + sigma * noise` to the unit variance that models are trained on.
fn input_scale(sigma: f32) -> f32 {
    1.0 / (sigma * sigma + 1.0).sqrt()
}

/// Whole timesteps as indices into the schedule.
fn table_timesteps(
    config: &Config,
    timesteps: &[f64],
    schedule: &NoiseSchedule,
) -> Result<Vec<usize>> {
    let visited: Vec<usize> = timesteps.iter().map(|&t| t as usize).collect();
    match visited.iter().find(|&&t| t >= schedule.len()) {
        None => Ok(visited),
        Some(t) => Err(config.wrong(
            "steps_offset",
            &format!(
                "an offset that leaves timestep {t} below num_train_timesteps = {}, or fewer steps",
                schedule.len()
            ),
        )),
    }
}

/// `set_alpha_to_one`: the signal level after the last step, that of no noise or of timestep 0.
fn final_alpha_bar(config: &Config, schedule: &NoiseSchedule, default: bool) -> Result<f32> {
    Ok(match config.bool("set_alpha_to_one", default)? {
        true => 1.0,
        false => schedule.alpha_bar(0),
    })
}
