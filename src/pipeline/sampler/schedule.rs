//! How much signal is left at each training timestep: the betas of a scheduler configuration.
//!
//! Arithmetic is in f32 where diffusers' is, in the same order: near t = 0 the noise level is the difference of two
//! numbers close to 1, so that another rounding would show in the image.

use std::f64::consts::FRAC_PI_2;

use crate::error::{Error, Result};
use crate::io::config::Config;

/// Bounds the tables that a configuration can ask for.
const MAX_TRAIN_TIMESTEPS: usize = 100_000;

/// Signal level after every training timestep.
#[derive(Clone, Debug)]
pub(super) struct NoiseSchedule {
    /// Cumulative product of `1 - beta`, [train timesteps].
    alphas_cumprod: Vec<f32>,
}

/// Signal level after every timestep that a denoiser is trained at (diffusers' `DDPMScheduler.alphas_cumprod`), of a
/// `scheduler_config.json`.
///
/// # Errors
/// As the samplers read it: a field of another type, betas that are none.
pub fn alphas_cumprod(config: &Config) -> Result<Vec<f32>> {
    Ok(NoiseSchedule::read(config, BetaDefaults::DDPM, &[], true)?.alphas_cumprod)
}

/// A rule from a range of betas to a sequence of them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Betas {
    Linear,
    ScaledLinear,
    /// The cosine schedule of Nichol & Dhariwal (2021).
    Cosine,
    Exponential,
    Laplace,
    Sigmoid,
}

/// The rules that every class knows; some know more.
pub(super) const COMMON_BETAS: [(&str, Betas); 3] = [
    ("linear", Betas::Linear),
    ("scaled_linear", Betas::ScaledLinear),
    ("squaredcos_cap_v2", Betas::Cosine),
];

/// What a class takes where its configuration is silent.
pub(super) struct BetaDefaults {
    pub start: f64,
    pub end: f64,
    pub schedule: &'static str,
}

impl BetaDefaults {
    /// Of most classes.
    pub const DDPM: Self = Self { start: 0.0001, end: 0.02, schedule: "linear" };
}

impl NoiseSchedule {
    /// Reads `num_train_timesteps`, `beta_start`, `beta_end`, `beta_schedule`, `trained_betas` and, of the classes that
    /// have it, `rescale_betas_zero_snr`.
    pub fn read(
        config: &Config,
        defaults: BetaDefaults,
        more: &[(&str, Betas)],
        can_rescale: bool,
    ) -> Result<Self> {
        let n = config.usize("num_train_timesteps", 1000)?;
        if !(2..=MAX_TRAIN_TIMESTEPS).contains(&n) {
            return Err(config.wrong(
                "num_train_timesteps",
                &format!("a count from 2 to {MAX_TRAIN_TIMESTEPS}"),
            ));
        }
        let (start, end) =
            (config.f64("beta_start", defaults.start)?, config.f64("beta_end", defaults.end)?);
        let rules: Vec<_> = COMMON_BETAS.iter().chain(more).copied().collect();
        let trained: Option<Vec<f64>> = config.get("trained_betas", "a list of numbers")?;
        let mut betas: Vec<f32> = match trained {
            Some(betas) if betas.len() != n => {
                return Err(
                    config.wrong("trained_betas", &format!("num_train_timesteps = {n} numbers"))
                );
            }
            Some(betas) => betas.into_iter().map(|b| b as f32).collect(),
            None => config.choice("beta_schedule", defaults.schedule, &rules)?.betas(start, end, n),
        };
        if can_rescale && config.bool("rescale_betas_zero_snr", false)? {
            betas = rescale_zero_terminal_snr(&betas);
        }
        let alphas_cumprod = cumulative_product(betas.iter().map(|beta| 1.0 - beta));
        // With a first beta of 0 there would be no noise at timestep 0, and samplers divide by it.
        if betas[0] > 0.0 && betas.iter().all(|beta| (0.0..=1.0).contains(beta)) {
            return Ok(Self { alphas_cumprod });
        }
        let range = |pick: fn(f32, f32) -> f32| betas.iter().copied().fold(betas[0], pick);
        Err(Error::file(
            config.path(),
            "beta_start, beta_end, beta_schedule and trained_betas",
            "betas between 0 and 1",
            format!("betas from {} to {}", range(f32::min), range(f32::max)),
            "Correct the file.",
        ))
    }

