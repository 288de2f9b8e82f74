//! The learning rate over the steps of a run.

use std::f64::consts::PI;

/// How the learning rate goes on behind the warm-up; diffusers' names.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// As it is.
    #[default]
    #[value(alias = "constant_with_warmup", alias = "constant-with-warmup")]
    Constant,
    /// In a straight line to 0.
    Linear,
    /// In half a cosine to 0 (Loshchilov & Hutter 2017, without restarts).
    Cosine,
    /// As it is, until losses stay: then it falls, as torch's ReduceLROnPlateau lets it
    #[value(alias = "reduce_lr_on_plateau")]
    Plateau,
}

impl Schedule {
    /// The factor of step `step` (from 0 on) of `steps`, of which the first `warmup` rise in a straight line.
    pub fn factor(self, step: u64, warmup: u64, steps: u64) -> f64 {
        if step < warmup {
            // From 1 / (warmup + 1) on: a first step with a rate of 0 would be lost.
            return (step + 1) as f64 / (warmup + 1) as f64;
        }
        let done = (step - warmup) as f64 / (steps.saturating_sub(warmup)).max(1) as f64;
        let done = done.min(1.0);
        match self {
            Self::Constant | Self::Plateau => 1.0,
            Self::Linear => 1.0 - done,
            Self::Cosine => 0.5 * (1.0 + (PI * done).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_and_fall() {
        for schedule in [Schedule::Constant, Schedule::Linear, Schedule::Cosine, Schedule::Plateau]
        {
            let factor = |step| schedule.factor(step, 3, 13);
            assert_eq!([0, 1, 2, 3].map(factor), [0.25, 0.5, 0.75, 1.0], "{schedule:?}");
        }
        let middle = |schedule: Schedule| schedule.factor(8, 3, 13);
        assert_eq!(middle(Schedule::Constant), 1.0);
        assert_eq!(middle(Schedule::Linear), 0.5);
        assert!((middle(Schedule::Cosine) - 0.5).abs() < 1e-15);
        for schedule in [Schedule::Linear, Schedule::Cosine] {
            assert_eq!(schedule.factor(13, 3, 13), 0.0);
            assert_eq!(schedule.factor(99, 3, 13), 0.0);
        }
        assert_eq!(Schedule::Linear.factor(0, 0, 0), 1.0);
    }
}
