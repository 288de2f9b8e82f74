//! DPM-Solver and DPM-Solver++, multistep, orders 1 to 3, as ODE or SDE (Lu et al. 2022). Reference: diffusers
//! `scheduling_dpmsolver_multistep.py`.

use std::collections::VecDeque;

use crate::error::Result;
use crate::io::config::Config;
use crate::tensor::Tensor;

use super::prediction::{Clip, Mix, Prediction, combine};
use super::sigmas::FinalSigma;
use super::solver::{Node, Path, PathRules, solver_order};
use super::{DrawNoise, LinearStep, NoiseLevel, Sampler};

/// Below so many steps the order falls towards the end (`lower_order_final`).
const FEW_STEPS: usize = 15;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    /// In the noise.
    Dpm,
    /// In the denoised sample.
    DpmPlusPlus,
    SdeDpm,
    SdeDpmPlusPlus,
}

impl Algorithm {
    fn in_denoised(self) -> bool {
        matches!(self, Self::DpmPlusPlus | Self::SdeDpmPlusPlus)
    }

    fn is_sde(self) -> bool {
        matches!(self, Self::SdeDpm | Self::SdeDpmPlusPlus)
    }
}

/// `solver_type`: what stands for the second derivative's integral.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Second {
    Midpoint,
    Heun,
}

pub(super) struct DpmSolver {
    algorithm: Algorithm,
    second: Second,
    order: usize,
    lower_order_final: bool,
    euler_at_final: bool,
    prediction: Prediction,
    clip: Clip,
    path: Path,
    /// Converted outputs, newest first.
    outputs: VecDeque<Tensor>,
}

/// Weights of a sum: the sample, the newest outputs, the noise.
struct Update {
    sample: f64,
    outputs: [f64; 3],
    noise: f64,
}

impl DpmSolver {
    pub fn new(config: &Config, steps: usize) -> Result<Self> {
        let algorithms = [
            ("dpmsolver++", Algorithm::DpmPlusPlus),
            ("sde-dpmsolver++", Algorithm::SdeDpmPlusPlus),
            ("dpmsolver", Algorithm::Dpm),
            ("sde-dpmsolver", Algorithm::SdeDpm),
            ("deis", Algorithm::DpmPlusPlus),
        ];
        let algorithm = config.choice("algorithm_type", "dpmsolver++", &algorithms)?;
        // The other names belong to the solvers that share this configuration; the reference reads them so.
        let seconds = [
            ("midpoint", Second::Midpoint),
            ("heun", Second::Heun),
            ("logrho", Second::Midpoint),
            ("bh1", Second::Midpoint),
            ("bh2", Second::Midpoint),
        ];
        let second = config.choice("solver_type", "midpoint", &seconds)?;
        let order = solver_order(config)?;
        if order == 3 && algorithm == Algorithm::SdeDpm {
            return Err(config.wrong("solver_order", "1 or 2 with algorithm_type sde-dpmsolver"));
        }
        // Only "learned" and "learned_range" mean anything here: a model with twice the channels.
        let fixed = ["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"];
        config.neutral("variance_type", &fixed.map(Into::into))?;
        let path = Path::read(config, PathRules { dpm: true }, steps)?;
        if path.last == FinalSigma::Zero && !algorithm.in_denoised() {
            return Err(config.wrong(
                "final_sigmas_type",
                "\"sigma_min\" with algorithm_type dpmsolver and sde-dpmsolver",
            ));
        }
        Ok(Self {
            algorithm,
            second,
            order,
            lower_order_final: config.bool("lower_order_final", true)?,
            euler_at_final: config.bool("euler_at_final", false)?,
            prediction: Prediction::read(config)?,
            clip: Clip::read_thresholding(config)?,
            path,
            outputs: VecDeque::new(),
        })
    }

    /// What [`Self::convert`] comes to where the denoised sample is not bounded.
    fn mix(&self, node: Node) -> Mix {
        let (alpha, sigma) = (node.alpha as f64, node.sigma as f64);
        match self.algorithm.in_denoised() {
            true => self.prediction.denoised(alpha, sigma),
            false => self.prediction.noise(alpha, sigma),
        }
    }

    /// The quantity the solver extrapolates: the denoised sample or the noise.
    fn convert(&self, node: Node, output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let (alpha, sigma) = (node.alpha as f64, node.sigma as f64);
        let denoised = self.prediction.denoised(alpha, sigma);
        if self.algorithm.in_denoised() {
            return self.clip.apply(denoised.apply(sample, output)?);
        }
        if self.clip == Clip::Off {
            return self.mix(node).apply(sample, output);
        }
        let x0 = self.clip.apply(denoised.apply(sample, output)?)?;
        Mix { sample: 1.0 / sigma, output: -alpha / sigma }.apply(sample, &x0)
    }

