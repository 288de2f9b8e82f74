//! UniPC: a predictor, and a corrector that uses the next evaluation to mend the last step (Zhao et al. 2023).
//! Reference: diffusers `scheduling_unipc_multistep.py`.

use std::collections::VecDeque;

use crate::error::Result;
use crate::io::config::Config;
use crate::ops::sampler::RECALLED;
use crate::tensor::Tensor;

use super::prediction::{Clip, Mix, Prediction, combine};
use super::sigmas::FinalSigma;
use super::solver::{Node, Path, PathRules, solver_order};
use super::{DrawNoise, LinearStep, NoiseLevel, Sampler};

pub(super) struct UniPc {
    prediction: Prediction,
    clip: Clip,
    /// Whether the solver works in the denoised sample, else in the noise.
    predict_x0: bool,
    /// `solver_type`: B(h) = e^h - 1, else h.
    bh2: bool,
    order: usize,
    lower_order_final: bool,
    /// Steps that are left as predicted.
    disable_corrector: Vec<usize>,
    path: Path,
    /// Converted outputs, newest first.
    outputs: VecDeque<Tensor>,
    last: Option<Last>,
}

/// The step before, for the corrector.
struct Last {
    sample: Tensor,
    order: usize,
}

/// A step's weights: the sample it starts from, the outputs there and before, newest first, and the output at its end,
/// which only the corrector knows.
struct Update {
    sample: f64,
    outputs: Vec<f64>,
    end: f64,
}

impl UniPc {
    pub fn new(config: &Config, steps: usize) -> Result<Self> {
        // The other names belong to the solvers that share this configuration; the reference reads them so.
        let solvers =
            [("bh2", true), ("bh1", false), ("midpoint", true), ("heun", true), ("logrho", true)];
        config.neutral("solver_p", &[])?;
        let order = solver_order(config)?;
        let predict_x0 = config.bool("predict_x0", true)?;
        let lower_order_final = config.bool("lower_order_final", true)?;
        let path = Path::read(config, PathRules { dpm: false }, steps)?;
        // Where no noise is left lambda is infinite: only a first-order step in x0 has a limit there.
        if path.last == FinalSigma::Zero && !(predict_x0 && (lower_order_final || order == 1)) {
            return Err(config.wrong(
                "final_sigmas_type",
                "\"sigma_min\" when predict_x0 or lower_order_final is false",
            ));
        }
        Ok(Self {
            prediction: Prediction::read(config)?,
            clip: Clip::read_thresholding(config)?,
            predict_x0,
            bh2: config.choice("solver_type", "bh2", &solvers)?,
            order,
            lower_order_final,
            disable_corrector: config.usizes("disable_corrector", &[])?,
            path,
            outputs: VecDeque::new(),
            last: None,
        })
    }

    /// What [`Self::convert`] comes to where the denoised sample is not bounded.
    fn mix(&self, node: Node) -> Mix {
        let (alpha, sigma) = (node.alpha as f64, node.sigma as f64);
        match self.predict_x0 {
            true => self.prediction.denoised(alpha, sigma),
            false => self.prediction.noise(alpha, sigma),
        }
    }

    fn convert(&self, node: Node, output: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let converted = self.mix(node).apply(sample, output)?;
        if self.predict_x0 { self.clip.apply(converted) } else { Ok(converted) }
    }

    /// Weights of the step from node `i` to the next; `corrector` when the output at its end is known.
    fn update(&self, i: usize, order: usize, corrector: bool) -> Update {
        let (t, s) = (self.path.nodes[i + 1], self.path.nodes[i]);
        let h = t.lambda - s.lambda;
        // In f32 and in the reference's order: its differences of nearly equal numbers lose digits that would show.
        let hh = if self.predict_x0 { -h } else { h };
        let phi = (hh as f64).exp_m1() as f32;
        let b_h = if self.bh2 { phi } else { hh };

        // Where the outputs lie, in steps from s: those before, and 1 for the end.
        let mut nodes: Vec<f32> =
            (1..order).map(|k| (self.path.nodes[i - k].lambda - s.lambda) / h).collect();
        nodes.push(1.0);
        // Weights of the differences: those that are exact for polynomials up to the order (equation 5 of the paper).
        let unknowns = if corrector { order } else { order - 1 };
        let rho = match (order, corrector) {
            (1, true) | (2, false) => vec![0.5],
            _ => {
                let mut right = Vec::new();
                let (mut phi_k, mut factorial) = (phi / hh - 1.0, 1.0);
                for k in 1..=unknowns {
                    right.push(phi_k * factorial / b_h);
                    factorial *= (k + 1) as f32;
                    phi_k = phi_k / hh - 1.0 / factorial;
                }
                solve_vandermonde(&nodes[..unknowns], right)
            }
        };

        let (scale, kept) = match self.predict_x0 {
            true => (t.alpha, t.sigma / s.sigma),
            false => (t.sigma, t.alpha / s.alpha),
        };
        let mut outputs = vec![-(scale * phi) as f64];
        let mut end = 0.0;
        for (k, (rho, node)) in rho.into_iter().zip(nodes).enumerate() {
            let weight = -((scale * b_h) as f64) * rho as f64 / node as f64;
            outputs[0] -= weight;
            if k + 1 < order {
                outputs.push(weight);
            } else {
                end = weight;
            }
        }
        let kept = kept as f64;
        Update { sample: kept, outputs, end }
    }
}

