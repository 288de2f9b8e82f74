//! PNDM: pseudo numerical methods (Liu et al. 2022), Runge-Kutta steps and then linear multistep ones, or with
//! `skip_prk_steps` (as Stable Diffusion has it) only the latter. Reference: diffusers `scheduling_pndm.py`.

use crate::error::{Error, Result};
use crate::io::config::Config;
use crate::ops::sampler::RECALLED;
use crate::tensor::Tensor;

use super::prediction::{Mix, Prediction, combine};
use super::schedule::{BetaDefaults, NoiseSchedule};
use super::spacing::Spacing;
use super::{DrawNoise, LinearStep, NoiseLevel, Sampler, final_alpha_bar, table_timesteps};

/// Steps made by Runge-Kutta, of four evaluations each but for the last, which the multistep method makes.
const RUNGE_KUTTA_STEPS: usize = 4;
/// Model outputs that the multistep method looks back on.
const HISTORY: usize = 4;

pub(super) struct Pndm {
    schedule: NoiseSchedule,
    prediction: Prediction,
    last: f32,
    steps: usize,
    timesteps: Vec<f32>,
    visited: Vec<usize>,
    /// Evaluations by Runge-Kutta, from the start of a run.
    runge_kutta: usize,
    start: usize,
    outputs: Vec<Tensor>,
    /// Outputs of the Runge-Kutta step under way.
    stages: Vec<Tensor>,
    base: Option<Tensor>,
}

impl Pndm {
    pub fn new(config: &Config, steps: usize) -> Result<Self> {
        let schedule = NoiseSchedule::read(config, BetaDefaults::DDPM, &[], false)?;
        let prediction = Prediction::read_without_sample(config)?;
        let last = final_alpha_bar(config, &schedule, false)?;
        let skip_runge_kutta = config.bool("skip_prk_steps", false)?;
        let whole = Spacing::read(config, "leading")?.whole_timesteps(schedule.len(), steps)?;
        let descending = table_timesteps(config, &whole, &schedule)?;

        let (visited, runge_kutta) = if skip_runge_kutta {
            // The first step is made twice, to begin with two outputs: its end point is evaluated again.
            let mut visited = descending;
            if steps > 1 {
                visited.insert(1, visited[1]);
            }
            (visited, 0)
        } else {
            if steps < RUNGE_KUTTA_STEPS {
                return Err(Error::argument(
                    "steps",
                    steps,
                    format!(
                        "PNDM with Runge-Kutta steps (skip_prk_steps false) takes at least {RUNGE_KUTTA_STEPS}"
                    ),
                ));
            }
            // A step from t visits t, its middle twice, and its end, where the next begins.
            let half = schedule.len() / steps / 2;
            let ends = &descending[..RUNGE_KUTTA_STEPS];
            let mut visited = Vec::new();
            for pair in ends.windows(2) {
                let middle = pair[1] + half;
                visited.extend([pair[0], middle, middle, pair[1]]);
            }
            let runge_kutta = visited.len();
            visited.extend(&descending[RUNGE_KUTTA_STEPS - 1..]);
            (visited, runge_kutta)
        };
        Ok(Self {
            timesteps: visited.iter().map(|&t| t as f32).collect(),
            visited,
            schedule,
            prediction,
            last,
            steps,
            runge_kutta,
            start: 0,
            outputs: Vec::new(),
            stages: Vec::new(),
            base: None,
        })
    }

    /// The transfer from timestep `t` to `end` (below 0: past the first) along the weighted sum of `outputs`; equation
    /// 9 of the paper.
    fn transfer(
        &self,
        sample: &Tensor,
        t: usize,
        end: i64,
        outputs: &[(f64, &Tensor)],
    ) -> Result<Tensor> {
        let (of_sample, of_outputs) = self.transfer_weights(t, end);
        // The weights of the outputs add up to 1, so that the sample's share of the noise counts once.
        let mut terms = vec![(of_sample, sample)];
        terms.extend(outputs.iter().map(|&(weight, e)| (of_outputs * weight, e)));
        combine(&terms)
    }

    /// Of [`Self::transfer`]: that of the sample, and that of the sum of outputs.
    fn transfer_weights(&self, t: usize, end: i64) -> (f64, f64) {
        let t = t.min(self.schedule.len() - 1); // one stride above a visited timestep is still in the table
        let a = self.schedule.alpha_bar(t) as f64;
        let a_end = usize::try_from(end).map_or(self.last, |t| self.schedule.alpha_bar(t)) as f64;
        let (b, b_end) = (1.0 - a, 1.0 - a_end);
        let noise = -(a_end - a) / (a * b_end.sqrt() + (a * b * a_end).sqrt());
        let mix = self.prediction.noise(a.sqrt(), b.sqrt());
        ((a_end / a).sqrt() + noise * mix.sample, noise * mix.output)
    }

