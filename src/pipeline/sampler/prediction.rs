//! What the model's output says about the image: `prediction_type`, and the bounds put on the denoised sample.
//!
//! Throughout, a noisy sample is `x = alpha * x0 + sigma * noise`.

use crate::error::{Error, Result};
use crate::io::config::Config;
use crate::ops::elementwise::{clamp, linear_combination};
use crate::tensor::{DType, Tensor};

/// `prediction_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prediction {
    /// The noise.
    Epsilon,
    /// The denoised sample.
    Sample,
    /// `alpha * noise - sigma * x0` (Salimans & Ho 2022).
    Velocity,
}

/// Weights of the noisy sample and of the model's output in a sum.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Mix {
    pub sample: f64,
    pub output: f64,
}

impl Prediction {
    pub const ALL: [(&'static str, Self); 3] =
        [("epsilon", Self::Epsilon), ("v_prediction", Self::Velocity), ("sample", Self::Sample)];

    /// Reads `prediction_type`; any of the three.
    pub fn read(config: &Config) -> Result<Self> {
        config.choice("prediction_type", "epsilon", &Self::ALL)
    }

    /// Reads `prediction_type` of a class that takes no "sample".
    pub fn read_without_sample(config: &Config) -> Result<Self> {
        config.choice("prediction_type", "epsilon", &Self::ALL[..2])
    }

    /// The denoised sample.
    pub fn denoised(self, alpha: f64, sigma: f64) -> Mix {
        match self {
            Self::Epsilon => Mix { sample: 1.0 / alpha, output: -sigma / alpha },
            Self::Sample => Mix { sample: 0.0, output: 1.0 },
            Self::Velocity => Mix { sample: alpha, output: -sigma },
        }
    }

    /// The noise.
    pub fn noise(self, alpha: f64, sigma: f64) -> Mix {
        match self {
            Self::Epsilon => Mix { sample: 0.0, output: 1.0 },
            Self::Sample => Mix { sample: 1.0 / sigma, output: -alpha / sigma },
            Self::Velocity => Mix { sample: sigma, output: alpha },
        }
    }

    /// The noise, for samplers whose samples are `x0 + sigma * noise`: dx/dsigma of the probability flow.
    pub fn derivative(self, sigma: f64) -> Mix {
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        match self {
            Self::Epsilon => Mix { sample: 0.0, output: 1.0 },
            Self::Sample => Mix { sample: 1.0 / sigma, output: -1.0 / sigma },
            Self::Velocity => Mix { sample: sigma * alpha * alpha, output: alpha },
        }
    }
}

impl Mix {
    /// `self.sample * sample + self.output * output`; no kernel when that is `output` itself.
    pub fn apply(self, sample: &Tensor, output: &Tensor) -> Result<Tensor> {
        if self == (Mix { sample: 0.0, output: 1.0 }) {
            return Ok(output.clone());
        }
        combine(&[(self.sample, sample), (self.output, output)])
    }
}

/// Bounds on the denoised sample: `clip_sample`, `thresholding`. Made for models of pixels; off for latents.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Clip {
    Off,
    /// To [-range, range].
    Range(f32),
    /// Dynamic thresholding (Saharia et al. 2022): to a quantile of each image's magnitudes, then scaled back to 1.
    Dynamic {
        ratio: f64,
        max: f32,
    },
}

impl Clip {
    /// Reads `thresholding` and its companions, then `clip_sample` and `clip_sample_range`, of the classes that have
    /// both; the first wins.
    pub fn read(config: &Config, clips_by_default: bool) -> Result<Self> {
        match Self::read_thresholding(config)? {
            Self::Off => Self::read_range(config, clips_by_default),
            clip => Ok(clip),
        }
    }

    /// Reads `clip_sample` and `clip_sample_range`.
    pub fn read_range(config: &Config, clips_by_default: bool) -> Result<Self> {
        Ok(match config.bool("clip_sample", clips_by_default)? {
            true => Self::Range(config.f32("clip_sample_range", 1.0)?.abs()),
            false => Self::Off,
        })
    }