/// Solves `sum_j nodes[j]^k x[j] = right[k]` by elimination with pivoting; at most three unknowns.
fn solve_vandermonde(nodes: &[f32], mut right: Vec<f32>) -> Vec<f32> {
    let n = nodes.len();
    let mut rows: Vec<Vec<f32>> =
        (0..n).map(|k| nodes.iter().map(|x| x.powi(k as i32)).collect()).collect();
    for column in 0..n {
        let pivot = (column..n)
            .max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()))
            .unwrap_or(column);
        rows.swap(column, pivot);
        right.swap(column, pivot);
        for row in column + 1..n {
            let factor = rows[row][column] / rows[column][column];
            for k in column..n {
                rows[row][k] -= factor * rows[column][k];
            }
            right[row] -= factor * right[column];
        }
    }
    for row in (0..n).rev() {
        let known: f32 = (row + 1..n).map(|k| rows[row][k] * right[k]).sum();
        right[row] = (right[row] - known) / rows[row][row];
    }
    right
}

impl Sampler for UniPc {
    fn timesteps(&self) -> &[f32] {
        &self.path.timesteps
    }

    fn noise_level(&self, i: usize) -> NoiseLevel {
        self.path.nodes[i].level()
    }

    fn begin(&mut self, _start: usize) {
        self.outputs.clear();
        self.last = None;
    }

    fn linear(&self, start: usize) -> Option<Vec<LinearStep>> {
        let steps = self.path.timesteps.len();
        // The predictor's weights and order of the step before.
        let mut before: Option<(Update, usize)> = None;
        let mut linear = |i: usize| {
            // 1. The corrector goes again from where the step before began, which is the sample less what the predictor
            //    added to it: both keep the same part of it.
            let mut mended = [0.0; RECALLED]; // weights of outputs, this step's first
            if let Some((predicted, order)) = before.take()
                && !self.disable_corrector.contains(&(i - 1))
            {
                let corrected = self.update(i - 1, order, true);
                mended[0] = corrected.end;
                for (to, (corrected, predicted)) in
                    mended[1..].iter_mut().zip(corrected.outputs.iter().zip(&predicted.outputs))
                {
                    *to = corrected - predicted;
                }
            }
            // 2. the next
            let most = if self.lower_order_final { self.order.min(steps - i) } else { self.order };
            let order = most.min(i - start + 1);
            let update = self.update(i, order, false);
            let mut recalled = mended.map(|w| update.sample * w);
            recalled.iter_mut().zip(&update.outputs).for_each(|(to, weight)| *to += weight);
            let step =
                LinearStep::new(self.mix(self.path.nodes[i]), update.sample, &recalled, None);
            before = Some((update, order));
            step
        };
        self.clip.unless_bounded(|| (start..steps).map(&mut linear).collect())
    }

    fn step(
        &mut self,
        i: usize,
        output: &Tensor,
        sample: &Tensor,
        _noise: &mut DrawNoise,
    ) -> Result<Tensor> {
        let converted = self.convert(self.path.nodes[i], output, sample)?;

        // 1. mend the step that led here
        let sample = match self.last.take() {
            Some(last) if i > 0 && !self.disable_corrector.contains(&(i - 1)) => {
                let update = self.update(i - 1, last.order, true);
                let mut terms = vec![(update.sample, &last.sample), (update.end, &converted)];
                terms.extend(update.outputs.into_iter().zip(&self.outputs));
                combine(&terms)?
            }
            _ => sample.clone(),
        };

        // 2. make the next
        self.outputs.truncate(self.order - 1);
        self.outputs.push_front(converted);
        let steps = self.path.timesteps.len();
        let most = if self.lower_order_final { self.order.min(steps - i) } else { self.order };
        let order = most.min(self.outputs.len());
        let update = self.update(i, order, false);
        let mut terms = vec![(update.sample, &sample)];
        terms.extend(update.outputs.into_iter().zip(&self.outputs));
        let next = combine(&terms)?;
        self.last = Some(Last { sample, order });
        Ok(next)
    }
}