    /// Number of training timesteps.
    pub fn len(&self) -> usize {
        self.alphas_cumprod.len()
    }

    /// Signal level after timestep `t`.
    pub fn alpha_bar(&self, t: usize) -> f32 {
        self.alphas_cumprod[t]
    }

    /// Noise over signal at every timestep. With a zero terminal SNR the last would be infinite; diffusers puts
    /// 2^-24 for its signal, and so do we.
    pub fn sigmas(&self) -> Vec<f32> {
        let sigma = |&a: &f32| {
            let a = if a == 0.0 { 2f32.powi(-24) } else { a };
            ((1.0 - a) / a).sqrt()
        };
        self.alphas_cumprod.iter().map(sigma).collect()
    }
}

impl Betas {
    fn betas(self, start: f64, end: f64, n: usize) -> Vec<f32> {
        match self {
            Self::Linear => linspace_f32(start as f32, end as f32, n),
            Self::ScaledLinear => {
                let roots = linspace_f32(start.sqrt() as f32, end.sqrt() as f32, n);
                roots.into_iter().map(|root| root * root).collect()
            }
            Self::Sigmoid => {
                let range = (end - start) as f32;
                let sigmoid = |x: f32| (1.0 / (1.0 + (-x as f64).exp())) as f32;
                let ramp = linspace_f32(-6.0, 6.0, n);
                ramp.into_iter().map(|x| sigmoid(x) * range + start as f32).collect()
            }
            Self::Cosine => from_signal(n, |t| ((t + 0.008) / 1.008 * FRAC_PI_2).cos().powi(2)),
            Self::Exponential => from_signal(n, |t| (-12.0 * t).exp()),
            Self::Laplace => from_signal(n, |t| {
                let log_snr =
                    -0.5 * 1f64.copysign(0.5 - t) * (1.0 - 2.0 * (0.5 - t).abs() + 1e-6).ln();
                let snr = log_snr.exp();
                (snr / (1.0 + snr)).sqrt()
            }),
        }
    }
}

/// Betas whose cumulative signal follows a function of time in [0, 1].
fn from_signal(n: usize, signal: impl Fn(f64) -> f64) -> Vec<f32> {
    let at = |i: usize| signal(i as f64 / n as f64);
    (0..n).map(|i| (1.0 - at(i + 1) / at(i)).min(0.999) as f32).collect()
}

/// `torch.linspace` in f32: from both ends towards the middle, with a fused multiply-add.
pub(super) fn linspace_f32(start: f32, end: f32, n: usize) -> Vec<f32> {
    if n == 1 {
        return vec![start];
    }
    let step = (end - start) / (n - 1) as f32;
    let at = |i: usize| match i < n / 2 {
        true => step.mul_add(i as f32, start),
        false => (-step).mul_add((n - 1 - i) as f32, end),
    };
    (0..n).map(at).collect()
}

/// `torch.cumprod` on the CPU: accumulated in f64, every term rounded to f32.
fn cumulative_product(factors: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut product = 1f64;
    factors
        .map(|factor| {
            product *= factor as f64;
            product as f32
        })
        .collect()
}

/// Shifts and scales the signal so that nothing of it is left at the end (Lin et al. 2023, algorithm 1).
fn rescale_zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let mut roots = cumulative_product(betas.iter().map(|beta| 1.0 - beta));
    roots.iter_mut().for_each(|a| *a = a.sqrt());
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    let signal: Vec<f32> = roots
        .into_iter()
        .map(|root| {
            let root = (root - last) * scale;
            root * root
        })
        .collect();
    (0..signal.len())
        .map(|t| 1.0 - if t == 0 { signal[0] } else { signal[t] / signal[t - 1] })
        .collect()
}
