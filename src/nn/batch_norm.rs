//! Batch normalisation, with the statistics that training gathers.

use crate::error::Result;
use crate::nn::{Parameter, Params, module};
use crate::ops::norm;
use crate::tensor::Tensor;

/// PyTorch's default, as torchvision's models have it.
const EPS: f32 = 1e-5;

/// Share by which a batch moves the running statistics; likewise.
const MOMENTUM: f32 = 0.1;

/// What a model is run for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By the statistics that training has gathered.
    Use,
    /// By those of the batch, which move the gathered ones.
    Training,
}

/// Batch normalisation of [B, H, W, C].
pub struct BatchNorm {
    gamma: Parameter,
    beta: Parameter,
    mean: Parameter,
    variance: Parameter,
}

module!(BatchNorm {
    "weight": gamma,
    "bias": beta,
    "running_mean": mean,
    "running_var": variance,
});

impl BatchNorm {
    /// Reads `weight`, `bias`, `running_mean` and `running_var` `[channels]`; no gradient reaches the last two.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(p: &Params, channels: usize) -> Result<Self> {
        let gathered = p.untrained();
        Ok(Self {
            gamma: p.vector("weight", channels)?,
            beta: p.vector("bias", channels)?,
            mean: gathered.vector("running_mean", channels)?,
            variance: gathered.vector("running_var", channels)?,
        })
    }

    /// [`Self::forward`] or [`Self::forward_training`].
    ///
    /// # Errors
    /// `Value` in training when the parameters are frozen.
    pub fn forward_in(&self, x: &Tensor, mode: Mode) -> Result<Tensor> {
        match mode {
            Mode::Use => self.forward(x),
            Mode::Training => self.forward_training(x),
        }
    }

    /// `x` [B, H, W, C], by the statistics that training has gathered.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (gamma, beta) = (self.gamma.value(), self.beta.value());
        norm::batch_norm_with(x, &gamma, &beta, &self.mean.value(), &self.variance.value(), EPS)
    }

    /// `x` [B, H, W, C], by its own statistics, which move the gathered ones.
    ///
    /// # Errors
    /// `Value` when the parameters are frozen.
    pub fn forward_training(&self, x: &Tensor) -> Result<Tensor> {
        let (y, batch) = norm::batch_norm(x, &self.gamma.value(), &self.beta.value(), EPS)?;
        self.mean.set(&norm::moved(&self.mean.value(), &batch.mean, MOMENTUM)?)?;
        self.variance.set(&norm::moved(&self.variance.value(), &batch.variance, MOMENTUM)?)?;
        Ok(y)
    }
}
