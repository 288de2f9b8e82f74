//! The settings of a run: the one definition that the library, the command line and checkpoints follow. Flags have the
//! names of diffusers' training scripts.

use clap::Args;
use serde::{Deserialize, Serialize};

use super::precision::MixedPrecision;
use super::schedule::Schedule;
use crate::error::{Error, Result};

/// How a run goes, whatever is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Args)]
#[serde(default)]
#[command(next_help_heading = "Training")]
pub struct Settings {
    /// Pictures, or texts, of a batch
    #[arg(long, value_name = "N", default_value_t = 16, allow_negative_numbers = true)]
    pub train_batch_size: usize,

    /// Batches whose gradients make one step
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    pub gradient_accumulation_steps: usize,

    /// Keep of each block what it is given, and compute it again for its gradient: less memory for more time, and the
    /// same bits
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(action = clap::ArgAction::Set, default_value_t = false, hide_default_value = true)]
    #[arg(hide_possible_values = true)]
    pub gradient_checkpointing: bool,

    /// What networks compute in; weights, what the optimiser keeps, and losses are f32 in any case
    #[arg(long, value_enum, default_value_t)]
    pub mixed_precision: MixedPrecision,

    /// Steps of the whole run, those before a checkpoint included
    #[arg(long, value_name = "N", default_value_t = 1000, allow_negative_numbers = true)]
    pub max_train_steps: u64,

    /// Learning rate behind the warm-up
    #[arg(long, value_name = "X", default_value_t = 1e-4, allow_negative_numbers = true)]
    pub learning_rate: f64,

    /// How the learning rate goes on behind the warm-up
    #[arg(long, value_name = "NAME", value_enum, default_value_t)]
    pub lr_scheduler: Schedule,

    /// Steps in which the learning rate rises
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub lr_warmup_steps: u64,

    /// What a plateau of the losses multiplies the rate by (--lr-scheduler plateau)
    #[arg(long, value_name = "X", default_value_t = 0.1, allow_negative_numbers = true)]
    pub lr_plateau_factor: f64,

    /// Validations without a better loss that are no plateau yet
    #[arg(long, value_name = "N", default_value_t = 10, allow_negative_numbers = true)]
    pub lr_plateau_patience: u64,

    /// Share of the best loss that a better one is less by
    #[arg(long, value_name = "X", default_value_t = 1e-4, allow_negative_numbers = true)]
    pub lr_plateau_threshold: f64,

    /// Validations behind a fall of the rate that count for nothing
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub lr_plateau_cooldown: u64,

    /// Rate below which it does not fall
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub lr_plateau_min: f64,

    /// Stop when so many validations in a row have not found a lower loss: that of what is held out, or else that of
    /// training, smoothed [default: never]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub early_stopping_patience: Option<u64>,

    /// By how much a loss has to be lower
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub early_stopping_min_delta: f64,

    /// Decay of the moving average of gradients
    #[arg(long, value_name = "X", default_value_t = 0.9, allow_negative_numbers = true)]
    pub adam_beta1: f64,

    /// Decay of the moving average of their squares
    #[arg(long, value_name = "X", default_value_t = 0.999, allow_negative_numbers = true)]
    pub adam_beta2: f64,

    /// Added to the root of that average
    #[arg(long, value_name = "X", default_value_t = 1e-8, allow_negative_numbers = true)]
    pub adam_epsilon: f64,

    /// Share of the weights that is taken away in a step, times the learning rate
    #[arg(long, value_name = "X", default_value_t = 1e-2, allow_negative_numbers = true)]
    pub adam_weight_decay: f64,

    /// Longest gradient: a longer one is shortened to this
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    pub max_grad_norm: f64,

    /// Keep a moving average of the weights, and export that
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    #[arg(action = clap::ArgAction::Set, default_value_t = false, hide_default_value = true)]
    #[arg(hide_possible_values = true)]
    pub use_ema: bool,

    /// Decay of that average; less in the first steps
    #[arg(long, value_name = "X", default_value_t = 0.9999, allow_negative_numbers = true)]
    pub ema_decay: f64,

    /// What order, augmentation, noise and new weights are drawn from
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub seed: u64,

    /// Steps between checkpoints; one more is saved at the end
    #[arg(long, value_name = "N", default_value_t = 500, allow_negative_numbers = true)]
    pub checkpointing_steps: u64,

    /// Checkpoints to keep, the latest ones [default: all]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub checkpoints_total_limit: Option<usize>,

    /// Share of the pictures that is held out and looked at with every checkpoint; 0 for none
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    pub validation_split: f64,

    /// Steps between looks at what is held out, and between pictures drawn [default: with every checkpoint]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub validation_steps: Option<u64>,

    /// Threads that read, decode and augment pictures ahead
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true)]
    #[serde(skip)]
    pub loader_threads: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            train_batch_size: 16,
            gradient_accumulation_steps: 1,
            gradient_checkpointing: false,
            mixed_precision: MixedPrecision::No,
            max_train_steps: 1000,
            learning_rate: 1e-4,
            lr_scheduler: Schedule::Constant,
            lr_warmup_steps: 0,
            lr_plateau_factor: 0.1,
            lr_plateau_patience: 10,
            lr_plateau_threshold: 1e-4,
            lr_plateau_cooldown: 0,
            lr_plateau_min: 0.0,
            early_stopping_patience: None,
            early_stopping_min_delta: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            adam_weight_decay: 1e-2,
            max_grad_norm: 1.0,
            use_ema: false,
            ema_decay: 0.9999,
            seed: 0,
            checkpointing_steps: 500,
            checkpoints_total_limit: None,
            validation_split: 0.0,
            validation_steps: None,
            loader_threads: 1,
        }
    }
}