    fn runge_kutta_step(
        &mut self,
        count: usize,
        t: usize,
        output: &Tensor,
        sample: &Tensor,
    ) -> Result<Tensor> {
        let stage = count % 4;
        if stage == 0 {
            self.outputs.push(output.clone());
            self.stages.clear();
            self.base = Some(sample.clone());
        }
        let half = if count.is_multiple_of(2) { self.schedule.len() / self.steps / 2 } else { 0 };
        let end = t as i64 - half as i64;
        // Counted from the start of a run, even when that is not the start of the schedule.
        let from = self.visited[count / 4 * 4];
        let base = self.base.clone().unwrap_or_else(|| sample.clone());
        if stage < 3 {
            self.stages.push(output.clone());
            return self.transfer(&base, from, end, &[(1.0, output)]);
        }
        let weights = [1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0];
        let stages = self.stages.iter().chain([output]);
        let outputs: Vec<_> = weights.into_iter().zip(stages).collect();
        self.transfer(&base, from, end, &outputs)
    }

    fn multistep(
        &mut self,
        count: usize,
        t: usize,
        output: &Tensor,
        sample: &Tensor,
    ) -> Result<Tensor> {
        let stride = self.schedule.len() / self.steps;
        if count == 1 {
            // The second evaluation of the first step: from where it began, with the mean of both slopes.
            let base = self.base.take().unwrap_or_else(|| sample.clone());
            let first = self.outputs.last().unwrap_or(output).clone();
            return self.transfer(&base, t + stride, t as i64, &[(0.5, output), (0.5, &first)]);
        }
        if self.outputs.len() == HISTORY {
            self.outputs.remove(0);
        }
        self.outputs.push(output.clone());
        if count == 0 {
            self.base = Some(sample.clone());
        }
        let weights = adams_bashforth(self.outputs.len());
        let newest_first = self.outputs.iter().rev();
        let outputs: Vec<_> = weights.iter().copied().zip(newest_first).collect();
        self.transfer(sample, t, t as i64 - stride as i64, &outputs)
    }
}

/// Weights of so many outputs, newest first.
fn adams_bashforth(outputs: usize) -> &'static [f64] {
    match outputs {
        1 => &[1.0],
        2 => &[1.5, -0.5],
        3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
        _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
    }
}

impl Sampler for Pndm {
    fn timesteps(&self) -> &[f32] {
        &self.timesteps
    }

    fn steps(&self) -> usize {
        self.steps
    }

    fn noise_level(&self, i: usize) -> NoiseLevel {
        NoiseLevel::of_alpha_bar(self.schedule.alpha_bar(self.visited[i]))
    }

    fn begin(&mut self, start: usize) {
        self.start = start;
        self.outputs.clear();
        self.stages.clear();
        self.base = None;
    }

    /// Not of the Runge-Kutta steps in front, which begin again from a sample of four evaluations before.
    fn linear(&self, start: usize) -> Option<Vec<LinearStep>> {
        let stride = self.schedule.len() / self.steps;
        let linear = |i: usize| {
            let (count, t) = (i - start, self.visited[i]);
            if count == 1 {
                // Again from where the first step began, which is the sample less what that step added to it.
                let (again, of_outputs) = self.transfer_weights(t + stride, t as i64);
                let first = self.visited[start];
                let (kept, added) = self.transfer_weights(first, first as i64 - stride as i64);
                let sample = again / kept;
                let weights = [0.5 * of_outputs, 0.5 * of_outputs - sample * added];
                return LinearStep::new(Mix::OUTPUT, sample, &weights, None);
            }
            let (sample, of_outputs) = self.transfer_weights(t, t as i64 - stride as i64);
            // The second evaluation's output is used at once and not again.
            let known = (0..=count).rev().filter(|&other| other != 1).take(HISTORY);
            let known: Vec<usize> = known.map(|other| count - other).collect();
            let mut weights = [0.0; RECALLED];
            for (&weight, &ago) in adams_bashforth(known.len()).iter().zip(&known) {
                weights[ago] = of_outputs * weight;
            }
            LinearStep::new(Mix::OUTPUT, sample, &weights, None)
        };
        (self.runge_kutta == 0).then(|| (start..self.timesteps.len()).map(linear).collect())
    }

    fn step(
        &mut self,
        i: usize,
        output: &Tensor,
        sample: &Tensor,
        _noise: &mut DrawNoise,
    ) -> Result<Tensor> {
        let (count, t) = (i - self.start, self.visited[i]);
        if count < self.runge_kutta {
            self.runge_kutta_step(count, t, output, sample)
        } else {
            self.multistep(count, t, output, sample)
        }
    }
}
