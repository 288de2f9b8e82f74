//! Which of the training timesteps a run of few steps visits (table 2 of Lin et al. 2023), in numpy's arithmetic.

use crate::error::{Error, Result};
use crate::io::config::Config;

/// `timestep_spacing`, with the `steps_offset` that goes with "leading".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spacing {
    /// Evenly from the first to the last training timestep.
    Linspace,
    /// Multiples of the whole ratio, from an offset on; misses the end.
    Leading {
        /// Added to every timestep.
        offset: usize,
    },
    /// From the end downwards; misses the beginning.
    Trailing,
}

impl Spacing {
    /// Reads `timestep_spacing` and `steps_offset`.
    pub fn read(config: &Config, default: &str) -> Result<Self> {
        let offset = config.usize("steps_offset", 0)?;
        if offset > 1000 {
            return Err(config.wrong("steps_offset", "an offset of at most 1000"));
        }
        let choices = [
            ("linspace", Self::Linspace),
            ("leading", Self::Leading { offset }),
            ("trailing", Self::Trailing),
        ];
        config.choice("timestep_spacing", default, &choices)
    }

    /// Whether the first timestep is the last of training, where nearly all is noise. diffusers starts such runs from
    /// `sigma`, others from `sqrt(sigma^2 + 1)`.
    pub fn starts_at_the_end(self) -> bool {
        !matches!(self, Self::Leading { .. })
    }

    /// `steps` timesteps, descending, not rounded where the rule does not round.
    ///
    /// # Errors
    /// `Argument` when there are not that many.
    pub fn timesteps(self, train: usize, steps: usize) -> Result<Vec<f64>> {
        check(steps, train)?;
        Ok(match self {
            Self::Linspace => linspace(0.0, (train - 1) as f64, steps).into_iter().rev().collect(),
            Self::Leading { offset } => {
                let ratio = train / steps;
                (0..steps).rev().map(|i| (i * ratio + offset) as f64).collect()
            }
            Self::Trailing => trailing(train as f64, train as f64 / steps as f64, steps),
        })
    }

    /// The same with whole timesteps.
    pub fn whole_timesteps(self, train: usize, steps: usize) -> Result<Vec<f64>> {
        let timesteps = self.timesteps(train, steps)?;
        Ok(timesteps.into_iter().map(f64::round_ties_even).collect())
    }

    /// The multistep solvers' reading: "linspace" and "leading" share the way out among `steps + 1` and leave out
    /// timestep 0. `end` is the timestep they start from, `train` unless the noisiest ones are clipped.
    pub fn solver_timesteps(self, train: usize, end: usize, steps: usize) -> Result<Vec<f64>> {
        check(steps, train)?;
        Ok(match self {
            Self::Linspace => {
                let all = linspace(0.0, end as f64 - 1.0, steps + 1);
                all.into_iter().skip(1).rev().map(f64::round_ties_even).collect()
            }
            Self::Leading { offset } => {
                let ratio = end / (steps + 1);
                if ratio == 0 {
                    return Err(too_many(steps, end - 1));
                }
                (1..=steps).rev().map(|i| (i * ratio + offset) as f64).collect()
            }
            Self::Trailing => trailing(end as f64, train as f64 / steps as f64, steps),
        })
    }
}

fn check(steps: usize, train: usize) -> Result<()> {
    match steps {
        0 => Err(Error::argument("steps", 0, "at least one step is needed")),
        _ if steps > train => Err(too_many(steps, train)),
        _ => Ok(()),
    }
}

fn too_many(steps: usize, most: usize) -> Error {
    Error::argument("steps", steps, format!("this scheduler has at most {most} steps"))
}

/// From `end` down in strides of `stride`, less one. Where rounding lets numpy's `arange` go on to 0, diffusers runs one
/// step more, at timestep -1; we take the number that was asked for.
fn trailing(end: f64, stride: f64, steps: usize) -> Vec<f64> {
    let delta = (end - stride) - end; // numpy takes the difference of the first two values
    let values = (0..steps).map(|i| end + i as f64 * delta).filter(|&t| t > 0.0);
    values.map(|t| t.round_ties_even() - 1.0).collect()
}

/// `numpy.linspace`, both ends included; `[start]` for one value.
pub(super) fn linspace(start: f64, end: f64, n: usize) -> Vec<f64> {
    let step = (end - start) / (n.max(2) - 1) as f64;
    let mut values: Vec<f64> = (0..n).map(|i| i as f64 * step + start).collect();
    if n > 1 {
        values[n - 1] = end;
    }
    values
}