    /// Reads `thresholding`, `dynamic_thresholding_ratio` and `sample_max_value`.
    pub fn read_thresholding(config: &Config) -> Result<Self> {
        if !config.bool("thresholding", false)? {
            return Ok(Self::Off);
        }
        let ratio = config.f64("dynamic_thresholding_ratio", 0.995)?;
        if !(0.0..=1.0).contains(&ratio) {
            return Err(config.wrong("dynamic_thresholding_ratio", "a number from 0 to 1"));
        }
        Ok(Self::Dynamic { ratio, max: config.f32("sample_max_value", 1.0)? })
    }

    /// The bounded `x0` [B, ...].
    pub fn apply(self, x0: Tensor) -> Result<Tensor> {
        match self {
            Self::Off => Ok(x0),
            Self::Range(range) => clamp(&x0, -range, range),
            Self::Dynamic { ratio, max } => threshold(&x0, ratio, max),
        }
    }

    /// One step of a sampler that goes by the denoised sample: the sum of `x0`, `sample` and `output` with `weights`,
    /// where `denoised` gives x0, and `noise` with its own. One pass unless x0 is bounded.
    pub fn step(
        self,
        denoised: Mix,
        mut weights: Weights,
        sample: &Tensor,
        output: &Tensor,
        noise: Option<(f64, &Tensor)>,
    ) -> Result<Tensor> {
        let x0;
        let mut terms = vec![];
        if self == Self::Off {
            weights.sample += weights.x0 * denoised.sample;
            weights.output += weights.x0 * denoised.output;
        } else {
            x0 = self.apply(denoised.apply(sample, output)?)?;
            terms.push((weights.x0, &x0));
        }
        terms.extend([(weights.sample, sample), (weights.output, output)]);
        terms.extend(noise);
        combine(&terms)
    }
}

/// Weights of a step's sum: the denoised sample, the noisy one, the model's output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights {
    pub x0: f64,
    pub sample: f64,
    pub output: f64,
}

/// Dynamic thresholding, on the host: models of pixels are small, and latents never come here.
fn threshold(x0: &Tensor, ratio: f64, max: f32) -> Result<Tensor> {
    let mut values = x0.to_vec::<f32>()?;
    let images = x0.dims().first().copied().unwrap_or(1).max(1);
    for image in values.chunks_exact_mut((x0.len() / images).max(1)) {
        // torch.clamp(s, min = 1, max): where they cross, the upper bound wins.
        let bound = quantile_of_magnitudes(image, ratio).max(1.0).min(max);
        for x in image {
            // Not clamp: NaN must stay NaN.
            *x = if *x > bound {
                1.0
            } else if *x < -bound {
                -1.0
            } else {
                *x / bound
            };
        }
    }
    Tensor::from_vec(values, *x0.shape())?.to_device(x0.device())
}

/// `torch.quantile` of absolute values, linear between neighbours.
fn quantile_of_magnitudes(values: &[f32], ratio: f64) -> f32 {
    let mut magnitudes: Vec<f32> = values.iter().map(|x| x.abs()).collect();
    magnitudes.sort_by(f32::total_cmp);
    let rank = ratio as f32 * (magnitudes.len() - 1) as f32;
    let (low, high) = (rank.floor() as usize, rank.ceil() as usize);
    let (a, b) = (magnitudes[low], magnitudes[high]);
    a + (b - a) * (rank - rank.floor())
}

/// Sum of weighted tensors in one pass; weights of 0 are left out.
///
/// # Errors
/// `NotFinite` when a weight is not a finite number: the schedule asks for what the prediction cannot tell, as the noise
/// where there is none.
pub(super) fn combine(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    if terms.iter().any(|(weight, _)| !weight.is_finite()) {
        return Err(Error::NotFinite(
            "the sampler's schedule has a step without signal or without noise that its prediction_type cannot \
             take: try prediction_type v_prediction, another timestep_spacing or fewer steps"
                .to_owned(),
        ));
    }
    let kept: Vec<(f32, &Tensor)> =
        terms.iter().filter(|(w, _)| *w != 0.0).map(|&(w, t)| (w as f32, t)).collect();
    match (kept.as_slice(), terms) {
        ([], [(_, t), ..]) => Tensor::zeros(*t.shape(), DType::F32, t.device()),
        (kept, _) => linear_combination(kept),
    }
}
