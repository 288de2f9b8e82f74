//! Noise levels of the samplers that go by sigma (noise over signal): interpolated from the training schedule, or laid on
//! a ramp between its ends.

use crate::error::{Error, Result};
use crate::io::config::Config;

use super::schedule::NoiseSchedule;
use super::spacing::linspace;

/// `use_karras_sigmas`, `use_exponential_sigmas`, `use_beta_sigmas`: how sigmas lie between the largest and the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ramp {
    /// Where the timesteps put them.
    Timesteps,
    /// Evenly in sigma^(1/7) (Karras et al. 2022, equation 5).
    Karras,
    /// Evenly in ln sigma.
    Exponential,
    /// At the quantiles of Beta(0.6, 0.6) (Lee et al. 2024).
    Beta,
}

impl Ramp {
    pub fn read(config: &Config) -> Result<Self> {
        let flags = [
            ("use_karras_sigmas", Self::Karras),
            ("use_exponential_sigmas", Self::Exponential),
            ("use_beta_sigmas", Self::Beta),
        ];
        let mut chosen = Self::Timesteps;
        for (name, ramp) in flags {
            if config.bool(name, false)? {
                if chosen != Self::Timesteps {
                    return Err(config.wrong(
                        name,
                        "false: only one of use_karras_sigmas, use_exponential_sigmas and use_beta_sigmas can be true",
                    ));
                }
                chosen = ramp;
            }
        }
        Ok(chosen)
    }

    /// `n` sigmas from `max` down to `min`; `None` when the timesteps decide.
    pub fn sigmas(self, max: f64, min: f64, n: usize) -> Option<Vec<f64>> {
        const RHO: f64 = 7.0;
        Some(match self {
            Self::Timesteps => return None,
            Self::Karras => {
                let (max, min) = (max.powf(1.0 / RHO), min.powf(1.0 / RHO));
                let ramp = linspace(0.0, 1.0, n).into_iter();
                ramp.map(|x| (max + x * (min - max)).powf(RHO)).collect()
            }
            Self::Exponential => {
                linspace(max.ln(), min.ln(), n).into_iter().map(f64::exp).collect()
            }
            Self::Beta => {
                let ramp = linspace(0.0, 1.0, n).into_iter();
                ramp.map(|x| min + beta_quantile(1.0 - x) * (max - min)).collect()
            }
        })
    }
}

/// `sigma_min` and `sigma_max` of a configuration, which narrow a ramp.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SigmaRange {
    min: Option<f64>,
    max: Option<f64>,
}

impl SigmaRange {
    pub fn read(config: &Config) -> Result<Self> {
        let read = |name: &str| match config.get::<f64>(name, "a number")? {
            Some(x) if x > 0.0 && x.is_finite() => Ok(Some(x)),
            Some(_) => Err(config.wrong(name, "a number above 0")),
            None => Ok(None),
        };
        Ok(Self { min: read("sigma_min")?, max: read("sigma_max")? })
    }

    /// Sigmas on the ramp within this range, whose ends default to `max` and `min`.
    pub fn sigmas(&self, ramp: Ramp, max: f64, min: f64, n: usize) -> Option<Vec<f64>> {
        ramp.sigmas(self.max.unwrap_or(max), self.min.unwrap_or(min), n)
    }
}

/// `final_sigmas_type`: what is left after the last step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FinalSigma {
    /// Nothing.
    Zero,
    /// The training schedule's smallest.
    Min,
}

impl FinalSigma {
    pub fn read(config: &Config) -> Result<Self> {
        config.choice(
            "final_sigmas_type",
            "zero",
            &[("zero", Self::Zero), ("sigma_min", Self::Min)],
        )
    }
}

/// The training schedule by sigma.
pub(super) struct SigmaTable {
    /// Ascending, [train timesteps].
    sigmas: Vec<f32>,
    log_sigmas: Vec<f32>,
}

