//! Training in 16 bits (Micikevicius et al. 2018): networks compute in bf16 or fp16, while weights, moments, averages and
//! losses stay f32. The gradient by a weight is f32 too, summed over products of 16-bit numbers.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::tensor::{DType, Device};

/// What networks compute in while they are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MixedPrecision {
    /// In f32
    #[default]
    No,
    /// In bf16
    Bf16,
    /// In f16, with losses scaled so that small gradients do not vanish
    Fp16,
}

impl MixedPrecision {
    /// What layers compute in.
    pub fn dtype(self) -> DType {
        match self {
            Self::No => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::Fp16 => DType::F16,
        }
    }

    /// The value of `--mixed_precision`.
    pub fn name(self) -> &'static str {
        match self {
            Self::No => "no",
            Self::Bf16 => "bf16",
            Self::Fp16 => "fp16",
        }
    }
}

/// Where networks compute while they are trained, and in what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compute {
    /// Where.
    pub device: Device,
    /// In what.
    pub precision: MixedPrecision,
}

impl From<Device> for Compute {
    /// In f32.
    fn from(device: Device) -> Self {
        Self { device, precision: MixedPrecision::No }
    }
}

/// Steps in a row without an overflow behind which the scale is doubled.
const GROWTH_INTERVAL: u64 = 2000;
/// The largest scale: a loss of some thousands times it is an f32.
const MOST: f64 = (1u128 << 100) as f64;

/// What a loss in fp16 is multiplied by, and its gradients are divided by: as large as they can bear, found by trying
/// (torch's `GradScaler`). Part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScaler {
    /// A power of two.
    scale: f64,
    /// Steps since it was changed.
    steps: u64,
}

impl Default for LossScaler {
    fn default() -> Self {
        Self { scale: 65536.0, steps: 0 }
    }
}

impl LossScaler {
    /// That of a run in this precision: none but in fp16.
    pub fn new(precision: MixedPrecision) -> Option<Self> {
        (precision == MixedPrecision::Fp16).then(Self::default)
    }

    /// The factor.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Takes up how the gradient of a step came out: halved where it was not finite, and the step is to be skipped;
    /// doubled behind 2000 finite ones.
    ///
    /// # Errors
    /// `NotFinite` when it overflows unscaled.
    pub fn take_up(&mut self, finite: bool) -> Result<()> {
        self.steps += 1;
        if !finite {
            self.scale *= 0.5;
            self.steps = 0;
        } else if self.steps == GROWTH_INTERVAL {
            self.scale = (2.0 * self.scale).min(MOST);
            self.steps = 0;
        }
        if self.scale < 1.0 {
            let message = "gradients in fp16 overflow whatever the loss is scaled by: train with --mixed_precision bf16, \
                           or resume from a checkpoint with a lower learning rate";
            return Err(Error::NotFinite(message.to_owned()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_is_halved_by_an_overflow_and_doubled_behind_2000_steps_without() {
        let mut scaler = LossScaler::new(MixedPrecision::Fp16).unwrap();
        let mut take_up = |finite, times| {
            (0..times).for_each(|_| scaler.take_up(finite).unwrap());
            // As if it had been killed and resumed.
            scaler = serde_json::from_str(&serde_json::to_string(&scaler).unwrap()).unwrap();
            scaler.scale()
        };
        assert_eq!(take_up(true, 1999), 65536.0);
        assert_eq!(take_up(true, 1), 131_072.0);
        assert_eq!(take_up(true, 1999), 131_072.0);
        assert_eq!(take_up(false, 1), 65536.0);
        assert_eq!(take_up(true, 1999), 65536.0);
        assert_eq!(take_up(true, 1), 131_072.0);
        assert_eq!(take_up(false, 17), 1.0);
        assert!(matches!(scaler.take_up(false), Err(Error::NotFinite(_))));
        for precision in [MixedPrecision::No, MixedPrecision::Bf16] {
            assert!(LossScaler::new(precision).is_none());
        }
    }
}