impl Settings {
    /// Checks what no run can be made of.
    ///
    /// # Errors
    /// `Argument`, naming the field.
    pub fn check(&self) -> Result<()> {
        for (name, n) in [
            ("train_batch_size", self.train_batch_size as u64),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps as u64),
            ("max_train_steps", self.max_train_steps),
            ("checkpointing_steps", self.checkpointing_steps),
            ("checkpoints_total_limit", self.checkpoints_total_limit.unwrap_or(1) as u64),
            ("validation_steps", self.validation_steps.unwrap_or(1)),
            ("early_stopping_patience", self.early_stopping_patience.unwrap_or(1)),
            ("loader_threads", self.loader_threads as u64),
        ] {
            if n == 0 {
                return Err(Error::argument(name, n, "at least 1"));
            }
        }
        let above_zero = |x: f64| x > 0.0 && x.is_finite();
        for (name, x, good, expected) in [
            (
                "learning_rate",
                self.learning_rate,
                above_zero(self.learning_rate),
                "a number above 0",
            ),
            (
                "max_grad_norm",
                self.max_grad_norm,
                above_zero(self.max_grad_norm),
                "a number above 0",
            ),
            ("adam_epsilon", self.adam_epsilon, above_zero(self.adam_epsilon), "a number above 0"),
            ("adam_beta1", self.adam_beta1, (0.0..1.0).contains(&self.adam_beta1), "0 to below 1"),
            ("adam_beta2", self.adam_beta2, (0.0..1.0).contains(&self.adam_beta2), "0 to below 1"),
            ("ema_decay", self.ema_decay, (0.0..1.0).contains(&self.ema_decay), "0 to below 1"),
            (
                "lr_plateau_factor",
                self.lr_plateau_factor,
                self.lr_plateau_factor > 0.0 && self.lr_plateau_factor < 1.0,
                "above 0 and below 1",
            ),
            (
                "lr_plateau_threshold",
                self.lr_plateau_threshold,
                (0.0..1.0).contains(&self.lr_plateau_threshold),
                "0 to below 1",
            ),
            (
                "lr_plateau_min",
                self.lr_plateau_min,
                (0.0..=self.learning_rate).contains(&self.lr_plateau_min),
                "0 to the learning rate",
            ),
            (
                "early_stopping_min_delta",
                self.early_stopping_min_delta,
                self.early_stopping_min_delta >= 0.0 && self.early_stopping_min_delta.is_finite(),
                "a number from 0 on",
            ),
            (
                "adam_weight_decay",
                self.adam_weight_decay,
                (0.0..=1.0).contains(&self.adam_weight_decay),
                "0 to 1",
            ),
            (
                "validation_split",
                self.validation_split,
                (0.0..1.0).contains(&self.validation_split),
                "0 to below 1",
            ),
        ] {
            if !good {
                return Err(Error::argument(name, x, expected));
            }
        }
        Ok(())
    }

    /// The learning rate of step `step`, from 0 on; `behind` is that behind the warm-up, before it falls by schedule.
    pub fn rate_at(&self, step: u64, behind: f64) -> f64 {
        let (warmup, steps) = (self.lr_warmup_steps, self.max_train_steps);
        behind * self.lr_scheduler.factor(step, warmup, steps)
    }

    /// The decay of the weights' average in step `number`, from 1 on: an average over few steps forgets sooner
    /// (diffusers' EMAModel).
    pub fn ema_decay_at(&self, number: u64) -> f64 {
        let steps = number as f64;
        self.ema_decay.min(steps / (9.0 + steps))
    }

    /// Whether held-out pictures are looked at behind `step` steps.
    pub fn validates_at(&self, step: u64) -> bool {
        step.is_multiple_of(self.validation_steps.unwrap_or(self.checkpointing_steps))
    }

    /// Pictures of a step.
    pub fn pictures(&self) -> u64 {
        (self.train_batch_size * self.gradient_accumulation_steps) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_run_can_be_made_of_is_refused() {
        let good = Settings::default();
        assert!(good.check().is_ok());
        let bad = [
            Settings { learning_rate: f64::NAN, ..good.clone() },
            Settings { learning_rate: 0.0, ..good.clone() },
            Settings { max_grad_norm: f64::INFINITY, ..good.clone() },
            Settings { ema_decay: 1.0, ..good.clone() },
            Settings { adam_beta2: f64::NAN, ..good.clone() },
            Settings { validation_split: -0.1, ..good.clone() },
            Settings { train_batch_size: 0, ..good.clone() },
            Settings { validation_steps: Some(0), ..good.clone() },
            Settings { lr_plateau_factor: 1.0, ..good.clone() },
            Settings { lr_plateau_min: 1.0, ..good.clone() },
            Settings { early_stopping_patience: Some(0), ..good.clone() },
            Settings { early_stopping_min_delta: f64::NAN, ..good.clone() },
            Settings { checkpoints_total_limit: Some(0), ..good },
        ];
        for settings in bad {
            let error = settings.check().unwrap_err();
            assert!(matches!(error, Error::Argument { .. }), "{error}");
        }
    }

    #[test]
    fn the_average_forgets_sooner_at_first() {
        let settings = Settings::default();
        assert_eq!(settings.ema_decay_at(1), 0.1);
        assert_eq!(settings.ema_decay_at(11), 0.55);
        assert_eq!(settings.ema_decay_at(1_000_000), 0.9999);
    }
}
