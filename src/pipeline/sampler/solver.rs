//! What the multistep solvers of the diffusion ODE share: their noise schedule by sigma, and its log-SNR.

use crate::error::Result;
use crate::io::config::Config;

use super::NoiseLevel;
use super::schedule::{BetaDefaults, NoiseSchedule};
use super::sigmas::{FinalSigma, Ramp, SigmaRange, SigmaTable, check_descending};
use super::spacing::{Spacing, linspace};

/// Signal, noise and half the log-SNR at a sigma.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node {
    pub alpha: f32,
    pub sigma: f32,
    /// `ln(alpha / sigma)`, infinite where no noise is left.
    pub lambda: f32,
}

impl Node {
    fn new(sigma: f32) -> Self {
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        let sigma = sigma * alpha;
        Self { alpha, sigma, lambda: ln(alpha) - ln(sigma) }
    }

    pub fn level(&self) -> NoiseLevel {
        NoiseLevel { signal: self.alpha as f64, noise: self.sigma as f64 }
    }
}

/// Natural logarithm, rounded once.
fn ln(x: f32) -> f32 {
    (x as f64).ln() as f32
}

/// Where a run of a multistep solver goes.
pub(super) struct Path {
    pub timesteps: Vec<f32>,
    /// One a timestep, and one for the end.
    pub nodes: Vec<Node>,
    pub last: FinalSigma,
}

/// In what DPM-Solver and UniPC differ before the first step.
pub(super) struct PathRules {
    /// `use_lu_lambdas`, `lambda_min_clipped` and timesteps of a Karras ramp that stay fractional for the cosine
    /// schedule: DPM-Solver's.
    pub dpm: bool,
}

impl Path {
    pub fn read(config: &Config, rules: PathRules, steps: usize) -> Result<Self> {
        refuse_flow(config)?;
        let schedule = NoiseSchedule::read(config, BetaDefaults::DDPM, &[], true)?;
        let spacing = Spacing::read(config, "linspace")?;
        let (ramp, range) = (Ramp::read(config)?, SigmaRange::read(config)?);
        let last = FinalSigma::read(config)?;
        let table = SigmaTable::new(&schedule);
        let train = schedule.len();
        let end = if rules.dpm { clipped_end(config, &table, train)? } else { train };
        let mut timesteps = spacing.solver_timesteps(train, end, steps)?;

        // Evenly in lambda (Lu et al. 2022), as diffusers has it; Karras's ramp goes before it, the others after.
        let lu = rules.dpm && config.bool("use_lu_lambdas", false)? && ramp != Ramp::Karras;
        let ramped = if lu {
            let (min, max) = table.log_range();
            Some(linspace(max as f64, min as f64, steps).into_iter().map(f64::exp).collect())
        } else {
            range.sigmas(ramp, table.max(), table.min(), steps)
        };
        let mut sigmas: Vec<f64> = match ramped {
            None => timesteps.iter().map(|&t| table.at(t)).collect(),
            Some(sigmas) => {
                let cosine = rules.dpm
                    && config.string("beta_schedule", BetaDefaults::DDPM.schedule)?
                        == "squaredcos_cap_v2";
                let rounds = (lu || ramp == Ramp::Karras) && !cosine;
                timesteps = sigmas
                    .iter()
                    .map(|&sigma| table.timestep(sigma))
                    .map(|t| if rounds { t.round_ties_even() } else { t.trunc() })
                    .collect();
                sigmas
            }
        };
        sigmas.push(match last {
            FinalSigma::Zero => 0.0,
            // Of UniPC's ramps the end is the ramp's own.
            FinalSigma::Min if !rules.dpm && ramp != Ramp::Timesteps => sigmas[sigmas.len() - 1],
            FinalSigma::Min => table.min(),
        });
        let sigmas: Vec<f32> = sigmas.into_iter().map(|sigma| sigma as f32).collect();
        check_descending(config, &sigmas)?;
        Ok(Self {
            timesteps: timesteps.into_iter().map(|t| t as f32).collect(),
            nodes: sigmas.into_iter().map(Node::new).collect(),
            last,
        })
    }
}

/// `lambda_min_clipped`: the noisiest timesteps, whose log-SNR is below it, are left out.
fn clipped_end(config: &Config, table: &SigmaTable, train: usize) -> Result<usize> {
    let Some(lambda_min) = config.get::<f64>("lambda_min_clipped", "a number")? else {
        return Ok(train);
    };
    let kept = (0..train).take_while(|&t| -table.at(t as f64).ln() >= lambda_min).count();
    match kept {
        0 => Err(config.wrong("lambda_min_clipped", "a log-SNR that the schedule reaches")),
        kept => Ok(kept),
    }
}

/// Flow matching is another family of models.
fn refuse_flow(config: &Config) -> Result<()> {
    config.neutral("use_flow_sigmas", &[false.into()])?;
    config.neutral("use_dynamic_shifting", &[false.into()])?;
    config.neutral("shift_terminal", &[])
}

/// `solver_order`, 1 to 3.
pub(super) fn solver_order(config: &Config) -> Result<usize> {
    match config.usize("solver_order", 2)? {
        order @ 1..=3 => Ok(order),
        _ => Err(config.wrong("solver_order", "1, 2 or 3")),
    }
}