impl SigmaTable {
    pub fn new(schedule: &NoiseSchedule) -> Self {
        let sigmas = schedule.sigmas();
        let log_sigmas = sigmas.iter().map(|&s| (s as f64).ln() as f32).collect();
        Self { sigmas, log_sigmas }
    }

    /// Smallest sigma, of timestep 0.
    pub fn min(&self) -> f64 {
        self.sigmas[0] as f64
    }

    /// Largest sigma, of the last timestep.
    pub fn max(&self) -> f64 {
        self.sigmas[self.sigmas.len() - 1] as f64
    }

    /// Natural logarithms of the smallest and the largest.
    pub fn log_range(&self) -> (f32, f32) {
        (self.log_sigmas[0], self.log_sigmas[self.log_sigmas.len() - 1])
    }

    /// Sigma at a timestep, linear between whole ones and constant outside.
    pub fn at(&self, t: f64) -> f64 {
        let last = self.sigmas.len() - 1;
        if t >= last as f64 {
            return self.max();
        }
        let t = t.max(0.0);
        let low = t as usize;
        let (a, b) = (self.sigmas[low] as f64, self.sigmas[low + 1] as f64);
        (b - a) * (t - low as f64) + a
    }

    /// The timestep of a sigma, linear in its logarithm.
    pub fn timestep(&self, sigma: f64) -> f64 {
        let log_sigma = sigma.max(1e-10).ln();
        let below = self.log_sigmas.partition_point(|&l| l as f64 <= log_sigma);
        let low = below.saturating_sub(1).min(self.log_sigmas.len() - 2);
        let (a, b) = (self.log_sigmas[low], self.log_sigmas[low + 1]);
        let weight = ((a as f64 - log_sigma) / (a - b) as f64).clamp(0.0, 1.0);
        (1.0 - weight) * low as f64 + weight * (low + 1) as f64
    }
}

/// Checks that sigmas fall strictly until the last, which may be 0: every step divides by their differences.
pub(super) fn check_descending(config: &Config, sigmas: &[f32]) -> Result<()> {
    if sigmas.iter().all(|s| s.is_finite()) && sigmas.is_sorted_by(|a, b| a >= b) {
        return Ok(());
    }
    Err(Error::file(
        config.path(),
        "the noise schedule",
        "sigmas that fall from step to step",
        format!("{sigmas:?}"),
        "Check sigma_min and sigma_max, or use fewer steps.",
    ))
}

/// Shape parameters of the beta distribution, both.
const BETA_SHAPE: f64 = 0.6;

/// The quantile function of Beta(0.6, 0.6), by bisection: some 60 halvings reach f64's precision, and it runs once a
/// step of a schedule.
fn beta_quantile(p: f64) -> f64 {
    if p > 0.5 {
        return 1.0 - beta_quantile(1.0 - p); // symmetric; the mass is resolved best near 0
    }
    // By symmetry half of the mass lies below 1/2, which gives the normalisation without a gamma function.
    let mass = p * 2.0 * beta_mass(0.5);
    let (mut low, mut high) = (0.0, 0.5);
    for _ in 0..1100 {
        let middle = 0.5 * (low + high);
        if middle == low || middle == high {
            break;
        }
        *(if beta_mass(middle) < mass { &mut low } else { &mut high }) = middle;
    }
    high
}

/// Integral of `t^(a-1) (1-t)^(a-1)` from 0 to `x <= 1/2`, by its power series in x: terms shrink by half or more.
fn beta_mass(x: f64) -> f64 {
    let a = BETA_SHAPE;
    let mut sum = 0.0;
    let mut power = 1.0; // (1-a)_n x^n / n!
    for n in 0..200 {
        let term = power / (a + n as f64);
        sum += term;
        if term < 1e-17 * sum {
            break;
        }
        power *= (1.0 - a + n as f64) / (n + 1) as f64 * x;
    }
    x.powf(a) * sum
}
