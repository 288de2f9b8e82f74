//! What a run makes of its own progress: a lower learning rate where losses stay, and an end where they stay for long.

use serde::{Deserialize, Serialize};

use super::schedule::Schedule;
use super::settings::Settings;

/// Share of a step's loss in the smoothed one, which is watched where nothing is held out.
const SMOOTHING: f64 = 0.02;
/// A rate is left as it is where the new one would differ by no more (torch's `eps`).
const LEAST_CHANGE: f64 = 1e-8;

/// What has been seen so far; part of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Watch {
    smoothed: Option<Exact>,
    plateau: Plateau,
    /// The least loss, and how often in a row a later one was not less.
    least: Option<Exact>,
    waited: u64,
}

/// As torch's `ReduceLROnPlateau` with mode `min` and a relative threshold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Plateau {
    best: Option<Exact>,
    bad: u64,
    cooldown: u64,
    /// The learning rate, once it has fallen.
    rate: Option<Exact>,
}

/// A number whose text gives all of its bits back.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
struct Exact(f64);

impl From<Exact> for String {
    fn from(number: Exact) -> Self {
        number.0.to_string()
    }
}

impl TryFrom<String> for Exact {
    type Error = std::num::ParseFloatError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

impl Watch {
    /// Takes up a step's loss.
    pub fn step(&mut self, loss: f64) {
        let before = self.smoothed.map_or(loss, |Exact(before)| before);
        self.smoothed = Some(Exact(before + SMOOTHING * (loss - before)));
    }

    /// Takes up the loss of what is held out, or else the smoothed one.
    pub fn validation(&mut self, held_out: Option<f64>, settings: &Settings) {
        let Some(loss) = held_out.or(self.smoothed.map(|Exact(loss)| loss)) else { return };
        self.plateau.step(loss, settings);
        let least = self.least.map_or(f64::INFINITY, |Exact(least)| least);
        // NaN is not less.
        if loss < least - settings.early_stopping_min_delta {
            (self.least, self.waited) = (Some(Exact(loss)), 0);
        } else {
            self.waited += 1;
        }
    }

    /// The learning rate behind the warm-up.
    pub fn rate(&self, settings: &Settings) -> f64 {
        if settings.lr_scheduler != Schedule::Plateau {
            return settings.learning_rate;
        }
        self.plateau.rate.map_or(settings.learning_rate, |Exact(rate)| rate)
    }

    /// Whether losses have stayed for as long as the settings wait.
    pub fn is_over(&self, settings: &Settings) -> bool {
        settings.early_stopping_patience.is_some_and(|patience| self.waited >= patience)
    }
}

impl Plateau {
    fn step(&mut self, loss: f64, settings: &Settings) {
        let best = self.best.map_or(f64::INFINITY, |Exact(best)| best);
        if loss < best * (1.0 - settings.lr_plateau_threshold) {
            (self.best, self.bad) = (Some(Exact(loss)), 0);
        } else {
            self.bad += 1;
        }
        if self.cooldown > 0 {
            self.cooldown -= 1;
            self.bad = 0;
        }
        if self.bad > settings.lr_plateau_patience {
            let before = self.rate.map_or(settings.learning_rate, |Exact(rate)| rate);
            let after = (before * settings.lr_plateau_factor).max(settings.lr_plateau_min);
            if before - after > LEAST_CHANGE {
                self.rate = Some(Exact(after));
            }
            (self.cooldown, self.bad) = (settings.lr_plateau_cooldown, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_where_losses_stay() {
        let settings = Settings {
            early_stopping_patience: Some(2),
            early_stopping_min_delta: 0.1,
            ..Settings::default()
        };
        let over = |losses: &[f64]| {
            let mut watch = Watch::default();
            losses
                .iter()
                .map(|loss| {
                    watch.validation(Some(*loss), &settings);
                    watch.is_over(&settings)
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(over(&[1.0, 0.95, 0.85, 0.8, 0.76]), [false, false, false, false, true]);
        assert_eq!(over(&[1.0, f64::NAN, f64::NAN]), [false, false, true]);
        let mut patient = Watch::default();
        (0..99).for_each(|_| patient.validation(Some(1.0), &Settings::default()));
        assert!(!patient.is_over(&Settings::default()));
    }

    #[test]
    fn where_nothing_is_held_out_the_smoothed_loss_is_watched() {
        let settings = Settings { early_stopping_patience: Some(1), ..Settings::default() };
        let mut watch = Watch::default();
        watch.validation(None, &settings);
        assert!(watch.least.is_none());
        watch.step(2.0);
        watch.validation(None, &settings);
        // A single low loss is noise; its share is taken.
        watch.step(1.0);
        watch.validation(None, &settings);
        assert_eq!(watch.least, Some(Exact(2.0 - SMOOTHING)));
        watch.step(3.0);
        watch.validation(None, &settings);
        assert!(watch.is_over(&settings));
    }

    #[test]
    fn a_checkpoint_has_all_bits() {
        let mut watch = Watch::default();
        for loss in [std::f64::consts::PI, 1e-300 / 3.0, 0.1 + 0.2] {
            watch.step(loss);
            watch.validation(Some(loss), &Settings::default());
        }
        let text = serde_json::to_string(&watch).unwrap();
        assert_eq!(serde_json::from_str::<Watch>(&text).unwrap(), watch);
        assert_eq!(serde_json::from_str::<Watch>("{}").unwrap(), Watch::default());
    }
}