    /// The order of step `i` when `known` outputs are there.
    fn order_at(&self, i: usize, known: usize) -> usize {
        let steps = self.path.timesteps.len();
        let few = self.lower_order_final && steps < FEW_STEPS;
        if i + 1 == steps && (self.euler_at_final || few || self.path.last == FinalSigma::Zero) {
            1
        } else if i + 2 == steps && few {
            self.order.min(known).min(2)
        } else {
            self.order.min(known)
        }
    }

    fn update(&self, i: usize, order: usize) -> Update {
        let (t, s) = (self.path.nodes[i + 1], self.path.nodes[i]);
        let h = t.lambda - s.lambda;
        // In f32 and in the reference's order: its differences of nearly equal numbers lose digits that would show.
        let exp = |x: f32| (x as f64).exp() as f32;
        // The integrals of e^lambda lambda^k / k! over the step, for the solver's direction: `d[k]` weighs the k-th
        // derivative of the output.
        let heun = order == 3 || self.second == Second::Heun;
        let (sample, d, noise) = match self.algorithm {
            Algorithm::DpmPlusPlus => {
                let e = exp(-h) - 1.0;
                let d1 = if heun { t.alpha * (e / h + 1.0) } else { -0.5 * (t.alpha * e) };
                let d2 = -t.alpha * ((e + h) / (h * h) - 0.5);
                (t.sigma / s.sigma, [-t.alpha * e, d1, d2], 0.0)
            }
            Algorithm::Dpm => {
                let e = exp(h) - 1.0;
                let d1 = if heun { -t.sigma * (e / h - 1.0) } else { -0.5 * (t.sigma * e) };
                let d2 = -t.sigma * ((e - h) / (h * h) - 0.5);
                (t.alpha / s.alpha, [-t.sigma * e, d1, d2], 0.0)
            }
            Algorithm::SdeDpmPlusPlus => {
                let e = 1.0 - exp(-2.0 * h);
                let d1 = if heun { t.alpha * (e / (-2.0 * h) + 1.0) } else { 0.5 * (t.alpha * e) };
                let d2 = t.alpha * ((e - 2.0 * h) / (4.0 * h * h) - 0.5);
                (t.sigma / s.sigma * exp(-h), [t.alpha * e, d1, d2], t.sigma * e.sqrt())
            }
            Algorithm::SdeDpm => {
                let e = exp(h) - 1.0;
                let d1 = if heun { -2.0 * (t.sigma * (e / h - 1.0)) } else { -t.sigma * e };
                let noise = t.sigma * (exp(2.0 * h) - 1.0).sqrt();
                (t.alpha / s.alpha, [-2.0 * (t.sigma * e), d1, 0.0], noise)
            }
        };
        let d = d.map(f64::from);
        // Derivatives by divided differences of the newest outputs.
        let before = |k: usize| self.path.nodes[i - k].lambda;
        let r0 = |k: usize| f64::from((s.lambda - before(k)) / h);
        let outputs = match order {
            1 => [d[0], 0.0, 0.0],
            2 => [d[0] + d[1] / r0(1), -d[1] / r0(1), 0.0],
            _ => {
                let (r0, r1) = (r0(1), f64::from((before(1) - before(2)) / h));
                // First differences over r0 and r1; their own difference corrects the first and makes the second.
                let second = -(d[1] * r0 + d[2]) / (r0 + r1);
                let first = d[1] - second;
                [d[0] + first / r0, -first / r0 + second / r1, -second / r1]
            }
        };
        let (sample, noise) = (sample as f64, noise as f64);
        Update { sample, outputs, noise }
    }
}

impl Sampler for DpmSolver {
    fn timesteps(&self) -> &[f32] {
        &self.path.timesteps
    }

    fn noise_level(&self, i: usize) -> NoiseLevel {
        self.path.nodes[i].level()
    }

    fn begin(&mut self, _start: usize) {
        self.outputs.clear();
    }

    fn linear(&self, start: usize) -> Option<Vec<LinearStep>> {
        let linear = |i: usize| {
            let order = self.order_at(i, self.order.min(i - start + 1));
            let Update { sample, outputs, noise } = self.update(i, order);
            let noise = self.algorithm.is_sde().then_some(noise);
            LinearStep::new(self.mix(self.path.nodes[i]), sample, &outputs[..order], noise)
        };
        self.clip.unless_bounded(|| (start..self.path.timesteps.len()).map(linear).collect())
    }

    fn step(
        &mut self,
        i: usize,
        output: &Tensor,
        sample: &Tensor,
        noise: &mut DrawNoise,
    ) -> Result<Tensor> {
        let converted = self.convert(self.path.nodes[i], output, sample)?;
        self.outputs.truncate(self.order - 1);
        self.outputs.push_front(converted);
        let order = self.order_at(i, self.outputs.len());
        let update = self.update(i, order);
        let drawn = if self.algorithm.is_sde() { Some(noise()?) } else { None };
        let mut terms = vec![(update.sample, sample)];
        terms.extend(update.outputs.into_iter().zip(&self.outputs).take(order));
        terms.extend(drawn.as_ref().map(|noise| (update.noise, noise)));
        combine(&terms)
    }
}
